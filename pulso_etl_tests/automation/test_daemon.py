"""The real daemon: tables stay fresh by themselves, and recover whatever is killed during a load."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import dagster as dg
import psutil
import psycopg
import pytest
from pydantic import SecretStr

from pulso_etl.instance.code_server import FORK_SERVER
from pulso_etl.instance.coordinator import HEAD_START_SECONDS
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.postgres import EmbeddedPostgres
from pulso_etl.local.sample_data import SampleData
from pulso_etl.settings import Settings
from pulso_etl_tests.automation.short_tables import SHORT
from pulso_etl_tests.clock import TODAY
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.dagster_stack import CHECKOUT, DagsterStack
from pulso_etl_tests.databases import postgres
from pulso_etl_tests.holding_proxy import HoldingProxy

DASHBOARD, PRODUCTIVITY = SHORT
FRESHNESS = "{ assetNodes { assetKey { path } freshnessStatusInfo { freshnessStatus } } }"
TICKS = """
query ($sensor: SensorSelector!) {
  sensorOrError(sensorSelector: $sensor) { ... on Sensor { sensorState { ticks(limit: 5) { status skipReason } } } }
}
"""
RUNS = "{ runsOrError { ... on Runs { results { runId jobName status tags { key value } } } } }"
PATIENCE = 120.0
"""Seconds; what is waited for takes a few on a machine that is not busy."""


class Deployment:
    """A running deployment of two tables that are due every minute, on a PostgreSQL server of its own."""

    def __init__(self, stack: DagsterStack, server: EmbeddedPostgres, emulator: BigQueryEmulator) -> None:
        self.stack, self.server, self.emulator = stack, server, emulator
        self.url = stack.env["DATABASE_URL"]

    def query(self, text: str, *values: Any) -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute("SET search_path = target")
            answer = conn.execute(text, values)
            return answer.fetchall() if answer.description else []

    def successes(self, table: str) -> int:
        found = self.query("SELECT to_regclass('etl_extractions') IS NOT NULL")
        if found != [(True,)]:
            return 0
        return int(self.query("SELECT count(*) FROM etl_extractions WHERE table_name = %s AND status = 'success'", table)[0][0])

    def await_success(self, table: str, after: int) -> None:
        wait_until(lambda: self.successes(table) > after, PATIENCE)

    def make_due(self, table: str) -> None:
        self.query("UPDATE etl_watermarks SET last_extracted_at = now() - interval '1 day' WHERE table_name = %s", table)

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.stack.graphql(RUNS)["runsOrError"]["results"]
        return found

    def hold_a_load(self) -> tuple[int, str]:
        """Waits until a load of the dashboard's table is held. Returns the number of earlier successes, and the run."""
        wait_until(lambda: self.query("SELECT 1 FROM etl_watermarks WHERE last_extraction_status = 'running'") == [], PATIENCE)
        before = self.successes(DASHBOARD)
        self.stack.proxy.hold_page(1)
        self.make_due(DASHBOARD)
        assert self.stack.proxy.held.wait(PATIENCE)
        running = "SELECT extraction_id FROM etl_watermarks WHERE last_extraction_status = 'running' AND table_name = %s"
        wait_until(lambda: len(self.query(running, DASHBOARD)) == 1, PATIENCE)
        return before, self.query(running, DASHBOARD)[0][0]

    def worker(self, run_id: str) -> int:
        """The process of a run."""
        pid = self.stack.worker(run_id)
        assert pid is not None
        return pid

    def goes_on(self, before: int) -> None:
        """Releases the held load. Checks that the table is loaded now and when it is due again, with right rows."""
        self.stack.proxy.release()
        self.await_success(DASHBOARD, before)
        self.make_due(DASHBOARD)
        self.await_success(DASHBOARD, before + 1)
        assert self.rows_are_right()

    def rows_are_right(self) -> bool:
        found = self.query("SELECT count(*), count(DISTINCT fecha_foto) FROM dashboard_data")
        return bool(found == [(5 * 60, 5)])


@pytest.fixture(scope="module")
def deployment(emulator: BigQueryEmulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    home: Path = tmp_path_factory.mktemp("daemon")
    with postgres(home / "postgres") as server, HoldingProxy(emulator.rest_url) as proxy:
        env = {
            "DATABASE_URL": server.create_database("pulso"),
            "DATABASE_SCHEMA": "target",
            "DAGSTER_POSTGRES_URL": server.create_database("dagster"),
            "BIGQUERY_DATASET": "DAEMON",
            "SENSOR_INTERVAL_SECONDS": "1",
            "RETRY_WAIT_SECONDS": "1",
            # The emulator does not tell when a table changed.
            "CHANGE_AWARE": "false",
            "INITIAL_WINDOW_DAYS": "5",
            # How often Dagster looks at the freshness of assets; its default is 30.
            "FRESHNESS_DAEMON_INTERVAL_SECONDS": "3",
        }
        settings = Settings(database_url=SecretStr(env["DATABASE_URL"]), bigquery_dataset="DAEMON")
        data = SampleData(settings.sources(), TODAY, days=5, dashboard_rows_per_day=60)
        data.seed_into(emulator.client())
        instance_file = home / "parallel.yaml"
        instance_file.write_text(parallel((CHECKOUT / "dagster.yaml").read_text(encoding="utf-8")), encoding="utf-8")
        module = "pulso_etl_tests.automation.short_tables"
        with DagsterStack(home, env, proxy, data, module, instance_file) as stack:
            yield Deployment(stack, server, emulator)


def parallel(text: str) -> str:
    """Dagster's instance file with room for two chunks of a back-fill at the same time, and two runs beside them."""
    limits = (
        ("max_concurrent_runs", 2, 4),
        ("default_limit", 1, 2),
        ("dagster/backfill\n        limit", 1, 2),
        ("bigquery\n        limit", 2, 4),
    )
    for limit, few, more in limits:
        assert text.count(f"{limit}: {few}") == 1
        text = text.replace(f"{limit}: {few}", f"{limit}: {more}")
    return text


def freshness(deployment: Deployment) -> dict[str, str]:
    nodes = deployment.stack.graphql(FRESHNESS)["assetNodes"]
    found = {node["assetKey"]["path"][-1]: node["freshnessStatusInfo"] for node in nodes}
    return {table: found[table]["freshnessStatus"] for table in SHORT if found[table]}


def test_tables_are_loaded_by_themselves_and_told_as_fresh(deployment: Deployment) -> None:
    for table in SHORT:
        deployment.await_success(table, after=0)
    assert deployment.rows_are_right()
    wait_until(lambda: freshness(deployment) == dict.fromkeys(SHORT, "HEALTHY"), PATIENCE)
    selector = deployment.stack.repository | {"sensorName": "refresh_sensor"}

    def said() -> str:
        ticks = deployment.stack.graphql(TICKS, sensor=selector)["sensorOrError"]["sensorState"]["ticks"]
        return " ".join(tick["skipReason"] or "" for tick in ticks)

    wait_until(lambda: "dashboard_data: fresh" in said() or "dashboard_data: run" in said(), PATIENCE)
    launched = [run for run in deployment.runs() if run["jobName"] == "refresh_dashboard_data"]
    tags = {tag["key"]: tag["value"] for tag in launched[-1]["tags"]}
    assert tags["dagster/max_runtime"] == "1800"
    # Its priority of 10 is a head start in the queue.
    assert int(tags["dagster/priority"]) + int(tags["pulso_etl/queued_at"]) == 10 * HEAD_START_SECONDS


def test_a_long_backfill_is_loaded_in_chunks_at_the_same_time_and_does_not_keep_the_refresh_waiting(
    deployment: Deployment,
) -> None:
    days = [str(TODAY - timedelta(days=back)) for back in range(399, -1, -1)]

    def backfill() -> Counter[str]:
        tagged = [run for run in deployment.runs() if "dagster/backfill" in {tag["key"] for tag in run["tags"]}]
        return Counter(run["status"] for run in tagged)

    def loading() -> int:
        return len(deployment.query("SELECT 1 FROM etl_running WHERE table_name = %s", PRODUCTIVITY))

    # The table was just loaded. So it is not due again before the back-fill begins.
    loads = deployment.successes(PRODUCTIVITY)
    deployment.make_due(PRODUCTIVITY)
    deployment.await_success(PRODUCTIVITY, loads)
    with psycopg.connect(deployment.url) as blocker:
        # The loads of the back-fill wait as long as this lock is held.
        blocker.execute("LOCK TABLE target.productivity_data IN SHARE MODE")
        deployment.stack.backfill(PRODUCTIVITY, days)
        wait_until(lambda: backfill() == {"STARTED": 2, "QUEUED": 3} and loading() == 2, PATIENCE)
        before = deployment.successes(DASHBOARD)
        deployment.make_due(DASHBOARD)
        deployment.await_success(DASHBOARD, before)
        assert backfill() == {"STARTED": 2, "QUEUED": 3}
        blocker.rollback()
    wait_until(lambda: backfill() == {"SUCCESS": 5}, PATIENCE)
    chunks = deployment.query(
        "SELECT partition_end - partition_start + 1 FROM etl_extractions WHERE table_name = %s AND partition_start < %s ORDER BY 1",
        PRODUCTIVITY,
        str(TODAY - timedelta(days=5)),
    )
    assert chunks == [(32,), *[(92,)] * 4]
    # From here on this table's source is broken: it can't be refreshed.
    deployment.emulator.client().delete_table(deployment.stack.data.names["agentes"])


def test_a_killed_run_worker_is_found_out_and_its_table_loaded(deployment: Deployment) -> None:
    before, run_id = deployment.hold_a_load()
    worker = deployment.worker(run_id)
    assert Path(f"/proc/{psutil.Process(worker).ppid()}/comm").read_text().strip() == FORK_SERVER
    os.kill(worker, signal.SIGKILL)
    deployment.stack.proxy.release()
    deployment.await_success(DASHBOARD, before)
    wait_until(lambda: deployment.stack.status(run_id) == "FAILURE", PATIENCE)
    lost = deployment.query("SELECT status, error_message FROM etl_extractions WHERE extraction_id = %s", run_id)
    assert [status for status, _ in lost] == ["failed"]
    assert "killed" in lost[0][1]
    assert deployment.rows_are_right()


def test_a_killed_daemon_takes_up_its_work_when_it_is_back(deployment: Deployment) -> None:
    before, _ = deployment.hold_a_load()
    os.kill(deployment.stack.daemon.pid, signal.SIGKILL)
    deployment.stack.daemon.wait()
    deployment.stack.start_daemon()
    deployment.goes_on(before)


def test_a_killed_code_server_is_started_again(deployment: Deployment) -> None:
    before, _ = deployment.hold_a_load()
    deployment.stack.code_server.kill()
    deployment.stack.code_server.wait()
    # The service manager does the same.
    deployment.stack.start_code_server()
    deployment.goes_on(before)


def test_a_run_that_hangs_past_its_time_out_is_terminated_and_its_table_loaded(deployment: Deployment) -> None:
    before, run_id = deployment.hold_a_load()
    started = datetime.now(UTC) - SHORT[DASHBOARD].loading.timeout - timedelta(minutes=1)
    deployment.query("UPDATE etl_running SET started_at = %s WHERE extraction_id = %s", started, run_id)
    wait_until(lambda: deployment.stack.status(run_id) == "CANCELED", PATIENCE)
    deployment.stack.proxy.release()
    deployment.await_success(DASHBOARD, before)
    assert deployment.query("SELECT status FROM etl_extractions WHERE extraction_id = %s", run_id) == [("failed",)]
    assert deployment.rows_are_right()


def test_a_server_that_restarts_during_a_load_loses_nothing(deployment: Deployment) -> None:
    before, _ = deployment.hold_a_load()
    deployment.server.stop()
    deployment.server.start()
    deployment.goes_on(before)


def test_a_table_that_can_not_be_refreshed_nears_its_limit_and_turns_stale(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its source has been broken since the back-fill. The tests between have taken most of the two minutes.
    states: dict[str, str] = {}

    def degraded() -> bool:
        # The restart of the test before has cut the webserver's sessions, and its next answer may be an error.
        with suppress(HTTPError):
            states.update(freshness(deployment))
        return states.get(PRODUCTIVITY) == "DEGRADED"

    wait_until(degraded, PATIENCE)
    assert states[DASHBOARD] in ("HEALTHY", "WARNING")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", deployment.stack.env["DAGSTER_POSTGRES_URL"])
    with dg.DagsterInstance.from_config(str(deployment.stack.home)) as instance:
        changes = dg.EventRecordsFilter(dg.DagsterEventType.FRESHNESS_STATE_CHANGE, asset_key=dg.AssetKey(PRODUCTIVITY))
        records = instance.get_event_records(changes, ascending=True)
    passed = [record.event_log_entry.get_dagster_event().event_specific_data.new_state.value for record in records]  # type: ignore[union-attr]
    assert passed[-2:] == ["WARN", "FAIL"]
