"""The planner: which partitions a refresh takes."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.errors import PlanError
from pulso_etl.refresh import DayRange, Mode, RefreshPlan, Watermark, lima_day, plan_refresh
from pulso_etl.tables import TABLES

FIRST = date(2024, 1, 1)
NOW = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
TODAY = date(2026, 3, 2)
DASHBOARD = TABLES["dashboard_data"]

instants = st.datetimes(datetime(2024, 2, 1), datetime(2040, 1, 1), timezones=st.just(UTC))
watermarks = st.none() | st.builds(
    Watermark,
    st.none() | st.datetimes(datetime(2020, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC)),
    st.none() | st.dates(date(2020, 1, 1), date(2050, 1, 1)),
)


def plan(mode: Mode = Mode.INCREMENTAL, watermark: Watermark | None = None, now: datetime = NOW, **options: object) -> RefreshPlan:
    return plan_refresh(DASHBOARD, watermark, mode, now, first_day=FIRST, initial_days=30, **options)  # type: ignore[arg-type]


@given(st.sampled_from(list(TABLES.values())), watermarks, st.sampled_from(Mode), instants, st.booleans())
def test_a_window_ends_today_and_stays_in_the_partitions(
    spec: object, watermark: Watermark | None, mode: Mode, now: datetime, force: bool
) -> None:
    result = plan_refresh(spec, watermark, mode, now, first_day=FIRST, initial_days=30, force=force)  # type: ignore[arg-type]
    today = lima_day(now)
    if result.window is None:
        assert mode is Mode.INCREMENTAL
        assert not force
        assert watermark is not None
        assert watermark.last_partition == today
    else:
        assert result.window.end == today
        assert result.window.start >= FIRST
        days_since_start = (today - FIRST).days + 1
        assert result.window.days >= min(spec.lookback_days, days_since_start)  # type: ignore[attr-defined]


@given(st.dates(FIRST, TODAY), instants)
def test_incremental_leaves_no_gap_after_the_watermark(last: date, now: datetime) -> None:
    result = plan(watermark=Watermark(now - timedelta(days=1), last), now=now)
    assert result.window is not None
    assert result.window.start <= min(last, result.window.end)


@pytest.mark.parametrize(
    ("now", "day"),
    [
        (datetime(2026, 3, 1, 4, 59, tzinfo=UTC), date(2026, 2, 28)),
        (datetime(2026, 3, 1, 5, 0, tzinfo=UTC), date(2026, 3, 1)),
        (datetime(2028, 3, 1, 4, 59, 59, tzinfo=UTC), date(2028, 2, 29)),
        (datetime(2026, 1, 1, 1, 0, tzinfo=UTC), date(2025, 12, 31)),
    ],
)
def test_today_is_lima_s_today(now: datetime, day: date) -> None:
    assert lima_day(now) == day
    result = plan(Mode.SLIDING_WINDOW, now=now, days=1)
    assert result.window == DayRange(day, day)


def test_first_load_takes_the_initial_window() -> None:
    assert plan().window == DayRange(date(2026, 2, 1), TODAY)


def test_fresh_is_skipped_unless_forced_and_force_leaves_the_range_alone() -> None:
    fresh = Watermark(NOW - timedelta(hours=5), TODAY)
    assert plan(watermark=fresh).window is None
    assert plan(watermark=fresh, force=True).window == DayRange(date(2026, 2, 24), TODAY)
    stale = Watermark(NOW - timedelta(hours=6), TODAY)
    assert plan(watermark=stale).window == DayRange(date(2026, 2, 24), TODAY)


def test_a_watermark_of_the_future_is_read_as_today() -> None:
    future = Watermark(NOW + timedelta(days=3), TODAY + timedelta(days=3))
    assert plan(watermark=future).window == DayRange(date(2026, 2, 24), TODAY)


def test_full_refresh_takes_every_partition() -> None:
    assert plan(Mode.FULL_REFRESH).window == DayRange(FIRST, TODAY)


def test_explicit_range() -> None:
    result = plan(start=date(2026, 1, 5), end=date(2026, 1, 7))
    assert result.window == DayRange(date(2026, 1, 5), date(2026, 1, 7))


@pytest.mark.parametrize(
    "options",
    [
        {"days": 0, "mode": Mode.SLIDING_WINDOW},
        {"days": 3},
        {"start": TODAY, "end": TODAY - timedelta(days=1)},
        {"end": TODAY + timedelta(days=1)},
        {"start": FIRST - timedelta(days=1)},
        {"days": 3, "mode": Mode.SLIDING_WINDOW, "start": TODAY},
        {"now": datetime(2026, 3, 2)},
    ],
)
def test_nonsense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        plan(**options)  # type: ignore[arg-type]
