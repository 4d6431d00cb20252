"""From a request to its launches: pure functions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.api.dagster_client import Run, RunStatus
from pulso_etl.refreshing.launch import launches
from pulso_etl.refreshing.plan import Calendar, RefreshPlan, plan_refresh
from pulso_etl.refreshing.planner import named_tables
from pulso_etl.refreshing.ranges import range_of, range_tags
from pulso_etl.refreshing.request import Grants, Mode, RefreshRequest
from pulso_etl.refreshing.runs import joined
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.shared_reads import SharedRead
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
    runs = launches(TABLES, [plan])
    windows = [range_of(run.tags) for run in runs]
    assert [day for window in reversed(windows) for day in window or ()] == list(DayRange(CALENDAR.first_day, TODAY))
    assert {(Grants.of(run.tags), run.tags[CALLER_TAG]) for run in runs} == {(request.grants, "ana")}
    # The reconciliation costs a query, and belongs into no refresh.
    assert all("reconciliation" not in set(run.checks) for run in runs)
    assert launches(TABLES, [replace(plan, window=None)]) == []


def trailing(table: str, days: int, end: date = TODAY) -> RefreshPlan:
    return RefreshPlan(table, DayRange(end - timedelta(days=days - 1), end), "a test")


@pytest.mark.parametrize(
    ("plans", "shared"),
    [
        ([trailing("dashboard_data", 7), trailing("evolution_data", 3)], "2026-11-19..2026-11-25"),
        ([trailing("evolution_data", 7), trailing("operation_data", 2), trailing("dashboard_data", 7)], "2026-11-19..2026-11-25"),
        ([trailing("dashboard_data", 3), trailing("evolution_data", 4)], None),
        ([trailing("dashboard_data", 3, TODAY - timedelta(days=1)), trailing("evolution_data", 3)], None),
        ([trailing("evolution_data", 3)], None),
        ([trailing("dashboard_data", 7), RefreshPlan("evolution_data", None, "fresh")], None),
    ],
)
def test_tables_share_a_read_if_one_launch_reads_both_and_the_host_s_days_cover_the_others(
    plans: list[RefreshPlan], shared: str | None
) -> None:
    reads = {run.spec.name: SharedRead.of(run.tags, TABLES) for run in launches(TABLES, plans)}
    assert reads.pop("operation_data", None) is None
    assert {str(read.window) if read else None for read in reads.values()} == {shared}
    if shared:
        assert len(reads) == 2
        assert len({read.key for read in reads.values() if read}) == 1
        again = SharedRead.of(launches(TABLES, plans)[0].tags, TABLES)
        assert again is not None
        assert again not in reads.values(), "a later launch reads anew"


def test_of_long_ranges_each_chunk_shares_with_the_one_that_covers_it() -> None:
    reads = [
        (run.spec.name, run.window, SharedRead.of(run.tags, TABLES))
        for run in launches(TABLES, [trailing("evolution_data", 100), trailing("dashboard_data", 184)])
    ]
    shared = [(name, str(window), str(read.window) if read else None) for name, window, read in reads]
    assert shared == [
        ("evolution_data", "2026-08-26..2026-11-25", "2026-08-26..2026-11-25"),
        ("evolution_data", "2026-08-18..2026-08-25", "2026-05-26..2026-08-25"),
        ("dashboard_data", "2026-08-26..2026-11-25", "2026-08-26..2026-11-25"),
        ("dashboard_data", "2026-05-26..2026-08-25", "2026-05-26..2026-08-25"),
    ]


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
