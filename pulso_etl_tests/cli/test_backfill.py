"""Long ranges: split into chunks that are loaded at the same time, with the rows of a single load."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date, timedelta
from multiprocessing import forkserver
from typing import Any

import dagster as dg
import psutil
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from pulso_etl import backfill
from pulso_etl.backfill import chains
from pulso_etl.definitions import build_defs
from pulso_etl.instance.preload import MODULE_VARIABLE
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SampleData
from pulso_etl.refreshing.execution import run_plan
from pulso_etl.refreshing.plan import RefreshPlan
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.tables import TABLES
from pulso_etl_tests.cli.conftest import Pulso
from pulso_etl_tests.cli.short_chunks import CHUNK
from pulso_etl_tests.clock import TODAY
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.holding_proxy import HoldingProxy

pytestmark = [
    pytest.mark.usefixtures("processes"),
    pytest.mark.timeout(300),
]  # processes start, which a busy machine does slowly

CHUNKS = 3
DAYS = CHUNKS * CHUNK
DATASET = "BACKFILL"
PARALLEL, SERIAL = "dashboard_data", "assignment_data"


@pytest.fixture(scope="module")
def data(emulator: BigQueryEmulator) -> SampleData:
    """Sample data of three chunks."""
    names = Settings(database_url=SecretStr("postgresql://nowhere"), bigquery_dataset=DATASET).sources()
    data = SampleData(names, TODAY, days=DAYS, dashboard_rows_per_day=4)
    data.seed_into(emulator.client())
    return data


@pytest.fixture
def window(data: SampleData) -> DayRange:
    return DayRange(data.today - timedelta(days=DAYS - 1), data.today)


@pytest.fixture
def here(settings: Settings, data: SampleData, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("BIGQUERY_DATASET", DATASET)
    return Settings()


@pytest.fixture
def proxy(emulator: BigQueryEmulator, here: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[HoldingProxy]:
    with HoldingProxy(emulator.rest_url) as proxy:
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", proxy.url)
        yield proxy


def days_of(window: DayRange) -> tuple[str, ...]:
    """The options of the command for these days."""
    return "--from", str(window.start), "--to", str(window.end)


def refresh(window: DayRange, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pulso_etl_tests.cli.short_chunks", "refresh", *options, *days_of(window)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows(conn: psycopg.Connection, table: str, schema: str) -> list[tuple[Any, ...]]:
    """Every row of the table, without the stamps of queries and loads."""
    spec = TABLES[table]
    names, keys = ", ".join((*spec.primary_key, *spec.compared_columns)), ", ".join(spec.primary_key)
    return conn.execute(f"SELECT {names} FROM {schema}.{table} ORDER BY {keys}").fetchall()


def history(conn: psycopg.Connection, table: str) -> list[tuple[date, date, str]]:
    query = "SELECT partition_start, partition_end, status FROM etl_extractions WHERE table_name = %s ORDER BY partition_start, id"
    return conn.execute(query, (table,)).fetchall()


def running(conn: psycopg.Connection, table: str) -> int:
    """The number of attempts of the table that run now."""
    if conn.execute("SELECT to_regclass('etl_running')").fetchone() == (None,):
        return 0
    return conn.execute("SELECT count(*) FROM etl_running WHERE table_name = %s", (table,)).fetchone()[0]  # type: ignore[index]


def at_once(conn: psycopg.Connection, table: str) -> int:
    """The greatest number of attempts of the table that ran at the same time."""
    query = (
        "SELECT max((SELECT count(*) FROM etl_extractions b WHERE b.table_name = a.table_name "
        "AND b.started_at <= a.started_at AND a.started_at < b.finished_at)) FROM etl_extractions a WHERE table_name = %s"
    )
    return conn.execute(query, (table,)).fetchone()[0]  # type: ignore[index]


@given(st.dates(date(2024, 1, 1), date(2026, 12, 31)), st.integers(1, 900), st.integers(1, 366))
def test_chunks_are_the_range_without_gaps_and_the_newest_comes_first(start: date, days: int, size: int) -> None:
    window = DayRange(start, start + timedelta(days=days - 1))
    parts = window.chunks(size)
    assert [day for part in reversed(parts) for day in part] == list(window)
    assert all(part.days == size for part in parts[:-1])
    assert parts[-1].days <= size


def test_a_table_whose_keys_live_in_several_partitions_is_loaded_chunk_after_chunk() -> None:
    window = DayRange(date(2024, 1, 1), date(2025, 12, 31))
    todo = chains(TABLES, [RefreshPlan(table, window, "test") for table in (PARALLEL, SERIAL)])
    assert [(chain.spec.name, len(chain.plans)) for chain in todo] == [(PARALLEL, 1)] * 8 + [(SERIAL, 8)]


def test_without_a_fork_server_each_process_starts_a_python_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setenv(MODULE_VARIABLE, "")
    monkeypatch.setattr(forkserver._forkserver, "_preload_modules", [])
    monkeypatch.setattr(backfill, "ensure_running", refuse)
    assert backfill._warm().get_start_method() == "spawn"


def test_many_chunks_in_three_processes_are_the_rows_of_one_run(
    here: Settings, proxy: HoldingProxy, window: DayRange, schema: str, conn: psycopg.Connection
) -> None:
    proxy.page_rows = 10_000
    # The first chunk makes the table. The two others stand still until both are there, however long their processes take to start.
    proxy.hold_page(1, of=here.sources()["dashboard_cobranzas"])
    process = refresh(window, PARALLEL, SERIAL, "--workers", "3")
    wait_until(lambda: running(conn, PARALLEL) > 1 or process.poll() is not None, 150)
    proxy.release()
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert f"{PARALLEL}: {window} (explicit range)" in out
    assert re.search(rf"{PARALLEL}: \d{{4}}-\d\d-\d\d\.\.\d{{4}}-\d\d-\d\d: {4 * CHUNK} rows, [\d.]+ s \(\d of {CHUNKS}\)", out)
    assert re.search(rf"^ *{PARALLEL} +{window} +{4 * DAYS} +{4 * DAYS} +0 +0 +0 ", out, re.MULTILINE)
    for table in (PARALLEL, SERIAL):
        ends = [(start, end) for start, end, status in history(conn, table) if status == "success"]
        assert ends == [(part.start, part.end) for part in reversed(window.chunks(CHUNK))]
    assert at_once(conn, PARALLEL) > 1
    assert at_once(conn, SERIAL) == 1
    assert conn.execute("SELECT count(*) FROM etl_running").fetchone() == (0,)
    marks = "SELECT last_extraction_status, last_partition, data_version FROM etl_watermarks WHERE table_name = %s"
    assert conn.execute(marks, (PARALLEL,)).fetchone() == ("success", window.end, CHUNKS)

    alone = f"{schema}_alone"
    settings = here.model_copy(update={"database_schema": alone})
    try:
        with dg.DagsterInstance.ephemeral() as instance:
            for table in (PARALLEL, SERIAL):
                assert run_plan(build_defs(settings), instance, TABLES[table], RefreshPlan(table, window, "test")).error is None
        for table in (PARALLEL, SERIAL):
            assert rows(conn, table, schema) == rows(conn, table, alone) != []
    finally:
        conn.execute(f"DROP SCHEMA IF EXISTS {alone} CASCADE")


def test_a_chunk_that_fails_stops_no_other_and_is_loaded_again_alone(
    here: Settings, window: DayRange, conn: psycopg.Connection, pulso: Pulso, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The load would delete most rows of a day of the second chunk. The guard refuses that.
    spec = altered(TABLES[PARALLEL], chunk_days=CHUNK)
    monkeypatch.setitem(TABLES, PARALLEL, spec)
    short = DayRange(window.end - timedelta(days=2 * CHUNK - 1), window.end)
    bad = short.chunks(CHUNK)[1]
    first = pulso("refresh", PARALLEL, *days_of(short))
    assert first.code == 0, first.out
    columns = ", ".join(spec.column_names)
    conn.execute(
        f"INSERT INTO {PARALLEL} ({columns}) SELECT {columns.replace('archivo', 'archivo || n', 1)} FROM {PARALLEL}, "
        "generate_series(1, 30) n WHERE fecha_foto = %s",
        (bad.start,),
    )
    again = pulso("refresh", PARALLEL, *days_of(short))
    assert again.code == 1
    assert "1 of 2 chunks failed, the others are loaded" in again.out
    assert f"pulso-etl refresh {PARALLEL} --from {bad.start} --to {bad.end}" in again.out
    assert [(start, status) for start, _, status in history(conn, PARALLEL) if start == bad.start] == [
        (bad.start, "success"),
        (bad.start, "failed"),
    ]
    assert [status for start, _, status in history(conn, PARALLEL) if start != bad.start] == ["success"] * 2
    healed = pulso("refresh", PARALLEL, "--allow-shrink", *days_of(bad))
    assert healed.code == 0, healed.out
    assert conn.execute(f"SELECT count(*) FROM {PARALLEL}").fetchone() == (4 * short.days,)


def test_a_killed_process_of_a_chunk_is_replaced_and_an_interrupt_ends_them_all(
    proxy: HoldingProxy, window: DayRange, conn: psycopg.Connection
) -> None:
    short = DayRange(window.end - timedelta(days=2 * CHUNK - 1), window.end)
    proxy.hold_page(1)
    process = refresh(short, PARALLEL, "--workers", "2")
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.append(process.communicate()[0]))
    reader.start()
    assert proxy.held.wait(90)
    wait_until(lambda: running(conn, PARALLEL) > 0, 30)
    [server] = [child for child in psutil.Process(process.pid).children() if "forkserver" in " ".join(child.cmdline())]
    workers = server.children()
    assert len(workers) == 2
    workers[0].kill()
    proxy.release()
    reader.join(120)
    assert process.returncode == 0, output
    assert conn.execute(f"SELECT count(*) FROM {PARALLEL}").fetchone() == (4 * short.days,)
    assert conn.execute("SELECT count(*) FROM etl_running").fetchone() == (0,)

    proxy.hold_page(1)
    process = refresh(short, PARALLEL, "--workers", "2")
    assert proxy.held.wait(90)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    proxy.release()
    wait_until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in workers), 30)
