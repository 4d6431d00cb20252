"""Servers for tests, and separate databases on the session's server, in any encoding and with other settings."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from pulso_etl.local.child import Afterwards
from pulso_etl.local.postgres import EmbeddedPostgres

MEMORY = Path("/dev/shm")
"""The folder that Linux keeps in memory."""
ROOM = 2 * 2**30
"""Free bytes in memory for the servers of all workers."""
OTHERWISE = {
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "DateStyle": "SQL, DMY",
    "default_transaction_deferrable": "on",
    "default_transaction_isolation": "serializable",
    "extra_float_digits": "-15",
    "idle_in_transaction_session_timeout": "20ms",
    "idle_session_timeout": "100ms",
    "IntervalStyle": "sql_standard",
    "lock_timeout": "1ms",
    "quote_all_identifiers": "on",
    "row_security": "off",
    "search_path": "elsewhere, pg_catalog, pg_temp",
    "standard_conforming_strings": "off",
    "statement_timeout": "100ms",
    "TimeZone": "Asia/Tokyo",
    "transaction_timeout": "50ms",
    "transform_null_equals": "on",
}
"""Settings that no statement of ours expects. The time-outs end everything that takes a moment."""
ENVIRONMENT = {"PGCLIENTENCODING": "LATIN1", "PGDATESTYLE": "SQL, DMY", "PGTZ": "Asia/Tokyo", "PGAPPNAME": "psql"}
"""Environment variables that change every client of PostgreSQL."""


@contextmanager
def quick_folder(otherwise: Path) -> Iterator[Path]:
    """A folder in memory, where a server of tests takes a fifth less processor time, or `otherwise` if there is no room for it.

    It is removed at the end of the block, and also if this process is killed.
    """
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM:
        yield otherwise
        return
    folder = Path(mkdtemp(prefix="pulso-etl-tests-", dir=MEMORY))
    folder.chmod(0o755)  # PostgreSQL runs as another user, if this process is root's
    afterwards = Afterwards('sleep 5; rm -rf "$1"', str(folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        afterwards.call_off()


@contextmanager
def postgres(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A server that does not wait for the disk, because its rows need not outlive a crash of the machine."""
    with EmbeddedPostgres(data_dir) as server:
        with psycopg.connect(server.url(), autocommit=True) as admin:
            for name, value in (("fsync", "off"), ("full_page_writes", "off"), ("max_wal_size", "128MB")):
                admin.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
            admin.execute("SELECT pg_reload_conf()")
        yield server


@contextmanager
def database(server_url: str, encoding: str = "UTF8") -> Iterator[str]:
    """The URL of a new database, dropped at the end."""
    url = make_url(server_url).set(database=f"d_{uuid.uuid4().hex[:12]}")
    name = sql.Identifier(str(url.database))
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LOCALE 'C'").format(name, encoding))
        try:
            yield url.render_as_string(hide_password=False)
        finally:
            # WITH (FORCE) is not used: while autovacuum works in the database, PostgreSQL 15 allows it only to superusers. DROP
            # DATABASE stops autovacuum by itself, and waits some seconds for the sessions that this code terminates.
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'",
                (url.database,),
            )
            admin.execute(sql.SQL("DROP DATABASE {}").format(name))


def known(conn: psycopg.Connection) -> list[tuple[str, str]]:
    """The settings of OTHERWISE that the server's version has."""
    (names,) = zip(*conn.execute("SELECT lower(name) FROM pg_settings").fetchall(), strict=True)
    return [(name, value) for name, value in OTHERWISE.items() if name.lower() in names]


@contextmanager
def otherwise(url: str, kind: str, name: str = "") -> Iterator[None]:
    """In this block, new sessions of the URL's database, or of the role, begin with the settings OTHERWISE."""
    with psycopg.connect(url, autocommit=True) as admin:
        whose = sql.SQL(f"ALTER {kind} {{}} ").format(sql.Identifier(name or admin.info.dbname))
        for setting, value in known(admin):
            values = sql.SQL(", ").join(map(sql.Literal, value.split(", ")))
            admin.execute(whose + sql.SQL("SET {} = {}").format(sql.SQL(setting), values))
        try:
            yield
        finally:
            admin.execute(whose + sql.SQL("RESET ALL"))
