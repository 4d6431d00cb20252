"""The asset checks through Dagster, on real servers: they pass on sample data and find what is made wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import dagster as dg
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import requests
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster_graphql.test.utils import execute_dagster_graphql
from psycopg import sql

from pulso_etl.checks.asset_checks import (
    findings,
    reconciled,
    reconciliation_selection,
    refresh_selection,
    unusual_days,
)
from pulso_etl.checks.reconciliation import Difference, Measure, Reconciliation, agree, default_window, differences
from pulso_etl.definitions import build_defs
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SampleData, base_of, load_table
from pulso_etl.refreshing.execution import Comparison, run_plan, run_reconciliation
from pulso_etl.refreshing.keys import reconciliation_key, refresh_check_keys
from pulso_etl.refreshing.launch import run_tags
from pulso_etl.refreshing.plan import RefreshPlan
from pulso_etl.refreshing.ranges import tagged_range
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.locks import table_lock
from pulso_etl.sync.loading.quality import Inspection
from pulso_etl.sync.loading.rules import Check
from pulso_etl.sync.spec import Column, ColumnType, Strategy
from pulso_etl_tests.clock import TABLES, TODAY
from pulso_etl_tests.declarations import altered, declare

WINDOW = DayRange(TODAY - timedelta(days=9), TODAY)
OLD, RECENT = TODAY - timedelta(days=8), TODAY - timedelta(days=1)
"""Partitions that a refresh of dashboard_data no longer reads by itself, and that the next one reads again."""
QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
QUIET_LOGGER = QUIET["loggers"]["console"]["config"]


@pytest.fixture(scope="module")
def sample(emulator: BigQueryEmulator) -> SampleData:
    """Sample data of the last 10 days in a dataset of this module's own."""
    settings = Settings(database_url="postgresql://", bigquery_dataset="CHECKS")
    data = SampleData(settings.sources(), TODAY, days=10, dashboard_rows_per_day=40)
    data.seed_into(emulator.client())
    return data


@pytest.fixture
def configured(settings: Settings, schema: str, sample: SampleData, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("BIGQUERY_DATASET", "CHECKS")
    return settings.model_copy(update={"database_schema": schema, "bigquery_dataset": "CHECKS"})


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def asset_job(configured: Settings) -> dg.JobDefinition:
    return build_defs(configured).resolve_implicit_global_asset_job_def()


@pytest.fixture
def refresh(configured: Settings, instance: dg.DagsterInstance) -> Callable[..., None]:
    def run(table: str, window: DayRange = WINDOW) -> None:
        plan = RefreshPlan(table, window, "test")
        outcome = run_plan(build_defs(configured), instance, TABLES[table], plan, logger=QUIET_LOGGER)
        assert outcome.error is None

    return run


@pytest.fixture
def reconcile(configured: Settings, instance: dg.DagsterInstance) -> Callable[..., Comparison]:
    def run(table: str, window: DayRange | None = WINDOW) -> Comparison:
        return run_reconciliation(build_defs(configured), instance, TABLES[table], window, logger=QUIET_LOGGER)

    return run


def evaluations(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


@pytest.fixture
def checked(asset_job: dg.JobDefinition, instance: dg.DagsterInstance) -> Callable[..., dict[str, dg.AssetCheckEvaluation]]:
    """Runs only the table's checks over the window. Returns their results."""

    def run(table: str, window: DayRange = WINDOW) -> dict[str, dg.AssetCheckEvaluation]:
        job = asset_job.get_subset(asset_selection=set(), asset_check_selection=set(refresh_check_keys(TABLES[table])))
        tags = run_tags(TABLES[table], window)
        return evaluations(job.execute_in_process(instance=instance, run_config=QUIET, tags=tags, raise_on_error=False))

    return run


def records(evaluation: dg.AssetCheckEvaluation, title: str = "failures") -> list[dict[str, Any]]:
    table = evaluation.metadata[title]
    assert isinstance(table, dg.TableMetadataValue)
    return [dict(record.data) for record in table.records]


def steps(result: dg.ExecuteInProcessResult) -> set[str]:
    return {event.step_key for event in result.all_events if event.is_step_success and event.step_key}


def failed(said: Mapping[str, dg.AssetCheckEvaluation]) -> list[str]:
    """The checks of rows that did not pass. The check `up_to_date` is left out, because it follows from the watermark."""
    return [name for name, evaluation in said.items() if not evaluation.passed and name != Check.UP_TO_DATE]


@pytest.mark.parametrize("table", TABLES)
def test_every_check_of_a_table_passes_on_sample_data(
    configured: Settings,
    instance: dg.DagsterInstance,
    reconcile: Callable[..., Comparison],
    asset_job: dg.JobDefinition,
    table: str,
) -> None:
    spec = TABLES[table]
    job = asset_job.get_subset(asset_selection={dg.AssetKey(table)}, asset_check_selection=set(refresh_check_keys(spec)))
    result = job.execute_in_process(instance=instance, run_config=QUIET, tags=run_tags(spec, WINDOW))
    said = evaluations(result)
    assert failed(said) == []
    # A first load of fewer days than the lookback leaves days that are owed.
    assert said[Check.UP_TO_DATE].passed == (WINDOW.days >= spec.schedule.lookback_days)
    assert {Check.PRIMARY_KEY, Check.VALUE_LIMITS, Check.EXPECTED_VALUES, Check.MINIMUM_RECORDS} <= said.keys()
    assert (Check.VOLUME in said) == spec.partition_in_key
    assert said[Check.PRIMARY_KEY].metadata["rows"].value > 0  # type: ignore[operator]

    comparison = reconcile(table)
    assert (comparison.agrees, comparison.differences) == (True, [])
    assert comparison.text.endswith("rows agree")
    assert not comparison.text.startswith("0 ")


def test_the_minimum_of_each_table_is_the_agreed_one() -> None:
    agreed = {
        "dashboard_data": 100,
        "evolution_data": 50,
        "assignment_data": 20,
        "operation_data": 10,
        "productivity_data": 1,
    }
    assert {name: TABLES[name].quality.minimum_records for name in agreed} == agreed


A_ROW = "ctid = (SELECT min(ctid) FROM {table})"


@pytest.mark.parametrize(
    ("table", "statements", "check", "severity", "column", "fault"),
    [
        (
            "dashboard_data",
            ["DROP CONSTRAINT dashboard_data_pkey, ALTER archivo DROP NOT NULL", "SET archivo = NULL"],
            Check.PRIMARY_KEY,
            "ERROR",
            "archivo",
            "null",
        ),
        (
            "operation_data",
            ["ALTER total_pdp DROP NOT NULL", "SET total_pdp = NULL"],
            Check.REQUIRED_COLUMNS,
            "ERROR",
            "total_pdp",
            "null",
        ),
        (
            "operation_data",
            ["DROP CONSTRAINT operation_data_hora_check1", "SET hora = 24"],
            Check.VALUE_LIMITS,
            "ERROR",
            "hora",
            "above 23",
        ),
        (
            "dashboard_data",
            ["DROP CONSTRAINT dashboard_data_pct_cober_check1", "SET pct_cober = 100.5"],
            Check.VALUE_LIMITS,
            "ERROR",
            "pct_cober",
            "above 100",
        ),
        (
            "assignment_data",
            ["DROP CONSTRAINT assignment_data_cuentas_check", "SET cuentas = -1"],
            Check.VALUE_LIMITS,
            "ERROR",
            "cuentas",
            "below 0",
        ),
        (
            "assignment_data",
            ["DROP CONSTRAINT assignment_data_deuda_asig_check", "SET deuda_asig = -0.01"],
            Check.VALUE_LIMITS,
            "ERROR",
            "deuda_asig",
            "below 0",
        ),
        ("dashboard_data", [None, "SET pct_cierre = 120"], Check.EXPECTED_VALUES, "WARN", "pct_cierre", "above 100"),
        ("evolution_data", [None, "SET recupero = -5"], Check.EXPECTED_VALUES, "WARN", "recupero", "below 0"),
        ("evolution_data", [None, "SET cuentas = NULL"], Check.EXPECTED_VALUES, "WARN", "cuentas", "null"),
    ],
)
def test_a_wrong_value_is_found_with_its_column_partition_and_key(
    refresh: Callable[..., None],
    checked: Callable[..., dict[str, dg.AssetCheckEvaluation]],
    conn: psycopg.Connection,
    table: str,
    statements: list[str | None],
    check: Check,
    severity: str,
    column: str,
    fault: str,
) -> None:
    spec = TABLES[table]
    refresh(table)
    alter, update = statements
    if alter:
        conn.execute(f"ALTER TABLE {table} {alter}")
    returned = ", ".join((spec.partition_column, *spec.primary_key))
    key = conn.execute(f"UPDATE {table} {update} WHERE {A_ROW.format(table=table)} RETURNING {returned}").fetchone()
    assert key is not None
    said = checked(table)
    assert failed(said) == [check]
    assert said[check].severity.value == severity
    [failure] = records(said[check])
    named = ", ".join(f"{name}={value}" for name, value in zip(spec.primary_key, key[1:], strict=True))
    assert failure == {"column": column, "fault": fault, "rows": 1, "partition": str(key[0]), "example_key": named}
    assert f"{column} {fault}: 1 row(s)" in (said[check].description or "")


@pytest.mark.parametrize(("table", "day"), [("operation_data", "fecha_foto"), ("assignment_data", "fecha_foto - 60")])
def test_a_key_that_occurs_twice_is_found_even_beyond_the_window_where_partitions_share_keys(
    refresh: Callable[..., None],
    checked: Callable[..., dict[str, dg.AssetCheckEvaluation]],
    conn: psycopg.Connection,
    table: str,
    day: str,
) -> None:
    refresh(table)
    conn.execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey")
    conn.execute(f"CREATE TEMP TABLE copies AS SELECT * FROM {table} LIMIT 1")
    conn.execute(f"UPDATE copies SET fecha_foto = {day}")
    conn.execute(f"INSERT INTO {table} SELECT * FROM copies")
    said = checked(table)
    assert failed(said) == [Check.PRIMARY_KEY]
    [failure] = records(said[Check.PRIMARY_KEY])
    assert (failure["fault"], failure["rows"]) == ("occurs more than once", 2)
    (archivo,) = conn.execute("SELECT archivo FROM copies").fetchone() or ("",)
    assert f"archivo={archivo}" in failure["example_key"]


def test_a_failed_check_of_what_a_load_refuses_fails_the_run_and_a_warning_does_not(
    refresh: Callable[..., None], asset_job: dg.JobDefinition, instance: dg.DagsterInstance, conn: psycopg.Connection
) -> None:
    refresh("operation_data")
    job = asset_job.get_subset(asset_selection=set(), asset_check_selection=set(refresh_check_keys(TABLES["operation_data"])))
    conn.execute(f"UPDATE operation_data SET tasa_conversion = 300 WHERE {A_ROW.format(table='operation_data')}")
    assert job.execute_in_process(instance=instance, run_config=QUIET).success
    conn.execute("ALTER TABLE operation_data DROP CONSTRAINT operation_data_hora_check1")
    conn.execute("UPDATE operation_data SET hora = hora + 24")
    result = job.execute_in_process(instance=instance, run_config=QUIET, raise_on_error=False)
    assert not result.success
    assert not evaluations(result)[Check.VALUE_LIMITS].passed


def test_too_few_rows_in_the_lookback_are_a_warning(
    refresh: Callable[..., None], checked: Callable[..., dict[str, dg.AssetCheckEvaluation]], conn: psycopg.Connection
) -> None:
    refresh("dashboard_data")
    conn.execute("DELETE FROM dashboard_data WHERE fecha_foto > %s", (TODAY - timedelta(days=5),))
    said = checked("dashboard_data", DayRange(OLD, OLD))[Check.MINIMUM_RECORDS]
    assert (said.passed, said.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert said.description == f"80 rows in {TODAY - timedelta(days=6)}..{TODAY}, 100 or more expected"


def test_a_day_unlike_the_same_weekday_of_the_weeks_before_is_a_warning(
    refresh: Callable[..., None], checked: Callable[..., dict[str, dg.AssetCheckEvaluation]], conn: psycopg.Connection
) -> None:
    refresh("evolution_data")
    columns = [name for name in TABLES["evolution_data"].column_names if name != "fecha_foto"]
    for week in (2, 3, 4):
        conn.execute(
            sql.SQL(
                "INSERT INTO evolution_data (fecha_foto, {0}) SELECT fecha_foto - %s, {0} FROM evolution_data WHERE fecha_foto > %s"
            ).format(sql.SQL(", ").join(map(sql.Identifier, columns))),
            (7 * week, TODAY - timedelta(days=7)),
        )
    assert checked("evolution_data")[Check.VOLUME].passed
    conn.execute("DELETE FROM evolution_data WHERE fecha_foto = %s AND archivo NOT LIKE '%%_00.txt'", (RECENT,))
    conn.execute("DELETE FROM evolution_data WHERE fecha_foto = %s", (TODAY,))
    said = checked("evolution_data")[Check.VOLUME]
    assert (said.passed, said.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert records(said, "unusual_days") == [{"partition": str(RECENT), "rows": 10, "usual": 40.0, "weeks": 4}]


def test_every_unusual_day_is_named_with_what_is_usual() -> None:
    spec, days = TABLES["dashboard_data"], DayRange(TODAY - timedelta(days=3), TODAY - timedelta(days=1))
    usual = {day - timedelta(weeks=week): 40 for day in days for week in (1, 2)}
    inspection = Inspection(usual | {day: 90 for day in days}, 0, {}, ())
    [found] = [one for one in findings(spec, inspection, days, DayRange(days.start, TODAY)) if one.check is Check.VOLUME]
    assert found.text == "; ".join(f"{day}: 90 rows, usually 40" for day in days)


@pytest.mark.parametrize(
    ("rows", "weeks", "day", "found"),
    [
        (19, [40, 40], 1, True),
        (20, [40, 40], 1, False),
        (81, [40, 40], 1, True),
        (80, [40, 40], 1, False),
        (0, [40], 1, False),
        (0, [40, 0, 0, 0], 1, False),
        (0, [40, 0, 38], 1, True),
        (60, [40, 300, 40, 40], 1, False),
        (0, [40, 40, 40, 40], 0, False),
        (81, [40, 40, 40, 40], 0, True),
        (1, [6, 7, 6, 7], 1, False),
    ],
)
def test_what_counts_as_an_unusual_day(rows: int, weeks: list[int], day: int, found: bool) -> None:
    looked_at = TODAY - timedelta(days=day)
    by_day = {looked_at: rows} | {looked_at - timedelta(weeks=n + 1): count for n, count in enumerate(weeks)}
    unusual = unusual_days(by_day, DayRange(looked_at, looked_at), TODAY, 2.0)
    assert [entry["partition"] for entry in unusual] == [str(looked_at)] * found


@pytest.mark.parametrize(
    ("statement", "measures"),
    [
        ("UPDATE {table} SET recupero = recupero + 0.01 WHERE {row}", {"sum of recupero"}),
        ("UPDATE {table} SET pct_cober = pct_cober + 0.001 WHERE {row}", {"sum of pct_cober"}),
        ("UPDATE {table} SET recupero = NULL WHERE {row} AND recupero <> 0", {"sum of recupero", "values of recupero"}),
        ("DELETE FROM {table} WHERE {row}", {"rows", "sum of cuentas", "sum of recupero"}),
        ("UPDATE {table} SET archivo = 'Núñez.txt' WHERE {row}", {"digest of archivo"}),
        (
            "INSERT INTO {table} (fecha_foto, archivo, cartera, servicio, cuentas) "
            "SELECT fecha_foto, 'extra', cartera, servicio, 3 FROM {table} WHERE {row}",
            {"rows", "sum of cuentas", "values of cuentas"},
        ),
    ],
)
def test_reconciliation_finds_a_changed_value_a_lost_row_and_an_extra_row(
    refresh: Callable[..., None],
    reconcile: Callable[..., Comparison],
    conn: psycopg.Connection,
    instance: dg.DagsterInstance,
    statement: str,
    measures: set[str],
) -> None:
    refresh("evolution_data")
    row = f"ctid = (SELECT max(ctid) FROM evolution_data WHERE fecha_foto = '{OLD}' AND recupero <> 0)"
    assert conn.execute(statement.format(table="evolution_data", row=row)).rowcount == 1
    comparison = reconcile("evolution_data", None)
    assert comparison.agrees is False
    assert {entry["partition"] for entry in comparison.differences} == {str(OLD)}
    assert measures <= {entry["measure"] for entry in comparison.differences}
    assert comparison.text.startswith(f"1 partition(s) differ; {OLD}: ")
    assert comparison.text.endswith(f"pulso-etl refresh evolution_data --from {OLD} --to {OLD}")
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([reconciliation_key(TABLES["evolution_data"])])
    [latest] = record.values()
    assert latest.status.value == "FAILED"


def test_only_partitions_that_no_refresh_reads_again_are_an_error(
    refresh: Callable[..., None], reconcile: Callable[..., Comparison], conn: psycopg.Connection, instance: dg.DagsterInstance
) -> None:
    def severity() -> str:
        key = reconciliation_key(TABLES["dashboard_data"])
        latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
        assert latest.evaluation is not None
        return latest.evaluation.severity.value

    refresh("dashboard_data")
    conn.execute("DELETE FROM dashboard_data WHERE fecha_foto = %s", (RECENT,))
    recent = reconcile("dashboard_data")
    assert (recent.agrees, severity()) == (False, "WARN")
    assert "0 in PostgreSQL" in recent.text
    assert "next refresh" in recent.text
    conn.execute("DELETE FROM dashboard_data WHERE fecha_foto = %s", (OLD,))
    assert (reconcile("dashboard_data").agrees, severity()) == (False, "ERROR")


def test_a_sum_of_doubles_may_differ_in_its_last_digits(
    refresh: Callable[..., None], reconcile: Callable[..., Comparison], conn: psycopg.Connection
) -> None:
    refresh("dashboard_data")
    conn.execute("UPDATE dashboard_data SET pct_cierre = pct_cierre + 1e-12, inten = inten * (1 + 1e-13)")
    assert reconcile("dashboard_data").agrees


@pytest.mark.parametrize(
    ("source", "target", "same"),
    [
        (1, Decimal(1), True),
        (Decimal("0.1"), Decimal("0.10"), True),
        (Decimal("10000000000000000000000000.01"), Decimal("10000000000000000000000000.02"), False),
        (1e9, 1e9 + 0.5, True),
        (1e9, 1e9 + 2, False),
        (0.0, 1e-7, True),
        (3, 3.0, True),
        (None, None, True),
        (None, 0.0, False),
        (Decimal(0), None, False),
    ],
)
def test_exact_numbers_agree_exactly_and_doubles_within_the_tolerance(source: Any, target: Any, same: bool) -> None:
    assert agree(source, target) is same


def test_text_that_was_garbled_after_the_load_differs_and_nothing_else_does(
    refresh: Callable[..., None], reconcile: Callable[..., Comparison], conn: psycopg.Connection
) -> None:
    refresh("productivity_data")
    assert reconcile("productivity_data", None).agrees
    # UTF-8 text that was decoded as Latin-1.
    garbled = "convert_from(convert_to(nombre_agente, 'UTF8'), 'LATIN1')"
    changed = conn.execute(f"UPDATE productivity_data SET nombre_agente = {garbled} WHERE nombre_agente <> {garbled}").rowcount
    assert changed > 0
    comparison = reconcile("productivity_data", None)
    assert {entry["measure"] for entry in comparison.differences} == {"digest of nombre_agente", "digest of whole rows"}


def test_a_side_without_rows_counts_none() -> None:
    by = (Measure("count"), Measure("sum", "cuentas"))
    day = date(2026, 3, 1)
    assert differences(by, day, [2, 7], None) == [Difference(day, by[0], 2, 0), Difference(day, by[1], 7, None)]
    assert differences(by, day, [2, 7], [2, Decimal(7)]) == []


def test_the_default_window_leaves_today_and_what_was_never_loaded_out() -> None:
    day = date(2026, 3, 10)
    owned = altered(TABLES["dashboard_data"], reconcile_days=5)
    assert default_window(owned, day, date(2026, 1, 1)) == DayRange(date(2026, 3, 5), date(2026, 3, 9))
    assert default_window(owned, day, date(2026, 3, 8)) == DayRange(date(2026, 3, 8), date(2026, 3, 9))
    assert default_window(owned, day, day) == DayRange(day, day)
    newest = altered(TABLES["assignment_data"], reconcile_days=5)
    assert default_window(newest, day, date(2026, 1, 1)) == DayRange(date(2026, 3, 5), day)


def test_where_the_newest_version_is_kept_both_sides_count_it_and_what_is_not_loaded_yet_is_no_difference(
    refresh: Callable[..., None], reconcile: Callable[..., Comparison], conn: psycopg.Connection
) -> None:
    refresh("assignment_data", DayRange(WINDOW.start, RECENT))
    loaded = reconcile("assignment_data", None)
    assert loaded.agrees
    assert not loaded.text.startswith("0 ")
    # Older days of the source hold other rows of the same keys. Neither side counts them.
    assert reconcile("assignment_data", DayRange(WINDOW.start, WINDOW.start)).agrees
    [(day, periodo)] = conn.execute(
        "UPDATE assignment_data SET deuda_actual = deuda_actual - 1 WHERE ctid = (SELECT max(ctid) FROM assignment_data) "
        "RETURNING fecha_foto, periodo"
    ).fetchall()
    changed = reconcile("assignment_data", None)
    assert changed.agrees is False
    assert [(entry["partition"], entry["measure"]) for entry in changed.differences] == [
        (str(day), "sum of deuda_actual"),
        (str(day), "digest of whole rows"),
    ]
    conn.execute("DELETE FROM assignment_data WHERE periodo = %s", (periodo,))
    assert reconcile("assignment_data", None).agrees is False


def test_a_withdrawn_snapshot_is_found_and_a_refresh_of_its_day_alone_brings_back_the_one_before(
    refresh: Callable[..., None],
    reconcile: Callable[..., Comparison],
    emulator: BigQueryEmulator,
    sample: SampleData,
    conn: psycopg.Connection,
    instance: dg.DagsterInstance,
) -> None:
    refresh("assignment_data")
    ((newest, month),) = conn.execute(
        "SELECT fecha_foto, periodo FROM assignment_data GROUP BY 1, 2 ORDER BY 1 DESC, 2 DESC LIMIT 1"
    ).fetchall()
    name, given = base_of(sample.names, "asignaciones_clean"), sample.tables()["asignaciones_clean"]
    days, months = given["fecha_foto"], given["periodo_mes"]
    earlier = pc.max(days.filter(pc.and_(pc.equal(months, month), pc.less(days, pa.scalar(newest))))).as_py()
    try:
        load_table(
            emulator.client(), name, given.filter(pc.invert(pc.and_(pc.equal(days, pa.scalar(newest)), pc.equal(months, month))))
        )
        comparison = reconcile("assignment_data", None)
        assert {entry["partition"] for entry in comparison.differences} == {str(newest), str(earlier)}
        refresh("assignment_data", DayRange(newest, newest))
        assert conn.execute("SELECT DISTINCT fecha_foto FROM assignment_data WHERE periodo = %s", (month,)).fetchall() == [
            (earlier,)
        ]
        assert reconcile("assignment_data", None).agrees
    finally:
        load_table(emulator.client(), name, given)


@pytest.mark.parametrize(
    ("source", "target", "days"),
    [(OLD, RECENT, (OLD, TODAY)), (RECENT, OLD, (OLD, TODAY)), (OLD, OLD, (OLD, TODAY)), (RECENT, RECENT, None)],
)
def test_the_days_to_load_again_reach_every_snapshot_that_may_be_the_newest(
    source: date, target: date, days: tuple[date, date] | None
) -> None:
    spec, rows = TABLES["assignment_data"], Measure("count")
    found = {Difference(source, rows, 2, 0), Difference(target, rows, 0, 2)}
    owed_since = TODAY - timedelta(days=2)
    text = reconciled(spec, Reconciliation(WINDOW, WINDOW, 2, 2, tuple(found), owed_since=owed_since)).text
    assert text.endswith(f"--from {days[0]} --to {days[1]}" if days else "if they still differ then, that is a fault")


def test_a_source_that_changed_after_the_load_is_found_and_a_refresh_mends_it(
    refresh: Callable[..., None],
    reconcile: Callable[..., Comparison],
    emulator: BigQueryEmulator,
    sample: SampleData,
) -> None:
    refresh("productivity_data")
    name, attempts = base_of(sample.names, "gestiones_unificadas"), sample.tables()["gestiones_unificadas"]
    old = pc.equal(attempts["fecha_gestion"], pa.scalar(OLD))
    corrected = attempts.set_column(
        attempts.schema.get_field_index("peso"), "peso", pc.if_else(old, pc.add(attempts["peso"], 1.0), attempts["peso"])
    )
    try:
        load_table(emulator.client(), name, corrected.filter(pc.or_(pc.invert(old), attempts["es_contacto_efectivo"])))
        comparison = reconcile("productivity_data", None)
        assert {entry["partition"] for entry in comparison.differences} == {str(OLD)}
        assert {"peso_total", "total_gestiones"} <= {entry["column"] for entry in comparison.differences}
        refresh("productivity_data", DayRange(OLD, OLD))
        assert reconcile("productivity_data", None).agrees
    finally:
        load_table(emulator.client(), name, attempts)


def test_a_reconciliation_waits_for_a_refresh_of_its_table_and_says_so_when_that_is_too_long(
    configured: Settings, refresh: Callable[..., None], instance: dg.DagsterInstance, conn: psycopg.Connection, schema: str
) -> None:
    refresh("operation_data")
    conn.execute("SELECT pg_advisory_lock(%s)", (table_lock(schema, "operation_data"),))
    impatient = build_defs(configured.model_copy(update={"lock_timeout_seconds": 1}))
    comparison = run_reconciliation(impatient, instance, TABLES["operation_data"], logger=QUIET_LOGGER)
    assert comparison.agrees is None
    assert "another writer held the table" in comparison.text
    conn.execute("SELECT pg_advisory_unlock_all()")
    assert run_reconciliation(impatient, instance, TABLES["operation_data"], logger=QUIET_LOGGER).agrees


def test_a_reconciliation_is_one_labelled_and_capped_query_and_a_refusal_of_bigquery_is_told(
    configured: Settings, refresh: Callable[..., None], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh("operation_data")
    # The emulator drops a job's limits, so the test looks at the request.
    sent: list[dict[str, Any]] = []
    send = requests.Session.request

    def listen(session: requests.Session, method: str, url: str, data: Any = None, **options: Any) -> requests.Response:
        sent.append(json.loads(data or "{}"))
        return send(session, method, url, data=data, **options)

    monkeypatch.setattr(requests.Session, "request", listen)
    capped = build_defs(configured.model_copy(update={"bigquery_maximum_bytes_billed": 12_345_678}))
    run_id = run_reconciliation(capped, instance, TABLES["operation_data"], WINDOW, logger=QUIET_LOGGER).run_id
    [job] = [body["configuration"] for body in sent if "configuration" in body]
    assert job["labels"] == {"app": "pulso-etl", "table": "operation_data", "run_id": run_id}
    assert job["query"]["maximumBytesBilled"] == "12345678"
    values = {parameter["name"]: parameter["parameterValue"]["value"] for parameter in job["query"]["queryParameters"]}
    assert values == {"start": str(WINDOW.start), "end": str(WINDOW.end)}
    lost = build_defs(configured.model_copy(update={"bigquery_view_prefix": "nope"}))
    comparison = run_reconciliation(lost, instance, TABLES["operation_data"], logger=QUIET_LOGGER)
    assert comparison.agrees is None
    assert "does not know the table" in comparison.text


def test_our_refresh_runs_take_the_checks_and_leave_the_reconciliation_out(
    configured: Settings, instance: dg.DagsterInstance, refresh: Callable[..., None]
) -> None:
    refresh("operation_data")
    [run] = instance.get_runs()
    started = {record.event_log_entry.step_key for record in instance.get_records_for_run(run.run_id).records}
    assert started - {None} == {"operation_data", "operation_data_checks"}


def test_jobs_select_checks_with_or_without_the_reconciliation(configured: Settings, instance: dg.DagsterInstance) -> None:
    spec = TABLES["operation_data"]
    refresh = dg.define_asset_job("refresh", refresh_selection([spec]))
    weekly = dg.define_asset_job("weekly", reconciliation_selection([spec]))
    defs = dg.Definitions.merge(build_defs(configured), dg.Definitions(jobs=[refresh, weekly]))
    result = defs.resolve_job_def("refresh").execute_in_process(instance=instance, run_config=QUIET, tags=run_tags(spec, WINDOW))
    assert steps(result) == {"operation_data", "operation_data_checks"}
    result = defs.resolve_job_def("weekly").execute_in_process(instance=instance, run_config=QUIET)
    assert steps(result) == {"operation_data_checks"}
    assert {check: evaluation.passed for check, evaluation in evaluations(result).items()} == {Check.RECONCILIATION: True}


def test_a_launch_that_names_no_checks_refreshes_without_reconciling(
    asset_job: dg.JobDefinition, instance: dg.DagsterInstance, emulator: BigQueryEmulator
) -> None:
    def billed() -> set[str]:
        """The queries of rows so far. A dry run is none, and neither is a question about partitions."""
        jobs = [job for job in emulator.client().list_jobs() if not getattr(job, "dry_run", None)]
        return {job.job_id for job in jobs if "INFORMATION_SCHEMA" not in getattr(job, "query", "")}

    before = billed()
    result = asset_job.execute_in_process(
        asset_selection=[dg.AssetKey("operation_data")],
        instance=instance,
        run_config=QUIET,
        tags=run_tags(TABLES["operation_data"], WINDOW),
    )
    assert result.success
    cheap = {key.name for key in refresh_check_keys(TABLES["operation_data"])} | {Check.UP_TO_DATE}
    assert set(evaluations(result)) == cheap
    assert len(billed() - before) == 1


IN_PROCESS = {
    "run_launcher": {"module": "dagster._core.launcher.sync_in_memory_run_launcher", "class": "SyncInMemoryRunLauncher"},
    "run_coordinator": {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"},
}


@contextmanager
def graphql(instance: dg.DagsterInstance) -> Iterator[WorkspaceRequestContext]:
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name="pulso_etl.definitions", attribute="defs")
    origin = InProcessCodeLocationOrigin(target, location_name="pulso_etl")
    with WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origin)) as process:
        yield process.create_request_context()


LAUNCH = """
mutation ($assets: [AssetKeyInput!], $tags: [ExecutionTag!]) {
  launchPipelineExecution(executionParams: {
    selector: {
      repositoryLocationName: "pulso_etl", repositoryName: "__repository__", jobName: "__ASSET_JOB", assetSelection: $assets
    }
    executionMetadata: {tags: $tags}
  }) { __typename ... on LaunchRunSuccess { run { runId status } } ... on PythonError { message } }
}
"""
CHECKS = """
query ($asset: AssetKeyInput!) {
  assetNodeOrError(assetKey: $asset) { ... on AssetNode { assetChecksOrError { ... on AssetChecks { checks {
    name description blocking canExecuteIndividually
    executionForLatestMaterialization { status evaluation { success severity description metadataEntries {
      label ... on IntMetadataEntry { intValue } ... on TextMetadataEntry { text } ... on TableMetadataEntry { table { records } }
    } } }
  } } } } }
}
"""


def test_graphql_launches_the_checks_and_shows_what_they_found(
    configured: Settings, refresh: Callable[..., None], conn: psycopg.Connection
) -> None:
    refresh("evolution_data")
    # A wrong value that the load can't put right.
    conn.execute("UPDATE evolution_data SET pct_cierre = 101 WHERE archivo LIKE '%%_00.txt' AND fecha_foto = %s", (RECENT,))
    conn.execute("CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'")
    conn.execute("CREATE TRIGGER keep BEFORE UPDATE ON evolution_data FOR EACH ROW EXECUTE FUNCTION keep()")
    tags = [{"key": key, "value": value} for key, value in run_tags(TABLES["evolution_data"], WINDOW).items()]
    with dg.instance_for_test(overrides=IN_PROCESS) as instance, graphql(instance) as context:
        launched = execute_dagster_graphql(context, LAUNCH, {"assets": [{"path": ["evolution_data"]}], "tags": tags}).data
        assert launched["launchPipelineExecution"]["__typename"] == "LaunchRunSuccess", launched
        run_id = launched["launchPipelineExecution"]["run"]["runId"]
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.SUCCESS
        shown = execute_dagster_graphql(context, CHECKS, {"asset": {"path": ["evolution_data"]}}).data
    checks = {check["name"]: check for check in shown["assetNodeOrError"]["assetChecksOrError"]["checks"]}
    always = {key.name for key in refresh_check_keys(TABLES["evolution_data"])}
    assert checks.keys() == always | {Check.RECONCILIATION, Check.UP_TO_DATE}
    assert {check["canExecuteIndividually"] for check in checks.values()} == {"CAN_EXECUTE"}
    assert checks[Check.VALUE_LIMITS]["blocking"]
    assert checks[Check.RECONCILIATION]["executionForLatestMaterialization"]["status"] == "SKIPPED"
    for evaluated in (Check.PRIMARY_KEY, Check.UP_TO_DATE):
        assert checks[evaluated]["executionForLatestMaterialization"] is not None
    assert checks[Check.PRIMARY_KEY]["executionForLatestMaterialization"]["status"] == "SUCCEEDED"
    execution = checks[Check.EXPECTED_VALUES]["executionForLatestMaterialization"]
    assert (execution["status"], execution["evaluation"]["severity"]) == ("FAILED", "WARN")
    entries = {entry["label"]: entry for entry in execution["evaluation"]["metadataEntries"]}
    assert entries["partitions"]["text"] == str(WINDOW)
    assert entries["number_of_failures"]["intValue"] == 1
    assert '"column": "pct_cierre"' in entries["failures"]["table"]["records"][0]


def test_a_run_s_window_is_its_range_its_partition_or_unknown() -> None:
    window = DayRange(date(2026, 3, 1), date(2026, 3, 2))
    assert tagged_range(run_tags(TABLES["operation_data"], window)) == window
    assert tagged_range({"dagster/partition": "2026-03-01"}) == replace(window, end=window.start)
    assert tagged_range({}) is None


def test_a_table_s_checks_follow_from_its_declaration() -> None:
    bare = declare(
        name="bare",
        description="",
        primary_key=("day",),
        partition_column="day",
        columns=(Column(name="day", type=ColumnType.DATE),),
    )
    assert [key.name for key in refresh_check_keys(bare)] == [Check.PRIMARY_KEY, Check.VOLUME, Check.UP_TO_DATE]


@pytest.mark.parametrize("strategy", [Strategy.SCD2, Strategy.APPEND])
def test_a_key_that_the_strategy_lets_repeat_is_no_fault(
    configured: Settings, instance: dg.DagsterInstance, conn: psycopg.Connection, strategy: Strategy
) -> None:
    spec = altered(TABLES["evolution_data"], strategy=strategy)
    defs = build_defs(configured, tables={spec.name: spec})
    plan = RefreshPlan(spec.name, WINDOW, "test")
    assert run_plan(defs, instance, spec, plan, logger=QUIET_LOGGER).error is None
    if strategy is Strategy.SCD2:
        conn.execute("UPDATE evolution_data SET recupero = recupero + 1")
        assert run_plan(defs, instance, spec, plan, logger=QUIET_LOGGER).error is None
    else:
        columns = ", ".join(spec.column_names)
        conn.execute(f"INSERT INTO evolution_data ({columns}) SELECT {columns} FROM evolution_data LIMIT 1")
    key = ", ".join(spec.primary_key)
    assert conn.execute(f"SELECT FROM evolution_data GROUP BY {key} HAVING count(*) > 1").fetchone() is not None
    outcome = run_plan(defs, instance, spec, plan, logger=QUIET_LOGGER)
    assert outcome.error is None
    if strategy is Strategy.SCD2:
        assert run_reconciliation(defs, instance, spec, WINDOW, logger=QUIET_LOGGER).agrees
