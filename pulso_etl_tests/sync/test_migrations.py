"""The ledger of each earlier release, with rows, is brought up to date: `states/` holds one dump for each that was ever in use."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pulso_etl.alerts.store import AlertStore
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause, LedgerMismatch
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.migrations import TABLES, migrate, migrations, missing, state, statements
from pulso_etl.sync.ledger.watermarks import ABANDONED, RunningAttempt, Watermarks
from pulso_etl.sync.owed import Horizon, owed_days
from pulso_etl_tests.conftest import wait_until

STATES = sorted((Path(__file__).parent / "states").glob("*.sql"))
FIRST = STATES[0]
MEMORY = datetime(2026, 11, 1, tzinfo=UTC)
SHAPE = """
SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity FROM information_schema.columns
WHERE table_schema = %(schema)s
UNION ALL SELECT tablename, indexname, replace(indexdef, %(schema)s, ''), NULL, NULL, NULL
FROM pg_indexes WHERE schemaname = %(schema)s
UNION ALL SELECT conrelid::regclass::text, conname, replace(pg_get_constraintdef(oid), %(schema)s, ''), NULL, NULL, NULL
FROM pg_constraint WHERE connamespace = %(schema)s::regnamespace AND contype <> 'n'
ORDER BY 1, 2, 3
"""


def restore(conn: psycopg.Connection, dump: Path) -> None:
    conn.execute(dump.read_text(encoding="utf-8").encode())


def shape(conn: psycopg.Connection, schema: str) -> list[tuple[Any, ...]]:
    """Every column, index and constraint of the schema."""
    return conn.execute(SHAPE, {"schema": schema}).fetchall()


def contents(conn: psycopg.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of the ledger, with its address. A row that is written again gets another address."""
    query = sql.SQL("SELECT to_jsonb(t), ctid::text FROM {} t ORDER BY ctid")
    return {name: conn.execute(query.format(sql.Identifier(name))).fetchall() for name in TABLES}


@pytest.fixture
def fresh(conn: psycopg.Connection, schema: str) -> list[tuple[Any, ...]]:
    """The shape of a ledger that this release has created."""
    with conn.transaction(force_rollback=True):
        migrate(conn, schema)
        return shape(conn, schema)


@pytest.mark.parametrize("dump", STATES, ids=lambda dump: dump.stem)
def test_the_ledger_of_every_earlier_release_is_brought_up_to_date_with_its_rows(
    dump: Path, conn: psycopg.Connection, schema: str, fresh: list[tuple[Any, ...]]
) -> None:
    restore(conn, dump)
    migrate(conn, schema)
    assert shape(conn, schema) == fresh
    assert missing(conn, schema) == []

    marks = Watermarks(schema)
    states = marks.read(conn, MEMORY)
    dashboard, evolution, operation = (states[name] for name in ("dashboard_data", "evolution_data", "operation_data"))
    assert (dashboard.status, dashboard.last_partition, dashboard.records, dashboard.seconds) == (
        *("success", date(2026, 11, 20), 1190),
        7.5,
    )
    assert (evolution.status, evolution.error, evolution.last_partition) == ("failed", "no such view", None)
    assert (operation.status, operation.last_partition) == ("running", date(2026, 11, 19))
    began = datetime(2026, 11, 20, 15, 0, 10, tzinfo=UTC)
    window = DayRange(date(2026, 11, 19), date(2026, 11, 20))
    assert operation.running == (RunningAttempt("operation_data", window, "run-4", 2, began),)
    assert [(one.run_id, one.succeeded) for one in operation.attempts] == [("run-1", True), ("killed", False)]
    assert operation.attempts[1].error == ABANDONED
    assert {one.started_at for one in dashboard.attempts} == {datetime(2026, 11, 20, 15, tzinfo=UTC)}

    # The next attempt ends the one that was killed, and moves the watermark.
    later = RunningAttempt("operation_data", DayRange(date(2026, 11, 17), date(2026, 11, 21)), "run-5", 1, datetime.now(UTC))
    with conn.transaction():
        marks.start(conn, later)
        read_at = datetime(2026, 11, 21, 15, tzinfo=UTC)
        assert marks.succeed(conn, later, Loaded(read_at, dict.fromkeys(later.window, 1), 5, 1.0, True, Horizon(2))).moved
    done = marks.read(conn, MEMORY)["operation_data"]
    assert (done.status, done.running, done.data_version) == ("success", (), operation.data_version + 1)
    assert [one.run_id for one in done.attempts] == ["run-1", "killed", "run-4", "run-5"]


@pytest.mark.parametrize("dump", STATES, ids=lambda dump: dump.stem)
def test_a_file_that_runs_again_changes_nothing(dump: Path, conn: psycopg.Connection, schema: str) -> None:
    restore(conn, dump)
    migrate(conn, schema)
    before = contents(conn)
    for migration in migrations():
        conn.execute(migration.statements(schema))
    assert contents(conn) == before


@pytest.mark.parametrize("dump", STATES[2:], ids=lambda dump: dump.stem)
def test_quarantine_alerts_and_refreshes_are_kept(dump: Path, conn: psycopg.Connection, schema: str) -> None:
    restore(conn, dump)
    migrate(conn, schema)
    query = (
        "SELECT source_row->>'hora', copy, extraction_id, first_seen::date::text, last_seen::date::text "
        "FROM etl_quarantine ORDER BY id"
    )
    assert conn.execute(query).fetchall() == [
        ("1", 1, "run-1", "2026-11-18", "2026-11-19"),
        ("1", 2, "run-0", "2026-11-18", "2026-11-18"),
        ("2", 1, "run-0", "2026-11-18", "2026-11-18"),
    ]
    pending = AlertStore(schema).claim(conn, datetime.now(UTC), 0)
    assert pending is not None
    assert (pending.pending, pending.message.body) == (("mail",), "no such view")
    asked = conn.execute("SELECT requested_by FROM etl_refreshes").fetchall()
    assert asked == ([("ana",)] if "etl_refreshes" in dump.read_text() else [])


def test_of_days_that_an_earlier_release_did_not_note_the_lookback_is_owed(conn: psycopg.Connection, schema: str) -> None:
    restore(conn, STATES[5])
    migrate(conn, schema)
    found = Watermarks(schema).read(conn)["dashboard_data"]
    assert (found.last_partition, found.days) == (date(2026, 11, 20), {})
    assert owed_days(Horizon(3), found.watermark, date(2026, 11, 21)) == [*DayRange(date(2026, 11, 18), date(2026, 11, 21))]


def test_days_keep_how_long_they_are_open(conn: psycopg.Connection, schema: str) -> None:
    restore(conn, STATES[6])
    migrate(conn, schema)
    query = "SELECT DISTINCT open_until - day FROM etl_days WHERE table_name = %s"
    assert conn.execute(query, ("dashboard_data",)).fetchall() == [(7,)]
    assert conn.execute(query, ("operation_data",)).fetchall() == [(2,)]
    # A row that the earlier release writes beside this one is open until this one has read its day.
    conn.execute(
        "INSERT INTO etl_days (table_name, day, read_at, loaded_at, rows, extraction_id) "
        "VALUES ('operation_data', '2026-11-20', now(), now(), 1, 'run-4')"
    )
    assert conn.execute(query + " AND day = '2026-11-20'", ("operation_data",)).fetchall() != [(2,)]


@pytest.mark.parametrize("dump", STATES, ids=lambda dump: dump.stem)
def test_who_reads_an_earlier_state_is_told_and_changes_nothing(dump: Path, conn: psycopg.Connection, schema: str) -> None:
    restore(conn, dump)
    before = shape(conn, schema)
    marks = Watermarks(schema)
    for read in (marks.read, lambda conn: marks.used(conn, MEMORY), lambda conn: marks.ever_loaded(conn, "operation_data")):
        with pytest.raises(LedgerMismatch, match=f"an earlier release of Pulso ETL wrote the ledger in schema {schema}"):
            read(conn)
    assert shape(conn, schema) == before


def test_a_newer_state_is_refused_by_who_writes_and_read_as_long_as_it_can_be(conn: psycopg.Connection, schema: str) -> None:
    migrate(conn, schema)
    conn.execute("INSERT INTO etl_migrations (number, name) VALUES (998, 'of_tomorrow')")
    with pytest.raises(LedgerMismatch, match=r"a newer release .* \(998_of_tomorrow\); install that release") as refused:
        migrate(conn, schema)
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(LedgerMismatch):
        AlertStore(schema).create(conn)
    assert Watermarks(schema).read(conn) == {}
    conn.execute("ALTER TABLE etl_watermarks DROP COLUMN data_version")
    with pytest.raises(LedgerMismatch, match="998_of_tomorrow"):
        Watermarks(schema).read(conn)


def test_a_statement_that_fails_leaves_the_earlier_state(conn: psycopg.Connection, schema: str) -> None:
    restore(conn, FIRST)
    # What no release has written: an attempt without a start.
    conn.execute("ALTER TABLE etl_extractions ALTER COLUMN created_at DROP NOT NULL")
    conn.execute("UPDATE etl_extractions SET created_at = NULL")
    before = shape(conn, schema)
    with pytest.raises(psycopg.errors.NotNullViolation):
        migrate(conn, schema)
    assert shape(conn, schema) == before


def test_of_two_writers_one_migrates_and_the_other_waits_for_it(conn: psycopg.Connection, schema: str, server_url: str) -> None:
    restore(conn, FIRST)
    with (
        psycopg.connect(server_url) as one,
        psycopg.connect(server_url, autocommit=True) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        migrate(one, schema)
        waiting = pool.submit(migrate, other, schema)
        locked = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        wait_until(lambda: conn.execute(locked, (other.info.backend_pid,)).fetchone() is not None, 10)
        one.commit()
        waiting.result(10)
    applied = conn.execute("SELECT number FROM etl_migrations ORDER BY number").fetchall()
    assert applied == [(migration.number,) for migration in migrations()]
    assert set(Watermarks(schema).read(conn)) == {"dashboard_data", "evolution_data", "operation_data"}


@pytest.mark.parametrize("dump", [None, FIRST], ids=["nothing", "first day"])
def test_many_writers_migrate_at_once(dump: Path | None, conn: psycopg.Connection, schema: str, server_url: str) -> None:
    if dump:
        restore(conn, dump)

    def writer() -> None:
        with psycopg.connect(server_url, autocommit=True) as session:
            migrate(session, schema)

    with ThreadPoolExecutor(6) as pool:
        for result in [pool.submit(writer) for _ in range(6)]:
            result.result(30)
    assert not state(conn, schema).pending
    assert conn.execute("SELECT count(*) FROM etl_migrations").fetchone() == (len(migrations()),)


def test_a_load_that_takes_the_tables_in_another_order_goes_on(conn: psycopg.Connection, schema: str, server_url: str) -> None:
    """A load first writes to etl_running and then to etl_watermarks."""
    restore(conn, STATES[9])
    waits = "SELECT FROM pg_locks WHERE relation = 'etl_running'::regclass AND NOT granted"
    with psycopg.connect(server_url, options=f"-c search_path={schema}") as loading, ThreadPoolExecutor() as pool:
        loading.execute("LOCK TABLE etl_running IN ROW EXCLUSIVE MODE")
        with psycopg.connect(server_url, autocommit=True) as migrating:
            migration = pool.submit(migrate, migrating, schema)
            wait_until(lambda: conn.execute(waits).fetchone() is not None, 10)
            loading.execute("LOCK TABLE etl_watermarks IN ROW EXCLUSIVE MODE")
            loading.commit()
            migration.result(timeout=20)
            assert migrating.execute("SHOW lock_timeout").fetchone() == ("0",)
    assert state(conn, schema).pending == ()


def test_a_load_that_goes_on_is_waited_for(conn: psycopg.Connection, schema: str, server_url: str) -> None:
    restore(conn, STATES[-1])
    with (
        psycopg.connect(server_url) as load,
        psycopg.connect(server_url, autocommit=True) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        load.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(schema)))
        load.execute("UPDATE etl_watermarks SET records_extracted = 5 WHERE table_name = 'dashboard_data'")
        waiting = pool.submit(migrate, other, schema)
        locked = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        wait_until(lambda: conn.execute(locked, (other.info.backend_pid,)).fetchone() is not None, 10)
        load.execute("UPDATE etl_days SET rows = rows + 1")
        load.commit()
        waiting.result(10)
    assert Watermarks(schema).read(conn)["dashboard_data"].records == 5


@contextmanager
def role_without_create(conn: psycopg.Connection, schema: str) -> Iterator[str]:
    """A role that may read and write the tables of the schema, and may create none."""
    name = f"r_{uuid.uuid4().hex[:12]}"
    role, where = sql.Identifier(name), sql.Identifier(schema)
    conn.execute(sql.SQL("CREATE ROLE {0}; GRANT {0} TO CURRENT_USER; GRANT USAGE ON SCHEMA {1} TO {0}").format(role, where))
    conn.execute(sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {} TO {}").format(where, role))
    try:
        yield name
    finally:
        conn.execute(sql.SQL("RESET ROLE; DROP OWNED BY {0}; DROP ROLE {0}").format(role))


@pytest.mark.parametrize("dump", [None, FIRST], ids=["nothing", "first day"])
def test_a_role_that_may_not_create_tables_is_told_what_to_run(dump: Path | None, conn: psycopg.Connection, schema: str) -> None:
    if dump:
        restore(conn, dump)
    with role_without_create(conn, schema) as role:
        conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        with pytest.raises(LedgerMismatch, match="permission denied for schema") as refused:
            migrate(conn, schema)
        assert len(str(refused.value).splitlines()) == 1
        grants = str(refused.value).partition("grant it the right: ")[2].partition("; or run what")[0]
        assert f'GRANT USAGE, CREATE ON SCHEMA "{schema}" TO "{role}"' in grants
        conn.execute("RESET ROLE")
        conn.execute(grants.encode())
        conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        migrate(conn, schema)
        assert Watermarks(schema).read(conn).keys() == ({"dashboard_data", "evolution_data", "operation_data"} if dump else set())


def test_the_files_are_numbered_without_gaps() -> None:
    assert [migration.number for migration in migrations()] == list(range(1, len(migrations()) + 1))


def test_incidents_keep_their_cause_under_its_name_of_now(conn: psycopg.Connection, schema: str) -> None:
    restore(conn, STATES[10])
    conn.execute("UPDATE etl_alerts SET cause = 'shrink_refused'")
    migrate(conn, schema)
    assert conn.execute("SELECT cause FROM etl_alerts").fetchall() == [(Cause.SHRINK,)]


@pytest.mark.parametrize("dump", [None, FIRST], ids=["nothing", "first day"])
def test_a_person_can_run_the_statements_instead(dump: Path | None, conn: psycopg.Connection, schema: str) -> None:
    if dump:
        restore(conn, dump)
    with conn.transaction():
        for statement in statements(schema, state(conn, schema).pending):
            conn.execute(statement)
    assert not state(conn, schema).pending
    assert missing(conn, schema) == []
