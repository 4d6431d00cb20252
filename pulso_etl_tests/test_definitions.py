"""The deployment's definitions: whole, without a secret, and loaded without touching anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap
from pydantic import SecretStr

from pulso_etl.definitions import build_defs
from pulso_etl.settings import Settings
from pulso_etl.tables import TABLES

SECRET = "un-secreto-9f3c"
URL = f"postgresql://user:{SECRET}@127.0.0.1:1/nowhere"

LOAD = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "os.mkdir", "os.remove", "os.rename"):
        raise SystemExit(f"{event} {arguments}")
    if event == "open" and set(str(arguments[1])) & set("wax+"):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(watch)
from pulso_etl.definitions import defs
repository = defs().get_repository_def()
print(*sorted(key.to_user_string() for key in repository.asset_graph.executable_asset_keys))
"""


@pytest.fixture
def settings() -> Settings:
    return Settings(database_url=SecretStr(URL))


def load(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Loads the definitions in a process of its own in an empty folder. That process may not connect and may not write."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    given = kept | {"PYTHONDONTWRITEBYTECODE": "1"} | env
    command = [sys.executable, "-c", LOAD]
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=60)


@pytest.mark.usefixtures("processes")
def test_definitions_load_without_a_connection_and_without_a_trace(tmp_path: Path) -> None:
    ended = load(tmp_path, DATABASE_URL=URL)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == sorted(TABLES)
    assert list(tmp_path.iterdir()) == []
    assert SECRET not in ended.stdout + ended.stderr


@pytest.mark.usefixtures("processes")
def test_definitions_without_a_database_say_so_in_one_clear_line(tmp_path: Path) -> None:
    ended = load(tmp_path)
    assert ended.returncode != 0
    assert ended.stderr.splitlines()[-1] == (
        "pulso_etl.sync.errors.SettingsError: settings: DATABASE_URL: is not set (see .env.example)"
    )


@pytest.mark.usefixtures("lima")
def test_definitions_hold_the_five_assets_on_the_same_partitions(settings: Settings) -> None:
    graph = build_defs(settings).resolve_asset_graph()
    assert {key.to_user_string() for key in graph.executable_asset_keys} == set(TABLES)
    assert {key.path[0] for key in graph.get_all_asset_keys() - graph.executable_asset_keys} == {"bigquery"}
    partitions = [graph.get(key).partitions_def for key in graph.executable_asset_keys]
    assert all(found == partitions[0] for found in partitions)
    assert isinstance(partitions[0], dg.DailyPartitionsDefinition)
    assert partitions[0].timezone == "America/Lima"
    assert partitions[0].get_first_partition_key() == settings.partitions_start.isoformat()


def test_definitions_are_valid_and_their_runs_need_one_process(settings: Settings) -> None:
    defs = build_defs(settings)
    dg.Definitions.validate_loadable(defs)
    assert defs.resolve_implicit_global_asset_job_def().executor_def is dg.in_process_executor


def test_what_dagster_shows_of_the_definitions_holds_no_secret(settings: Settings) -> None:
    snapshot = RepositorySnap.from_def(build_defs(settings).get_repository_def())
    text = dg.serialize_value(snapshot)
    assert SECRET not in text
    assert [one.name for one in snapshot.resources or [] if one.configured_values] == []


@pytest.mark.parametrize(
    "resources",
    [
        {"bigquery": {"config": {"project": {"env": "DATABASE_URL"}, "emulator_host": "http://127.0.0.1:1"}}},
        {"bigquery": {"config": {"sources": {}}}},
        {"budget": {"config": {"limit": 10**18}}},
        {"postgres": {"config": {"database_url": "postgresql://elsewhere/none"}}},
        {"postgres": {"config": {"database_schema": {"env": "DATABASE_URL"}}}},
        {"postgres": {"config": {"work_mem_mb": 10**6}}},
        {"io_manager": {"config": {"base_dir": {"env": "DATABASE_URL"}}}},
    ],
    ids=lambda one: str(next(iter(one))),
)
def test_a_launch_can_configure_no_resource(
    settings: Settings, resources: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    job = build_defs(settings).resolve_implicit_global_asset_job_def()
    with pytest.raises(dg.DagsterInvalidConfigError) as refused:
        dg.validate_run_config(job, {"resources": resources})
    assert SECRET not in str(refused.value)


def test_no_field_that_a_launch_can_give_reads_the_environment(settings: Settings) -> None:
    repository = build_defs(settings).get_repository_def()
    for job in repository.get_all_jobs():
        types = job.run_config_schema.config_type_dict_by_name
        assert [name for name in types if "Source" in name] == []


def test_tables_resources_and_retries_can_be_replaced(settings: Settings) -> None:
    once = dg.RetryPolicy(max_retries=0)
    table, other = TABLES["operation_data"], dg.ResourceDefinition.hardcoded_resource("other")
    defs = build_defs(settings, tables={table.name: table}, resource_overrides={"bigquery": other}, retries=once)
    graph = defs.resolve_asset_graph()
    assert graph.executable_asset_keys == {dg.AssetKey("operation_data")}
    found = graph.get(dg.AssetKey("operation_data")).assets_def
    assert found.op.retry_policy is once
    assert found.resource_defs["bigquery"] is other


def test_a_copy_of_a_declaration_under_another_name_derives_the_rest_from_that() -> None:
    spec = TABLES["dashboard_data"]
    assert spec.asset_name == "dashboard_data"
    copy = spec.model_copy(update={"name": "other_data"})
    assert (copy.asset_name, copy.asset_path) == ("other_data", ("other_data",))
    assert spec.asset_name == "dashboard_data"
