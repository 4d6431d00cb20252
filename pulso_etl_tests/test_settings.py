"""The settings: documented, checked at start, and silent about their values."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import traceback
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import chdir, suppress
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError
from sqlalchemy import make_url

from pulso_etl.local.child import Child
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SampleData
from pulso_etl.local.stack import PULSO, configuration
from pulso_etl.settings import Retention, Settings, load_env_file, load_settings
from pulso_etl.sync.errors import SettingsError
from pulso_etl.tables import TABLES

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / ".env.example"
PASSWORD = "s3cr3t-Ñandú"
URL = f"postgresql://pulso:{PASSWORD}@db.example:5432/dashboard"


@pytest.fixture(autouse=True)
def bare_environment(tmp_path: Path) -> Iterator[None]:
    """An environment with only DATABASE_URL, in an empty folder. It is restored after the test."""
    before = dict(os.environ)
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    os.environ["DATABASE_URL"] = URL
    with chdir(tmp_path):
        yield
    os.environ.clear()
    os.environ.update(before)


def test_every_setting_and_nothing_else_stands_in_the_example() -> None:
    named = re.findall(r"^#?([A-Z][A-Z0-9_]*)=", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(name.upper() for name in Settings.model_fields)


def test_every_setting_is_documented_in_the_class() -> None:
    source = Path(sys.modules[Settings.__module__].__file__ or "").read_text(encoding="utf-8")
    for name in Settings.model_fields:
        assert re.search(rf'^    {name}: .*\n    """\w?.+"""$', source, re.MULTILINE), name


def test_what_the_example_comments_out_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    default = load_settings()
    commented = re.findall(r"^#([A-Z][A-Z0-9_]*)=(.*)$", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commented) > 10
    for name, value in commented:
        monkeypatch.setenv(name, value)
    assert load_settings() == default


def test_the_example_itself_is_a_valid_file() -> None:
    load_env_file(EXAMPLE)
    assert load_settings().dagster_home == Path("/var/lib/pulso-etl")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_urls_of_many_forms_are_taken(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    for rest in ("u:p%40ss@h/d", "/d?host=/tmp/socket", "h1:5432,h2:5433/d?target_session_attrs=read-write", "u@h", "[::1]:5432/d"):
        monkeypatch.setenv("DATABASE_URL", f"{scheme}://{rest}")
        assert load_settings().database_url.get_secret_value().endswith(rest)


def test_a_missing_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "")
    with pytest.raises(SettingsError, match=r"^settings: DATABASE_URL: is not set"):
        load_settings()


FAULTS = {
    "DATABASE_URL": [
        f"mysql://pulso:{PASSWORD}@db.example/d",
        f"pulso:{PASSWORD}@db.example",
        f"postgresql://pulso:{PASSWORD}@db.example:54x2/d",
        f"postgresql://pulso:@{PASSWORD}@db.example/d",
        f"postgresql://pulso:{PASSWORD}/{PASSWORD}@db.example/d",
        f"postgresql://pulso:{PASSWORD}%zz@db.example/d",
        f"postgresql://pulso:{PASSWORD}@[db.example/d",
        f"postgresql://pulso:{PASSWORD}@db.example/d?nonsense={PASSWORD}",
    ],
    "DAGSTER_POSTGRES_URL": [f"postgres://pulso:{PASSWORD}@db.example/d", f"sqlite:///{PASSWORD}"],
    "DATABASE_SCHEMA": [f'x"; DROP {PASSWORD}', "Mayúscula"],
    "BIGQUERY_DATASET": ["a`b"],
    "BIGQUERY_EMULATOR_HOST": ["127.0.0.1:9050"],
    "BIGQUERY_MAXIMUM_BYTES_BILLED": ["20 GB", "0"],
    "BIGQUERY_USE_STORAGE_API": ["perhaps"],
    "LOCK_TIMEOUT_SECONDS": ["soon"],
    "PARTITIONS_START": ["01/02/2024", PASSWORD],
    "PULSO_LOG_FORMAT": ["xml"],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name}-{n}") for name, values in FAULTS.items() for n, value in enumerate(values)],
)
def test_a_malformed_setting_is_one_line_that_names_it_and_shows_no_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    text = str(caught.value)
    assert text.startswith(f"settings: {name}: ")
    assert text.count("\n") == 0
    assert value not in text
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ValidationError) as raw:
        Settings()
    assert PASSWORD not in "".join(traceback.format_exception(raw.value)) + repr(raw.value)


def test_all_faults_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("WORK_MEM_MB", "lots")
    with pytest.raises(SettingsError, match=r"DATABASE_URL.*WORK_MEM_MB"):
        load_settings()


def test_passwords_do_not_show_in_a_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", URL)
    settings = load_settings()
    assert PASSWORD not in f"{settings!r}{settings}{settings.model_dump()}{settings.model_dump_json()}"
    assert settings.database_url.get_secret_value() == URL


@pytest.mark.usefixtures("processes")
def test_the_command_line_stops_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://pulso:{PASSWORD}@db.example:54x2/d")
    ended = subprocess.run([sys.executable, "-m", "pulso_etl", "status"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("pulso-etl: settings: DATABASE_URL: must read postgresql://")
    assert ended.stderr.count("\n") == 1
    assert PASSWORD not in ended.stderr


@pytest.mark.usefixtures("processes")
def test_dagster_shows_the_fault_and_no_value_when_it_loads_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://pulso:{PASSWORD}@db.example:54x2/d")
    ended = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "pulso_etl.definitions"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode != 0
    assert "DATABASE_URL: must read postgresql://" in output
    assert PASSWORD not in output


def test_an_env_file_wins_over_the_environment_and_an_empty_value_counts_as_not_set(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DATABASE_SCHEMA=from_file\nBIGQUERY_LOCATION=\n# comment\n", encoding="utf-8")
    os.environ["DATABASE_SCHEMA"] = "from_environment"
    assert load_settings().database_schema == "from_environment"
    load_env_file()
    assert load_settings().database_schema == "from_file"
    assert load_settings().bigquery_location is None


def test_no_env_file_is_fine_but_a_named_one_must_be_there(tmp_path: Path) -> None:
    before = dict(os.environ)
    load_env_file()
    assert dict(os.environ) == before
    with pytest.raises(SettingsError, match=r"nowhere\.env can't be read: No such file"):
        load_env_file(tmp_path / "nowhere.env")
    (tmp_path / "latin.env").write_bytes("CIUDAD=Áncash".encode("latin-1"))
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_env_file(tmp_path / "latin.env")


def test_dagsters_own_processes_read_the_env_file_alike(
    server_url: str, schema: str, emulator: BigQueryEmulator, tmp_path: Path
) -> None:
    """Webserver with code server, daemon and a run. The file holds every setting, and the environment a wrong one."""
    storage = make_url(server_url).set(database=f"dagster_{uuid.uuid4().hex[:8]}")
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {storage.database}")
    (tmp_path / "dagster.yaml").write_text(configuration("dagster.yaml"), encoding="utf-8")
    values = {
        "DATABASE_URL": server_url,
        "DATABASE_SCHEMA": schema,
        "BIGQUERY_DATASET": schema,
        "BIGQUERY_EMULATOR_HOST": emulator.rest_url,
        "DAGSTER_HOME": str(tmp_path),
        "DAGSTER_POSTGRES_URL": storage.render_as_string(hide_password=False),
        "DAGSTER_GRAPHQL_TOKEN": "0123456789" * 4,
    }
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()), encoding="utf-8")
    os.environ["DATABASE_SCHEMA"] = "from_environment"
    settings = load_settings().model_copy(update={"bigquery_dataset": schema})
    SampleData(settings.sources(), date(2026, 7, 15), days=1).seed_into(emulator.client())

    dagster = [sys.executable, "-m", "dagster"]
    target = ["-m", "pulso_etl.definitions"]
    run = [*dagster, "asset", "materialize", *target, "--select", "operation_data", "--partition", "2026-07-15"]
    ran = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-3000:]
    with psycopg.connect(server_url) as conn:
        (rows,) = conn.execute(f"SELECT count(*) FROM {schema}.operation_data").fetchone() or (0,)
    assert rows > 0

    daemon = subprocess.run([sys.executable, "-m", "dagster._daemon", "liveness-check"], capture_output=True, text=True, timeout=60)
    assert "Daemon(s) not running" in daemon.stdout, daemon.stderr[-3000:]

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "workspace.yaml").write_text(configuration("workspace.yaml"), encoding="utf-8")
    with Child("webserver", PULSO, ["webserver", "-p", str(port)], tmp_path / "log", cwd=tmp_path) as webserver:
        query = {"query": "{ assetNodes { assetKey { path } assetMaterializations { runId } } }"}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {values['DAGSTER_GRAPHQL_TOKEN']}"}
        address = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", json.dumps(query).encode(), headers)
        answer: dict[str, Any] = {}
        while not answer:
            assert webserver.exit_code is None, webserver.log_tail()
            time.sleep(0.2)
            with suppress(OSError), urllib.request.urlopen(address) as response:
                answer = json.load(response)
    loaded = {node["assetKey"]["path"][0]: len(node["assetMaterializations"]) for node in answer["data"]["assetNodes"]}
    assert {table: loaded[table] for table in TABLES} == {table: int(table == "operation_data") for table in TABLES}


def test_the_retention_is_days_by_kind_and_a_kind_that_is_not_named_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nowhere/none")
    assert load_settings().retention == Retention(timedelta(days=14), timedelta(days=90))
    monkeypatch.setenv("RETENTION_DAYS", "runs=30")
    assert load_settings().retention == Retention(runs=timedelta(days=30))
    for wrong in ("runs", "runs=0", "runs=-1", "everything=3", "30", "attempts=61"):
        monkeypatch.setenv("RETENTION_DAYS", wrong)
        with pytest.raises(SettingsError, match=r"RETENTION_DAYS: must (read like logs=14 runs=90|keep at least)"):
            load_settings()
