"""A deployment in another time zone, with days of 23 and 25 hours: what it reads, when it runs, and what it tells."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from dagster._utils.schedules import cron_string_iterator
from fastapi import FastAPI
from fastapi.testclient import TestClient
from google.cloud import bigquery
from pydantic import SecretStr

from pulso_etl.alerts.messages import last_load, trial_message
from pulso_etl.api.status import overall
from pulso_etl.api.tenants import application
from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.definitions import build_defs
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import BIGQUERY_TYPES, SCHEMAS, load_table
from pulso_etl.settings import Settings, load_settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import SettingsError
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.zone import Zone
from pulso_etl.tables import TABLES
from pulso_etl.tenancy.tenants import deployed
from pulso_etl_tests.automation.test_schedules import tick

ZONE = "America/Santiago"
SANTIAGO = Zone(ZONE)
LONG, SHORT = date(2026, 4, 4), date(2026, 9, 6)
START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@pytest.fixture
def deployment(settings: Settings, schema: str) -> Settings:
    return settings.model_copy(update={"database_schema": schema, "timezone": ZONE, "partitions_start": date(2026, 1, 1)})


@pytest.mark.parametrize(
    ("day", "hours"),
    [(LONG, {**dict.fromkeys(range(24), 1), 23: 2}), (SHORT, dict.fromkeys(range(1, 24), 1))],
    ids=["25 hours", "23 hours"],
)
def test_the_hour_of_a_row_is_that_of_the_clocks_there(emulator: BigQueryEmulator, day: date, hours: dict[int, int]) -> None:
    """One contact attempt in each hour of the day, from its first instant to its last."""
    table = f"mibot-222814.ZONE_{uuid.uuid4().hex[:6]}.gestiones_unificadas"
    begin, end = SANTIAGO.begin(day), SANTIAGO.begin(day + timedelta(days=1))
    instants = [begin + n * timedelta(hours=1) for n in range(int((end - begin) / timedelta(hours=1)))]
    instants[-1] = end - timedelta(microseconds=1)
    columns = {
        "fecha_gestion": pa.array([day] * len(instants)),
        "timestamp_gestion": pa.array(instants, pa.timestamp("us", "UTC")),
        "canal_origen": pa.array(["BOT"] * len(instants)),
        "archivo": pa.array(["a"] * len(instants)),
        "es_contacto_efectivo": pa.array([True] * len(instants)),
        "es_compromiso": pa.array([False] * len(instants)),
    }
    client, rows = emulator.client(), pa.table(columns)
    client.create_dataset(table.rpartition(".")[0])
    schema = [bigquery.SchemaField(field.name, BIGQUERY_TYPES[field.type]) for field in rows.schema]
    client.create_table(bigquery.Table(table, schema=schema))
    load_table(client, table, rows)
    source = BigQuerySource(
        project="mibot-222814",
        sources=dict.fromkeys(SCHEMAS, table),
        emulator_host=emulator.rest_url,
    )
    with source.stream(TABLES["operation_data"].in_zone(ZONE), DayRange(day, day), "run").open() as reader:
        found = reader.read_all().to_pylist()
    assert Counter({row["hora"]: row["total_gestiones"] for row in found}) == Counter(hours)
    assert {row["fecha_foto"] for row in found} == {day}


@pytest.mark.parametrize("day", [LONG, SHORT], ids=["25 hours", "23 hours"])
def test_schedules_run_at_the_hours_of_the_zone_over_its_days(deployment: Settings, day: date) -> None:
    repository = build_defs(deployment).get_repository_def()
    for name in ("nightly_recheck", "weekly_reconciliation"):
        schedule = repository.get_schedule_def(name)
        assert schedule.execution_timezone == ZONE
        before = SANTIAGO.begin(day - timedelta(days=2))
        assert isinstance(schedule.cron_schedule, str)
        ticks = cron_string_iterator(before.timestamp(), schedule.cron_schedule, schedule.execution_timezone)
        days = [next(ticks).astimezone(SANTIAGO.tzinfo) for _ in range(5)]
        assert {(at.hour, at.minute) for at in days} == {(2, 30) if name == "nightly_recheck" else (4, 0)}
        steps = {(late.date() - early.date()).days for early, late in pairwise(days)}
        assert steps == {1 if name == "nightly_recheck" else 7}
    at = datetime(day.year, day.month, day.day, 2, 30, tzinfo=SANTIAGO.tzinfo)
    requests = tick(deployment, "nightly_recheck", at).run_requests or []
    assert {request.tags[END] for request in requests} == {str(day)}
    by_table = {request.tags["pulso_etl/table"]: request.tags[START] for request in requests}
    assert by_table == {name: str(day - timedelta(days=spec.schedule.lookback_days - 1)) for name, spec in TABLES.items()}


def test_partitions_of_every_table_are_the_days_of_the_zone(deployment: Settings) -> None:
    graph = build_defs(deployment).resolve_asset_graph()
    definitions = [graph.get(dg.AssetKey(name)).partitions_def for name in TABLES]
    for definition in definitions:
        assert isinstance(definition, dg.DailyPartitionsDefinition)
        assert definition.timezone == ZONE
        # In Lima the day has not begun.
        assert definition.get_partition_keys(SANTIAGO.begin(LONG))[-1] == str(LONG)


def test_a_setting_says_the_zone_and_a_wrong_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nowhere/none")
    monkeypatch.setenv("TIMEZONE", "America/Bogota")
    (part,) = deployed(load_settings())
    assert {spec.timezone for spec in part.tables.values()} == {"America/Bogota"}
    monkeypatch.setenv("TIMEZONE", "America/Limon")
    with pytest.raises(SettingsError, match="TIMEZONE: unknown time zone 'America/Limon'; give a name of the IANA list"):
        load_settings()


def test_the_api_plans_in_the_zone() -> None:
    app = application(Settings(database_url=SecretStr("postgresql://127.0.0.1:1/none"), timezone=ZONE))
    assert isinstance(app, FastAPI)
    with TestClient(app):
        assert {spec.timezone for spec in app.state.deployment.tables.values()} == {ZONE}


def test_each_tenant_may_have_a_zone_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACME", "GLOBEX"):
        monkeypatch.setenv(f"{name}_DATABASE_URL", f"postgresql://{name.lower()}@nowhere/none")
    file = tmp_path / "tenants.yaml"
    file.write_text(
        f"tenants: [{{name: acme, database_schema: acme, timezone: {ZONE}}}, {{name: globex, database_schema: globex}}]\n"
    )
    shared = Settings(database_url=SecretStr("postgresql://nowhere/none"), tenants_file=file, timezone="America/Bogota")
    found = {part.tenant: (part.settings.timezone, {spec.timezone for spec in part.tables.values()}) for part in deployed(shared)}
    assert found == {"acme": (ZONE, {ZONE}), "globex": ("America/Bogota", {"America/Bogota"})}
    for part in deployed(shared):
        schedules: Any = build_defs(part.settings, tables=part.tables).schedules
        zones = {schedule.execution_timezone for schedule in schedules or []}
        assert zones == {part.settings.timezone}
    file.write_text("tenants: [{name: acme, database_schema: acme, timezone: Chile}]\n")
    with pytest.raises(SettingsError, match="tenant acme: timezone: unknown time zone 'Chile'"):
        deployed(shared)


def test_what_people_are_told_is_in_the_zone() -> None:
    at = datetime(2026, 9, 6, 4, 30, tzinfo=UTC)
    assert "Hora: 06/09/2026 01:30 (hora de Santiago)" in trial_message(at, timezone=ZONE).body
    assert "Hora: 05/09/2026 23:30 (hora de Bogotá)" in trial_message(at, timezone="America/Bogota").body
    assert "06/09/2026 01:30 (hora de Santiago)" in last_load(Watermark(at, SHORT), at, ZONE)
    assert overall([], [], at, dagster=True, timezone=ZONE).timezone == ZONE
