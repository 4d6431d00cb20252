"""The refresh sensor's tick on real servers: what it asks for, and why not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest

from pulso_etl.automation.jobs import build_jobs
from pulso_etl.automation.sensors import Automation, check_outcomes
from pulso_etl.definitions import build_defs, build_resources
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.refreshing.keys import up_to_date_key
from pulso_etl.settings import Settings
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.shared_reads import SharedRead
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.tags import AVOIDED_TAG
from pulso_etl.sync.zone import DEFAULT as LIMA
from pulso_etl_tests.clock import TABLES, TODAY
from pulso_etl_tests.conftest import seed
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.faulty_proxy import FaultyProxy, edited

DUE = timedelta(minutes=10)
SOME = {name: altered(TABLES[name], refresh_every=DUE) for name in ("dashboard_data", "operation_data")}
MIB = 2**20
SENT = r"^POST \S+/(queries|jobs)\b"
RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


class Deployment:
    """Tables, their automation, and a Dagster instance. `tick` runs a tick at an instant, `run` runs what a tick requested."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance, tables: Mapping[str, TableSpec] = SOME) -> None:
        self.settings, self.instance, self.cursor = settings, instance, ""
        self.automation = Automation(settings, tables, build_jobs(tables))
        self.defs = build_defs(settings, tables=tables)
        self.source = build_resources(settings)["bigquery"]

    def tick(self, at: datetime) -> tuple[list[dg.RunRequest], str]:
        """What the sensor asks for at that instant, and why; it remembers its last tick."""
        ticked = self.automation.tick(self.instance, self.source, at, self.cursor)
        self.cursor = ticked.cursor
        return ticked.requests, "\n".join(ticked.reasons)

    def run(self, request: dg.RunRequest) -> bool:
        assert request.job_name is not None
        job = self.defs.resolve_job_def(request.job_name)
        return job.execute_in_process(tags=request.tags, instance=self.instance, raise_on_error=False).success


@pytest.fixture
def deployment(
    settings: Settings, schema: str, emulator: BigQueryEmulator, bigquery_proxy: FaultyProxy, instance: dg.DagsterInstance
) -> Deployment:
    seed(settings, emulator)
    changed = {
        "database_schema": schema,
        "initial_window_days": 10,
        "change_margin_seconds": 0,
        "bigquery_emulator_host": bigquery_proxy.url,
    }
    return Deployment(settings.model_copy(update=changed), instance)


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


def of_size(size: int) -> Callable[[Any], Any]:
    """A job's answer whose statement reads so many bytes."""

    def change(job: Any) -> None:
        job["statistics"]["totalBytesProcessed"] = job["statistics"]["query"]["totalBytesProcessed"] = str(size)

    return change


def ranges(requests: list[dg.RunRequest]) -> list[tuple[str, str, str]]:
    tags = [request.tags for request in requests]
    keys = ("pulso_etl/table", *RANGE_TAGS)
    return [tuple(tag[key] for key in keys) for tag in tags]


def test_due_tables_are_asked_for_once_and_then_are_fresh(deployment: Deployment, conn: psycopg.Connection) -> None:
    now = datetime.now(UTC)
    today = TODAY
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


def test_tables_that_are_due_in_one_tick_share_a_read(deployment: Deployment) -> None:
    automation = Automation(deployment.settings, TABLES, [])
    found = automation.tick(deployment.instance, deployment.source, datetime.now(UTC)).requests
    reads = {request.tags["pulso_etl/table"]: SharedRead.of(request.tags, TABLES) for request in found}
    host = reads["dashboard_data"]
    assert host is not None
    assert (host.host.name, host.window.end, host) == ("dashboard_data", TODAY, reads["evolution_data"])
    assert [name for name, read in reads.items() if read] == ["dashboard_data", "evolution_data"]


def test_nothing_changed_is_verified_without_a_run(deployment: Deployment, conn: psycopg.Connection, now: datetime) -> None:
    for request in deployment.tick(now)[0]:
        assert deployment.run(request)
    later = now + 2 * DUE
    requests, why = deployment.tick(later)
    assert requests == []
    assert "operation_data: lookback of 2 days" in why
    assert "0 of 2 partitions to read, 2 verified" in why
    state = Watermarks(deployment.settings.database_schema).read(conn)["operation_data"]
    assert (state.last_extracted_at, state.metadata["partitions_verified"]) == (later, 2)
    # What the whole window would have billed is avoided.
    [skipped] = conn.execute(
        "SELECT purpose, bytes_billed, bytes_avoided FROM etl_queries WHERE table_name = 'operation_data'"
    ).fetchall()
    assert skipped == ("skipped", 0, 10 * MIB)
    event = deployment.instance.get_latest_materialization_event(dg.AssetKey("operation_data"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["partitions_verified"].value == 2
    # Otherwise Dagster's UI would show the check as not evaluated for this materialization.
    (outcome,) = check_outcomes(deployment.instance, [up_to_date_key(TABLES["operation_data"])])
    assert (outcome.passed, outcome.at.timestamp() >= event.timestamp) == (True, True)
    assert "fresh" in deployment.tick(later + timedelta(minutes=1))[1]


def test_only_changed_days_are_read_again(
    deployment: Deployment,
    emulator: BigQueryEmulator,
    bigquery_proxy: FaultyProxy,
    conn: psycopg.Connection,
    now: datetime,
) -> None:
    for request in deployment.tick(now)[0]:
        bigquery_proxy.inject(r"^POST \S+/jobs\b", edited(of_size(100 * MIB)))
        assert deployment.run(request)
    later, today = datetime.now(UTC) + 2 * DUE, TODAY
    changed = [today - timedelta(days=back) for back in (5, 4, 2)]
    base = f"{deployment.settings.sources()['dashboard_cobranzas']}_base"
    among = ", ".join(f"'{day}'" for day in (*changed, today - timedelta(days=40)))
    emulator.client().query_and_wait(f"UPDATE `{base}` SET cuentas = cuentas + 1 WHERE fecha_foto IN ({among})")
    bigquery_proxy.inject(r"^POST \S+/jobs\b", edited(of_size(100 * MIB)))
    requests, why = deployment.tick(later)
    assert ranges(requests) == [
        ("dashboard_data", str(changed[0]), str(changed[1])),
        ("dashboard_data", str(changed[2]), str(changed[2])),
    ]
    assert len({request.run_key for request in requests}) == 2
    # Asking for the states of the partitions counts in the budget.
    asked = conn.execute("SELECT purpose, bytes_billed FROM etl_queries WHERE table_name = 'dashboard_data'").fetchall()
    assert asked == [("changes", 10 * MIB)]
    assert "3 of 7 partitions to read, 4 verified" in why
    assert "operation_data: lookback of 2 days" in why
    for request in requests:
        assert deployment.run(request)
    # Of what the whole window would bill, two small queries with 10 MiB each are not avoided.
    assert [request.tags.get(AVOIDED_TAG) for request in requests] == [str(80 * MIB), None]
    loads = conn.execute("SELECT metadata->>'bytes_avoided' FROM etl_extractions WHERE table_name = 'dashboard_data' ORDER BY id")
    assert loads.fetchall() == [(None,), (str(80 * MIB),), (None,)]
    # The older days are loaded. The range up to today is verified now. Only that moves the watermark.
    assert deployment.tick(later)[0] == []
    assert "dashboard_data: fresh" in deployment.tick(later + timedelta(minutes=1))[1]


def test_a_new_day_that_has_no_rows_yet_is_not_read(
    deployment: Deployment, conn: psycopg.Connection, bigquery_proxy: FaultyProxy, now: datetime
) -> None:
    for request in deployment.tick(now)[0]:
        assert deployment.run(request)
    tomorrow = LIMA.begin(TODAY + timedelta(days=1)) + timedelta(hours=1)
    # The days were read a short time ago.
    conn.execute("UPDATE etl_days SET loaded_at = loaded_at + %s, read_at = read_at + %s", [tomorrow - now - DUE] * 2)
    sent = len(bigquery_proxy.requests)
    requests, why = deployment.tick(tomorrow)
    assert (requests, why.count("0 of")) == ([], 2)
    asked = [one.json["configuration"] for one in bigquery_proxy.requests[sent:] if re.search(SENT, one.line)]
    assert {one.get("dryRun") for one in asked} == {True}
    state = Watermarks(deployment.settings.database_schema).read(conn)["operation_data"]
    new = state.days[TODAY + timedelta(days=1)]
    assert (new.rows, new.at, state.last_partition) == (0, tomorrow, TODAY + timedelta(days=1))


def test_a_source_that_gives_no_signal_has_its_whole_window_read(
    deployment: Deployment, bigquery_proxy: FaultyProxy, now: datetime
) -> None:
    for request in deployment.tick(now)[0]:
        assert deployment.run(request)
    bigquery_proxy.inject(r"^GET \S+/tables/\w+_dashboard_cobranzas_base\?", edited(lambda table: table | {"type": "EXTERNAL"}))
    requests, why = deployment.tick(now + 2 * DUE)
    today = TODAY
    assert ranges(requests) == [("dashboard_data", str(today - timedelta(days=6)), str(today))]
    assert "no signal" in why


def test_a_day_old_load_is_read_again_whatever_the_source_says(deployment: Deployment, now: datetime) -> None:
    for request in deployment.tick(now)[0]:
        assert deployment.run(request)
    requests, why = deployment.tick(now + timedelta(hours=25))
    assert len(requests) == 2
    assert "nothing of it was loaded in the last day" in why


def test_with_the_look_at_changes_turned_off_the_whole_window_is_read(deployment: Deployment, now: datetime) -> None:
    for request in deployment.tick(now)[0]:
        assert deployment.run(request)
    deployment.automation.settings = deployment.settings.model_copy(update={"change_aware": False})
    today = TODAY
    assert ranges(deployment.tick(now + 2 * DUE)[0]) == [
        ("dashboard_data", str(today - timedelta(days=6)), str(today)),
        ("operation_data", str(today - timedelta(days=1)), str(today)),
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


def test_a_run_that_was_launched_over_a_range_that_ends_before_it_starts_does_not_stop_the_sensors(deployment: Deployment) -> None:
    now, instance = datetime.now(UTC), deployment.instance
    request = deployment.tick(now)[0][0]
    tags = dict(request.tags) | dict(zip(RANGE_TAGS, ("2026-03-02", "2026-03-01"), strict=True))
    run = instance.create_run_for_job(deployment.defs.resolve_job_def("refresh_dashboard_data"), tags=tags)
    assert "dashboard_data: run" in deployment.tick(now)[1]
    instance.report_run_failed(run)
    assert len(deployment.tick(datetime.now(UTC))[0]) == 2
    deployment.automation.tell(instance, now, now)


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_a_run_under_way_of_all_tables_holds_each_back(deployment: Deployment, status: dg.DagsterRunStatus) -> None:
    job = deployment.defs.resolve_job_def("refresh_all")
    deployment.instance.create_run_for_job(job, status=status)
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
    assert "budget is spent" in deployment.tick(now + 2 * DUE)[1]


def test_of_very_many_tables_one_is_launched_out_of_dagster_s_job_of_all_assets(
    deployment: Deployment, conn: psycopg.Connection, instance: dg.DagsterInstance
) -> None:
    many = {f"dashboard_data_{n}": TABLES["dashboard_data"].model_copy(update={"name": f"dashboard_data_{n}"}) for n in range(51)}
    defs = build_defs(deployment.settings, tables=many)
    repository = defs.get_repository_def()
    assert [job.name for job in repository.get_all_jobs()] == ["__ASSET_JOB"]
    assert {schedule.job_name for schedule in repository.schedule_defs} == {"__ASSET_JOB"}
    assert [target.job_name for target in repository.get_sensor_def("refresh_sensor").targets] == ["__ASSET_JOB"]
    automation = Automation(deployment.settings, many, [])
    requests = automation.tick(instance, deployment.source, datetime.now(UTC)).requests
    assert {request.job_name for request in requests} == {"__ASSET_JOB"}
    request = next(request for request in requests if request.tags["pulso_etl/table"] == "dashboard_data_7")
    assert request.job_name
    assert request.asset_selection == [dg.AssetKey("dashboard_data_7")]
    assert request.asset_check_keys
    job = repository.get_maybe_subset_job_def(
        request.job_name, asset_selection=set(request.asset_selection), asset_check_selection=set(request.asset_check_keys)
    )
    assert job.execute_in_process(tags=request.tags, instance=instance).success
    states = Watermarks(deployment.settings.database_schema).read(conn)
    assert {name: state.status for name, state in states.items()} == {"dashboard_data_7": "success"}
    assert automation.tick(instance, deployment.source, datetime.now(UTC)).requests[0].tags["pulso_etl/table"] == "dashboard_data_0"
