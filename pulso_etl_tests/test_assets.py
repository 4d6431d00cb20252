"""The five assets: what their definitions promise, against the project's table of tables, written out here once more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from pulso_etl.assets import RETRIES, build_asset, daily_partitions, shared_read
from pulso_etl.definitions import build_defs
from pulso_etl.refreshing.execution import failure_reason
from pulso_etl.refreshing.ranges import launched_range, range_tags
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.shared_reads import SharedRead
from pulso_etl.sync.tags import SPEC_KEY
from pulso_etl.tables import TABLES, TableSpec
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.lima import LIMA, lima_day


@dataclass(frozen=True)
class Wanted:
    """What users know of a table."""

    key: str
    lookback: int
    hours: int
    minutes: int
    view: str
    group: str
    columns: str
    """`name:type`, in order, the keys of all and the stamp included."""


RATES = "pct_cober:double pct_contac:double"
WANTED = {
    "dashboard_data": Wanted(
        "fecha_foto archivo cartera servicio",
        lookback=7,
        hours=6,
        minutes=30,
        view="dashboard_cobranzas",
        group="dashboard",
        columns="fecha_foto:date archivo:text cartera:text servicio:text cuentas:bigint clientes:bigint cuentas_gestionadas:bigint "
        "cuentas_cd:bigint cuentas_ci:bigint cuentas_sc:bigint cuentas_sg:bigint cuentas_pdp:bigint deuda_asig:numeric "
        f"deuda_act:numeric recupero:numeric {RATES} pct_cd:double pct_ci:double pct_conversion:double pct_efectividad:double "
        "pct_cierre:double inten:double fecha_procesamiento:timestamp",
    ),
    "evolution_data": Wanted(
        "fecha_foto archivo cartera servicio",
        lookback=3,
        hours=6,
        minutes=30,
        view="dashboard_cobranzas",
        group="dashboard",
        columns=f"fecha_foto:date archivo:text cartera:text servicio:text {RATES} pct_efectividad:double pct_cierre:double "
        "recupero:numeric cuentas:bigint fecha_procesamiento:timestamp",
    ),
    "assignment_data": Wanted(
        "periodo archivo cartera servicio",
        lookback=30,
        hours=24,
        minutes=30,
        view="asignaciones_clean",
        group="assignment",
        columns="periodo:text archivo:text cartera:text servicio:text fecha_foto:date fecha_vencimiento:date clientes:bigint "
        "cuentas:bigint deuda_asig:numeric deuda_actual:numeric ticket_promedio:numeric fecha_procesamiento:timestamp",
    ),
    "operation_data": Wanted(
        "fecha_foto hora canal archivo",
        lookback=2,
        hours=2,
        minutes=15,
        view="gestiones_unificadas",
        group="operation",
        columns="fecha_foto:date hora:bigint canal:text archivo:text total_gestiones:bigint contactos_efectivos:bigint "
        "contactos_no_efectivos:bigint total_pdp:bigint tasa_contacto:double tasa_conversion:double fecha_procesamiento:timestamp",
    ),
    "productivity_data": Wanted(
        "fecha_foto correo_agente archivo",
        lookback=5,
        hours=8,
        minutes=30,
        view="gestiones_unificadas",
        group="operation",
        columns="fecha_foto:date correo_agente:text archivo:text total_gestiones:bigint contactos_efectivos:bigint "
        "total_pdp:bigint peso_total:double tasa_contacto:double tasa_conversion:double nombre_agente:text dni_agente:text "
        "equipo:text fecha_procesamiento:timestamp",
    ),
}
names = pytest.mark.parametrize("name", WANTED)
FIRST = date(2024, 1, 1)


def asset(name: str) -> tuple[dg.AssetsDefinition, dg.AssetSpec]:
    definition = build_asset(TABLES[name], daily_partitions(FIRST), 30)
    (spec,) = definition.specs
    return definition, spec


def test_the_agreed_tables_are_there_by_their_names() -> None:
    """The graph's snapshot lists the other tables."""
    assert set(WANTED) <= set(TABLES)
    assert {name: spec.name for name, spec in TABLES.items()} == {name: name for name in TABLES}


@names
def test_a_table_has_its_key_columns_lookback_frequency_time_out_and_source(name: str) -> None:
    spec, wanted = TABLES[name], WANTED[name]
    assert spec.primary_key == tuple(wanted.key.split())
    assert spec.partition_column == "fecha_foto"
    assert spec.schedule.lookback_days == wanted.lookback
    assert spec.schedule.refresh_every == timedelta(hours=wanted.hours)
    assert spec.loading.timeout == timedelta(minutes=wanted.minutes)
    assert set(spec.sources) - {"agentes"} == {wanted.view}
    assert ("agentes" in spec.sources) == (name == "productivity_data")
    assert [f"{column.name}:{column.type.value.split()[0]}" for column in spec.columns] == wanted.columns.split()
    assert spec.stamp_columns == ("fecha_procesamiento",)


def test_rows_per_batch_follow_the_size_of_the_tables() -> None:
    batches = {name: TABLES[name].source.batch_rows for name in WANTED}
    assert batches == {name: 10_000 for name in WANTED} | {"evolution_data": 50_000, "operation_data": 5_000}


def test_only_the_monthly_table_has_a_version() -> None:
    assert [spec.version_column for spec in TABLES.values() if spec.version_column] == []
    assert {name: spec.snapshot_of for name, spec in TABLES.items() if spec.snapshot_of} == {"assignment_data": ("periodo",)}


@names
def test_an_asset_says_what_it_is_whose_it_is_and_where_it_belongs(name: str) -> None:
    definition, spec = asset(name)
    assert spec.key == dg.AssetKey(name)
    assert spec.kinds == {"bigquery", "postgres"}
    assert spec.group_name == WANTED[name].group
    assert spec.owners
    assert spec.tags["domain"] in {"collections", "operations"}
    assert spec.tags["cadence"] == f"{WANTED[name].hours}h"
    assert spec.description
    assert spec.code_version
    assert definition.op.pool == f"writer_{name}"


def test_assets_link_to_the_page_and_sources_to_their_tables_in_googles_console() -> None:
    url = SecretStr("postgresql://nowhere/none")
    graph = build_defs(Settings(database_url=url, page_url="https://pulso.example.com")).get_repository_def().asset_graph
    page = graph.get(dg.AssetKey("dashboard_data")).metadata["page"]
    assert page == dg.MetadataValue.url("https://pulso.example.com")
    source = graph.get(dg.AssetKey(["bigquery", "gestiones_unificadas"])).metadata["console"]
    table = "d=BI_USA&t=bi_P3fV4dWNeMkN5RJMhV8e_vw_gestiones_unificadas"
    assert source == dg.MetadataValue.url(f"https://console.cloud.google.com/bigquery?p=mibot-222814&{table}&page=table")


@names
def test_an_asset_runs_a_range_in_one_run_and_is_tried_three_times(name: str) -> None:
    definition, _ = asset(name)
    assert definition.backfill_policy == dg.BackfillPolicy.multi_run(92)
    assert definition.op.retry_policy is RETRIES
    assert (RETRIES.max_retries, RETRIES.delay, RETRIES.backoff) == (2, 2, dg.Backoff.EXPONENTIAL)


def test_an_interrupt_is_no_reason_to_try_again() -> None:
    assert RETRIES.calculate_delay(1) >= 0
    for error in (ValueError(), KeyboardInterrupt()):
        try:
            raise error
        except ValueError:
            assert RETRIES.calculate_delay(1) >= 0
        except KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                RETRIES.calculate_delay(1)


@names
def test_the_metadata_hold_the_columns_with_keys_units_and_limits(name: str) -> None:
    _, spec = asset(name)
    schema: Any = spec.metadata["dagster/column_schema"]
    columns = {column.name: column for column in getattr(schema, "value", schema).columns}
    wanted = WANTED[name]
    assert list(columns) == [column.partition(":")[0] for column in wanted.columns.split()]
    assert {column for column, found in columns.items() if "primary_key" in (found.tags or {})} == set(wanted.key.split())
    assert all(found.description for found in columns.values())
    for column in TABLES[name].columns:
        found = columns[column.name]
        if column.type.value == "numeric":
            assert found.tags["unit"] == "PEN"
        if column.name.startswith("pct_") or column.name.startswith("tasa_"):
            assert found.tags["unit"] == "percent"
        assert found.constraints.nullable is not TABLES[name].required(column)
        if column.name in wanted.key.split() or column.name == "fecha_foto":
            assert not found.constraints.nullable
    if name == "operation_data":
        assert columns["hora"].constraints.other == ["at least 0", "at most 23"]


@names
def test_the_metadata_hold_the_declaration_and_the_query(name: str) -> None:
    _, spec = asset(name)
    found: Any = spec.metadata[SPEC_KEY]
    read = TableSpec.from_metadata(getattr(found, "value", found))
    assert read == altered(TABLES[name], query="")
    assert spec.metadata["dagster/table_name"] == name
    assert "BETWEEN @start AND @end" in str(spec.metadata["query"])


def test_the_code_version_follows_the_declaration() -> None:
    other = build_asset(altered(TABLES["dashboard_data"], lookback_days=8), daily_partitions(FIRST), 30)
    (changed,) = other.specs
    assert changed.code_version != asset("dashboard_data")[1].code_version
    assert asset("dashboard_data")[1].code_version == asset("dashboard_data")[1].code_version


@given(st.datetimes(datetime(2024, 1, 2), datetime(2039, 1, 1), timezones=st.just(UTC)))
def test_partitions_end_with_lima_s_today(now: datetime) -> None:
    assert daily_partitions((now - timedelta(days=3)).date()).get_partition_keys(now)[-1] == lima_day(now).isoformat()


@pytest.mark.parametrize(("hour", "last"), [(4, "2026-02-28"), (5, "2026-03-01")])
def test_a_day_begins_at_midnight_in_lima(hour: int, last: str) -> None:
    partitions = daily_partitions(date(2026, 2, 27))
    now = datetime(2026, 3, 1, hour, 0, tzinfo=UTC)
    assert partitions.get_partition_keys(now) == [day for day in ("2026-02-27", "2026-02-28", "2026-03-01") if day <= last]
    window = partitions.time_window_for_partition_key("2026-02-28")
    assert window.start == datetime(2026, 2, 28, tzinfo=LIMA) == datetime(2026, 2, 28, 5, tzinfo=UTC)
    assert window.end - window.start == timedelta(days=1)


def test_every_day_is_a_partition_once_even_in_summers_with_another_time() -> None:
    keys = daily_partitions(date(1985, 12, 1)).get_partition_keys(datetime(1994, 12, 31, 12, tzinfo=UTC))
    assert keys == [date.fromordinal(n).isoformat() for n in range(date(1985, 12, 1).toordinal(), date(1995, 1, 1).toordinal())]


TODAY = date(2026, 11, 25)
START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@pytest.mark.parametrize(
    ("tags", "days"),
    [
        ({START: "2026-11-19", END: "2026-11-25"}, "2026-11-19..2026-11-25"),
        ({"dagster/partition": "2026-11-25"}, "2026-11-25"),
        ({START: "2024-01-01", END: "2024-01-01"}, "2024-01-01"),
    ],
)
def test_a_run_is_over_the_days_of_its_tags(tags: dict[str, str], days: str) -> None:
    assert str(launched_range(TABLES["dashboard_data"], tags, date(2024, 1, 1), TODAY)) == days


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({START: "2026-11-19"}, "names no days"),
        ({END: "2026-11-19"}, "names no days"),
        ({START: "2026-11-25", END: "2026-11-19"}, "after its end"),
        ({START: "2026-02-30", END: "2026-03-01"}, "are not days"),
        ({START: "2023-12-31", END: "2024-01-01"}, "is not within the partitions 2024-01-01..2026-11-25"),
        ({"dagster/partition": "2026-11-26"}, "is not within the partitions"),
    ],
)
def test_a_launch_over_no_days_or_others_says_what_to_do(tags: dict[str, str], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        launched_range(TABLES["dashboard_data"], tags, date(2024, 1, 1), TODAY)


def test_a_launch_over_other_days_ends_at_once(settings: Settings) -> None:
    job = build_defs(settings).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            asset_selection=[dg.AssetKey("dashboard_data")],
            tags={START: "1999-01-01", END: "1999-01-02"},
            instance=instance,
            raise_on_error=False,
        )
    assert not result.success
    assert "is not within the partitions" in failure_reason(result)
    assert not [event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]


def test_a_run_that_repeats_another_one_is_no_part_of_its_launch() -> None:
    host, guest = TABLES["dashboard_data"], TABLES["evolution_data"]
    window = DayRange(date(2026, 7, 13), date(2026, 7, 15))
    read, this = SharedRead("key", host, window), str(uuid4())

    def of(parent: str | None, *selected: str) -> SharedRead | None:
        run = dg.DagsterRun("refresh", run_id=this, tags=range_tags(window) | read.tags, root_run_id=parent, parent_run_id=parent)
        return shared_read(run, [dg.AssetKey(name) for name in selected], guest, window, TABLES)

    assert of(None, guest.name) == read
    assert of(str(uuid4()), guest.name) is None
    assert of(str(uuid4()), guest.name, host.name) == SharedRead(this, host, window)
