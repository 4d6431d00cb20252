"""The refresh sensor's tick on real servers: what it asks for, and why not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import psycopg
import pytest

from pulso_etl.automation.jobs import build_jobs
from pulso_etl.automation.sensors import Automation
from pulso_etl.definitions import build_defs, build_resources
from pulso_etl.destination.watermarks import Watermarks
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SampleData
from pulso_etl.refresh import lima_day
from pulso_etl.settings import Settings
from pulso_etl.tables import TABLES
from pulso_etl_tests.conftest import seed

SOME = {name: TABLES[name] for name in ("dashboard_data", "operation_data")}
HOUR = timedelta(hours=1)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


class Deployment:
    """Two tables, their automation, and a Dagster instance; `tick` at an instant, `run` what a tick asked for."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings, self.instance = settings, instance
        self.automation = Automation(settings, SOME, build_jobs(SOME))
        self.defs = build_defs(settings, tables=SOME)
        self.source = build_resources(settings)["bigquery"]

    def tick(self, at: datetime) -> tuple[list[dg.RunRequest], str]:
        requests, reasons = self.automation.tick(self.instance, self.source, at)
        return requests, "\n".join(reasons)

    def run(self, request: dg.RunRequest) -> bool:
        assert request.job_name is not None
        job = self.defs.resolve_job_def(request.job_name)
        return job.execute_in_process(tags=request.tags, instance=self.instance, raise_on_error=False).success


@pytest.fixture
def deployment(settings: Settings, schema: str, emulator: BigQueryEmulator, instance: dg.DagsterInstance) -> Deployment:
    seed(settings, emulator)
    return Deployment(settings.model_copy(update={"database_schema": schema, "initial_window_days": 10}), instance)


def ranges(requests: list[dg.RunRequest]) -> list[tuple[str, str, str]]:
    tags = [request.tags for request in requests]
    keys = ("pulso_etl/table", "dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
    return [tuple(tag[key] for key in keys) for tag in tags]  # type: ignore[misc]


def test_due_tables_are_asked_for_once_and_then_are_fresh(deployment: Deployment, conn: psycopg.Connection) -> None:
    now = datetime.now(UTC)
    today = lima_day(now)
    first = str(today - timedelta(days=9))
    requests, _ = deployment.tick(now)
    assert ranges(requests) == [(name, first, str(today)) for name in SOME]
    assert [request.job_name for request in requests] == ["refresh_dashboard_data", "refresh_operation_data"]
    assert requests[0].tags["dagster/max_runtime"] == "1800"
    assert requests[1].tags["dagster/max_runtime"] == "900"
    again, _ = deployment.tick(now)
    assert [request.run_key for request in again] == [request.run_key for request in requests]
    assert all(deployment.run(request) for request in requests)

    requests, why = deployment.tick(now + timedelta(minutes=1))
    assert requests == []
    assert "dashboard_data: fresh" in why
    assert "operation_data: fresh" in why
    states = Watermarks(deployment.settings.database_schema).read(conn)
    assert {state.last_partition for state in states.values()} == {today}


def test_nothing_changed_is_verified_without_a_run(deployment: Deployment, conn: psycopg.Connection) -> None:
    now = datetime.now(UTC)
    for request in deployment.tick(now)[0]:
        assert deployment.run(request)
    later = now + 3 * HOUR
    requests, why = deployment.tick(later)
    assert requests == []
    assert "operation_data: lookback of 2 days" in why
    assert "0 of 2 partitions to read, 2 verified" in why
    state = Watermarks(deployment.settings.database_schema).read(conn)["operation_data"]
    assert (state.last_extracted_at, state.metadata["partitions_verified"]) == (later, 2)
    event = deployment.instance.get_latest_materialization_event(dg.AssetKey("operation_data"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["partitions_verified"].value == 2
    assert "fresh" in deployment.tick(later + HOUR)[1]


def test_only_changed_days_are_read_again(deployment: Deployment, emulator: BigQueryEmulator, conn: psycopg.Connection) -> None:
    now = datetime.now(UTC)
    for request in deployment.tick(now)[0]:
        assert deployment.run(request)
    day = lima_day(now) - timedelta(days=3)
    table = deployment.settings.sources()["dashboard_cobranzas"]
    emulator.client().query(f"UPDATE `{table}` SET cuentas = cuentas + 1 WHERE fecha_foto = '{day}'").result()
    requests, why = deployment.tick(now + 7 * HOUR)
    assert ranges(requests) == [("dashboard_data", str(day), str(day))]
    assert "1 of 7 partitions to read, 6 verified" in why
    assert deployment.run(requests[0])
    # The older day is loaded; the range up to today is verified, and only that moves the watermark.
    assert deployment.tick(now + 7 * HOUR)[0] == []
    assert "fresh" in deployment.tick(now + 8 * HOUR)[1]


def test_a_day_old_load_is_read_again_whatever_the_source_says(deployment: Deployment) -> None:
    now = datetime.now(UTC)
    for request in deployment.tick(now)[0]:
        assert deployment.run(request)
    requests, why = deployment.tick(now + 25 * HOUR)
    assert len(requests) == 2
    assert "nothing of it was loaded in the last day" in why


def test_with_the_look_at_changes_turned_off_the_whole_window_is_read(deployment: Deployment) -> None:
    now = datetime.now(UTC)
    for request in deployment.tick(now)[0]:
        assert deployment.run(request)
    deployment.automation.settings = deployment.settings.model_copy(update={"change_aware": False})
    today = lima_day(now + 7 * HOUR)
    assert ("dashboard_data", str(today - timedelta(days=6)), str(today)) in [
        (name, max(start, str(today - timedelta(days=6))), end) for name, start, end in ranges(deployment.tick(now + 7 * HOUR)[0])
    ]


def test_a_failed_run_waits_then_gets_a_new_key(deployment: Deployment, emulator: BigQueryEmulator) -> None:
    now = datetime.now(UTC)
    table = deployment.settings.sources()["dashboard_cobranzas"]
    emulator.client().delete_table(table)
    request = deployment.tick(now)[0][0]
    assert not deployment.run(request)
    now = datetime.now(UTC)
    requests, why = deployment.tick(now)
    assert "dashboard_data: waits until" in why
    assert [r.job_name for r in requests] == ["refresh_operation_data"]
    retry = deployment.tick(now + timedelta(minutes=3))[0][0]
    assert retry.job_name == "refresh_dashboard_data"
    assert retry.run_key != request.run_key


def test_a_run_that_died_before_it_could_write_counts_as_failed(deployment: Deployment) -> None:
    now = datetime.now(UTC)
    request = deployment.tick(now)[0][0]
    instance, tags = deployment.instance, dict(request.tags)
    assert request.job_name is not None
    job = deployment.defs.resolve_job_def(request.job_name)
    run = instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    assert "is under way" in deployment.tick(now)[1]
    instance.report_run_failed(run)
    assert "dashboard_data: waits until" in deployment.tick(datetime.now(UTC))[1]


def test_a_run_under_way_of_all_tables_holds_each_back(deployment: Deployment) -> None:
    job = deployment.defs.resolve_job_def("refresh_all")
    deployment.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    requests, why = deployment.tick(datetime.now(UTC))
    assert requests == []
    assert why.count("is under way") == 2


def test_a_spent_budget_stops_every_table_and_says_so(deployment: Deployment, conn: psycopg.Connection) -> None:
    now = datetime.now(UTC)
    for request in deployment.tick(now)[0]:
        assert deployment.run(request)
    history = f"{deployment.settings.database_schema}.etl_extractions"
    conn.execute(f"UPDATE {history} SET metadata = metadata || '{{\"bytes_billed\": 100}}'")
    deployment.automation.settings = deployment.settings.model_copy(update={"bigquery_daily_budget_bytes": 200})
    assert "budget is spent" in deployment.tick(now + 7 * HOUR)[1]


def test_sample_data_of_the_last_days_is_what_the_tests_take_it_for(settings: Settings) -> None:
    today = lima_day(datetime.now(UTC))
    names = SampleData(settings.sources(), today, days=1).tables()["dashboard_cobranzas"].column("fecha_foto").to_pylist()
    assert set(names) == {today}
