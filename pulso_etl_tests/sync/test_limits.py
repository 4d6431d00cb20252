"""What ends a load is told as what it was: each limit, a lock that another holds, an administrator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pyarrow as pa
import pytest

from pulso_etl.sync.errors import DestinationUnavailable
from pulso_etl.sync.loading.load import load, translated
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.postgres.session_settings import Limits
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.target import Target
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.sync.samples import D1, WINDOW, Loads, request, row, table, things

SHORT = timedelta(milliseconds=60)
LONGER = timedelta(milliseconds=500)
"""Long enough for a busy machine to reach the copy."""
ROWS = table([row(D1, "a"), row(D1, "b")])
Pause = Callable[[psycopg.Connection], None]


def sleep(conn: psycopg.Connection) -> None:
    time.sleep(0.15)


def sleep_longer(conn: psycopg.Connection) -> None:
    time.sleep(0.8)


def end(conn: psycopg.Connection) -> None:
    with psycopg.connect(conn.info.dsn, password=conn.info.password, autocommit=True) as admin:
        reading = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'ClientRead'"
        wait_until(lambda: admin.execute(reading, (conn.info.backend_pid,)).fetchone() is not None)
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (conn.info.backend_pid,))


@contextmanager
def slow_to_open(conn: psycopg.Connection, pause: Pause) -> Iterator[pa.RecordBatchReader]:
    pause(conn)
    yield ROWS.to_reader()


@contextmanager
def slow_to_read(conn: psycopg.Connection, pause: Pause) -> Iterator[pa.RecordBatchReader]:
    def batches() -> Iterator[pa.RecordBatch]:
        first, second = ROWS.to_batches(max_chunksize=1)
        yield first
        pause(conn)
        yield second

    yield pa.RecordBatchReader.from_batches(ROWS.schema, batches())


@pytest.mark.parametrize(
    ("limits", "source", "pause", "told"),
    [
        (Limits(idle_in_transaction=LONGER), slow_to_open, sleep_longer, "ended the session, which had waited too long"),
        (Limits(transaction=LONGER), slow_to_open, sleep_longer, "ended the load, which took too long"),
        (Limits(transaction=LONGER), slow_to_read, sleep_longer, "ended the load, which took too long"),
        (Limits(statement=SHORT), slow_to_read, sleep, "the statement was ended: .*statement timeout"),
        (Limits(), slow_to_open, end, "ended the session: .*administrator"),
        (Limits(), slow_to_read, end, "ended the session: .*administrator"),
    ],
    ids=["idle", "transaction", "transaction in the copy", "statement", "administrator", "administrator in the copy"],
)
def test_a_slow_source_and_an_administrator(
    server_url: str,
    schema: str,
    plan: PlanName,
    limits: Limits,
    source: Callable[[psycopg.Connection, Pause], Iterator[pa.RecordBatchReader]],
    pause: Pause,
    told: str,
) -> None:
    with Session(server_url, "test", limits).open() as conn:
        if limits.transaction and conn.info.server_version < 170_000:
            pytest.skip("this version of PostgreSQL has no such limit")
        ends = pytest.raises(DestinationUnavailable, match=f"^things {WINDOW}: PostgreSQL.*{told}")
        with ends as ended, translated(things(), WINDOW), conn.transaction():
            load(Target(conn, things(), schema), request(WINDOW, lambda: source(conn, pause), plan=plan))  # type: ignore[arg-type,return-value]
        assert "another writer" not in str(ended.value)


def test_a_table_that_another_holds(server_url: str, schema: str, conn: psycopg.Connection, loads: Loads) -> None:
    loads([row(D1, "a")], things())
    with conn.transaction(), Session(server_url, "test", Limits(lock=SHORT)).open() as late:
        conn.execute("LOCK TABLE things")
        with pytest.raises(DestinationUnavailable, match="another writer held the table for too long"):
            Loads(late, schema)([row(D1, "a")], things())
