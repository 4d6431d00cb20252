"""The advisory locks of the loads: they decide which loads of one table may go on at the same time.

Two loads of a table never write the same day at the same time. If each day owns its rows, loads of different days may go on
together: each of them shares the table's lock and has a lock for each of its days. Every other load needs the table's lock for
itself.
The session holds these locks, not the transaction, so that they cover the whole attempt. They end with the session.

Every login of the database can take an advisory lock. After a long wait, the error therefore names the holder. Where a lock on one
of the project's tables is enough, the project uses that lock instead, because a reader cannot take it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import errors as pg
from psycopg import pq

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.schema.schema import is_as_declared
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.target import Target

SHARED_DAYS = 366
"""A load of more days locks the whole table, because the server's lock table has room for only some thousands of locks."""
HELD_LOCKS = """
SELECT pid, (classid::bigint << 32) | objid::bigint AS key FROM pg_locks
WHERE locktype = 'advisory' AND granted AND objsubid = 1
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
"""The advisory locks that are held, by key, with the server process of each lock."""
HOLDERS = f"""
SELECT DISTINCT held.pid, coalesce(usename, '?'), coalesce(application_name, '')
FROM ({HELD_LOCKS}) AS held LEFT JOIN pg_stat_activity USING (pid)
WHERE key = ANY(%s) AND pid <> pg_backend_pid() ORDER BY 1 LIMIT 3
"""  # noqa: S608 - made of constants
"""The holders of the keys: server process, login, and name of the session."""


def table_lock(schema: str, table: str) -> int:
    """The key of the table's lock, a signed 64-bit integer like all of these."""
    return _key(schema, table)


def attempt_lock(schema: str, table: str, run_id: str, attempt: int) -> int:
    """The key of the lock that an attempt holds for as long as it lives."""
    return _key(schema, table, run_id, str(attempt))


def process_lock(schema: str, name: str) -> int:
    """The key of the lock that a process holds for as long as it runs refreshes by itself."""
    return _key(schema, "", "process", name)


def day_locks(schema: str, table: str, window: DayRange) -> list[int]:
    """The keys of the window's days. All loads take them in this order, so that two loads never wait for each other."""
    return [_key(schema, table, day.isoformat()) for day in window]


def needs_whole_table(spec: TableSpec, window: DayRange) -> bool:
    """Whether a load of the window may meet rows of other days, or takes too many days to lock each."""
    return not spec.partition_in_key or window.days > SHARED_DAYS


def hold(target: Target, window: DayRange) -> bool:
    """Waits for the locks of a load and takes them for the session; returns whether it is the table's only writer.

    Only a sole writer creates a missing table or changes a table that is not as declared. `conn` is in autocommit mode. Raises
    psycopg's LockNotAvailable after the session's `lock_timeout`; it names who holds the lock.
    """
    conn, spec, schema = target.conn, target.spec, target.schema
    key = table_lock(schema, spec.name)
    while True:
        sole = needs_whole_table(spec, window) or not is_as_declared(target)
        if not sole:
            with _naming_holders(conn, [key]):
                conn.execute("SELECT pg_advisory_lock_shared(%s)", (key,))
            take(conn, day_locks(schema, spec.name, window))
            return False
        take(conn, [key])
        if needs_whole_table(spec, window) or not is_as_declared(target):
            return True
        # Another load has created or changed the table during the wait. Now this load does not have to be the only writer.
        conn.execute("SELECT pg_advisory_unlock(%s)", (key,))


def take(conn: psycopg.Connection, keys: Sequence[int]) -> None:
    """Waits for the locks, one after the other, and takes them for the session. Raises as `hold` does."""
    with _naming_holders(conn, keys):
        conn.execute("SELECT pg_advisory_lock(key) FROM unnest(%s::bigint[]) AS key", (list(keys),))


def holder(conn: psycopg.Connection, key: int) -> int | None:
    """The server process whose session holds the lock alone, if one does."""
    row = conn.execute(f"SELECT pid FROM ({HELD_LOCKS}) AS held WHERE key = %s", (key,)).fetchone()  # noqa: S608 - made of constants
    return None if row is None else int(row[0])


@contextmanager
def _naming_holders(conn: psycopg.Connection, keys: Sequence[int]) -> Iterator[None]:
    """Wraps a wait for locks with a time limit. The error names the holding session, so that a person can end it."""
    try:
        yield
    except pg.LockNotAvailable as error:
        # A failed transaction accepts no query.
        idle = conn.info.transaction_status is pq.TransactionStatus.IDLE
        found = conn.execute(HOLDERS, (list(keys),)).fetchall() if idle else []
        if not found:
            raise
        named = ", ".join(f"login {login} (server process {pid}, {name or 'without a name'})" for pid, login, name in found)
        raise pg.LockNotAvailable(f"the lock is held by {named}") from error


def _key(schema: str, table: str, *part: str) -> int:
    text = ":".join((f"pulso_etl:{schema}.{table}", *part))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
