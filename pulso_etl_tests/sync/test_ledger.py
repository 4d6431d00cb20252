"""The ledger of days: which reading of the source counts, whoever loads and whatever the clocks say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pyarrow as pa
import pytest
import time_machine

from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.ledger.ledger import server_clock
from pulso_etl_tests.sync.visits import D1, D2, D3, Arrowlike, Deferred, materialize, table, visits

Yielded = Callable[[pa.Table], Any]
EAGER: dict[str, Yielded] = {
    "table": lambda found: found,
    "frame": lambda found: found.to_pandas(types_mapper=None),
    "reader": lambda found: found.to_reader(),
    "arrowlike": Arrowlike,
}


def days(conn: psycopg.Connection) -> dict[date, tuple[datetime, int]]:
    return {day: (at, rows) for day, at, rows in conn.execute("SELECT day, read_at, rows FROM etl_days ORDER BY day")}


def amounts(conn: psycopg.Connection) -> list[int]:
    return [int(amount) for (amount,) in conn.execute("SELECT amount FROM visits WHERE day = %s ORDER BY site", (D1,))]


def outcomes(conn: psycopg.Connection) -> list[tuple[str, str]]:
    return conn.execute("SELECT status, error_cause FROM etl_extractions ORDER BY id").fetchall()


def test_every_day_of_a_range_stands_in_the_ledger_with_its_rows(
    manager: PostgresUpsertIOManager, instance: dg.DagsterInstance, conn: psycopg.Connection
) -> None:
    before = server_clock(conn)
    assert materialize(manager, instance, visits(Deferred), end="2026-03-02").success
    found = days(conn)
    assert [rows for _, rows in found.values()] == [2, 1, 1, 0]
    assert list(found) == [D1, D2, D3, D3 + timedelta(days=1)]
    assert all(before <= at <= server_clock(conn) for at, _ in found.values())


def test_days_of_a_load_that_failed_do_not_enter_the_ledger(
    manager: PostgresUpsertIOManager, instance: dg.DagsterInstance, conn: psycopg.Connection
) -> None:
    twice = table([(D1, "a", "1"), (D1, "a", "2")])
    assert not materialize(manager, instance, visits(lambda _: twice)).success
    assert days(conn) == {}


class Source:
    """The value of a day at the source. Each reading finds a greater value. `meanwhile` runs after the first reading."""

    def __init__(self, yielded: Yielded) -> None:
        self.amount = 0
        self.yielded = yielded
        self.meanwhile: Callable[[], object] | None = None

    def read(self, _: pa.Table) -> Any:
        self.amount += 1
        found = self.yielded(table([(D1, "a", str(self.amount))]))
        if (meanwhile := self.meanwhile) is not None:
            self.meanwhile = None
            meanwhile()
        return found


@pytest.mark.parametrize("kind", EAGER)
@pytest.mark.parametrize("skew", [timedelta(0), timedelta(hours=-3), timedelta(hours=3)], ids=str)
def test_an_older_reading_does_not_overwrite_a_newer_one(
    manager: PostgresUpsertIOManager, instance: dg.DagsterInstance, conn: psycopg.Connection, kind: str, skew: timedelta
) -> None:
    source = Source(EAGER[kind])

    def another_reads_later_and_commits() -> None:
        # The machine's clock differs.
        with time_machine.travel(datetime.now(UTC) + skew, tick=True):
            assert materialize(manager, instance, visits(source.read)).success
        assert amounts(conn) == [2]

    source.meanwhile = another_reads_later_and_commits
    result = materialize(manager, instance, visits(source.read, retry_policy=dg.RetryPolicy(max_retries=1)))
    # The first attempt ends, and the second attempt reads again.
    assert result.success
    assert amounts(conn) == [3]
    assert outcomes(conn) == [("success", None), ("failed", "newer_reading"), ("success", None)]


def test_what_is_told_of_an_older_reading_names_the_day_and_a_run_without_retries_fails(
    manager: PostgresUpsertIOManager, instance: dg.DagsterInstance, conn: psycopg.Connection
) -> None:
    source = Source(EAGER["table"])
    source.meanwhile = lambda: materialize(manager, instance, visits(source.read), start="2026-02-27", end=None)
    assert not materialize(manager, instance, visits(source.read, retry_policy=None)).success
    assert amounts(conn) == [2]
    error = conn.execute("SELECT error_message FROM etl_extractions WHERE status = 'failed'").fetchone()
    assert error is not None
    assert "visits 2026-02-27..2026-03-01: these rows were read at" in error[0]
    assert "another load has committed 2026-02-27" in error[0]


def test_other_days_that_were_read_later_keep_no_load_out(
    manager: PostgresUpsertIOManager, instance: dg.DagsterInstance, conn: psycopg.Connection
) -> None:
    source = Source(EAGER["table"])
    later = visits(lambda _: table([(D3, "a", "9")]))
    source.meanwhile = lambda: materialize(manager, instance, later, start="2026-03-01", end=None)
    assert materialize(manager, instance, visits(source.read, retry_policy=None), end="2026-02-28").success
    assert amounts(conn) == [1]


def test_a_stream_that_the_load_opens_is_always_the_newest_reading(
    manager: PostgresUpsertIOManager, instance: dg.DagsterInstance, conn: psycopg.Connection
) -> None:
    source = Source(Deferred)
    assert materialize(manager, instance, visits(source.read)).success
    # A server whose clock was ahead, and was set right.
    conn.execute("UPDATE etl_days SET read_at = clock_timestamp() + interval '1 hour'")
    assert materialize(manager, instance, visits(source.read)).success
    assert amounts(conn) == [2]
    assert all(at <= server_clock(conn) for at, _ in days(conn).values())
