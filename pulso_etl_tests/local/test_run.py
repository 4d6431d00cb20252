"""`pulso-etl run`: what a newcomer sees first, and that it leaves nothing running."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from sqlalchemy import make_url

from pulso_etl.embedded import holder
from pulso_etl.local.stack import Sample, local_stack
from pulso_etl.sync.errors import LocalStackError
from pulso_etl.tables import TABLES
from pulso_etl_tests.cli.conftest import Pulso, pulso
from pulso_etl_tests.lima import lima_day
from pulso_etl_tests.local.processes import Command, nothing_left

__all__ = ["pulso"]

pytestmark = pytest.mark.usefixtures("processes")

ROOT = Path(__file__).parents[2]
SMALL = ("--rows-per-day", "20")
TINY = Sample(rows_per_day=5, days=1)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "DAGSTER_POSTGRES_URL", "DAGSTER_HOME", "BIGQUERY_EMULATOR_HOST", "PULSO_EMBEDDED_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def refused(pulso: Pulso) -> Callable[..., str]:
    """Runs the command in this process. Returns the one line in which it says why it refuses."""

    def run(*arguments: str) -> str:
        ended = pulso(*arguments)
        assert ended.code == 2, ended
        (line,) = [line for line in (ended.out + ended.err).splitlines() if line.startswith("pulso-etl: ")]
        assert "Traceback" not in ended.out + ended.err
        return line

    return run


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as an installed wheel has it, outside of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def counts(output: str) -> dict[str, list[str]]:
    """The figures of the printed table: read, inserted, updated, unchanged, deleted."""
    rows = [line.split() for line in output.splitlines()]
    return {row[0]: row[2:7] for row in rows if len(row) == 11 and row[0] in TABLES}


def test_a_wheel_runs_without_a_home_and_a_second_run_finds_every_row_unchanged(tmp_path: Path, wheel: Path) -> None:
    # A `.env` is a deployment's: the sample data must not get into its database.
    (tmp_path / ".env").write_text("DATABASE_URL=postgresql://nobody@127.0.0.1:9/production\n", encoding="utf-8")
    home = tmp_path / ".pulso"
    env = {"PYTHONPATH": str(wheel), "HOME": "/nonexistent", "PYTHONSAFEPATH": "1"}
    first = Command(["run", *SMALL], env, cwd=tmp_path)
    for step in ("PostgreSQL: starting", "emulator: starting", "loading sample data", *(f"{table}: " for table in TABLES)):
        first.wait_for(step)
    assert first.end() == 0, first.output
    assert nothing_left(home)
    assert set(counts(first.output)) == set(TABLES)
    for table, (_, inserted, updated, _, deleted) in counts(first.output).items():
        assert int(inserted) > 0, table
        assert (updated, deleted) == ("0", "0")

    second = Command(["run", *SMALL], env, cwd=tmp_path)
    assert second.end() == 0, second.output
    for table, (read, inserted, updated, unchanged, deleted) in counts(second.output).items():
        assert unchanged == read != "0", table
        assert (inserted, updated, deleted) == ("0", "0", "0")
    assert nothing_left(home)


def test_a_wheel_holds_the_files_that_the_checkout_has_at_its_top(wheel: Path) -> None:
    for name in ("dagster.yaml", "workspace.yaml"):
        assert (wheel / "pulso_etl/local" / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("PostgreSQL: starting", signal.SIGINT),
        ("emulator: starting", signal.SIGTERM),
        ("loading sample data", signal.SIGHUP),
        ("evolution_data: ", signal.SIGINT),
    ],
)
def test_a_signal_at_any_step_leaves_nothing_running(tmp_path: Path, step: str, number: int) -> None:
    command = Command(["run", "--home", str(tmp_path / "p"), *SMALL])
    command.wait_for(step)
    command.signal_group(number)
    command.signal_group(number)  # an impatient one
    assert command.end() != 0
    assert "Traceback" not in command.output
    assert nothing_left(tmp_path)


def test_a_failed_run_leaves_nothing_running(tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARTITIONS_START", "2999-01-01")
    line = refused("run", "--home", str(tmp_path / "p"), *SMALL)
    assert "the first partition 2999-01-01 lies after today" in line
    assert (tmp_path / "p" / "emulator.log").exists()
    assert nothing_left(tmp_path)


def test_a_given_database_is_used_and_dagster_keeps_to_a_schema_of_its_own(
    tmp_path: Path, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(server_url).set(database=f"given_{uuid.uuid4().hex[:8]}")
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {url.database}")
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    before = dict(os.environ)
    with local_stack(tmp_path / "p", TINY), dg.DagsterInstance.get() as instance:
        assert instance.get_runs_count() == 0
        with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
            found = conn.execute("SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname !~ '^(pg_|information)'").fetchall()
    assert found == [("pulso_dagster",)]
    assert dict(os.environ) == before
    assert not (tmp_path / "p" / "postgres").exists()
    assert nothing_left(tmp_path)


def test_dagsters_own_commands_find_the_settings_that_were_left_and_start_the_servers_for_their_own_time(tmp_path: Path) -> None:
    home = tmp_path / ".pulso"
    with local_stack(home, TINY) as stack:
        stack.leave_settings()
    assert nothing_left(tmp_path)
    shutil.copy(ROOT / "dagster.yaml", tmp_path)
    today = lima_day(datetime.now(UTC))
    # Dagster refuses a range for assets whose back-fills it splits, unless they say that a range of its command line is one run.
    command = ["asset", "materialize", "-m", "pulso_etl.definitions", "--select", "dashboard_data"]
    ended = subprocess.run(
        [sys.executable, "-m", "dagster", *command, "--partition-range", f"{today}...{today}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"dashboard_data {today}: 5 rows over rest" in ended.stderr
    assert nothing_left(tmp_path, seconds=30)
    assert holder(home) is None


def test_the_stack_tells_which_of_its_servers_has_died(tmp_path: Path) -> None:
    with local_stack(tmp_path / "p", TINY) as stack:
        stack.check()
        (emulator,) = stack.children
        assert emulator.pid is not None
        os.kill(emulator.pid, signal.SIGKILL)
        os.waitid(os.P_PID, emulator.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(LocalStackError, match="the BigQuery emulator has ended"):
            stack.check()
        stack.children.clear()
        assert stack.postgres is not None
        stack.postgres.stop()
        with pytest.raises(LocalStackError, match="PostgreSQL has ended"):
            stack.check()
    assert nothing_left(tmp_path)


def test_a_space_in_the_path_is_a_clear_error(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "must not have a space or a quote in its path" in refused("run", "--home", str(tmp_path / "a b"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_can_not_be_written_is_a_clear_error(tmp_path: Path, refused: Callable[..., str]) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused("run", "--home", str(tmp_path / "p"))


def test_a_file_in_place_of_the_folder_is_a_clear_error(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "p").touch()
    assert str(tmp_path / "p") in refused("run", "--home", str(tmp_path / "p"))


def test_a_database_that_is_away_is_a_clear_error_without_the_password(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        port = taken.getsockname()[1]
        monkeypatch.setenv("DATABASE_URL", f"postgresql://u:s3cr3t@127.0.0.1:{port}/d")
        line = refused("run", "--home", str(tmp_path / "p"))
    assert "Connection refused" in line
    assert "s3cr3t" not in line
