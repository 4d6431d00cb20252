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
from pulso_etl_tests.local.processes import nothing_left

pytestmark = pytest.mark.usefixtures("processes")


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


def test_server_ends_with_a_killed_owner(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    code = (
        "import os, sys, pathlib; from pulso_etl.local.postgres import EmbeddedPostgres;"
        "EmbeddedPostgres(pathlib.Path(sys.argv[1])).start(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(data_dir)], timeout=60).returncode == -9
    assert nothing_left(data_dir, seconds=15)


def test_processes_that_share_a_server_leave_it_to_the_last_one(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    code = (
        "import sys, pathlib; from pulso_etl.local.postgres import EmbeddedPostgres;"
        "\nwith EmbeddedPostgres(pathlib.Path(sys.argv[1])) as server: print(server.joined)"
    )
    with EmbeddedPostgres(data_dir) as server:
        assert not server.joined
        other = subprocess.run([sys.executable, "-c", code, str(data_dir)], capture_output=True, text=True, timeout=60)
        assert other.stdout == "True\n", other.stderr
        with psycopg.connect(server.url()) as conn:
            conn.execute("SELECT 1")
    assert nothing_left(data_dir)


def test_start_after_initdb_was_cut_off(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "PG_VERSION").write_text("18\n")
    (tmp_path / "data.new").touch()
    with EmbeddedPostgres(data_dir) as server, psycopg.connect(server.url()) as conn:
        conn.execute("SELECT 1")
    assert not (tmp_path / "data.new").exists()


def test_start_after_the_machine_went_down_and_the_number_is_another_process_s(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "data")
    with server:
        lines = (server.data_dir / "postmaster.pid").read_text().splitlines()
    (server.data_dir / "postmaster.pid").write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")
    (server.data_dir / ".handle_pids.json").write_text(f"[{os.getppid()}]")
    os.utime(server.data_dir / ".handle_pids.json", (0, 0))
    with server, psycopg.connect(server.url()) as conn:
        conn.execute("SELECT 1")
    assert not server.alive()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", 54321, 54321)
    with pytest.raises(PermissionError, match="belongs to another user"):
        EmbeddedPostgres(tmp_path / "data").start()


def test_space_in_the_path_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="space"):
        EmbeddedPostgres(tmp_path / "a b").start()


def test_a_shell_with_a_locale_that_the_machine_lacks_starts_the_server_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LANG", "LC_ALL"):
        monkeypatch.setenv(name, "es_XX.UTF-8")
    with EmbeddedPostgres(tmp_path / "data") as server, psycopg.connect(server.url()) as conn:
        assert conn.execute("SHOW lc_messages").fetchone() == ("C",)
        assert conn.execute("SHOW server_encoding").fetchone() == ("UTF8",)
        assert os.environ["LC_ALL"] == "es_XX.UTF-8"
