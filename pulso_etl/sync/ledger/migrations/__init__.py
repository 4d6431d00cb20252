"""The ledger's tables and their migrations: numbered SQL files, each applied once to a schema.

These files make all tables whose names begin with `etl_`. The table `etl_migrations` says which files a schema has; a schema
from before the numbering has no such table. A file therefore keeps what already exists: a second run of it changes nothing.

A writer applies the missing files in a separate transaction before the load's transaction. In the load's transaction, a load that
fails would undo the files, and nothing could record its failure. The locks of the files would also keep readers out for as long as
the load takes. A migration that fails leaves the schema as it was. A reader applies nothing, because it may lack the right.

In a file, `{schema}` is the quoted schema; other braces are doubled. The files call only functions of the server itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import inf
from time import monotonic, sleep

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pulso_etl.sync.errors import LedgerMismatch, first_line
from pulso_etl.sync.postgres.bookkeeping import exists
from pulso_etl.sync.postgres.strangers import RECORDS, refuse_strangers

APPLIED = "etl_migrations"
YIELD_MILLISECONDS = 300
"""A migration waits for a lock only this long. Then it releases its other locks. PostgreSQL looks for deadlocks after a second."""
PAUSE_SECONDS = 0.1
"""The time between two tries to lock the tables, in which others can work."""
TABLES = (*RECORDS, "etl_alerts", "etl_alert_messages", "etl_refreshes", "etl_queries", "etl_totals", APPLIED)
"""Every table that the files make."""
CREATE = """
CREATE TABLE IF NOT EXISTS {schema}.etl_migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""
OTHERS = r"""
SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename LIKE 'etl\_%%' AND tableowner <> current_user ORDER BY tablename
"""
"""The tables of the ledger that another role owns: only an owner may change a table."""


@dataclass(frozen=True)
class Migration:
    """A numbered file."""

    number: int
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.number:03}_{self.name}"

    def statements(self, schema: str) -> sql.Composed:
        """The file's statements for that schema."""
        return sql.SQL(self.text).format(schema=sql.Identifier(schema))


@cache
def migrations() -> tuple[Migration, ...]:
    """Every file of this release, by number."""
    found = sorted(file.name for file in files(__package__).iterdir() if file.name.endswith(".sql"))
    named = [(name, *name.removesuffix(".sql").split("_", 1)) for name in found]
    return tuple(
        Migration(int(number), title, files(__package__).joinpath(name).read_text(encoding="utf-8"))
        for name, number, title in named
    )


@dataclass(frozen=True)
class LedgerState:
    """The files of a schema: it lacks the `pending` files of this release, and it has `unknown` files of a newer release.

    `empty`: it has no table of the ledger.
    """

    schema: str
    pending: tuple[Migration, ...]
    unknown: tuple[str, ...] = ()
    empty: bool = False

    @property
    def is_older(self) -> bool:
        """Whether an earlier release wrote it."""
        return bool(self.pending) and not self.empty

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Wraps a query. Raises LedgerMismatch if a newer release has removed what the query reads."""
        try:
            yield
        except (pg.UndefinedTable, pg.UndefinedColumn) as error:
            if self.unknown:
                raise self.too_new() from error
            raise

    def too_new(self) -> LedgerMismatch:
        """The error for a caller that cannot use the ledger, because a newer release has changed it."""
        return LedgerMismatch(
            f"a newer release of Pulso ETL has changed the ledger in schema {self.schema} ({', '.join(self.unknown)}); install "
            f"that release. The last file that this release knows is {migrations()[-1]}"
        )

    def too_old(self) -> LedgerMismatch:
        """The error for a reader of a ledger that a writer must migrate first."""
        return LedgerMismatch(
            f"an earlier release of Pulso ETL wrote the ledger in schema {self.schema}; it lacks {_named(self.pending)}. The next "
            "refresh updates it. The API, the sensors and `pulso-etl cleanup` update it too"
        )


def state(conn: psycopg.Connection, schema: str) -> LedgerState:
    """Which files the schema has. Reads only."""
    if not exists(conn, schema, APPLIED):
        return LedgerState(schema, migrations(), empty=not exists(conn, schema, "etl_extractions"))
    query = sql.SQL("SELECT number, name FROM {} ORDER BY number").format(sql.Identifier(schema, APPLIED))
    applied: dict[int, str] = dict(conn.execute(query).fetchall())
    newest = migrations()[-1].number
    unknown = tuple(f"{number:03}_{name}" for number, name in applied.items() if number > newest)
    return LedgerState(schema, tuple(one for one in migrations() if one.number not in applied), unknown)


def missing(conn: psycopg.Connection, schema: str) -> list[str]:
    """The tables of the ledger that somebody has dropped, in a schema that has every file."""
    found = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,)).fetchall()
    return [name for name in TABLES if (name,) not in found]


def migrate(conn: psycopg.Connection, schema: str) -> None:
    """Migrates the ledger of the schema, and creates a missing schema, in a transaction of its own.

    If several processes do this at once, one applies the files and the others wait for it. Raises LedgerMismatch for a ledger of a
    newer release. Raises it also for a role without the right, with the statements that give the right. Raises SchemaRefused (see
    `strangers`).
    """
    found = state(conn, schema)
    if found.unknown:
        raise found.too_new()
    if not found.pending:
        return
    try:
        with conn.transaction():
            if not exists(conn, schema, APPLIED):
                _create(conn, schema)
            _apply(conn, schema)
    except pg.InsufficientPrivilege as error:
        raise LedgerMismatch(_refusal(conn, found, error)) from error


def _create(conn: psycopg.Connection, schema: str) -> None:
    # An advisory lock, because there is no table yet to lock.
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"pulso_etl:ddl:{schema}",))
    # CREATE SCHEMA IF NOT EXISTS needs the right to create a schema even if the schema exists, so it is not used here.
    if conn.execute("SELECT FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone() is None:
        conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    conn.execute(sql.SQL(CREATE).format(schema=sql.Identifier(schema)))


def _apply(conn: psycopg.Connection, schema: str) -> None:
    # A login that may only read cannot take this lock on the table. It could hold an advisory lock for ever.
    conn.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(sql.Identifier(schema, APPLIED)))
    found = state(conn, schema)
    if found.unknown:
        raise found.too_new()
    if not found.pending:
        return
    _lock(conn, schema)
    refuse_strangers(conn, schema)
    for migration in found.pending:
        conn.execute(migration.statements(schema))
        conn.execute(
            sql.SQL("INSERT INTO {} (number, name) VALUES (%s, %s)").format(sql.Identifier(schema, APPLIED)),
            (migration.number, migration.name),
        )


def _lock(conn: psycopg.Connection, schema: str) -> None:
    """Keeps everybody out of the tables of the loads until the transaction ends.

    Loads, also those of earlier releases, take these tables in different orders. A migration that must wait therefore releases its
    locks before the server sees a deadlock, and tries again. Raises psycopg's LockNotAvailable after the session's
    `lock_timeout`.
    """
    row = conn.execute("SELECT setting::bigint FROM pg_settings WHERE name = 'lock_timeout'").fetchone()
    assert row is not None
    deadline = monotonic() + row[0] / 1000 if row[0] else inf
    tables = sql.SQL(", ").join(sql.Identifier(schema, name) for name in RECORDS if exists(conn, schema, name))
    if not tables.as_string(conn):
        return
    while True:
        try:
            with conn.transaction():
                conn.execute("SELECT set_config('lock_timeout', %s, true)", (f"{YIELD_MILLISECONDS}ms",))
                conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(tables))
                conn.execute("SELECT set_config('lock_timeout', %s, true)", (f"{row[0]}ms",))
            return
        except pg.LockNotAvailable:
            if monotonic() > deadline:
                raise
        sleep(PAUSE_SECONDS)


def statements(schema: str, pending: Iterable[Migration]) -> list[sql.Composed]:
    """The statements that `migrate` runs for these files. A person can run them instead, in one transaction."""
    where = sql.Identifier(schema)
    noted = sql.SQL("INSERT INTO {} (number, name) VALUES ({}, {});")
    files = [
        one.statements(schema) + noted.format(sql.Identifier(schema, APPLIED), sql.Literal(one.number), sql.Literal(one.name))
        for one in pending
    ]
    return [sql.SQL("CREATE SCHEMA IF NOT EXISTS {};").format(where), sql.SQL(CREATE).format(schema=where), *files]


def _refusal(conn: psycopg.Connection, found: LedgerState, error: psycopg.Error) -> str:
    """The error's text for a role that may not apply the files."""
    schema = sql.Identifier(found.schema)
    role = sql.Identifier(str(conn.execute("SELECT current_user").fetchone()[0]))  # type: ignore[index]
    rights = [sql.SQL("CREATE SCHEMA IF NOT EXISTS {0}; GRANT USAGE, CREATE ON SCHEMA {0} TO {1}").format(schema, role)]
    rights += [
        sql.SQL("ALTER TABLE {} OWNER TO {}").format(sql.Identifier(found.schema, name), role)
        for (name,) in conn.execute(OTHERS, (found.schema,)).fetchall()
    ]
    return (
        f"the role {role.as_string(conn)} may not bring the ledger in schema {found.schema} up to date "
        f"({_named(found.pending)}): {first_line(error)}. Nothing was changed. As an administrator, grant it the right: "
        f"{sql.SQL('; ').join(rights).as_string(conn)}; or run what `pulso-etl ledger` prints"
    )


def _named(pending: tuple[Migration, ...]) -> str:
    return str(pending[0]) if len(pending) == 1 else f"{pending[0]} to {pending[-1]}"
