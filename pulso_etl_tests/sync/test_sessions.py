"""Sessions on a server whose settings are not ours: those of the database, the role, the environment, a pooler's used session."""

from __future__ import annotations

import ast
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import pulso_etl
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.loading.months import partitions
from pulso_etl.sync.postgres.roles import as_login, as_role
from pulso_etl.sync.postgres.session_settings import Limits
from pulso_etl.sync.postgres.sessions import Session, buffer_temporary_tables
from pulso_etl.sync.target import Target
from pulso_etl_tests.databases import ENVIRONMENT, database, known, otherwise
from pulso_etl_tests.sync.samples import D1, D2, NOON, WINDOW, Loads, by_month, row

PRECISE = 0.1 + 0.2
MINUTE = timedelta(minutes=1)


@pytest.fixture
def bare(server_url: str) -> Iterator[str]:
    """A database whose settings the test changes."""
    with database(server_url) as url, psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA elsewhere")
        conn.execute("CREATE FUNCTION elsewhere.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'epoch'::timestamptz $$")
        conn.execute("CREATE TABLE elsewhere.pulso_stage ()")
        yield url


def load_and_look(url: str) -> None:
    """Loads twice. Checks the ledger and every row."""
    manager = PostgresUpsertIOManager(database_url=url, database_schema="loaded")
    marks, spec = Watermarks("loaded"), by_month()
    given = [row(D1, "José Núñez € \\ 'q'", "0.10", rate=PRECISE), row(D2, "ñ", None)]
    with manager.connect("r", MINUTE) as conn:
        assert conn.info.transaction_status == 0
        loads = Loads(conn, "loaded")
        with conn.transaction():
            marks.create(conn)
        extraction = RunningAttempt("things", WINDOW, "r", 1, datetime.now(UTC))
        for inserted in (2, 0):
            with conn.transaction():
                marks.start(conn, extraction)
                # Longer than the server's own limits.
                conn.execute("SELECT pg_sleep(0.11)")
                time.sleep(0.05)
            time.sleep(0.11)
            done = loads(given, spec)
            assert (done.total.inserted, done.total.unchanged) == (inserted, 2 - inserted)
            with conn.transaction():
                told = Loaded(datetime.now(UTC), dict.fromkeys(WINDOW, 1), 2, 0.1, True, metadata={"ñ": "José"})
                marks.succeed(conn, extraction, told)
        found = loads.rows("SELECT name, money, rate, stamp, created_at FROM loaded.things ORDER BY day")
        assert [one[:4] for one in found] == [
            ("José Núñez € \\ 'q'", Decimal("0.10"), PRECISE, NOON),
            ("ñ", None, 0.25, NOON),
        ]
        assert all(datetime.now(UTC) - one[4] < MINUTE for one in found)
        state = marks.read(conn, datetime.now(UTC) - timedelta(hours=1))["things"]
        assert (state.status, state.metadata["ñ"]) == ("success", "José")
        assert [attempt.succeeded for attempt in state.attempts] == [True, True]
        assert [part.start and part.start.month for part in partitions(Target(conn, spec, "loaded"))] == [2, 3]


def test_a_database_whose_settings_are_otherwise_is_loaded_alike(bare: str) -> None:
    with otherwise(bare, "DATABASE"):
        load_and_look(bare)


def test_a_role_whose_settings_are_otherwise_loads_alike(bare: str) -> None:
    name = f"role_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(bare, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'; GRANT {name} TO CURRENT_USER")
        admin.execute(f"GRANT CREATE ON DATABASE {admin.info.dbname} TO {name}; GRANT USAGE ON SCHEMA elsewhere TO {name}")
        try:
            with otherwise(bare, "ROLE", name):
                load_and_look(make_conninfo(bare, user=name, password="x"))
        finally:
            admin.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_an_environment_with_settings_of_its_own_loads_alike(bare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with psycopg.connect(bare) as admin:
        options = " ".join(f"-c {setting}={value.replace(' ', '')}" for setting, value in known(admin))
    for name, value in (ENVIRONMENT | {"PGOPTIONS": options}).items():
        monkeypatch.setenv(name, value)
    load_and_look(bare)


def test_a_used_session_is_as_a_new_one(server_url: str) -> None:
    session = Session(server_url, "test", Limits(statement=MINUTE))
    with session.open() as conn:
        fresh = conn.execute("SELECT name, setting FROM pg_settings ORDER BY name").fetchall()
        conn.execute("SET enable_hashjoin = off; SET work_mem = '64kB'; SET search_path = ''; SET statement_timeout = '1s'")
        conn.execute("SET ROLE pg_monitor")
        conn.execute(session.statement())
        assert conn.execute("SELECT name, setting FROM pg_settings ORDER BY name").fetchall() == fresh
        assert conn.execute("SELECT current_user = session_user").fetchone() == (True,)


def test_the_limits_are_the_session_s_own(server_url: str) -> None:
    with Session(server_url, "test", Limits(statement=timedelta(milliseconds=50))).open() as conn:
        with pytest.raises(pg.QueryCanceled):
            conn.execute("SELECT pg_sleep(5)")
        assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)


def test_a_role_is_taken_after_connecting_and_comes_back_after_the_login(server_url: str) -> None:
    with Session(as_role(server_url, "pg_monitor"), "test").open() as conn:
        assert conn.execute("SELECT current_user").fetchone() == ("pg_monitor",)
        with as_login(conn):
            assert conn.execute("SELECT current_user = session_user").fetchone() == (True,)
        assert conn.execute("SELECT current_user").fetchone() == ("pg_monitor",)
        start = Session(as_role(make_conninfo(server_url, options="-csearch_path=x"), "pg_monitor"), "test").start()
        assert conninfo_to_dict(start["conninfo"])["options"] == "-csearch_path=x"


def test_memory_for_temporary_tables_is_no_reason_to_fail(server_url: str) -> None:
    with Session(server_url, "test").open() as conn:
        conn.execute("CREATE TEMP TABLE used (n int); INSERT INTO used VALUES (1)")
        buffer_temporary_tables(conn, 512)
        assert conn.execute("SELECT n FROM used").fetchall() == [(1,)]


def test_nobody_else_opens_a_session() -> None:
    found = set()
    top = Path(pulso_etl.__file__).parent
    for path in top.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute | ast.Name):
                name = ast.unparse(node)
                if name.endswith(("psycopg.connect", "Connection.connect", "create_engine", "ConnectionPool")):
                    found.add((path.relative_to(top).as_posix(), name))
    # The API's pool opens its sessions with what a Session gives it.
    assert found == {("sync/postgres/sessions.py", "Connection.connect"), ("api/database.py", "AsyncConnectionPool")}
