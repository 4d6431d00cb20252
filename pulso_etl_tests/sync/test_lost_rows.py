"""Rows that were loaded and have gone since, by whatever hand: they are told of, with what brings them back."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pulso_etl.checks.asset_checks import currency
from pulso_etl.refreshing.freshness import FreshnessState, freshness
from pulso_etl.refreshing.plan import Calendar, plan_refresh
from pulso_etl.refreshing.request import RefreshRequest
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import LOOK_EVERY, RunningAttempt, TableState, Watermarks
from pulso_etl.sync.loading.months import remove_expired
from pulso_etl.sync.owed import Horizon
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.target import Target
from pulso_etl_tests.clock import TODAY, ZONE
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.sync.samples import Loads, by_month, monthly, row, things


class Deployment:
    """`things` of 40 days up to today, two rows a day, loaded as the IO manager does it."""

    def __init__(self, conn: psycopg.Connection, schema: str, spec: TableSpec) -> None:
        self.conn, self.spec = conn, spec.in_zone(ZONE.name)
        self.marks, self.loads = Watermarks(schema), Loads(conn, schema)
        self.now = conn.execute("SELECT clock_timestamp()").fetchone()[0]  # type: ignore[index]
        self.today = TODAY
        self.days = DayRange(self.today - timedelta(days=39), self.today)
        with conn.transaction():
            self.marks.create(conn)
        self.load(self.days)

    def load(self, window: DayRange) -> None:
        found = [row(day, f"{name}{day if self.spec.version_column else ''}") for day in window for name in "ab"]
        extraction = RunningAttempt(self.spec.name, window, "run", 1, self.now)
        with self.conn.transaction(), self.marks.taking_over(self.conn, self.spec, window):
            self.loads(found, self.spec, window)
            self.marks.start(self.conn, extraction)
            loaded = Loaded(
                self.clock(), dict.fromkeys(window, 2), len(found), 1.0, True, Horizon(self.spec.schedule.lookback_days, zone=ZONE)
            )
            self.marks.succeed(self.conn, extraction, loaded)
            self.marks.keep_files(self.conn, self.spec)

    def clock(self) -> datetime:
        return self.conn.execute("SELECT clock_timestamp()").fetchone()[0]  # type: ignore[index]

    def look(self) -> None:
        """Runs the checks of a run, one day after the last look."""
        self.conn.execute("UPDATE etl_watermarks SET looked_at = looked_at - interval '25 hours'")
        self.marks.look(self.conn, self.spec, LOOK_EVERY)

    @property
    def state(self) -> TableState:
        return self.marks.read(self.conn)[self.spec.name]

    def days_ago(self, back: int) -> date:
        return self.today - timedelta(days=back)


@pytest.fixture(params=["one table", "months"])
def deployment(request: pytest.FixtureRequest, conn: psycopg.Connection, schema: str) -> Deployment:
    make = things if request.param == "one table" else by_month
    return Deployment(conn, schema, make(lookback_days=3))


def missing(deployment: Deployment, window: DayRange, rows: int) -> None:
    """Checks that every way out reports the rows, and that none says that the table is fresh or up to date."""
    state, spec, now = deployment.state, deployment.spec, deployment.clock()
    assert state.lost is not None
    assert (state.lost.window, state.lost.rows) == (window, rows)
    assert state.lost.command(spec) == f"pulso-etl refresh things --from {window.start} --to {window.end}"
    assert freshness(spec, state.watermark, now).state is FreshnessState.STALE
    told = currency(spec, state.watermark, now)
    assert not told.passed
    assert state.lost.command(spec) in str(told.description)
    planned = plan_refresh(spec, state.watermark, RefreshRequest(), now, Calendar(date(2024, 1, 1), 3))
    assert "fresh" not in planned.reason


def whole(deployment: Deployment) -> None:
    state, now = deployment.state, deployment.clock()
    assert state.lost is None
    assert freshness(deployment.spec, state.watermark, now).state is FreshnessState.FRESH
    assert currency(deployment.spec, state.watermark, now).passed


def test_a_table_that_was_only_loaded_is_whole(deployment: Deployment) -> None:
    whole(deployment)
    deployment.look()
    whole(deployment)


def test_a_dropped_table_is_told_of_at_once_and_after_the_next_refresh(deployment: Deployment) -> None:
    deployment.conn.execute("DROP TABLE things")
    missing(deployment, deployment.days, 80)
    deployment.load(DayRange(deployment.days_ago(2), deployment.today))
    missing(deployment, DayRange(deployment.days.start, deployment.days_ago(3)), 74)
    deployment.load(DayRange(deployment.days.start, deployment.days_ago(3)))
    whole(deployment)


def test_a_truncated_table_is_not_called_fresh_and_its_next_refresh_hides_nothing(deployment: Deployment) -> None:
    deployment.conn.execute("TRUNCATE things")
    assert freshness(deployment.spec, deployment.state.watermark, deployment.clock()).state is FreshnessState.DUE
    deployment.load(DayRange(deployment.days_ago(2), deployment.today))
    missing(deployment, DayRange(deployment.days.start, deployment.days_ago(3)), 74)


def test_a_truncated_table_is_found_out_by_a_look(deployment: Deployment) -> None:
    deployment.conn.execute("TRUNCATE things")
    deployment.marks.look(deployment.conn, deployment.spec, LOOK_EVERY)
    missing(deployment, deployment.days, 80)


def test_a_restored_dump_lacks_the_days_since(deployment: Deployment) -> None:
    conn = deployment.conn
    conn.execute("CREATE TABLE dump AS SELECT * FROM things WHERE day <= %s", (deployment.days_ago(10),))
    conn.execute("TRUNCATE things")
    conn.execute("INSERT INTO things SELECT * FROM dump")
    deployment.load(DayRange(deployment.days_ago(2), deployment.today))
    missing(deployment, DayRange(deployment.days_ago(9), deployment.days_ago(3)), 14)


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_that_were_deleted_by_hand_are_missed_a_day_later(deployment: Deployment, rows: int) -> None:
    days = [deployment.days_ago(20), deployment.days_ago(25)]
    names = ["a", "b"][:rows]
    deployment.conn.execute("DELETE FROM things WHERE day = ANY(%s) AND name = ANY(%s)", (days, names))
    deployment.marks.look(deployment.conn, deployment.spec, LOOK_EVERY)
    deployment.look()
    missing(deployment, DayRange(deployment.days_ago(25), deployment.days_ago(20)), 2 * rows)


def test_a_table_that_was_only_rewritten_is_whole_after_a_look(deployment: Deployment) -> None:
    deployment.conn.execute("VACUUM FULL things")
    assert deployment.state.replaced
    deployment.marks.look(deployment.conn, deployment.spec, LOOK_EVERY)
    assert not deployment.state.replaced
    whole(deployment)


def test_rows_that_the_source_has_no_longer_are_not_missed(deployment: Deployment) -> None:
    day = deployment.days_ago(5)
    extraction = RunningAttempt("things", DayRange(day, day), "run", 1, deployment.now)
    with deployment.conn.transaction():
        deployment.loads([row(day, "a")], deployment.spec, extraction.window)
        deployment.marks.start(deployment.conn, extraction)
        deployment.marks.succeed(deployment.conn, extraction, Loaded(deployment.clock(), {day: 1}, 1, 1.0, True, Horizon(3)))
    deployment.look()
    whole(deployment)


@pytest.mark.parametrize("drop", [False, True])
def test_months_that_the_table_no_longer_keeps_are_not_missed(conn: psycopg.Connection, schema: str, drop: bool) -> None:
    deployment = Deployment(conn, schema, by_month(lookback_days=3, reconcile_days=3))
    kept = altered(deployment.spec, retention_months=1)
    later = (deployment.today.replace(day=1) + timedelta(days=32)).replace(day=1)
    removed = list(remove_expired(Target(conn, kept, schema), later, drop=drop, lock_timeout_seconds=5))
    assert removed
    deployment.look()
    whole(deployment)


def test_a_key_that_moves_to_a_newer_day_is_not_missed_on_the_older_one(conn: psycopg.Connection, schema: str) -> None:
    deployment = Deployment(conn, schema, monthly(lookback_days=3))
    assert deployment.state.lost is None
    window = DayRange(deployment.today, deployment.today)
    moved = [row(deployment.today, f"{name}{deployment.days_ago(back)}") for back in (0, 7) for name in "ab"]
    extraction = RunningAttempt("things", window, "run", 1, deployment.now)
    with conn.transaction(), deployment.marks.taking_over(conn, deployment.spec, window):
        deployment.loads(moved, deployment.spec, window)
        deployment.marks.start(conn, extraction)
        rows: dict[date, Any] = {deployment.today: 4}
        deployment.marks.succeed(conn, extraction, Loaded(deployment.clock(), rows, 4, 1.0, True, Horizon(3)))
    deployment.look()
    whole(deployment)
    conn.execute("DELETE FROM things WHERE day = %s", (deployment.days_ago(9),))
    deployment.look()
    missing(deployment, DayRange(deployment.days_ago(9), deployment.days_ago(9)), 2)
