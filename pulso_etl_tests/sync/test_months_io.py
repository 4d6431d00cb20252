"""The IO manager with an asset whose table is partitioned by month."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import Any

import dagster as dg
import psycopg
import pyarrow as pa
import pytest

from pulso_etl.api.status import COPIES
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.ledger.locks import table_lock
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.loading.months import refuse_expired
from pulso_etl.sync.tags import SPEC_KEY
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.sync.test_io_manager import addresses, counts, failure, reader, stored, wanted
from pulso_etl_tests.sync.visits import ALL, D1, D2, D3, SPEC, Deferred, materialize, table, visits

MONTHLY = altered(SPEC, partition_by="month", retention_months=2)
Run = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def run(manager: PostgresUpsertIOManager, instance: dg.DagsterInstance) -> Run:
    return partial(materialize, manager, instance)


def on(monkeypatch: pytest.MonkeyPatch, today: date) -> None:
    """Loads from now on refuse the months that are no longer kept on that day."""
    for module in ("io_manager", "loading.guards"):
        monkeypatch.setattr(f"pulso_etl.sync.{module}.refuse_expired", lambda spec, window, _: refuse_expired(spec, window, today))


@pytest.fixture(autouse=True)
def in_march(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the days of `visits`, whatever the current date is."""
    on(monkeypatch, D3)


def asset(yielded: Callable[[pa.Table], Any] = lambda rows: rows) -> dg.AssetsDefinition:
    return visits(yielded, metadata={SPEC_KEY: MONTHLY.as_metadata()})


def held(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    """Rows by month."""
    return conn.execute("SELECT tableoid::regclass::text, count(*) FROM visits GROUP BY 1 ORDER BY 1").fetchall()


def test_a_range_over_two_months_is_loaded_left_alone_and_rid_of_what_vanished(
    run: Run, conn: psycopg.Connection, instance: dg.DagsterInstance
) -> None:
    assert run(asset()).success
    assert stored(conn) == wanted(ALL)
    assert held(conn) == [("visits_y2026m02", 3), ("visits_y2026m03", 1)]
    before = addresses(conn)
    assert run(asset()).success
    assert addresses(conn) == before
    assert [counts(instance, day) for day in (D1, D2, D3)] == [(2, 0, 0, 2, 0), (1, 0, 0, 1, 0), (1, 0, 0, 1, 0)]
    changed = [ALL[0], (D2, "a", "7"), ALL[3]]
    assert run(asset(lambda _: table(changed))).success
    assert stored(conn) == wanted(changed)
    assert [counts(instance, day) for day in (D1, D2, D3)] == [(1, 0, 0, 1, 1), (1, 0, 1, 0, 0), (1, 0, 0, 1, 0)]
    assert {key for key, address in addresses(conn).items() if address != before[key]} == {(D2, "a")}
    got: list[Any] = []
    assert run(asset(lambda _: table(changed)), reader(got, pa.Table)).success
    assert got[0]["site"].to_pylist() == ["a", "a", "ñ"]


def test_days_of_two_months_that_are_not_there_are_loaded_at_the_same_time(
    run: Run, manager: PostgresUpsertIOManager, conn: psycopg.Connection
) -> None:
    assert run(asset(), start="2026-02-01", end="2026-02-01").success
    other: list[Any] = []

    def meanwhile() -> None:
        with dg.DagsterInstance.ephemeral() as another:
            loaded = materialize(manager, another, asset(), start="2026-03-01", end="2026-03-01")
            other.append((loaded.success, held(conn)))

    def begin_another() -> None:
        thread = threading.Thread(target=meanwhile)
        thread.start()
        thread.join(30)

    two = [ALL[0], ALL[1]]
    first = run(asset(lambda _: Deferred(table(two), during=begin_another)), start="2026-02-27", end="2026-02-27")
    assert first.success
    assert other == [(True, [("visits_y2026m03", 1)])]
    assert held(conn) == [("visits_y2026m02", 2), ("visits_y2026m03", 1)]
    assert stored(conn) == wanted([*two, ALL[3]])


def test_a_load_that_fails_leaves_its_empty_month_and_the_next_one_takes_it(
    run: Run, conn: psycopg.Connection, schema: str
) -> None:
    assert run(asset(), start="2026-02-27", end="2026-02-28").success
    refused = run(asset(lambda _: table([ALL[3], ALL[3]])), start="2026-03-01", end="2026-03-01")
    assert "2 rows with the primary key (day=2026-03-01, site=ñ)" in failure(refused)
    assert held(conn) == [("visits_y2026m02", 3)]
    state = Watermarks(schema).read(conn)["visits"]
    assert (state.status, state.error is not None) == ("failed", True)
    assert run(asset(), start="2026-03-01", end="2026-03-01").success
    assert held(conn) == [("visits_y2026m02", 3), ("visits_y2026m03", 1)]


def test_a_launch_of_days_that_the_table_no_longer_keeps_is_refused_once_and_recorded(
    run: Run, conn: psycopg.Connection, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(asset()).success
    on(monkeypatch, date(2026, 5, 1))
    reason = failure(run(asset()))
    assert reason.startswith("visits 2026-02-27..2026-03-01: the table keeps days from 2026-03-01 on (retention_months=2)")
    assert Watermarks(schema).read(conn)["visits"].error == reason
    assert stored(conn) == wanted(ALL)


def test_the_status_sees_the_rows_that_a_copy_into_months_has_taken(run: Run, conn: psycopg.Connection, schema: str) -> None:
    key = table_lock(schema, "visits")

    def copies() -> list[int]:
        return [rows for held, rows in conn.execute(COPIES) if held == key]

    assert run(asset(lambda rows: Deferred(rows, during=lambda: wait_until(lambda: len(copies()) == 1)))).success
    assert copies() == []
