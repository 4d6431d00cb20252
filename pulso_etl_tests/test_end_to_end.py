"""The five tables through Dagster: every row and column of PostgreSQL equals BigQuery's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import dagster as dg
import psycopg
import pytest

from pulso_etl.definitions import build_defs, build_resources
from pulso_etl.destination.watermarks import Watermarks
from pulso_etl.launch import Outcome, run_plan
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.refresh import DayRange, Mode, plan_refresh
from pulso_etl.settings import Settings
from pulso_etl.tables import TABLES
from pulso_etl_tests.conftest import seed


@pytest.fixture
def configured(settings: Settings, schema: str) -> Settings:
    return settings.model_copy(update={"database_schema": schema})


def refresh_all(settings: Settings, instance: dg.DagsterInstance) -> dict[str, Outcome]:
    defs, now = build_defs(settings), datetime.now(UTC)
    outcomes = {}
    for spec in TABLES.values():
        plan = plan_refresh(spec, None, Mode.SLIDING_WINDOW, now, first_day=settings.partitions_start, initial_days=10, days=10)
        outcomes[spec.name] = run_plan(defs, instance, spec, plan)
        assert outcomes[spec.name].error is None
    return outcomes


def source_rows(settings: Settings, name: str, window: DayRange) -> set[tuple[Any, ...]]:
    spec = TABLES[name]
    names = [column for column in spec.column_names if column not in spec.stamp_columns]
    with build_resources(settings)["bigquery"].stream(spec, window, "test").open() as reader:
        rows = reader.read_all().to_pylist()
    if spec.version_column is not None:
        newest: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in sorted(rows, key=lambda row: row[spec.version_column]):
            newest[tuple(row[key] for key in spec.primary_key)] = row
        rows = list(newest.values())
    return {tuple(row[column] for column in names) for row in rows}


def target_rows(conn: psycopg.Connection, name: str) -> set[tuple[Any, ...]]:
    spec = TABLES[name]
    names = [column for column in spec.column_names if column not in spec.stamp_columns]
    return set(conn.execute(f"SELECT {', '.join(names)} FROM {name}").fetchall())


def test_postgresql_equals_bigquery_and_a_second_refresh_rewrites_nothing(
    configured: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        seed(configured, emulator)
        first = refresh_all(configured, instance)
        for name, outcome in first.items():
            assert outcome.window is not None
            rows = target_rows(conn, name)
            assert rows == source_rows(configured, name, outcome.window)
            assert len(rows) == outcome.counts["inserted"] > 0
        before = {name: set(conn.execute(f"SELECT xmin::text, ctid::text FROM {name}").fetchall()) for name in TABLES}
        for outcome in refresh_all(configured, instance).values():
            assert outcome.counts["unchanged"] == outcome.counts["read"]
        after = {name: set(conn.execute(f"SELECT xmin::text, ctid::text FROM {name}").fetchall()) for name in TABLES}
        assert after == before

        seed(configured, emulator, revision=1)
        third = refresh_all(configured, instance)
        assert third["dashboard_data"].counts["updated"] > 0
        assert third["dashboard_data"].counts["deleted"] > 0
        for name, outcome in third.items():
            assert outcome.window is not None
            assert target_rows(conn, name) == source_rows(configured, name, outcome.window)
        states = Watermarks(configured.database_schema).read(conn)
        assert {state.status for state in states.values()} == {"success"}
        assert {state.last_partition for state in states.values()} == {first["dashboard_data"].window.end}  # type: ignore[union-attr]


def test_a_source_that_is_missing_fails_the_run_says_so_and_leaves_the_table(
    configured: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection
) -> None:
    seed(configured, emulator)
    broken = configured.model_copy(update={"bigquery_view_prefix": "nope"})
    plan = plan_refresh(
        TABLES["dashboard_data"], None, Mode.INCREMENTAL, datetime.now(UTC), first_day=configured.partitions_start, initial_days=10
    )
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_plan(build_defs(configured), instance, TABLES["dashboard_data"], plan).error is None
        before = target_rows(conn, "dashboard_data")
        outcome = run_plan(build_defs(broken), instance, TABLES["dashboard_data"], plan)
    assert outcome.error is not None
    assert "dashboard_data" in outcome.error
    assert "does not know the table" in outcome.error
    state = Watermarks(configured.database_schema).read(conn)["dashboard_data"]
    assert (state.status, state.extraction_id) == ("failed", outcome.run_id)
    assert state.error == outcome.error
    assert target_rows(conn, "dashboard_data") == before
