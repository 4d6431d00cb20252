"""The planner: which partitions a refresh takes."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.refreshing.plan import Calendar, RefreshPlan, plan_refresh
from pulso_etl.refreshing.request import Grants, Mode, RefreshRequest
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.spec import TableSpec
from pulso_etl.tables import TABLES
from pulso_etl_tests.lima import lima_day

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


def planned(
    spec: TableSpec,
    watermark: Watermark | None,
    mode: Mode,
    now: datetime,
    *,
    first_day: date = FIRST,
    initial_days: int = 30,
    force: bool = False,
    **options: object,
) -> RefreshPlan:
    request = RefreshRequest((spec.name,), mode, grants=Grants(force=force), **options)  # type: ignore[arg-type]
    return plan_refresh(spec, watermark, request, now, Calendar(first_day, initial_days))


def plan(mode: Mode = Mode.INCREMENTAL, watermark: Watermark | None = None, now: datetime = NOW, **options: object) -> RefreshPlan:
    return planned(DASHBOARD, watermark, mode, now, **options)  # type: ignore[arg-type]


@given(st.sampled_from(list(TABLES.values())), watermarks, st.sampled_from(Mode), instants, st.booleans())
def test_a_window_ends_today_and_stays_in_the_partitions(
    spec: object, watermark: Watermark | None, mode: Mode, now: datetime, force: bool
) -> None:
    result = planned(spec, watermark, mode, now, force=force)  # type: ignore[arg-type]
    today = lima_day(now)
    if result.window is None:
        assert mode is Mode.INCREMENTAL
        assert not force
        assert watermark is not None
        assert watermark.last_extracted_at is not None
        assert now - watermark.last_extracted_at < spec.schedule.refresh_every  # type: ignore[attr-defined]
    else:
        assert result.window.end == today
        assert result.window.start >= FIRST
        days_since_start = (today - FIRST).days + 1
        assert result.window.days >= min(spec.schedule.lookback_days, days_since_start)  # type: ignore[attr-defined]


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


def around(day: date) -> st.SearchStrategy[datetime]:
    """Instants at most 36 hours before or after the midnight in Lima at which the day begins."""
    midnight = datetime(day.year, day.month, day.day, 5, tzinfo=UTC)
    return st.timedeltas(timedelta(hours=-36), timedelta(hours=36)).map(lambda away: midnight + away)


turns = st.integers(2024, 2039).flatmap(
    lambda year: st.sampled_from([date(year, 3, 1) - timedelta(days=1), *(date(year, month, 1) for month in range(1, 13))])
)
"""First days of months, first days of years, and last days of February."""
near_turns = turns.flatmap(around).filter(lambda now: now >= datetime(2024, 2, 1, tzinfo=UTC))
tables = st.sampled_from(list(TABLES.values()))
zones = st.sampled_from(["UTC", "America/Lima", "Asia/Tokyo", "America/New_York", "Pacific/Kiritimati"]).map(ZoneInfo)


def today_by_hand(now: datetime) -> date:
    """Lima has been at UTC-5 all year round since 1994."""
    return (now.astimezone(UTC).replace(tzinfo=None) - timedelta(hours=5)).date()


@given(near_turns | instants)
def test_today_is_the_day_five_hours_behind_utc(now: datetime) -> None:
    assert lima_day(now) == today_by_hand(now)


@pytest.mark.parametrize(
    ("now", "day"),
    [
        # UTC-4 in the summers of 1986, 1987, 1990 and 1994.
        (datetime(1986, 2, 1, 4, 30, tzinfo=UTC), date(1986, 2, 1)),
        (datetime(1990, 2, 28, 4, 30, tzinfo=UTC), date(1990, 2, 28)),
        (datetime(1994, 3, 1, 3, 59, tzinfo=UTC), date(1994, 2, 28)),
        (datetime(1994, 7, 1, 4, 30, tzinfo=UTC), date(1994, 6, 30)),
        (datetime(1992, 2, 1, 4, 30, tzinfo=UTC), date(1992, 1, 31)),
    ],
)
def test_the_zone_s_own_rules_say_which_day_it_is(now: datetime, day: date) -> None:
    assert lima_day(now) == day


@given(tables, near_turns, st.integers(1, 400))
def test_a_sliding_window_is_that_many_days_in_a_row_up_to_today(spec: TableSpec, now: datetime, days: int) -> None:
    result = planned(spec, None, Mode.SLIDING_WINDOW, now, days=days)
    today = today_by_hand(now)
    wanted = [today - timedelta(days=back) for back in range(days)]
    assert result.window is not None
    assert [date.fromordinal(n) for n in range(result.window.start.toordinal(), result.window.end.toordinal() + 1)] == sorted(
        day for day in wanted if day >= FIRST
    )


@given(tables, watermarks, st.sampled_from(Mode), near_turns | instants, zones, st.booleans())
def test_the_same_instant_gives_the_same_plan_in_whatever_zone_it_is_told(
    spec: TableSpec, watermark: Watermark | None, mode: Mode, now: datetime, zone: ZoneInfo, force: bool
) -> None:
    once, again, elsewhere = (planned(spec, watermark, mode, told, force=force) for told in (now, now, now.astimezone(zone)))
    assert once == again == elsewhere


@given(tables, watermarks, st.sampled_from(Mode), near_turns, st.integers(0, 40), st.integers(1, 60), st.booleans())
def test_no_mode_leaves_the_partitions_however_young_these_are(
    spec: TableSpec, watermark: Watermark | None, mode: Mode, now: datetime, age: int, initial: int, force: bool
) -> None:
    today = today_by_hand(now)
    first = today - timedelta(days=age)
    result = planned(spec, watermark, mode, now, first_day=first, initial_days=initial, force=force)
    if result.window is not None:
        assert first <= result.window.start <= result.window.end == today
    if mode is Mode.FULL_REFRESH:
        assert result.window == DayRange(first, today)


@given(tables, near_turns, st.integers(1, 60))
def test_a_first_load_takes_the_initial_days_and_never_less_than_the_lookback(spec: TableSpec, now: datetime, initial: int) -> None:
    for nothing in (None, Watermark(None, None), Watermark(now, None)):
        result = planned(spec, nothing, Mode.INCREMENTAL, now, first_day=date(2020, 1, 1), initial_days=initial)
        assert result.window is not None
        assert result.window.end == today_by_hand(now)
        assert result.window.days == max(initial, spec.schedule.lookback_days)


@given(tables, near_turns, st.timedeltas(timedelta(seconds=1), timedelta(days=400)), st.booleans())
def test_a_watermark_of_the_future_never_counts_as_fresh(spec: TableSpec, now: datetime, ahead: timedelta, force: bool) -> None:
    future = Watermark(now + ahead, today_by_hand(now + ahead))
    result = planned(spec, future, Mode.INCREMENTAL, now, force=force)
    assert result.window == planned(spec, None, Mode.SLIDING_WINDOW, now).window


@given(tables, near_turns, st.timedeltas(timedelta(0), timedelta(days=3)))
def test_fresh_means_loaded_and_not_yet_due(spec: TableSpec, now: datetime, age: timedelta) -> None:
    loaded = now - age
    mark = Watermark(loaded, today_by_hand(loaded))
    skipped = planned(spec, mark, Mode.INCREMENTAL, now).window is None
    assert skipped == (age < spec.schedule.refresh_every)


@given(st.dates(date(2023, 12, 1), date(2026, 4, 1)) | st.none(), st.dates(date(2023, 12, 1), date(2026, 4, 1)) | st.none())
def test_an_explicit_range_is_taken_as_it_is_or_refused(start: date | None, end: date | None) -> None:
    first, last = start or FIRST, end or TODAY
    if start is None and end is None:
        return
    if FIRST <= first <= last <= TODAY:
        assert plan(start=start, end=end).window == DayRange(first, last)
    else:
        with pytest.raises(PlanError):
            plan(start=start, end=end)


def test_leap_days_and_ends_of_years_are_days_like_others() -> None:
    def window(now: datetime, days: int) -> str:
        return str(plan(Mode.SLIDING_WINDOW, now=now, days=days).window)

    assert window(datetime(2028, 3, 1, 12, tzinfo=UTC), 3) == "2028-02-28..2028-03-01"
    assert window(datetime(2027, 3, 1, 12, tzinfo=UTC), 3) == "2027-02-27..2027-03-01"
    assert window(datetime(2028, 2, 29, 23, tzinfo=UTC), 1) == "2028-02-29"
    assert window(datetime(2027, 1, 1, 4, tzinfo=UTC), 2) == "2026-12-30..2026-12-31"
    assert window(datetime(2027, 1, 1, 5, tzinfo=UTC), 2) == "2026-12-31..2027-01-01"
