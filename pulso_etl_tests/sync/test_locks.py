"""Which loads of one table may go on at the same time, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import date, timedelta

import psycopg
import pytest
from psycopg import errors as pg

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger import locks
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.target import Target
from pulso_etl.tables import TABLES, TableSpec
from pulso_etl_tests.conftest import wait_until

SPEC, MONTHLY = TABLES["dashboard_data"], TABLES["assignment_data"]
JANUARY = DayRange(date(2026, 1, 1), date(2026, 1, 31))
FEBRUARY = DayRange(date(2026, 2, 1), date(2026, 2, 28))
TURN = DayRange(date(2026, 1, 31), date(2026, 2, 1))
YEARS = DayRange(date(2024, 1, 1), date(2025, 12, 31))

Session = Callable[[], psycopg.Connection]


@pytest.fixture
def session(server_url: str) -> Iterator[Session]:
    """Opens sessions of loads that wait for a lock at most one second."""
    with ExitStack() as stack:

        def connect() -> psycopg.Connection:
            conn = stack.enter_context(psycopg.connect(server_url, autocommit=True))
            conn.execute("SET lock_timeout = '1s'")
            return conn

        yield connect


def create(conn: psycopg.Connection, schema: str, *specs: TableSpec) -> None:
    for spec in specs:
        for statement in Statements(spec, schema).create_table():
            conn.execute(statement)


def test_loads_of_days_that_differ_go_on_at_the_same_time_and_those_of_one_day_do_not(
    conn: psycopg.Connection, schema: str, session: Session
) -> None:
    create(conn, schema, SPEC)
    assert locks.hold(Target(session(), SPEC, schema), JANUARY) is False
    assert locks.hold(Target(session(), SPEC, schema), FEBRUARY) is False
    with pytest.raises(pg.LockNotAvailable):
        locks.hold(Target(session(), SPEC, schema), TURN)
    with pytest.raises(pg.LockNotAvailable):
        locks.hold(Target(session(), SPEC, schema), YEARS)


@pytest.mark.parametrize(("spec", "window"), [(MONTHLY, JANUARY), (SPEC, YEARS)])
def test_a_load_that_may_meet_any_row_or_takes_too_many_days_is_alone(
    conn: psycopg.Connection, schema: str, session: Session, spec: TableSpec, window: DayRange
) -> None:
    create(conn, schema, SPEC, MONTHLY)
    assert locks.hold(Target(session(), spec, schema), window) is True
    with pytest.raises(pg.LockNotAvailable):
        locks.hold(Target(session(), spec, schema), FEBRUARY)


def test_a_missing_table_is_for_one_writer_and_who_waited_for_it_shares(
    conn: psycopg.Connection, schema: str, session: Session
) -> None:
    first, second, third = session(), session(), session()
    assert locks.hold(Target(first, SPEC, schema), JANUARY) is True
    with ThreadPoolExecutor(2) as pool:
        waiting: list[Future[bool]] = [
            pool.submit(locks.hold, Target(other, SPEC, schema), window) for other, window in ((second, FEBRUARY), (third, TURN))
        ]
        for other in (second, third):
            wait_until(lambda pid=other.info.backend_pid: waits(conn, pid))
        create(conn, schema, SPEC)
        first.close()
        done = [future for future in waiting if future.exception(10) is None]
        # Both loads have one day in common. The second load waits for that day until its time-out.
        assert [future.result() for future in done] == [False]
        assert all(isinstance(future.exception(), pg.LockNotAvailable) for future in waiting if future not in done)


def waits(conn: psycopg.Connection, pid: int) -> bool:
    return conn.execute("SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() == ("Lock",)


def test_a_declaration_that_changed_is_for_one_writer(conn: psycopg.Connection, schema: str, session: Session) -> None:
    create(conn, schema, SPEC)
    conn.execute(f"ALTER TABLE {SPEC.name} DROP COLUMN inten")
    assert locks.hold(Target(session(), SPEC, schema), JANUARY) is True


def test_the_locks_of_two_windows_are_taken_in_one_order() -> None:
    days = locks.day_locks("public", "t", DayRange(TURN.start, TURN.end + timedelta(days=1)))
    assert days[:2] == locks.day_locks("public", "t", TURN)
    assert len({*days, locks.table_lock("public", "t"), locks.attempt_lock("public", "t", "run", 1)}) == 5


def test_who_waits_too_long_is_told_who_holds_the_lock(conn: psycopg.Connection, schema: str, session: Session) -> None:
    create(conn, schema, SPEC)
    first = session()
    first.execute("SET application_name = 'someone'")
    for key in (locks.table_lock(schema, SPEC.name), locks.day_locks(schema, SPEC.name, JANUARY)[0]):
        first.execute("SELECT pg_advisory_lock(%s)", (key,))
        with pytest.raises(pg.LockNotAvailable) as ended:
            locks.hold(Target(session(), SPEC, schema), JANUARY)
        told = f"held by login {first.info.user} (server process {first.info.backend_pid}, someone)"
        assert told in str(ended.value)
        first.execute("SELECT pg_advisory_unlock_all()")
