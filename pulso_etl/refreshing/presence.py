"""Tells whether a process of the command line still lives: as long as it runs refreshes, it holds a lock in PostgreSQL.

Dagster's launchers watch only the runs that they started. PostgreSQL releases the lock when the session of the process ends.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic, sleep

import psycopg

from pulso_etl.settings import Settings
from pulso_etl.sync.ledger import locks
from pulso_etl.sync.postgres.sessions import Session

RETAKE_SECONDS = 1.0
"""How often a process checks that it still holds its lock. A server that restarts releases all locks."""
ABSENT_SECONDS = 3.0
"""A process without its lock for so long counts as gone."""


@contextmanager
def present(settings: Settings) -> Iterator[str]:
    """Holds the lock of this process until the end of the block, and yields the name of the process."""
    name = uuid.uuid4().hex
    key = locks.process_lock(settings.database_schema, name)
    taken, ended = Event(), Event()

    def keep() -> None:
        while not ended.is_set():
            try:
                with Session(settings.database_url.get_secret_value(), "presence").open() as conn:
                    locks.take(conn, [key])
                    taken.set()
                    while not ended.wait(RETAKE_SECONDS):
                        conn.execute("SELECT 1")
            except psycopg.Error:
                ended.wait(RETAKE_SECONDS)

    keeper = Thread(target=keep, name="presence", daemon=True)
    keeper.start()
    taken.wait(10)
    try:
        yield name
    finally:
        ended.set()
        keeper.join(5)


def is_gone(conn: psycopg.Connection, schema: str, name: str) -> bool:
    """Whether the process of that name has ended. It takes ABSENT_SECONDS to be sure."""
    key, deadline = locks.process_lock(schema, name), monotonic() + ABSENT_SECONDS
    while locks.holder(conn, key) is None:
        if monotonic() > deadline:
            return True
        sleep(0.2)
    return False
