"""The embedded PostgreSQL: a real server, started, stopped and started again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import psycopg2  # type: ignore[import-untyped]
import pytest
import sqlalchemy

from pulso_etl.local.postgres import EmbeddedPostgres


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path_factory.mktemp("server") / "data") as server:
        yield server


def test_url_works_for_every_driver(server: EmbeddedPostgres) -> None:
    url = server.create_database("pulso")
    with psycopg.connect(url) as conn:
        assert conn.execute("SELECT current_database()").fetchone() == ("pulso",)
    old = psycopg2.connect(url)
    old.close()
    for driver in ("postgresql+psycopg", "postgresql+psycopg2", "postgresql"):
        engine = sqlalchemy.create_engine(url.replace("postgresql", driver, 1))
        with engine.connect() as conn:
            assert conn.execute(sqlalchemy.text("SELECT current_database()")).scalar() == "pulso"
        engine.dispose()


def test_create_database_twice_and_with_a_hard_name(server: EmbeddedPostgres) -> None:
    assert server.create_database("otra base/ñ?") == server.create_database("otra base/ñ?")
    with psycopg.connect(server.url("otra base/ñ?")) as conn:
        assert conn.execute("SELECT current_database()").fetchone() == ("otra base/ñ?",)


def test_stop_and_start_keep_the_data(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "data")
    with server:
        with psycopg.connect(server.url()) as conn:
            conn.execute("CREATE TABLE t AS SELECT 42 AS n")
        session = psycopg.connect(server.url())
        server.stop()
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
        session.close()
        with pytest.raises(RuntimeError, match="not running"):
            server.url()
        server.stop()  # harmless
        server.start()
        with psycopg.connect(server.url()) as conn:
            assert conn.execute("SELECT n FROM t").fetchone() == (42,)


def test_server_is_out_of_reach_of_the_terminal(server: EmbeddedPostgres) -> None:
    pid = int((server.data_dir / "postmaster.pid").read_text().splitlines()[0])
    assert os.getsid(pid) != os.getsid(0)


def test_stop_works_after_an_earlier_owner_was_killed(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    code = (
        "import os, sys, pathlib; from pulso_etl.local.postgres import EmbeddedPostgres;"
        "EmbeddedPostgres(pathlib.Path(sys.argv[1])).start(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(data_dir)], timeout=60).returncode == -9
    with EmbeddedPostgres(data_dir) as server, psycopg.connect(server.url()) as conn:
        conn.execute("SELECT 1")
    assert not (data_dir / "postmaster.pid").exists()


def test_space_in_the_path_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="space"):
        EmbeddedPostgres(tmp_path / "a b").start()
