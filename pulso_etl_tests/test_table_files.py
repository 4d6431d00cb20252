"""Tables in YAML: `dg scaffold` writes one, every process reads it as it reads a module, and faults name file and line."""

from __future__ import annotations

import asyncio
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import jsonschema
import psycopg
import pytest
import yaml
from dagster.components.component_scaffolding import scaffold_object
from dagster.components.core.component_tree import ComponentTree

import pulso_etl
from pulso_etl import SyncedTable, tables
from pulso_etl.api.app import create_app
from pulso_etl.definitions import build_defs
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.refreshing.execution import run_plan
from pulso_etl.refreshing.plan import Calendar, plan_refresh
from pulso_etl.refreshing.request import RefreshRequest
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import SettingsError
from pulso_etl.sync.spec import Schedule, Source, TableSpec
from pulso_etl.table_files import NAMES, read_table
from pulso_etl.tables import TABLES, find_tables
from pulso_etl.tables.columns import FECHA_FOTO, count, text
from pulso_etl_tests.conftest import seed
from pulso_etl_tests.dagster_stack import CHECKOUT


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The folder of a table as `dg scaffold defs pulso_etl.SyncedTable channel_data` leaves it."""
    folder = tmp_path / "tables" / "channel_data"
    scaffold_object(folder, NAMES[0], None, "yaml", None)
    return folder


def test_what_dg_writes_is_a_table_that_is_found_beside_the_modules(table: Path) -> None:
    found = find_tables([str(table.parent)])
    assert [*found] == [*TABLES][:2] + sorted([*[*TABLES][2:], "channel_data"])


def test_the_page_shows_what_dg_writes(table: Path) -> None:
    page = (CHECKOUT / "docs/yaml-tables.md").read_text(encoding="utf-8")
    for file in table.iterdir():
        assert f"```{file.suffix[1:]}\n{file.read_text(encoding='utf-8')}```\n" in page


def test_a_table_in_yaml_is_the_table_that_a_module_declares(table: Path) -> None:
    declared = TableSpec(
        name="channel_data",
        description="Contact attempts by day and channel.",
        primary_key=("fecha_foto", "canal"),
        partition_column="fecha_foto",
        columns=(
            FECHA_FOTO.model_copy(update={"description": "Day of the attempts"}),
            text("canal", "Channel: BOT or HUMANO"),
            count("total_gestiones", "Contact attempts", required=True),
        ),
        group="operation",
        source=Source(query=(table / "channel_data.sql").read_text(encoding="utf-8")),
        schedule=Schedule(lookback_days=2, refresh_every=timedelta(hours=2)),
    )
    assert read_table(table / "defs.yaml") == declared


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        ("type: date,", "type: fecha,", 9, "columns.0.type: Input should be 'text', 'date', "),
        ("lookback_days: 2", "lookback_days: two", 14, "schedule.lookback_days: Input should be a valid integer"),
        ("lookback_days: 2", "lookbackdays: 2", 14, "Schedule has no field lookbackdays; did you mean lookback_days?"),
        ("  group: operation", "  priority: 1", 12, "priority is a field of schedule: schedule=Schedule(priority=…)"),
        ("minimum: 0}", "minimum: 1.5}", 11, "columns.2.minimum: Input should be a valid integer"),
        ("minimum: 0}", "minimum: 2, maximum: 1}", 11, "column total_gestiones: minimum 2 is above maximum 1"),
        ("[fecha_foto, canal]", "[fecha_foto, canales]", 3, "channel_data: ['canales'] are named but not declared as columns"),
        ("  partition_column: fecha_foto\n", "", 3, "partition_column: Field required"),
        ("  partition_column:", "  name: x\n  partition_column:", 7, "name: the table has the name of its folder"),
        ("  group:", "  timezone: Europe/Madrid\n  group:", 12, "timezone: the setting TIMEZONE"),
        ("  group:", "  source: {query: SELECT 1}\n  group:", 12, "source.query: the query is the text of channel_data.sql"),
        ("group: operation", 'group: "{{ env.GROUP }}"', 12, "group: a table takes no {{ … }}, because it is the same in every"),
        ("  group:", "  description: x\n  group:", 12, "description is given twice"),
        (
            "type: pulso_etl.SyncedTable",
            "type: dagster.DefinitionsComponent",
            1,
            "a table is pulso_etl.SyncedTable, and this",
        ),
        ("attributes:", "post_processing: {}\nattributes:", 3, "post_processing: a table has no such part"),
        ("attributes:", "attributes: []\nmore:", 3, "a table needs type: pulso_etl.SyncedTable, and attributes"),
        ("attributes:", "---\nattributes:", 3, "but found another document"),
        ("[fecha_foto, canal]", "[fecha_foto, canal", 7, "expected ',' or ']', but got ':'"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_a_fault_names_file_and_line(
    table: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, line: int, told: str
) -> None:
    file = table / "defs.yaml"
    given = file.read_text(encoding="utf-8")
    assert old in given
    file.write_text(given.replace(old, new, 1), encoding="utf-8")
    monkeypatch.chdir(table.parent)
    with pytest.raises(SettingsError) as refused:
        find_tables([str(table.parent)])
    assert str(refused.value).startswith(f"channel_data/defs.yaml:{line}: ")
    assert told in str(refused.value)


def test_a_table_reads_with_a_table_that_can_have_its_rows(table: Path) -> None:
    file = table / "defs.yaml"
    plain = file.read_text(encoding="utf-8")
    for host, why in (
        ("nowhere", "there is no such table"),
        ("operation_data", "its primary key is fecha_foto, hora, canal, archivo"),
    ):
        file.write_text(plain.replace("  group:", f"  source: {{reads_with: {host}}}\n  group:"), encoding="utf-8")
        with pytest.raises(SettingsError, match=f"channel_data: reads_with {host}: .*({why})"):
            find_tables([str(table.parent)])


def test_every_fault_of_a_file_is_told_at_once(table: Path) -> None:
    file = table / "defs.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("type: date,", "type: day,").replace("days: 2", "days: 0"))
    with pytest.raises(SettingsError) as refused:
        read_table(file)
    assert [one.split(":")[1] for one in str(refused.value).splitlines()] == ["9", "14"]


def test_a_folder_needs_its_query_and_a_name_that_a_table_can_have(table: Path) -> None:
    (table / "channel_data.sql").rename(table / "query.sql")
    with pytest.raises(SettingsError, match=r"defs\.yaml:1: there is no channel_data\.sql beside it"):
        read_table(table / "defs.yaml")
    (table / "query.sql").rename(table / "Channel-Data.sql")
    odd = table.rename(table.with_name("Channel-Data"))
    with pytest.raises(SettingsError, match=r"Channel-Data/defs\.yaml:1: the table has the name of its folder, which"):
        read_table(odd / "defs.yaml")


def test_a_table_is_declared_once(table: Path) -> None:
    twice = table.parent / "more" / "channel_data"
    twice.parent.mkdir()
    scaffold_object(twice, NAMES[0], None, "yaml", None)
    (five := table.parent / "more" / "operation_data").mkdir()
    for file in table.iterdir():
        (five / file.name.replace("channel", "operation")).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(SettingsError, match="in a module and a folder or in two folders: operation_data, channel_data"):
        find_tables([str(table.parent)])


def test_a_table_has_a_folder_of_its_own_in_dg(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in Python it is a module"):
        scaffold_object(tmp_path / "channel_data", NAMES[0], None, "python", None)


def test_dagster_s_tools_find_the_component_and_where_tables_stand() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    dg_project = project["tool"]["dg"]["project"]
    assert project["project"]["entry-points"]["dagster_dg_cli.registry_modules"] == {"pulso_etl": "pulso_etl"}
    assert (dg_project["registry_modules"], dg_project["defs_module"]) == (["pulso_etl"], tables.__name__)
    assert "SyncedTable" in dir(pulso_etl)
    # Runs, sensors and schedules belong to the location of this name.
    assert dg_project["code_location_name"] == project["tool"]["dagster"]["module_name"]


def test_editors_and_dg_know_the_fields_of_a_table(table: Path) -> None:
    schema = SyncedTable.get_model_cls().model_json_schema()
    given = yaml.safe_load((table / "defs.yaml").read_text(encoding="utf-8"))["attributes"]
    jsonschema.validate(given, schema)
    # YAML reads 02:00:00 as a number of seconds.
    jsonschema.validate(given | {"schedule": {"refresh_every": 7200}}, schema)
    assert {*TableSpec.model_fields} - {*schema["properties"]} == {"name", "tenant", "timezone"}
    assert "scd2" in schema["$defs"]["Strategy"]["enum"]
    for wrong in (
        {"lookback_days": 2},
        {"schedule": {"lookback": 2}},
        {"source": {"query": "SELECT 1"}},
        {"columns": [{"name": "x"}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(given | wrong, schema)


def test_a_table_in_yaml_is_loaded_and_served_like_any_other(
    settings: Settings, schema: str, emulator: BigQueryEmulator, conn: psycopg.Connection, table: Path
) -> None:
    data, here = seed(settings, emulator), settings.model_copy(update={"database_schema": schema})
    known = {"channel_data": find_tables([str(table.parent)])["channel_data"]}
    spec = known["channel_data"].in_zone(here.timezone)
    plan = plan_refresh(spec, None, RefreshRequest(), datetime.now(UTC), Calendar.of(here))
    with dg.DagsterInstance.ephemeral() as instance:
        outcome = run_plan(build_defs(here, tables=known), instance, spec, plan)
    assert outcome.error is None
    found = conn.execute("SELECT sum(total_gestiones), array_agg(DISTINCT canal ORDER BY canal) FROM channel_data").fetchone()
    assert found == (data.tables()["gestiones_unificadas"].num_rows, ["BOT", "HUMANO"])

    async def ask() -> Any:
        app = create_app(here, tables=known)
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 4711))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client,
        ):
            return (await client.get("/api/v1/etl/status")).json()

    [one] = [one for one in asyncio.run(ask())["tables"] if one["table"] == "channel_data"]
    assert (one["status"], one["state"]) == ("success", "fresh")


def test_a_project_with_a_folder_of_definitions_of_its_own_gets_asset_and_checks(
    settings: Settings, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = table.parent / "hour_data"
    scaffold_object(other, NAMES[1], None, "yaml", None)
    specs = [read_table(folder / "defs.yaml") for folder in (table, other)]
    # Dagster loads a folder as we do.
    monkeypatch.chdir(table)
    assert SyncedTable.load(None, ComponentTree.for_test().load_context) == SyncedTable(specs[0])
    merged = dg.Definitions.merge(*(dg.build_defs_for_component(SyncedTable(spec)) for spec in specs))
    dg.Definitions.validate_loadable(merged)
    graph = merged.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.executable_asset_keys} == {"channel_data", "hour_data"}
    assert {key.asset_key.to_user_string() for key in graph.asset_check_keys} == {"channel_data", "hour_data"}
    assert {"postgres", "bigquery"} < {*merged.get_repository_def().get_top_level_resources()}
