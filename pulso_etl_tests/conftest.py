"""Real servers for the tests: one PostgreSQL and one BigQuery emulator for a session, one schema for each test."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.script import ScriptDirectory
from alembic.util import coerce_resource_to_filename
from hypothesis import settings as hypothesis_settings
from pydantic import SecretStr
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SampleData
from pulso_etl.settings import Settings
from pulso_etl.sync.zone import DEFAULT_ZONE
from pulso_etl_tests.alerts.receivers import inbox, make_settings, receiver  # noqa: F401
from pulso_etl_tests.clock import TODAY, ZONE
from pulso_etl_tests.dagster_stack import CHECKOUT, DagsterStack
from pulso_etl_tests.databases import postgres, quick_folder
from pulso_etl_tests.faulty_proxy import FaultyProxy
from pulso_etl_tests.holding_proxy import HoldingProxy

# A shell makes a background job ignore SIGINT. Then Dagster makes the process ignore SIGTERM, too, and children inherit both.
signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # until all modules are imported, whose objects stay


@cache
def migrations_in(folder: str) -> ScriptDirectory:
    """Dagster's migrations. Dagster would read all of their files again for each storage that it creates."""
    return ScriptDirectory(coerce_resource_to_filename(folder))


ScriptDirectory.from_config = lambda config: migrations_in(config.get_main_option("script_location"))  # type: ignore[method-assign]

hypothesis_settings.register_profile("pulso", deadline=None, max_examples=30, derandomize=True, print_blob=True)
# `pytest --hypothesis-profile=random` draws other cases each time. A failure prints how to repeat its case.
hypothesis_settings.register_profile("random", deadline=None, max_examples=100, print_blob=True)
hypothesis_settings.load_profile("pulso")
# Every deployment of the tests has this zone, also in the processes that they start: see `pulso_etl_tests.clock`.
os.environ["TIMEZONE"] = ZONE.name

UNITS = (
    ("automation/test_daemon.py",),
    ("cli/test_backfill.py",),
    ("api/test_refreshes.py", "api/test_habits.py", "api/test_locks.py"),
    (
        "api/test_operations.py",
        "api/test_typed.py",
        "api/test_door.py",
        "api/test_events.py",
        "api/test_access.py",
        "api/test_openapi.py",
    ),
    ("local/test_run.py",),
    ("test_dev.py",),
    ("tenancy/test_deployment.py",),
    ("test_faults.py",),
    ("test_docs.py", "test_graphql.py", "api/test_page.py"),  # the page after another folder: it shows a deployment from its start
    ("cli/test_main.py",),
    ("test_chaos.py",),
    ("sync/test_oldest_postgres.py",),
    ("tenancy/test_command.py",),
    ("checks/test_asset_checks.py",),
    ("test_doctor.py",),
    ("sync/test_told.py",),
    ("test_settings.py",),
    ("instance/test_code_server.py",),
    ("automation/test_away.py",),
    ("alerts/test_service.py",),
    ("sync/test_types.py",),
)
"""What one worker takes at once, of the slowest files. They begin first, so that at the end no worker waits for one of them.

Files in one unit share a running deployment (`dagster_stack`, or the API's `stack`), so that it starts once and not in each worker.
"""
UNIT = {f"{Path(__file__).parent.name}/{file}": place for place, files in enumerate(UNITS) for file in files}
"""The place of each file's unit, by the file's part of a test's id."""


STARTERS = {"processes", "server_url", "emulator"}
"""Fixtures that start processes. A test that asks for one of them, or for a fixture that does, has the marker `processes`."""
STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn")
"""Python's audit events for a new process."""
started: list[str] = []
"""The processes that this process has started."""


def hear_of_processes(event: str, args: tuple[Any, ...]) -> None:
    if event in STARTS:
        started.append(f"{event} {str(args)[:200]}")


sys.addaudithook(hear_of_processes)


def starts_processes(item: pytest.Item) -> bool:
    """Whether the test starts processes, by the fixtures that it asks for."""
    return not STARTERS.isdisjoint(getattr(item, "fixturenames", ()))


def file_of(test: str) -> str:
    """The file in a test's id."""
    return test.partition("::")[0]


class Units(LoadFileScheduling):
    """Gives each worker a whole file at a time, and of the slowest files a whole unit."""

    def _split_scope(self, nodeid: str) -> str:
        file = file_of(nodeid)
        return f"unit {UNIT[file]}" if file in UNIT else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """The scheduler of `--dist loadfile`; others stay as they are."""
    return Units(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that start processes, and puts the slowest files first. The order of the others stays."""
    items.sort(key=lambda item: UNIT.get(file_of(item.nodeid), len(UNITS)))
    for item in items:
        if starts_processes(item):
            item.add_marker("processes")


def pytest_collection_finish() -> None:
    """The garbage collector does not look at the objects of the imports any more."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def processes() -> None:
    """A test or fixture that starts processes by itself asks for this. `make check` leaves such tests out."""


@pytest.fixture(autouse=True)
def only_told_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that starts a process and asks for no fixture that says so."""
    before = len(started)
    yield
    assert starts_processes(request.node) or len(started) == before, f"ask for the fixture `processes`: {started[before]}"


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the session's PostgreSQL: DATABASE_URL if it is set, or else an embedded server."""
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    with quick_folder(tmp_path_factory.mktemp("postgres")) as folder, postgres(folder / "data") as server:
        yield server.create_database("pulso")


class Admin:
    """A session that creates and drops what tests need. It opens anew if a test has ended it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.conn = psycopg.connect(url, autocommit=True)

    def execute(self, statement: str) -> None:
        try:
            self.conn.execute(statement)
        except psycopg.OperationalError:
            if not self.conn.closed:
                raise
            self.conn = psycopg.connect(self.url, autocommit=True)
            self.conn.execute(statement)


@pytest.fixture(scope="session")
def admin(server_url: str) -> Iterator[Admin]:
    """All tests share it, because a session takes the processor for 3 milliseconds."""
    admin = Admin(server_url)
    yield admin
    admin.conn.close()


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BigQueryEmulator]:
    with BigQueryEmulator(tmp_path_factory.mktemp("emulator") / "log") as emulator:
        yield emulator


@pytest.fixture
def bigquery_proxy(emulator: BigQueryEmulator) -> Iterator[FaultyProxy]:
    """A proxy in front of the emulator's REST end point that injects faults (see `pulso_etl_tests.faulty_proxy`)."""
    with FaultyProxy(emulator.rest_url) as proxy:
        yield proxy


@pytest.fixture
def schema(admin: Admin) -> Iterator[str]:
    """A schema of the test's own, dropped at its end."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    admin.execute(f"CREATE SCHEMA {name}")
    yield name
    admin.execute(f"DROP SCHEMA {name} CASCADE")


@pytest.fixture
def conn(server_url: str, schema: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"SET search_path = {schema}")
        connection.execute("SET TIME ZONE 'UTC'")
        yield connection


@pytest.fixture(scope="session")
def dagster_home(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of Dagster's, with its storage in a schema of its own. All tests share it, because it takes a second to set up.

    In SQLite, Dagster's default, a run takes twice the time.
    """
    home, schema = tmp_path_factory.mktemp("dagster_home"), f"d_{uuid.uuid4().hex[:12]}"
    separator = "&" if "?" in server_url else "?"
    storage = {
        "module": "pulso_etl.instance.event_storage",
        "class": "BatchingPostgresStorage",
        "config": {"postgres_url": f"{server_url}{separator}options=-csearch_path%3D{schema}"},
    }
    # JSON is also YAML.
    (home / "dagster.yaml").write_text(json.dumps({"storage": {"custom": storage}, "telemetry": {"enabled": False}}))
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA {schema}")
        yield home
        conn.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture
def settings(
    server_url: str,
    schema: str,
    emulator: BigQueryEmulator,
    dagster_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Settings:
    """Settings of a deployment on the session's servers, also in the environment; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", server_url)
    monkeypatch.setenv("DATABASE_SCHEMA", schema)
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", emulator.rest_url)
    monkeypatch.setenv("DAGSTER_HOME", str(dagster_home))
    return Settings(database_url=SecretStr(server_url))


@pytest.fixture
def lima(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deployment has the default zone. A test asks for this if it names instants or days in that zone."""
    monkeypatch.setenv("TIMEZONE", DEFAULT_ZONE)


@pytest.fixture(scope="session")
def dagster_stack(server_url: str, emulator: BigQueryEmulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterStack]:
    """A running deployment of the five tables on sample data of its own."""
    with running_stack(server_url, emulator, tmp_path_factory.mktemp("dagster")) as stack:
        yield stack


@contextmanager
def running_stack(
    server_url: str,
    emulator: BigQueryEmulator,
    home: Path,
    *,
    instance_file: Path = CHECKOUT / "dagster.yaml",
    more_env: Mapping[str, str] | None = None,
    python: Path = Path(sys.executable),
) -> Iterator[DagsterStack]:
    """A deployment in schemas and a dataset of its own: 5 days of sample data, 30 dashboard rows a day."""
    schema, storage = (f"s_{uuid.uuid4().hex[:12]}" for _ in range(2))
    dataset = f"STACK_{uuid.uuid4().hex[:6]}"
    separator = "&" if "?" in server_url else "?"
    env = {
        "DATABASE_URL": server_url,
        "DATABASE_SCHEMA": schema,
        "DAGSTER_POSTGRES_URL": f"{server_url}{separator}options=-csearch_path%3D{storage}",
        "BIGQUERY_DATASET": dataset,
        # A test that needs a sensor turns it on.
        "AUTOMATION": "false",
        "SENSOR_INTERVAL_SECONDS": "1",
        "RETRY_WAIT_SECONDS": "2",
        **(more_env or {}),
    }
    names = Settings(database_url=SecretStr(server_url), bigquery_dataset=dataset).sources()
    data = SampleData(names, TODAY, days=5, dashboard_rows_per_day=30)
    data.seed_into(emulator.client())
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA {storage}")
        try:
            with (
                HoldingProxy(emulator.rest_url) as proxy,
                DagsterStack(home, env, proxy, data, instance_file=instance_file, python=python) as stack,
            ):
                yield stack
        finally:
            conn.execute(f"DROP SCHEMA IF EXISTS {schema}, {storage} CASCADE")


def seed(settings: Settings, emulator: BigQueryEmulator, *, revision: int = 0) -> SampleData:
    """Small sample data of the last 10 days in the emulator."""
    data = SampleData(settings.sources(), TODAY, days=10, dashboard_rows_per_day=40, revision=revision)
    data.seed_into(emulator.client())
    return data


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits for the condition, `seconds` at most; fails the test after that."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)
