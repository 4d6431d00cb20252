"""What scripts, notebooks and tests call: `from pulso_etl import refresh, plan, status, query, read`."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import psycopg
import pyarrow as pa
import pytest
from pydantic import SecretStr

import pulso_etl
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SampleData
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import ContractError, LoadFailed, PlanError, SettingsError, SourceError
from pulso_etl.tables import TABLES
from pulso_etl_tests.clock import TODAY


@pytest.fixture(scope="module")
def data(emulator: BigQueryEmulator) -> SampleData:
    """Two days of sample data."""
    names = Settings(database_url=SecretStr("postgresql://nowhere"), bigquery_dataset="CALLS").sources()
    data = SampleData(names, TODAY, days=2, dashboard_rows_per_day=10)
    data.seed_into(emulator.client())
    return data


@pytest.fixture
def deployment(settings: Settings, data: SampleData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGQUERY_DATASET", "CALLS")


@pytest.mark.usefixtures("deployment")
def test_a_table_is_planned_refreshed_looked_at_and_read(conn: psycopg.Connection) -> None:
    planned = pulso_etl.plan("dashboard_data")
    (table,) = planned.tables
    assert "first load" in table.reason
    (days,) = table.days
    assert (days.ground, days.end, table.fault) == ("never_loaded", TODAY, None)
    assert planned.bytes_billed == table.bytes_billed == 10 * 2**20
    assert pulso_etl.status()["dashboard_data"].state == "never"

    outcome = pulso_etl.refresh("dashboard_data", start=str(TODAY - timedelta(days=1)), end=TODAY)
    assert (outcome.counts["read"], outcome.counts["inserted"]) == (20, 20)
    assert outcome.cost == pytest.approx(outcome.bytes_billed / 2**40 * 6.25, abs=1e-6)
    assert conn.execute("SELECT extraction_id, status FROM etl_extractions").fetchall() == [(outcome.run_id, "success")]
    again = pulso_etl.refresh("dashboard_data", force=True, start=TODAY, end=TODAY)
    assert (again.counts["unchanged"], again.counts["inserted"]) == (10, 0)

    stands = pulso_etl.status()
    assert set(stands) == set(TABLES)
    assert (stands["dashboard_data"].rows, stands["dashboard_data"].records, stands["dashboard_data"].error) == (20, 10, None)

    rows = pulso_etl.read("dashboard_data", str(TODAY), TODAY, columns=["fecha_foto", "archivo", "recupero"])
    assert isinstance(rows, pa.Table)
    assert (rows.num_rows, rows.column_names) == (10, ["fecha_foto", "archivo", "recupero"])
    assert isinstance(rows["recupero"][0].as_py(), Decimal)
    assert set(rows.to_pandas()["fecha_foto"]) == {TODAY}


@pytest.mark.usefixtures("deployment")
def test_a_query_gives_arrow_and_its_fault_is_told() -> None:
    assert pulso_etl.query("SELECT 1 AS test").to_pydict() == {"test": [1]}
    with pytest.raises(SourceError, match="the query failed"):
        pulso_etl.query("SELECT nothing FROM nowhere.at_all")


@pytest.mark.usefixtures("deployment")
def test_faults_are_the_errors_of_every_other_way_in(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError, match="unknown table"):
        pulso_etl.refresh("nobody_data")
    with pytest.raises(PlanError, match="'yesterday' is no day"):
        pulso_etl.read("dashboard_data", "yesterday", TODAY)
    with pytest.raises(PlanError, match="is after the last day"):
        pulso_etl.read("dashboard_data", TODAY, TODAY - timedelta(days=1))
    with pytest.raises(ContractError, match="not declared: nothing"):
        pulso_etl.read("dashboard_data", TODAY, TODAY, columns=["nothing"])
    with pytest.raises(PlanError, match="TENANTS_FILE is not set"):
        pulso_etl.status(tenant="acme")
    monkeypatch.setenv("BIGQUERY_DATASET", "NOWHERE")
    with pytest.raises(LoadFailed, match=r"operation_data: .*BigQuery"):
        pulso_etl.refresh("operation_data", start=TODAY, end=TODAY)
    monkeypatch.delenv("DATABASE_URL")
    with pytest.raises(SettingsError, match="DATABASE_URL: is not set"):
        pulso_etl.plan()
