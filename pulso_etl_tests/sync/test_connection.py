"""A session that the server ends is told with the server's reason, however early the reason arrives."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from pulso_etl.sync.postgres.server_errors import meaning
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.databases import postgres, quick_folder


@contextmanager
def answered_late(conn: psycopg.Connection, server_url: str, statement: str) -> Iterator[tuple[psycopg.Connection, int]]:
    """Sends the statement, and takes its answer, as psycopg does, after the block and after the end of the server's session.

    Gives the block another connection, and the process of the session.
    """
    conn.pgconn.send_query(statement.encode())
    pid = conn.info.backend_pid
    with psycopg.connect(server_url, autocommit=True) as admin:
        yield admin, pid
        wait_until(lambda: admin.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() is None)
    while conn.pgconn.is_busy():
        conn.pgconn.consume_input()
    while conn.pgconn.get_result() is not None:
        pass
    conn.pgconn.notifies()


def accepts(url: str) -> bool:
    try:
        Session(url, "test").open().close()
    except psycopg.OperationalError:
        return False
    return True


def select_two(conn: psycopg.Connection) -> None:
    conn.execute("SELECT 2")


def copy_one(conn: psycopg.Connection) -> None:
    with conn.cursor() as cursor, cursor.copy("COPY things FROM STDIN") as copy:
        copy.write("a\n")


@pytest.mark.parametrize("following", [select_two, copy_one])
def test_a_reason_that_arrives_with_the_answer_before(server_url: str, following: Callable[[psycopg.Connection], None]) -> None:
    with Session(server_url, "test").open() as conn:
        conn.execute("CREATE TEMPORARY TABLE things (name text)")
        with answered_late(conn, server_url, "SELECT 1") as (admin, pid):
            answers = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'ClientRead' AND query = 'SELECT 1'"
            wait_until(lambda: admin.execute(answers, (pid,)).fetchone() is not None)
            admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
        with pytest.raises(psycopg.errors.AdminShutdown, match="administrator") as caught:
            following(conn)
        assert str(meaning(caught.value).tell(caught.value)).startswith("PostgreSQL ended the session: terminating")


def test_a_limit_that_passes_with_the_answer_before(server_url: str) -> None:
    with Session(server_url, "test").open() as conn:
        conn.execute("BEGIN")
        with answered_late(conn, server_url, "SET idle_in_transaction_session_timeout = 1"):
            pass  # The limit begins with this statement.
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout) as caught:
            conn.execute("SELECT 2")
        assert "had waited too long" in str(meaning(caught.value).tell(caught.value))


@pytest.mark.usefixtures("processes")
def test_another_session_that_crashes(tmp_path: Path) -> None:
    with quick_folder(tmp_path) as folder, postgres(folder / "data") as server:
        with Session(server.url(), "test").open() as conn, psycopg.connect(server.url()) as other:
            os.kill(other.info.backend_pid, signal.SIGKILL)
            assert select.select([conn], [], [], 30)[0]
            with pytest.raises(psycopg.errors.CrashShutdown) as caught:
                conn.execute("SELECT 1")
        # The server recovers. While it does, it takes half a minute to stop.
        wait_until(lambda: accepts(server.url()))
    told = meaning(caught.value).tell(caught.value, "things 2026-02-27")
    assert str(told).startswith("things 2026-02-27: PostgreSQL is away: terminating connection because of crash")
    assert told.retryable
