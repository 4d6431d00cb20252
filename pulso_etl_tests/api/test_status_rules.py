"""What is told of the tables: pure functions of what PostgreSQL and Dagster say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from dagster import DagsterRunStatus
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.api.dagster_client import Run
from pulso_etl.api.models import DayState, Failure, LastStatus, Overall, Progress
from pulso_etl.api.refreshes import (
    Launched,
    LaunchedPart,
    Watched,
    as_it_loaded,
    newest_runs,
    progress,
)
from pulso_etl.api.status import CALENDAR_DAYS, Look, calendar, extraction, overall, runs_by_table, status_of
from pulso_etl.refreshing.due import BackOff, Rhythm
from pulso_etl.refreshing.freshness import FreshnessState, freshness
from pulso_etl.refreshing.launch import Launch, in_slots
from pulso_etl.refreshing.plan import Calendar, RefreshPlan
from pulso_etl.refreshing.ranges import range_tags
from pulso_etl.refreshing.request import Grants, RefreshRequest
from pulso_etl.refreshing.runs import joinable
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger.watermarks import RunningAttempt, TableState
from pulso_etl.sync.owed import Loss, Watermark
from pulso_etl.sync.tags import PIPELINE_TAG, SLOT_TAG, TABLE_TAG, TENANT_TAG
from pulso_etl.tables import TABLES
from pulso_etl.words import CAUSES

NOW = datetime(2026, 11, 25, 20, tzinfo=UTC)
TODAY = date(2026, 11, 25)
DASHBOARD = TABLES["dashboard_data"]
RUN = Run("r1", DagsterRunStatus.STARTED, "refresh_dashboard_data", {"pulso_etl/table": "dashboard_data"}, None, NOW, NOW, None)


UI = "http://127.0.0.1:3000"


def state(age: timedelta, status: str = "success", **more: object) -> TableState:
    fields = {
        "table_name": DASHBOARD.name,
        "last_extracted_at": NOW - age,
        "last_partition": TODAY,
        "status": status,
        "records": 150,
        "seconds": 1.5,
        "error": None,
        "extraction_id": "r0",
        "recovery_attempts": 0,
        "metadata": {"bytes_billed": 10, "estimated_cost_usd": 0.5},
        "updated_at": NOW,
    }
    return TableState(**(fields | more))  # type: ignore[arg-type]


def told(found: TableState | None, run: Run | None = None, rows: int | None = None) -> object:
    return status_of(DASHBOARD, found, run, rows, Look(NOW, Rhythm(Calendar(date(2024, 1, 1), 30), BackOff()), UI))


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        (0, FreshnessState.FRESH),
        (5.9, FreshnessState.FRESH),
        (6, FreshnessState.DUE),
        (12, FreshnessState.DUE),
        (12.1, FreshnessState.STALE),
    ],
)
def test_a_table_is_fresh_then_due_then_stale(hours: float, expected: FreshnessState) -> None:
    assert freshness(DASHBOARD, Watermark(NOW - timedelta(hours=hours), TODAY), NOW).state is expected


def test_a_table_that_was_never_loaded_is_told_as_such() -> None:
    found = told(None)
    assert (found.status, found.freshness, found.next_due) == (LastStatus.NEVER, FreshnessState.NEVER, None)
    assert freshness(DASHBOARD, Watermark(None, None), NOW).state is FreshnessState.NEVER


def test_a_table_is_due_when_its_rows_are_as_old_as_its_frequency() -> None:
    found = told(state(timedelta(hours=1)))
    assert found.next_due == NOW + timedelta(hours=5)
    assert (found.age_seconds, found.bytes_billed, found.estimated_cost_usd) == (3600, 10, 0.5)


@pytest.mark.parametrize("cause", list(Cause))
def test_a_failure_is_told_with_its_cause_title_and_run(cause: Cause) -> None:
    found = told(state(timedelta(hours=1), status="failed", error="why", cause=cause))
    title, run = CAUSES[cause].title, f"{UI}/runs/r0"
    assert found.failure == Failure(cause=cause, title=title, message="why", retryable=cause.retryable, run_url=run)
    assert (found.error, told(state(timedelta(hours=1))).failure) == ("why", None)


def test_an_attempt_of_the_history_is_told_with_its_cause() -> None:
    row = ("dashboard_data", "r1", 1, "failed", TODAY, TODAY, NOW, NOW, 1.0, None, {}, "why")
    failure = extraction((*row, "duplicate_key"), UI).failure
    assert failure is not None
    assert (failure.cause, failure.retryable, failure.run_url) == (Cause.DUPLICATE_KEY, False, f"{UI}/runs/r1")
    # As an earlier release wrote it.
    old = extraction((*row, None), UI).failure
    assert old is not None
    assert old.cause is Cause.UNKNOWN


def test_rows_that_have_gone_are_told_and_the_table_is_stale() -> None:
    lost = Loss(DayRange(TODAY - timedelta(days=40), TODAY - timedelta(days=7)), 793)
    found = told(state(timedelta(hours=1), lost=lost))
    assert (found.freshness, found.rows_lost, found.partitions_lost) == (FreshnessState.STALE, 793, "2026-10-16..2026-11-18")
    assert found.restored_by == "pulso-etl refresh dashboard_data --from 2026-10-16 --to 2026-11-18"
    assert told(state(timedelta(hours=1), replaced=True)).freshness is FreshnessState.DUE
    whole = told(state(timedelta(hours=1)))
    assert (whole.freshness, whole.rows_lost, whole.partitions_lost, whole.restored_by) == (FreshnessState.FRESH, None, None, None)


def test_a_run_under_way_is_told_with_its_range_and_the_rows_so_far() -> None:
    tags = {"dagster/asset_partition_range_start": "2026-11-19", "dagster/asset_partition_range_end": "2026-11-25"}
    found = told(state(timedelta(hours=7)), replace(RUN, tags=tags), 420)
    assert (found.run_under_way.state, found.run_under_way.partitions) == (Progress.RUNNING, "2026-11-19..2026-11-25")
    assert found.run_under_way.rows == 420


def test_a_load_is_told_as_running_where_dagster_does_not_answer() -> None:
    load = RunningAttempt("dashboard_data", DayRange(TODAY - timedelta(days=6), TODAY), "r5", 1, NOW)
    found = told(replace(state(timedelta(hours=7), "running"), running=(load,)))
    assert (found.run_under_way.run_id, found.run_under_way.started_at) == ("r5", NOW)
    assert found.run_under_way.partitions == str(load.window)


def test_the_whole_is_degraded_by_a_failed_or_a_stale_table() -> None:
    good, failed, stale = (told(found) for found in (state(timedelta(0)), state(timedelta(0), "failed"), state(timedelta(days=2))))
    for tables, expected in (([good], Overall.OK), ([good, failed], Overall.DEGRADED), ([good, stale], Overall.DEGRADED)):
        assert overall(tables, [], NOW, dagster=True).status is expected
    whole = overall([good, failed, stale], [], NOW, dagster=False)
    assert (whole.status, whole.successes, whole.failures, whole.total_tables) == (Overall.UNREACHABLE, 2, 1, 3)
    assert whole.last_updated == NOW


def test_of_several_runs_of_a_table_the_one_that_goes_on_is_told() -> None:
    waits = replace(RUN, run_id="r2", status=DagsterRunStatus.QUEUED, created_at=NOW - timedelta(hours=1))
    group = replace(RUN, run_id="r3", status=DagsterRunStatus.QUEUED, tags={}, job="refresh_dashboard")
    found = runs_by_table([waits, RUN, group], TABLES)
    assert {table: run.run_id for table, run in found.items()} == {"dashboard_data": "r1", "evolution_data": "r3"}


@given(
    st.lists(
        st.tuples(st.integers(-60, 5), st.integers(0, 60), st.booleans()).map(
            lambda made: (
                TODAY + timedelta(days=made[0]),
                TODAY + timedelta(days=made[0] + made[1]),
                "success" if made[2] else "failed",
            )
        )
    )
)
def test_the_calendar_shows_the_last_attempt_of_each_day(attempts: list[tuple[date, date, str]]) -> None:
    days = calendar(TODAY, [(*attempt, NOW, str(n)) for n, attempt in enumerate(attempts)])
    assert [day.day for day in days] == [TODAY - timedelta(days=n) for n in reversed(range(CALENDAR_DAYS))]
    for day in days:
        covering = [(n, status) for n, (start, end, status) in enumerate(attempts) if start <= day.day <= end]
        if not covering:
            assert (day.state, day.run_id) == (DayState.MISSING, None)
        else:
            expected = DayState.LOADED if covering[-1][1] == "success" else DayState.FAILED
            assert (day.state, day.run_id) == (expected, str(covering[-1][0]))


@given(st.integers(0, 20), st.integers(1, 30))
def test_slots_let_as_many_runs_go_on_as_asked_and_no_more(runs: int, max_concurrent: int) -> None:
    plan = RefreshPlan("dashboard_data", DayRange(TODAY, TODAY), "due")
    taken = [launch.tags[SLOT_TAG] for launch in in_slots([Launch.of(DASHBOARD, plan)] * runs, "p1", max_concurrent)]
    assert (len(taken), len(set(taken))) == (runs, min(runs, max_concurrent))


def test_chunks_of_a_table_are_told_as_one() -> None:
    def chunk(n: int, status: DagsterRunStatus) -> Run:
        window = DayRange(TODAY - timedelta(days=10 * n + 9), TODAY - timedelta(days=10 * n))
        return replace(
            RUN, run_id=f"r{n}", status=status, tags=range_tags(window) | {PIPELINE_TAG: "p1", TABLE_TAG: "dashboard_data"}
        )

    launched = replace(LAUNCHED, parts={"dashboard_data": LaunchedPart("r0", "every partition", more=["r1", "r2"])})
    good, bad, waiting = DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.QUEUED
    for statuses, state, over in (
        ((good, waiting, waiting), Progress.RUNNING, 1),
        ((waiting, waiting, waiting), Progress.QUEUED, 0),
        ((good, bad, good), Progress.FAILED, 3),
        ((good, good, good), Progress.SUCCESS, 3),
    ):
        runs = newest_runs(launched, [chunk(n, status) for n, status in enumerate(statuses)])
        told = progress(launched, Watched(runs, {"dashboard_data": 30}, asked=True), "http://dagster").runs["dashboard_data"]
        assert (told.state, told.rows, told.partitions) == (state, 30, str(DayRange(TODAY - timedelta(days=29), TODAY)))
        assert told.message == f"every partition; {over} of 3 chunks have ended"


def test_requests_for_the_same_have_one_fingerprint() -> None:
    one, other = RefreshRequest(("a", "b")), RefreshRequest(("b", "a"))
    assert one.fingerprint == other.fingerprint
    assert (
        len(
            {one.fingerprint, RefreshRequest(("a", "b"), grants=Grants(force=True)).fingerprint, RefreshRequest(("a",)).fingerprint}
        )
        == 3
    )


LAUNCHED = Launched(
    "p1",
    {"dashboard_data": LaunchedPart("r1", "lookback"), "evolution_data": LaunchedPart(None, "fresh")},
    "dashboard",
    NOW,
)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (DagsterRunStatus.QUEUED, ("running", "queued")),
        (DagsterRunStatus.STARTING, ("running", "queued")),
        (DagsterRunStatus.STARTED, ("running", "running")),
        (DagsterRunStatus.CANCELING, ("running", "running")),
        (DagsterRunStatus.SUCCESS, ("success", "success")),
        (DagsterRunStatus.FAILURE, ("failed", "failed")),
        (DagsterRunStatus.CANCELED, ("failed", "canceled")),
    ],
)
def test_a_refresh_is_as_far_as_its_runs(status: DagsterRunStatus, expected: tuple[str, str]) -> None:
    watched = Watched({"dashboard_data": [replace(RUN, status=status)]}, {"dashboard_data": 7}, {})
    found = progress(LAUNCHED, watched, "http://dagster")
    assert (found.status, found.runs["dashboard_data"].state) == expected
    assert found.runs["dashboard_data"].run_url == "http://dagster/runs/r1"
    assert (found.runs["evolution_data"].state, found.runs["evolution_data"].message) == (Progress.SKIPPED, "fresh")


@pytest.mark.parametrize("status", [DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED])
def test_a_run_that_was_ended_after_its_load_has_loaded(status: DagsterRunStatus) -> None:
    run = replace(RUN, status=status)
    assert as_it_loaded(run, loaded=True).progress is Progress.SUCCESS
    assert as_it_loaded(run, loaded=False) == run
    under_way = replace(RUN, status=DagsterRunStatus.CANCELING)
    assert as_it_loaded(under_way, loaded=True) == under_way


def test_a_refresh_whose_runs_are_not_known_yet_is_under_way() -> None:
    assert progress(LAUNCHED, Watched(), "http://dagster").status == "running"


def test_a_run_that_dagster_does_not_know_any_more_is_over() -> None:
    found = progress(LAUNCHED, Watched(asked=True), "http://dagster")
    assert (found.status, found.runs["dashboard_data"].state) == ("failed", "failed")


@pytest.mark.parametrize(
    ("first", "last", "joins"),
    [("2026-11-19", "2026-11-25", True), ("2026-11-25", "2026-11-25", True), ("2026-11-10", "2026-11-12", False)],
)
def test_only_a_run_up_to_the_same_day_is_joined(first: str, last: str, joins: bool) -> None:
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    run = replace(RUN, tags=RUN.tags | tags)
    plan = RefreshPlan("dashboard_data", DayRange(TODAY - timedelta(days=6), TODAY), "due")
    assert (joinable(plan, [run], TABLES) is run) is joins
    assert joinable(replace(plan, table="evolution_data"), [run], TABLES) is None
    assert joinable(replace(plan, window=None), [run], TABLES) is None
    assert joinable(plan, [replace(run, tags=RUN.tags)], TABLES) is None


def test_a_run_that_took_the_place_of_a_crashed_one_is_the_one_that_counts() -> None:
    crashed = replace(RUN, status=DagsterRunStatus.FAILURE)
    again = replace(RUN, run_id="r9", created_at=NOW + timedelta(minutes=1), tags={PIPELINE_TAG: "p1", TABLE_TAG: "dashboard_data"})
    foreign = replace(again, run_id="r10", created_at=NOW + timedelta(minutes=2), tags={**again.tags, PIPELINE_TAG: "p2"})
    assert newest_runs(LAUNCHED, [foreign, again, crashed])["dashboard_data"][-1].run_id == "r9"


def test_a_run_of_another_tenant_s_is_not_told_of_whatever_the_table_of_refreshes_names() -> None:
    """The tenant's own role writes to the table, and the ids of others' runs stand in the names of their sessions."""
    theirs = replace(RUN, tags={**RUN.tags, TENANT_TAG: "globex"})
    assert [*LAUNCHED.parts["dashboard_data"].run_ids] == [theirs.run_id]
    assert newest_runs(LAUNCHED, [theirs], "acme") == {}
    assert newest_runs(LAUNCHED, [theirs], "globex") == {"dashboard_data": [theirs]}
