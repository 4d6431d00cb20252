"""How old a table's rows are: one decision for all who ask."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.refreshing.freshness import Condition, Freshness, FreshnessState, freshness
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.owed import Loss, Watermark
from pulso_etl.tables import TABLES

DASHBOARD = TABLES["dashboard_data"]
# 15:00 in Lima.
NOW = datetime(2026, 11, 25, 20, tzinfo=UTC)
TODAY = date(2026, 11, 25)
HOUR = timedelta(hours=1)
LOST = Loss(DayRange(TODAY, TODAY), 3)


@pytest.mark.parametrize(
    ("watermark", "state"),
    [
        (None, FreshnessState.NEVER),
        (Watermark(None, None), FreshnessState.NEVER),
        (Watermark(NOW - 5 * HOUR, TODAY), FreshnessState.FRESH),
        (Watermark(NOW - 6 * HOUR, TODAY), FreshnessState.DUE),
        (Watermark(NOW - 12 * HOUR, TODAY), FreshnessState.DUE),
        (Watermark(NOW - 13 * HOUR, TODAY), FreshnessState.STALE),
        (Watermark(NOW - HOUR, TODAY - timedelta(days=1)), FreshnessState.STALE),
        (Watermark(NOW - HOUR, TODAY, lost=LOST), FreshnessState.STALE),
        (Watermark(NOW - HOUR, TODAY, replaced=True), FreshnessState.DUE),
        # The clock was wrong.
        (Watermark(NOW + HOUR, TODAY), FreshnessState.DUE),
    ],
)
def test_the_state_follows_from_the_watermark(watermark: Watermark | None, state: FreshnessState) -> None:
    assert freshness(DASHBOARD, watermark, NOW).state is state


def test_it_says_since_when_and_when_the_next_load_is_due() -> None:
    since = NOW - HOUR
    assert freshness(DASHBOARD, Watermark(since, TODAY), NOW) == Freshness(
        FreshnessState.FRESH, since, since + 6 * HOUR, since + 12 * HOUR
    )
    assert freshness(DASHBOARD, Watermark(NOW + HOUR, TODAY), NOW).due_at is None


@given(st.integers(-48 * 60, 48 * 60), st.integers(-3, 1))
def test_rows_are_fresh_only_while_the_next_load_waits(minutes: int, days: int) -> None:
    found = freshness(DASHBOARD, Watermark(NOW - timedelta(minutes=minutes), TODAY + timedelta(days=days)), NOW)
    assert found.waits(NOW) or found.state is not FreshnessState.FRESH
    assert not (found.waits(NOW) and found.state is FreshnessState.DUE)


@given(st.integers(-6000, 6000), st.integers(-3, 2), st.integers(0, 8000))
def test_a_reader_with_the_two_instants_ages_a_state_as_the_server_does(minutes: int, days: int, later: int) -> None:
    """The page gets the instants once. From then on it computes the state."""
    watermark = Watermark(NOW - timedelta(minutes=minutes), TODAY + timedelta(days=days))
    told, then = freshness(DASHBOARD, watermark, NOW), NOW + timedelta(minutes=later)
    aged = told.state
    if aged in (FreshnessState.FRESH, FreshnessState.DUE) and told.stale_after is not None and then > told.stale_after:
        aged = FreshnessState.STALE
    elif aged is FreshnessState.FRESH and told.due_at is not None and then >= told.due_at:
        aged = FreshnessState.DUE
    if minutes >= 0:
        assert aged is freshness(DASHBOARD, watermark, then).state


def test_the_worst_that_applies_is_the_state_of_a_table() -> None:
    fresh, never = (freshness(DASHBOARD, Watermark(since, TODAY), NOW) for since in (NOW, None))
    assert (fresh.condition(failed=False), fresh.condition(failed=True)) == (Condition.FRESH, Condition.FAILED)
    assert (never.condition(failed=False), never.condition(failed=True)) == (Condition.NEVER, Condition.FAILED)
    assert {one for one in Condition if one.is_well} == {Condition.FRESH, Condition.DUE}
