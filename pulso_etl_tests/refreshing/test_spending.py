"""What is billed and avoided today and this month, and the forecast."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.refreshing.spending import Instants, Spending
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.queries import Purpose, Queries, Usage
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.zone import Zone

LIMA = Zone()
NOON = datetime(2026, 11, 24, 17, tzinfo=UTC)


def used(size: int, avoided: int = 0) -> Usage:
    return Usage(size, 10 * size, avoided)


def test_the_month_ends_as_a_usual_day_goes_on() -> None:
    found = Spending.of(used(4, 1), used(100, 50), usual=used(10, 20), days_left=6)
    # Today is not over: six more come today, and ten on each of the six days that are left.
    assert found.month_end == used(100 + 6 + 60, 50 + 19 + 120)
    # A day that already used more than usual adds nothing.
    assert Spending.of(used(40), used(100), usual=used(10), days_left=0).month_end == used(100)


@given(*[st.builds(Usage, *[st.integers(0, 10**15)] * 3)] * 2, st.integers(0, 30))
def test_a_forecast_is_never_less_than_what_is_already_used(month: Usage, usual: Usage, left: int) -> None:
    end = Spending.of(Usage(), month, usual, left).month_end
    assert (end.bytes_billed, end.slot_millis, end.bytes_avoided) >= (month.bytes_billed, month.slot_millis, month.bytes_avoided)
    assert end.bytes_billed - month.bytes_billed == usual.bytes_billed * (left + 1)


def test_usual_is_the_mean_of_the_complete_days_and_of_today_before_the_first() -> None:
    at = Instants.at(NOON, LIMA)
    assert at.days_left == 6
    assert at.since[1] == datetime(2026, 11, 24, 5, tzinfo=UTC)

    def rows(first: datetime) -> list[tuple[object, ...]]:
        today, week = (8, 80, 2), (8 + 3 * 30, 80 + 3 * 300, 2 + 3 * 4)
        numbers = {1: week, 2: today, 3: week}
        return [(place, "t", *numbers[place], first) for place in numbers]

    three_days = at.spendings(rows(NOON - timedelta(days=3)), ["t", "other"])
    assert three_days["t"] == three_days[""]
    assert three_days["t"].month_end == Usage(98 + 22 + 6 * 30, 980 + 220 + 6 * 300, 14 + 2 + 6 * 4)
    assert three_days["other"].month_end == Usage()
    new = at.spendings(rows(NOON), ["t"])
    assert new["t"].month_end.bytes_billed == 98 + 6 * 8


def test_loads_that_failed_reconciliations_and_skips_count_as_what_they_are(conn: psycopg.Connection, schema: str) -> None:
    marks, now = Watermarks(schema), datetime.now(UTC)
    day = now.date()
    with conn.transaction():
        marks.create(conn)
    for number, failed in ((1, False), (2, True)):
        attempt = RunningAttempt("t", DayRange(day, day), f"run{number}", 1, now)
        with conn.transaction():
            marks.start(conn, attempt)
        metadata = {"bytes_billed": 10, "slot_millis": 1, "bytes_avoided": 5}
        with conn.transaction():
            if failed:
                marks.fail(conn, attempt, error="no", cause=Cause.INTERNAL, seconds=1.0, metadata=metadata)
            else:
                marks.succeed(conn, attempt, Loaded(now, {}, 0, 1.0, False, metadata=metadata))
    marks.queries.record(conn, "t", Purpose.CHANGES, "", Usage(3))
    marks.queries.record(conn, "u", Purpose.SKIPPED, "", Usage(bytes_avoided=70))
    hour_ago, hour_ahead = now - timedelta(hours=1), now + timedelta(hours=1)
    since, never = Queries.split(conn.execute(*marks.queries.query([hour_ago, hour_ahead])).fetchall(), 2)
    # A load that failed was billed, and avoided nothing: it is done again.
    assert since.tables == {"t": Usage(23, 2, 5), "u": Usage(bytes_avoided=70)}
    assert since.first is not None
    assert since.first >= hour_ago
    assert (never.total, never.first) == (Usage(), None)
    assert marks.used(conn, hour_ago) == since.total
