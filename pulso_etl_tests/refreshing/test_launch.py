"""From a request to its launches: pure functions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.api.dagster_client import Run, RunStatus
from pulso_etl.refreshing.launch import launches
from pulso_etl.refreshing.plan import Calendar, plan_refresh
from pulso_etl.refreshing.planner import named_tables
from pulso_etl.refreshing.ranges import range_of, range_tags
from pulso_etl.refreshing.request import Grants, Mode, RefreshRequest
from pulso_etl.refreshing.runs import joined
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.tags import CALLER_TAG
from pulso_etl.tables import TABLES

NOW = datetime(2026, 11, 25, 20, tzinfo=UTC)
TODAY = date(2026, 11, 25)
SPEC = TABLES["dashboard_data"]
CALENDAR = Calendar(date(2024, 1, 1), 30)


@given(st.builds(Grants, st.booleans(), st.booleans(), st.booleans()))
def test_a_run_s_tags_tell_what_it_was_granted(grants: Grants) -> None:
    assert Grants.of(grants.tags) == grants


def test_the_runs_of_a_request_cover_its_days_and_carry_its_grants_and_who_asked() -> None:
    request = RefreshRequest((SPEC.name,), Mode.FULL_REFRESH, grants=Grants(allow_shrink=True), asked_by="ana")
    plan = plan_refresh(SPEC, None, request, NOW, CALENDAR)
    runs = launches(SPEC, plan)
    windows = [range_of(run.tags) for run in runs]
    assert [day for window in reversed(windows) for day in window or ()] == list(DayRange(CALENDAR.first_day, TODAY))
    assert {(Grants.of(run.tags), run.tags[CALLER_TAG]) for run in runs} == {(request.grants, "ana")}
    # The reconciliation costs a query, and belongs into no refresh.
    assert all("reconciliation" not in set(run.checks) for run in runs)
    assert launches(SPEC, replace(plan, window=None)) == []


@pytest.mark.parametrize(
    ("more", "joins"),
    [
        ({}, True),
        ({"grants": Grants(force=True)}, False),
        ({"start": TODAY}, False),
        ({"mode": Mode.SLIDING_WINDOW}, False),
    ],
)
def test_only_a_request_that_asks_for_nothing_special_joins_a_run(more: dict[str, object], joins: bool) -> None:
    request = RefreshRequest((SPEC.name,), **more)  # type: ignore[arg-type]
    plan = plan_refresh(SPEC, None, request, NOW, CALENDAR)
    tags = range_tags(DayRange(TODAY - timedelta(days=6), TODAY))
    run = Run("r1", RunStatus.STARTED, "refresh_dashboard_data", tags, None, NOW, NOW, None)
    assert joined(request, [plan], [run], TABLES) == ({SPEC.name: run} if joins else {})


def test_a_table_that_is_not_known_is_named() -> None:
    assert named_tables([], TABLES) == list(TABLES.values())
    with pytest.raises(PlanError, match="unknown table nothing; known are dashboard_data"):
        named_tables(["dashboard_data", "nothing"], TABLES)
