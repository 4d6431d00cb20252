"""What goes wrong in production, on real parts: killed processes, a server that stops, a source that fails."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from pydantic import SecretStr

from pulso_etl.assets import RetryUnlessInterrupted
from pulso_etl.definitions import build_defs
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.postgres import EmbeddedPostgres
from pulso_etl.local.sample_data import SampleData
from pulso_etl.refreshing.execution import Outcome, run_plan
from pulso_etl.refreshing.plan import RefreshPlan
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.locks import table_lock
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl_tests.clock import TABLES, TODAY
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.databases import postgres
from pulso_etl_tests.holding_proxy import HoldingProxy

SPEC = TABLES["dashboard_data"]
WINDOW = DayRange(TODAY - timedelta(days=2), TODAY)
PLAN = RefreshPlan(SPEC.name, WINDOW, "test")
ROWS = 3 * 40
QUICK = RetryUnlessInterrupted(max_retries=2, delay=0.2, backoff=dg.Backoff.EXPONENTIAL)
"""Three attempts, 0.2 and 0.6 seconds between them."""


@pytest.fixture(scope="module")
def seeded(emulator: BigQueryEmulator) -> SampleData:
    """Three days of dashboard rows in the emulator."""
    settings = Settings(database_url=SecretStr("postgresql://nowhere"))
    data = SampleData(settings.sources(), TODAY, days=3, dashboard_rows_per_day=40)
    data.seed_into(emulator.client())
    return data


@pytest.fixture
def proxy(emulator: BigQueryEmulator, seeded: SampleData) -> Iterator[HoldingProxy]:
    with HoldingProxy(emulator.rest_url) as proxy:
        yield proxy


@pytest.fixture
def behind_proxy(settings: Settings, proxy: HoldingProxy, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The test's settings, here and in the environment, with BigQuery behind the proxy."""
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", proxy.url)
    return Settings()


def refresh_process(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pulso_etl", "refresh", SPEC.name, "--from", str(WINDOW.start), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_here(settings: Settings) -> Outcome:
    with dg.DagsterInstance.ephemeral() as instance:
        return run_plan(build_defs(settings, retries=QUICK), instance, SPEC, PLAN)


def history(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    return conn.execute("SELECT status, attempt, error_message FROM etl_extractions ORDER BY id").fetchall()


def outcomes(conn: psycopg.Connection) -> list[tuple[str, int]]:
    return [(status, attempt) for status, attempt, _ in history(conn)]


def state(conn: psycopg.Connection) -> tuple[Any, ...] | None:
    return conn.execute("SELECT last_extraction_status, error_message, recovery_attempts FROM etl_watermarks").fetchone()


def rows(conn: psycopg.Connection) -> int:
    """The number of committed rows of the table. It is 0 if the table does not exist yet."""
    if conn.execute("SELECT to_regclass('dashboard_data')").fetchone() == (None,):
        return 0
    return conn.execute("SELECT count(*) FROM dashboard_data").fetchone()[0]  # type: ignore[index]


def lock_is_free(conn: psycopg.Connection, schema: str) -> bool:
    key = table_lock(schema, SPEC.name)
    if conn.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone() != (True,):
        return False
    conn.execute("SELECT pg_advisory_unlock(%s)", (key,))
    return True


def test_a_killed_process_leaves_nothing_behind_and_the_next_run_recovers(
    behind_proxy: Settings, schema: str, proxy: HoldingProxy, conn: psycopg.Connection
) -> None:
    proxy.hold_page(2)
    process = refresh_process()
    assert proxy.held.wait(90)
    wait_until(lambda: state(conn) == ("running", None, 0))
    assert rows(conn) == 0
    assert not lock_is_free(conn, schema)
    process.kill()
    process.communicate(timeout=10)

    wait_until(lambda: lock_is_free(conn, schema), seconds=5)
    assert rows(conn) == 0
    assert state(conn) == ("running", None, 0)
    assert history(conn) == []

    proxy.hold_page(2)
    second = threading.Thread(target=run_here, args=(behind_proxy,))
    second.start()
    assert proxy.held.wait(90)
    assert state(conn) == ("running", None, 1)
    proxy.release()
    second.join(30)
    assert rows(conn) == ROWS
    assert state(conn) == ("success", None, 0)
    (abandoned, finished) = history(conn)
    assert abandoned[:2] == ("failed", 1)
    assert "killed" in abandoned[2]
    assert finished == ("success", 1, None)


def test_a_process_told_to_end_does_so_at_once_and_records_the_failure(
    behind_proxy: Settings, schema: str, proxy: HoldingProxy, conn: psycopg.Connection
) -> None:
    proxy.hold_page(2)
    process = refresh_process()
    assert proxy.held.wait(90)
    wait_until(lambda: state(conn) == ("running", None, 0))
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert outcomes(conn) == [("failed", 1)]
    assert "interrupted" in history(conn)[0][2]
    assert state(conn) == ("failed", history(conn)[0][2], 0)
    assert rows(conn) == 0
    assert lock_is_free(conn, schema)
    with dg.DagsterInstance.get() as instance:
        assert [run.status for run in instance.get_runs(limit=1)] == [dg.DagsterRunStatus.FAILURE]


def test_two_processes_on_one_table_load_one_after_the_other(
    behind_proxy: Settings, schema: str, proxy: HoldingProxy, conn: psycopg.Connection
) -> None:
    proxy.hold_page(2)
    first = refresh_process()
    assert proxy.held.wait(90)
    second = refresh_process("--force")
    waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    wait_until(lambda: conn.execute(waiting).fetchone() is not None, seconds=30)
    assert rows(conn) == 0
    proxy.release()
    for process in (first, second):
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
    assert rows(conn) == ROWS
    assert history(conn) == [("success", 1, None)] * 2
    counts = conn.execute(
        "SELECT metadata->'rows_inserted', metadata->'rows_unchanged' FROM etl_extractions ORDER BY id"
    ).fetchall()
    assert counts == [(ROWS, 0), (0, ROWS)]


def test_a_failure_is_told_before_the_next_writer_has_its_turn(
    behind_proxy: Settings, proxy: HoldingProxy, conn: psycopg.Connection
) -> None:
    broken = behind_proxy.model_copy(update={"bigquery_view_prefix": "nope"})
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(run_here, broken) for _ in range(4)]
        assert all(result.result(60).error for result in results)
    assert outcomes(conn) == [("failed", 1)] * 4
    assert all("does not know the table" in reason for *_, reason in history(conn))
    assert state(conn)[2] == 0  # type: ignore[index]


def test_a_source_that_fails_twice_is_asked_three_times_with_growing_pauses(
    behind_proxy: Settings, proxy: HoldingProxy, conn: psycopg.Connection
) -> None:
    proxy.refuse_queries(2)
    outcome = run_here(behind_proxy)
    assert outcome.error is None
    assert outcomes(conn) == [("failed", 1), ("failed", 2), ("success", 3)]
    assert all("failing for now" in reason for status, _, reason in history(conn) if status == "failed")
    assert rows(conn) == ROWS
    times = conn.execute("SELECT started_at, finished_at FROM etl_extractions ORDER BY id").fetchall()
    pauses = [(after[0] - before[1]).total_seconds() for before, after in pairwise(times)]
    assert pauses[0] >= 0.2
    assert pauses[1] >= 0.6


def test_a_source_that_keeps_failing_is_given_up_after_three_attempts(
    behind_proxy: Settings, proxy: HoldingProxy, conn: psycopg.Connection
) -> None:
    proxy.refuse_queries(100)
    outcome = run_here(behind_proxy)
    assert outcome.error is not None
    assert f"dashboard_data {WINDOW}: BigQuery is failing for now" in outcome.error
    assert outcomes(conn) == [("failed", 1), ("failed", 2), ("failed", 3)]
    assert state(conn) == ("failed", outcome.error, 0)
    assert proxy.queries == 3


def test_an_error_that_no_retry_mends_is_tried_once(behind_proxy: Settings, proxy: HoldingProxy, conn: psycopg.Connection) -> None:
    broken = behind_proxy.model_copy(update={"bigquery_view_prefix": "nope"})
    outcome = run_here(broken)
    assert outcome.error is not None
    assert "does not know the table" in outcome.error
    assert history(conn) == [("failed", 1, outcome.error)]


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server that a test may stop."""
    with postgres(tmp_path_factory.mktemp("own") / "data") as server:
        yield server


@pytest.fixture
def on_own_server(
    own_server: EmbeddedPostgres, behind_proxy: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Settings:
    url = own_server.create_database(tmp_path.name)
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("DATABASE_SCHEMA", "public")
    return Settings()


def test_a_server_that_restarts_in_the_middle_is_loaded_by_the_retry(
    own_server: EmbeddedPostgres, on_own_server: Settings, proxy: HoldingProxy
) -> None:
    proxy.hold_page(2)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(run_here, on_own_server)
        assert proxy.held.wait(90)
        own_server.stop()
        own_server.start()
        proxy.release()
        outcome = result.result(60)
    assert outcome.error is None
    with psycopg.connect(on_own_server.database_url.get_secret_value(), autocommit=True) as conn:
        assert rows(conn) == ROWS
        assert outcomes(conn) == [("failed", 1), ("success", 2)]
        assert "PostgreSQL is away" in history(conn)[0][2]


def test_a_server_that_stays_down_fails_the_run_and_the_next_one_recovers(
    own_server: EmbeddedPostgres, on_own_server: Settings, proxy: HoldingProxy
) -> None:
    proxy.hold_page(2)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(run_here, on_own_server)
        assert proxy.held.wait(90)
        own_server.stop()
        try:
            proxy.release()
            outcome = result.result(60)
        finally:
            own_server.start()
    assert outcome.error is not None
    assert f"dashboard_data {WINDOW}: PostgreSQL is away" in outcome.error
    with psycopg.connect(on_own_server.database_url.get_secret_value(), autocommit=True) as conn:
        assert rows(conn) == 0
        assert Watermarks("public").read(conn)["dashboard_data"].status == "running"
        assert run_here(on_own_server).error is None
        assert rows(conn) == ROWS
        assert outcomes(conn) == [("failed", 1), ("success", 1)]
        assert "killed" in history(conn)[0][2]
