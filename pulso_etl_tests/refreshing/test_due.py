"""What is due, over which days: the pure decisions."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.refreshing.due import (
    BackOff,
    Decision,
    Rhythm,
    Standing,
    decide_due,
    failed_runs,
    loaded_days,
)
from pulso_etl.refreshing.freshness import FreshnessState, freshness
from pulso_etl.refreshing.plan import Calendar
from pulso_etl.sync.days import DayRange, contiguous
from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.ledger.watermarks import Attempt
from pulso_etl.sync.owed import Watermark
from pulso_etl.tables import TABLES

DASHBOARD = TABLES["dashboard_data"]
NOW = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
TODAY = date(2026, 3, 2)
BACK_OFF = BackOff(base=timedelta(minutes=2), cap=timedelta(hours=1), limit=5)
MINUTE = timedelta(minutes=1)


def back(days: int) -> date:
    return TODAY - timedelta(days=days)


def attempt(run: str, ok: bool, ago: timedelta, window: DayRange | None = None) -> Attempt:
    return Attempt(run, window or DayRange(back(6), TODAY), ok, NOW - ago - MINUTE, NOW - ago)


def due(standing: Standing, now: datetime = NOW) -> Decision:
    return decide_due(DASHBOARD, standing, now, Rhythm(Calendar(date(2024, 1, 1), 30), BACK_OFF))


def loaded(ago: timedelta) -> Watermark:
    return Watermark(NOW - ago, TODAY)


def test_a_table_is_due_when_its_last_success_is_as_old_as_its_frequency() -> None:
    assert due(Standing(loaded(timedelta(hours=6) - MINUTE))).window is None
    assert due(Standing(loaded(timedelta(hours=6)))).window == DayRange(back(6), TODAY)
    assert due(Standing()).window == DayRange(back(29), TODAY)


def test_a_table_of_which_a_load_was_undone_waits_for_the_end_of_the_hold_also_after_failures() -> None:
    held = Watermark(NOW - timedelta(hours=7), TODAY, held_until=NOW + MINUTE)
    for attempts in ((), (attempt("run-1", False, timedelta(hours=2)),)):
        waiting = due(Standing(held, attempts))
        assert waiting.window is None
        assert waiting.due == held.held_until
        assert due(Standing(held, attempts), NOW + MINUTE).window == DayRange(back(6), TODAY)
    undoing = replace(attempt("undo-1", True, MINUTE), metadata={"undoes": 3})
    assert failed_runs([attempt("run-1", False, timedelta(hours=2)), undoing], DayRange(back(6), TODAY))
    assert "a load was undone: only people refresh the table until 2026-03-02 15:01:00" in due(Standing(held)).reason
    found = freshness(DASHBOARD, replace(held, last_extracted_at=NOW - MINUTE), NOW)
    assert (found.state, found.due_at) == (FreshnessState.DUE, NOW - MINUTE + DASHBOARD.schedule.refresh_every)


def test_a_table_with_a_run_under_way_waits_and_says_for_which() -> None:
    for days in (None, DayRange(back(400), back(3)), DayRange(TODAY, TODAY)):
        decision = due(Standing(loaded(timedelta(days=1)), in_flight={"run-6": DayRange(back(400), back(7)), "run-7": days}))
        assert decision.window is None
        assert "run-7" in decision.reason


def test_a_back_fill_of_older_days_keeps_no_refresh_waiting() -> None:
    standing = Standing(loaded(timedelta(days=1)), in_flight={"run-7": DayRange(back(400), back(7))})
    assert due(standing).window == DayRange(back(6), TODAY)


@pytest.mark.parametrize(("failures", "wait"), [(1, 2), (2, 4), (3, 8), (4, 16), (5, 6 * 60), (9, 6 * 60)])
def test_the_wait_after_failures_doubles_and_ends_in_the_ordinary_rhythm(failures: int, wait: int) -> None:
    last = timedelta(minutes=wait)
    attempts = [attempt(f"r{n}", False, last + n * MINUTE) for n in range(failures)]
    standing = Standing(loaded(timedelta(days=1)), attempts)
    assert due(standing, NOW - timedelta(seconds=1)).window is None
    assert due(standing).window is not None


def test_attempts_of_one_run_are_one_failure() -> None:
    attempts = [attempt("r", False, n * MINUTE) for n in (2, 3, 4)]
    assert [a.finished_at for a in failed_runs(attempts, DayRange(back(6), TODAY))] == [NOW - 2 * MINUTE]


def test_a_failure_is_over_when_its_days_were_loaded_since_or_left_the_window() -> None:
    window = DayRange(back(6), TODAY)
    old = attempt("old", False, timedelta(hours=3), DayRange(back(5), back(4)))
    assert failed_runs([old], window) == [old]
    assert failed_runs([old, attempt("s", True, timedelta(hours=2), DayRange(back(5), back(5)))], window) == [old]
    assert failed_runs([old, attempt("s", True, timedelta(hours=2), DayRange(back(6), back(4)))], window) == []
    assert failed_runs([attempt("s", True, timedelta(hours=4)), old], window) == [old]
    assert failed_runs([old], DayRange(back(3), TODAY)) == []


def test_a_fresh_table_with_a_failed_older_range_is_due_again() -> None:
    failed = attempt("r", False, timedelta(minutes=3), DayRange(back(5), back(5)))
    decision = due(Standing(loaded(timedelta(minutes=5)), [attempt("s", True, 4 * MINUTE, DayRange(TODAY, TODAY)), failed]))
    assert decision.window == DayRange(back(6), TODAY)
    assert "retry after 1" in decision.reason


def test_the_slot_stays_until_a_run_has_ended() -> None:
    standing = Standing(loaded(timedelta(hours=7)), [attempt("a", True, timedelta(hours=7))])
    assert due(standing).slot == due(standing, NOW + timedelta(hours=1)).slot
    ended = Standing(standing.watermark, [*standing.attempts, attempt("b", False, timedelta(hours=1))])
    assert due(ended).slot != due(standing).slot


DAYS = DayRange(back(6), TODAY)
instants = st.datetimes(datetime(2026, 2, 28), datetime(2026, 3, 2, 15), timezones=st.just(UTC))
readings = st.dictionaries(st.sampled_from(list(DAYS)), instants)


def ledger(loaded: dict[date, datetime]) -> dict[date, Day]:
    """A ledger whose days the source has reported as unchanged since their load. The next day is loaded all the same."""
    return {day: Day(NOW, TODAY, at) for day, at in loaded.items()}


@given(readings)
def test_only_a_day_that_was_loaded_a_short_time_ago_may_be_left_out(loaded: dict[date, datetime]) -> None:
    day_old = timedelta(hours=24)
    held = loaded_days(DAYS, ledger(loaded), NOW, day_old)
    assert set(held) == {day for day, at in loaded.items() if NOW - at < day_old}


def test_a_reading_of_the_future_is_no_reason_to_leave_a_day_out() -> None:
    assert loaded_days(DAYS, ledger(dict.fromkeys(DAYS, NOW + timedelta(days=30))), NOW, timedelta(hours=24)) == {}


@given(st.sets(st.sampled_from(list(DAYS))))
def test_contiguous_ranges_hold_the_days_and_nothing_else(days: set[date]) -> None:
    found = contiguous(days)
    assert [day for window in found for day in window] == sorted(days)
    assert all(later.start - earlier.end > timedelta(days=1) for earlier, later in itertools.pairwise(found))
