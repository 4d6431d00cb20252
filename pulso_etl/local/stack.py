"""The whole embedded default: servers, sample data, and the environment that the same production code reads."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.postgres import EmbeddedPostgres
from pulso_etl.local.sample_data import SampleData
from pulso_etl.refresh import lima_day
from pulso_etl.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def local_stack(home: Path, *, revision: int = 0, days: int = 30) -> Iterator[dict[str, str]]:
    """PostgreSQL (unless DATABASE_URL names one), the emulator with sample data, and a Dagster home; all in `home`.

    Gives the environment variables that were set for this process and its children. Everything is stopped at the end.
    """
    home = home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        env: dict[str, str] = {}
        if "DATABASE_URL" not in os.environ:
            server = stack.enter_context(EmbeddedPostgres(home / "postgres"))
            env["DATABASE_URL"] = server.create_database("pulso")
            env["DAGSTER_POSTGRES_URL"] = server.create_database("dagster")
        elif "DAGSTER_POSTGRES_URL" not in os.environ:
            env["DAGSTER_POSTGRES_URL"] = os.environ["DATABASE_URL"]
        emulator = stack.enter_context(BigQueryEmulator(home / "emulator.log"))
        env["BIGQUERY_EMULATOR_HOST"] = emulator.rest_url
        dagster_home = home / "dagster"
        dagster_home.mkdir(exist_ok=True)
        (dagster_home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        env["DAGSTER_HOME"] = str(dagster_home)
        before = {name: os.environ.get(name) for name in env}
        os.environ.update(env)
        try:
            settings = Settings()  # type: ignore[call-arg]
            data = SampleData(settings.sources(), lima_day(datetime.now(UTC)), days=days, revision=revision)
            data.seed_into(emulator.client())
            yield env
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def serve(port: int) -> int:
    """Runs Dagster's webserver and daemon on loopback until Ctrl-C; returns 0, or the exit code of one that died."""
    commands = (
        ["-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port), "-w", str(ROOT / "workspace.yaml")],
        ["-m", "dagster._daemon", "run", "-w", str(ROOT / "workspace.yaml")],
    )
    children = [subprocess.Popen([sys.executable, *command], start_new_session=True) for command in commands]
    try:
        while True:
            for child in children:
                if child.poll() is not None:
                    return child.returncode or 1
            time.sleep(0.5)
    except KeyboardInterrupt:
        return 0
    finally:
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
