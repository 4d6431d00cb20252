"""Sensors and schedules while something is away, refuses, keeps silent or is slow: no tick takes long, and each says why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from pydantic import SecretStr

from pulso_etl.automation import schedules, sensors
from pulso_etl.automation.jobs import build_jobs
from pulso_etl.automation.sensors import Automation
from pulso_etl.bigquery import look
from pulso_etl.definitions import build_resources
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.settings import Settings
from pulso_etl.sync import patience
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl_tests.alerts.receivers import Receiver
from pulso_etl_tests.clock import TABLES, ZONE
from pulso_etl_tests.conftest import seed
from pulso_etl_tests.gate import Gate, Way

DUE = {name: TABLES[name] for name in ("dashboard_data", "operation_data", "productivity_data")}
LONG = 6.0
"""Seconds; a tick that waits for what is away takes 10 at least, one of these 3."""
WAYS = [Way.REFUSED, Way.SILENT, Way.SLOW]


@dataclass
class World:
    """Three tables that are due, and a gate before each server that a tick asks."""

    automation: Automation
    instance: dg.DagsterInstance
    gates: dict[str, Gate]
    receiver: Receiver

    def tick(self, name: str) -> tuple[list[dg.RunRequest], str]:
        """Runs one tick of a sensor or schedule as the daemon does. The tick must not take long."""
        began = time.monotonic()
        found = self._tick(name)
        assert time.monotonic() - began < LONG
        return found

    def _tick(self, name: str) -> tuple[list[dg.RunRequest], str]:
        if name == "nightly_recheck":
            nightly, _ = schedules.build_schedules(
                self.automation.planner, self.automation.watermarks, with_jobs=True, running=True
            )
            context = dg.build_schedule_context(instance=self.instance, scheduled_execution_time=datetime.now(UTC))
            told: list[Any] = list(nightly(context))  # type: ignore[arg-type]
            return [one for one in told if isinstance(one, dg.RunRequest)], ""
        sensor = next(sensor for sensor in self.automation.sensors() if sensor.name == name)
        resources = {"bigquery": build_resources(self.automation.settings)["bigquery"]} if name == "refresh_sensor" else {}
        result = sensor.evaluate_tick(dg.build_sensor_context(instance=self.instance, resources=resources))
        return list(result.run_requests or []), result.skip_message or ""


@pytest.fixture
def world(
    settings: Settings,
    server_url: str,
    schema: str,
    conn: psycopg.Connection,
    emulator: BigQueryEmulator,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    seed(settings, emulator)
    let_ticks_take(3.0, monkeypatch)
    monkeypatch.setattr(look, "LOOK_SECONDS", 1.0)
    with ExitStack() as stack:
        gates = {
            "postgresql": stack.enter_context(Gate.before_postgres(server_url)),
            "bigquery": stack.enter_context(Gate.before_http(emulator.rest_url)),
            "channel": stack.enter_context(Gate(("127.0.0.1", receiver.port))),
        }
        changed = {
            "database_url": SecretStr(gates["postgresql"].postgres_url),
            "database_schema": schema,
            "bigquery_emulator_host": gates["bigquery"].http_url,
            "bigquery_daily_budget_bytes": 10**12,
            "alert_urls": SecretStr(f"json://127.0.0.1:{gates['channel'].port}/hook"),
            "alert_gather_seconds": 0,
            "dagster_home": tmp_path,
        }
        given = settings.model_copy(update=changed)
        loaded_in_the_last_day(conn, schema)
        instance = stack.enter_context(dg.DagsterInstance.ephemeral())
        yield World(Automation(given, DUE, build_jobs(DUE)), instance, gates, receiver)


def let_ticks_take(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (patience, sensors, schedules):
        monkeypatch.setattr(module, "TICK_SECONDS", seconds)


def loaded_in_the_last_day(conn: psycopg.Connection, schema: str) -> None:
    """Each table was loaded and is due again. The sensor asks whether the source has changed."""
    marks, at = Watermarks(schema), datetime.now(UTC) - timedelta(hours=20)
    today = ZONE.day(at)
    marks.create(conn)
    for name in DUE:
        one = RunningAttempt(name, DayRange(today - timedelta(days=9), today), "before", 1, at)
        with conn.transaction():
            marks.start(conn, one)
            marks.succeed(conn, one, Loaded(at, dict.fromkeys(one.window, 1), 1, 1.0, True))


@pytest.mark.parametrize("way", WAYS)
def test_while_bigquery_is_away_every_due_table_is_launched_as_if_all_had_changed(world: World, way: Way) -> None:
    world.gates["bigquery"].turn(way)
    world.gates["bigquery"].delay = 2.0
    requests, _ = world.tick("refresh_sensor")
    assert [request.tags["pulso_etl/table"] for request in requests] == list(DUE)


def test_tables_that_a_slow_but_answering_source_has_no_time_for_are_looked_at_in_the_next_tick(world: World) -> None:
    world.gates["bigquery"].turn(Way.SLOW)
    world.gates["bigquery"].delay = 0.3
    requests, why = world.tick("refresh_sensor")
    assert len(requests) + why.count("is asked at the next look") >= 1
    assert all(request.tags["pulso_etl/table"] in DUE for request in requests)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sensor", ["refresh_sensor", "recovery_sensor", "alert_sensor", "nightly_recheck"])
def test_no_tick_waits_for_postgresql(world: World, sensor: str, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    let_ticks_take(1.5, monkeypatch)
    world.gates["postgresql"].turn(way)
    requests, why = world.tick(sensor)
    if sensor == "nightly_recheck":
        assert len(requests) == len(DUE)
    elif sensor != "alert_sensor" and way is not Way.SLOW:
        assert requests == []
        assert "PostgreSQL is away" in why or "no answer within" in why


def test_a_server_that_falls_silent_in_the_middle_holds_no_tick_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    observe = Automation.observe

    def silent(*args: object) -> object:
        world.gates["postgresql"].turn(Way.SILENT)
        return observe(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Automation, "observe", silent)
    monkeypatch.setattr(sensors, "CUT_SECONDS", 1.0)
    requests, why = world.tick("refresh_sensor")
    assert requests == []
    assert "PostgreSQL is away" in why


@pytest.mark.parametrize("way", WAYS)
def test_no_tick_waits_for_a_channel_and_the_message_arrives_all_the_same(world: World, way: Way) -> None:
    world.gates["channel"].turn(way)
    world.gates["postgresql"].turn(Way.REFUSED)
    world.tick("alert_sensor")
    world.gates["channel"].turn(Way.OPEN)
    for _ in range(2):
        world.tick("alert_sensor")
    assert set(world.receiver.titles()) == {"[Pulso] PostgreSQL no está disponible"}


def test_no_tick_waits_for_dagster_s_storage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*args: object, **kwargs: object) -> list[object]:
        time.sleep(LONG)
        return []

    let_ticks_take(1.0, monkeypatch)
    for name in ("get_runs", "get_run_records"):
        monkeypatch.setattr(world.instance, name, silent)
    for sensor in ("refresh_sensor", "recovery_sensor", "alert_sensor"):
        requests, why = world.tick(sensor)
        assert requests == []
        assert "no answer within" in why


def test_a_tick_of_ours_ends_within_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look.LOOK_SECONDS + patience.CONNECT_SECONDS < patience.TICK_SECONDS < 10


def test_work_is_waited_for_so_long_and_no_longer() -> None:
    def work(seconds: float) -> Callable[[], str]:
        return lambda: time.sleep(seconds) or "done"  # type: ignore[func-returns-value]

    assert patience.within(5, work(0)) == "done"
    with pytest.raises(TimeoutError):
        patience.within(0.05, work(1))
    with pytest.raises(ZeroDivisionError):
        patience.within(5, lambda: 1 / 0)
