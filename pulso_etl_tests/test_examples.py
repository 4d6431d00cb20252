"""The projects in `examples/` do what they show."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from importlib import import_module
from typing import Any

import dagster as dg
import psycopg
import pytest

from pulso_etl.sync.schema.statements import Statements
from pulso_etl.tables import TABLES
from pulso_etl_tests.dagster_stack import CHECKOUT


@pytest.fixture
def weather(server_url: str, schema: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the definitions, on the test's schema."""
    monkeypatch.setenv("DATABASE_URL", server_url)
    monkeypatch.setenv("DATABASE_SCHEMA", schema)
    monkeypatch.syspath_prepend(CHECKOUT / "examples/weather")
    yield import_module("weather.definitions")
    for name in [name for name in sys.modules if name.partition(".")[0] == "weather"]:
        del sys.modules[name]


@pytest.fixture
def agency(server_url: str, schema: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the definitions, on the test's schema."""
    for name, value in {"DATABASE_URL": server_url, "DATABASE_SCHEMA": schema, "PARTITIONS_START": "2026-03-01"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(CHECKOUT / "examples/agency")
    yield import_module("agency.definitions")
    for name in [name for name in sys.modules if name.partition(".")[0] == "agency"]:
        del sys.modules[name]


def test_assets_of_one_s_own_stand_below_and_beside_the_five(agency: Any, conn: psycopg.Connection, schema: str) -> None:
    for statement in Statements(TABLES["dashboard_data"], schema).create_table():
        conn.execute(statement)
    numbers = [column.name for column in TABLES["dashboard_data"].columns if column.sql_type in ("bigint", "double precision")]
    conn.execute(
        "INSERT INTO dashboard_data (fecha_foto, archivo, cartera, servicio, deuda_asig, deuda_act, recupero, "
        f"{', '.join(numbers)}) SELECT day::date, file, 'A', 'FIJA', 0, 0, 0.1{', 0' * len(numbers)} "
        "FROM unnest(ARRAY['2026-03-01', '2026-03-02']) AS day, unnest(ARRAY['a', 'b', 'c']) AS file"
    )
    conn.commit()
    job = agency.defs().resolve_implicit_global_asset_job_def()
    known = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert {*TABLES, "recovery_by_portfolio", "holidays"} <= known
    below = job.execute_in_process(asset_selection=[dg.AssetKey("recovery_by_portfolio")], partition_key="2026-03-02")
    beside = job.execute_in_process(asset_selection=[dg.AssetKey("holidays")])
    assert below.success
    assert beside.success
    found = conn.execute("SELECT fecha_foto, cartera, recupero FROM recovery_by_portfolio").fetchall()
    assert found == [(date(2026, 3, 2), "A", Decimal("0.3"))]


def load(weather: Any, start: str, end: str) -> dict[str, Any]:
    """Materializes the days; the counts that the run tells, of all days together."""
    days = {"dagster/asset_partition_range_start": start, "dagster/asset_partition_range_end": end}
    ended = dg.materialize([weather.weather_days], tags=days, resources=weather.defs.resources)
    told = [one.metadata for one in ended.asset_materializations_for_node("weather_days")]
    return {name: sum(one[name].value for one in told) for name in counts()}


def test_the_weather_is_kept_in_its_own_zone(weather: Any, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    dg.Definitions.validate_loadable(weather.defs)
    monkeypatch.setattr(weather, "today", lambda: date(2026, 3, 3))
    assert load(weather, "2026-03-01", "2026-03-03") == counts(inserted=9)
    assert load(weather, "2026-03-01", "2026-03-03") == counts(unchanged=9)
    assert conn.execute("SELECT DISTINCT day FROM weather_days WHERE rain_mm IS NULL").fetchall() == [(date(2026, 3, 3),)]

    # On the next morning the rain of the day is known.
    monkeypatch.setattr(weather, "today", lambda: date(2026, 3, 4))
    assert load(weather, "2026-03-03", "2026-03-04") == counts(inserted=3, updated=3)
    assert conn.execute("SELECT DISTINCT timezone FROM etl_watermarks").fetchall() == [("Europe/Madrid",)]


def test_a_station_that_is_taken_away_goes_from_the_days_that_are_loaded(
    weather: Any, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(weather, "2026-03-01", "2026-03-02")
    monkeypatch.setattr(sys.modules["weather.stations"], "STATIONS", ("Madrid", "Sevilla"))
    assert load(weather, "2026-03-02", "2026-03-02") == counts(unchanged=2, deleted=1)
    found = conn.execute("SELECT day, count(*) FROM weather_days GROUP BY day ORDER BY day").fetchall()
    assert found == [(date(2026, 3, 1), 3), (date(2026, 3, 2), 2)]


def counts(inserted: int = 0, updated: int = 0, unchanged: int = 0, deleted: int = 0) -> dict[str, int]:
    return {"rows_inserted": inserted, "rows_updated": updated, "rows_unchanged": unchanged, "rows_deleted": deleted}
