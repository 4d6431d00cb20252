"""The five tables through Dagster: every row and column of PostgreSQL equals BigQuery's."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg
import psycopg
import pytest
from google.cloud import bigquery

from pulso_etl.definitions import build_defs
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.refreshing.execution import Outcome, run_plan
from pulso_etl.refreshing.plan import Calendar, plan_refresh
from pulso_etl.refreshing.request import Mode, RefreshRequest
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.spec import fill
from pulso_etl_tests.clock import TABLES
from pulso_etl_tests.conftest import seed


@pytest.fixture
def configured(settings: Settings, schema: str) -> Settings:
    return settings.model_copy(update={"database_schema": schema})


def refresh_all(settings: Settings, instance: dg.DagsterInstance) -> dict[str, Outcome]:
    defs, now = build_defs(settings), datetime.now(UTC)
    outcomes = {}
    for spec in TABLES.values():
        plan = plan_refresh(spec, None, RefreshRequest(mode=Mode.SLIDING_WINDOW, days=10), now, Calendar.of(settings))
        outcomes[spec.name] = run_plan(defs, instance, spec, plan)
        assert outcomes[spec.name].error is None
    return outcomes


Row = dict[str, Any]
Keyed = dict[tuple[Any, ...], Row]


def keyed(name: str, rows: Iterable[Row]) -> Keyed:
    """Rows by primary key. Of a table with snapshots, only the rows of the newest snapshot."""
    spec, found = TABLES[name], list(rows)
    newest: dict[tuple[Any, ...], date] = {}
    if spec.snapshot_of:
        for row in found:
            value = tuple(row[column] for column in spec.snapshot_of)
            newest[value] = max(row[spec.partition_column], newest.get(value, date.min))
        found = [row for row in found if row[spec.partition_column] == newest[tuple(row[c] for c in spec.snapshot_of)]]
    return {tuple(row[key] for key in spec.primary_key): row for row in found}


def source_rows(settings: Settings, emulator: BigQueryEmulator, name: str, window: DayRange) -> Keyed:
    """The rows of BigQuery. Only Google's client reads them."""
    config = bigquery.QueryJobConfig(
        query_parameters=[
            bigquery.ScalarQueryParameter("start", "DATE", window.start),
            bigquery.ScalarQueryParameter("end", "DATE", window.end),
        ]
    )
    with emulator.client() as client:
        found = client.query(fill(TABLES[name].source.query, settings.sources(), settings.timezone), job_config=config).result()
        return keyed(name, [dict(row) for row in found])


def target_rows(conn: psycopg.Connection, name: str) -> Keyed:
    columns = TABLES[name].column_names
    found = conn.execute(f"SELECT {', '.join(columns)} FROM {name}").fetchall()
    rows = keyed(name, [dict(zip(columns, row, strict=True)) for row in found])
    assert len(rows) == len(found)
    return rows


def without_stamps(name: str, rows: Keyed) -> Keyed:
    stamps = TABLES[name].stamp_columns
    return {key: {column: value for column, value in row.items() if column not in stamps} for key, row in rows.items()}


def stamps(rows: Keyed) -> set[datetime]:
    return {row["fecha_procesamiento"] for row in rows.values()}


def addresses(conn: psycopg.Connection) -> dict[str, set[tuple[Any, ...]]]:
    """The address of each row, by table. A row that was written again has another address, even if its values are the same."""
    return {name: set(conn.execute(f"SELECT xmin::text, ctid::text FROM {name}").fetchall()) for name in TABLES}


COMPUTED = [name for name, spec in TABLES.items() if spec.reading_stamps]
"""Tables whose stamp is the time of the query; that of the others is stored in the source."""


def test_postgresql_equals_bigquery_and_a_second_refresh_rewrites_nothing(
    configured: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        seed(configured, emulator)
        began = datetime.now(UTC)
        first = refresh_all(configured, instance)
        ended = datetime.now(UTC)
        for name, outcome in first.items():
            assert outcome.window is not None
            rows = target_rows(conn, name)
            source = source_rows(configured, emulator, name, outcome.window)
            assert len(rows) == outcome.counts["inserted"] > 0
            if name in COMPUTED:
                assert without_stamps(name, rows) == without_stamps(name, source)
                (stamp,) = stamps(rows)
                assert began <= stamp <= ended
            else:
                assert rows == source
        before, stamped = addresses(conn), {name: stamps(target_rows(conn, name)) for name in TABLES}
        for outcome in refresh_all(configured, instance).values():
            assert outcome.counts["unchanged"] == outcome.counts["read"]
        assert addresses(conn) == before
        assert {name: stamps(target_rows(conn, name)) for name in TABLES} == stamped

        seed(configured, emulator, revision=1)
        third = refresh_all(configured, instance)
        assert third["dashboard_data"].counts["updated"] > 0
        assert third["dashboard_data"].counts["deleted"] > 0
        for name, outcome in third.items():
            assert outcome.window is not None
            source = source_rows(configured, emulator, name, outcome.window)
            assert without_stamps(name, target_rows(conn, name)) == without_stamps(name, source)
        states = Watermarks(configured.database_schema).read(conn)
        assert {state.status for state in states.values()} == {"success"}
        # Ten days are less than the lookback of one table, whose watermark they do not move.
        end = first["dashboard_data"].window.end  # type: ignore[union-attr]
        moved = {name: end if spec.schedule.lookback_days <= 10 else None for name, spec in TABLES.items()}
        assert {name: state.last_partition for name, state in states.items()} == moved


def test_a_source_that_is_missing_fails_the_run_says_so_and_leaves_the_table(
    configured: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection
) -> None:
    seed(configured, emulator)
    broken = configured.model_copy(update={"bigquery_view_prefix": "nope"})
    calendar = Calendar(configured.partitions_start, 10)
    plan = plan_refresh(TABLES["dashboard_data"], None, RefreshRequest(), datetime.now(UTC), calendar)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_plan(build_defs(configured), instance, TABLES["dashboard_data"], plan).error is None
        before = target_rows(conn, "dashboard_data")
        outcome = run_plan(build_defs(broken), instance, TABLES["dashboard_data"], plan)
    assert outcome.error is not None
    assert "dashboard_data" in outcome.error
    assert "does not know the table" in outcome.error
    state = Watermarks(configured.database_schema).read(conn)["dashboard_data"]
    assert (state.status, state.extraction_id) == ("failed", outcome.run_id)
    assert state.error == outcome.error
    assert target_rows(conn, "dashboard_data") == before


def test_a_stamp_that_moved_alone_rewrites_no_row_and_comes_along_with_a_change(
    configured: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection
) -> None:
    name = "dashboard_data"
    request = RefreshRequest(mode=Mode.SLIDING_WINDOW)
    plan = plan_refresh(TABLES[name], None, request, datetime.now(UTC), Calendar.of(configured))
    assert plan.window is not None
    rows, places = [], []
    with dg.DagsterInstance.ephemeral() as instance:
        for revision in range(2):
            # Every stamp of the source moves with the revision; few rows change otherwise.
            seed(configured, emulator, revision=revision)
            outcome = run_plan(build_defs(configured), instance, TABLES[name], plan)
            assert outcome.error is None
            rows.append(target_rows(conn, name))
            found = conn.execute(f"SELECT {', '.join(TABLES[name].primary_key)}, xmin::text, ctid::text FROM {name}")
            places.append({row[:-2]: row[-2:] for row in found})
    source = source_rows(configured, emulator, name, plan.window)
    old, new = (without_stamps(name, found) for found in rows)
    assert not stamps(rows[0]) & stamps(source)
    same = {key for key in new if key in old and new[key] == old[key]}
    assert 0 < outcome.counts["updated"] < outcome.counts["unchanged"] == len(same)
    assert {key for key in new if places[0].get(key) == places[1][key]} == same
    for key, row in rows[1].items():
        assert row == (rows[0] if key in same else source)[key]
