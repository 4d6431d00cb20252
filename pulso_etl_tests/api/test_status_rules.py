"""What is told of the tables: pure functions of what PostgreSQL and Dagster say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from dagster import DagsterRunStatus
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._daemon.controller import DEFAULT_HEARTBEAT_INTERVAL_SECONDS
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.api.dagster_client import HEARTBEAT, UNDER_WAY, Daemon, Run, RunStatus
from pulso_etl.api.holdings import Holding
from pulso_etl.api.models import DayCheck, DayState, LastStatus, Overall, TableStatus
from pulso_etl.api.refreshes import (
    Launched,
    LaunchedPart,
    Watched,
    as_it_loaded,
    newest_runs,
    progress,
)
from pulso_etl.api.shapes import Failure, Progress
from pulso_etl.api.status import (
    CALENDAR_DAYS,
    NOTHING,
    Beside,
    DayHeld,
    Look,
    Snapshot,
    calendar,
    data_changes,
    extraction,
    lost_attempts,
    overall,
    parse_versions,
    runs_by_table,
    status_of,
    versions_of,
)
from pulso_etl.refreshing.due import BackOff, Rhythm
from pulso_etl.refreshing.freshness import Condition, FreshnessState, freshness
from pulso_etl.refreshing.launch import Launch, in_slots
from pulso_etl.refreshing.plan import Calendar, RefreshPlan
from pulso_etl.refreshing.ranges import range_tags
from pulso_etl.refreshing.request import Grants, RefreshRequest
from pulso_etl.refreshing.runs import joinable
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger.watermarks import Attempt, RunningAttempt, TableState
from pulso_etl.sync.owed import Loss, Watermark
from pulso_etl.sync.tags import PIPELINE_TAG, SKIPPED_TAG, SLOT_TAG, TABLE_TAG, TENANT_TAG
from pulso_etl.tables import TABLES
from pulso_etl.words import CAUSES

NOW = datetime(2026, 11, 25, 20, tzinfo=UTC)
TODAY = date(2026, 11, 25)
DASHBOARD = TABLES["dashboard_data"]
RUN = Run("r1", RunStatus.STARTED, "refresh_dashboard_data", {"pulso_etl/table": "dashboard_data"}, None, NOW, NOW, None)


UI = "http://127.0.0.1:3000"


def state(age: timedelta, status: str = "success", **more: Any) -> TableState:
    fields: dict[str, Any] = {
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
    return TableState(**(fields | more))


def told(found: TableState | None, run: Run | None = None, rows: int | None = None, beside: Beside = NOTHING) -> TableStatus:
    return status_of(DASHBOARD, found, run, rows, Look(NOW, Rhythm(Calendar(date(2024, 1, 1), 30), BackOff()), UI), beside)


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
    row: tuple[Any, ...] = ("dashboard_data", "r1", 1, "failed", TODAY, TODAY, NOW, NOW, 1.0, None, {}, "why")
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
    assert found.run_under_way is not None
    assert (found.run_under_way.state, found.run_under_way.partitions) == (Progress.RUNNING, "2026-11-19..2026-11-25")
    assert found.run_under_way.rows == 420


def test_a_load_is_told_as_running_where_dagster_does_not_answer() -> None:
    load = RunningAttempt("dashboard_data", DayRange(TODAY - timedelta(days=6), TODAY), "r5", 1, NOW)
    found = told(replace(state(timedelta(hours=7), "running"), running=(load,)))
    assert found.run_under_way is not None
    assert (found.run_under_way.run_id, found.run_under_way.started_at) == ("r5", NOW)
    assert found.run_under_way.partitions == str(load.window)


def test_the_whole_is_degraded_by_a_failed_or_a_stale_table() -> None:
    good, failed, stale = (told(found) for found in (state(timedelta(0)), state(timedelta(0), "failed"), state(timedelta(days=2))))
    for tables, expected in (([good], Overall.OK), ([good, failed], Overall.DEGRADED), ([good, stale], Overall.DEGRADED)):
        assert overall(tables, [], NOW, dagster=True).status is expected
    whole = overall([good, failed, stale], [], NOW, dagster=False)
    assert (whole.status, whole.successes, whole.failures, whole.total_tables) == (Overall.UNREACHABLE, 2, 1, 3)
    assert (whole.last_updated, whole.oldest_update) == (NOW, NOW - timedelta(days=2))


def test_a_table_counts_once_and_one_that_was_never_loaded_is_not_well() -> None:
    both = told(state(timedelta(days=2), "failed"))
    assert (both.state, both.freshness) == (Condition.FAILED, FreshnessState.STALE)
    good, never = told(state(timedelta(0))), told(None)
    whole = overall([good, both, never], [], NOW, dagster=True)
    assert {state: count for state, count in whole.states.items() if count} == {
        Condition.FAILED: 1,
        Condition.FRESH: 1,
        Condition.NEVER: 1,
    }
    assert overall([good, never], [], NOW, dagster=True).status is Overall.DEGRADED


def test_a_silent_daemon_is_told_and_degrades_the_whole() -> None:
    good, seen = told(state(timedelta(0))), NOW - 3 * HEARTBEAT
    whole = overall([good], [], NOW, dagster=True, daemon=Daemon({"SENSOR": seen}))
    assert (whole.status, whole.daemon, whole.daemon_seen_at) == (Overall.DEGRADED, False, seen)
    assert overall([good], [], NOW, dagster=True, daemon=Daemon({"SENSOR": NOW})).status is Overall.OK
    assert overall([good], [], NOW, dagster=False).daemon is None


def test_listeners_hear_the_days_of_every_load_that_changed_rows_since_they_heard_last() -> None:
    def load(run: str, days: int, rows: int) -> tuple[object, ...]:
        first = TODAY - timedelta(days=days)
        return ("dashboard_data", run, 1, "success", first, TODAY, NOW, NOW, 1.0, 9, {"rows_updated": rows}, None, None)

    recent = [extraction(one, UI) for one in (load("r3", 0, 2), load("r2", 1, 0), load("r1", 6, 5))]
    whole = Snapshot(overall([told(state(timedelta(0), data_version=9))], recent, NOW, dagster=True), b"")
    assert versions_of(whole.status.tables) == "dashboard_data=9"
    expected: dict[str, list[str] | None] = {
        "dashboard_data=8": ["2026-11-25"],
        "dashboard_data=7": ["2026-11-25", "2026-11-19..2026-11-25"],
        "dashboard_data=6": None,
        "dashboard_data=12": None,
    }
    for heard, days in expected.items():
        assert [(one.data_version, one.days) for one in data_changes(parse_versions(heard), whole)] == [(9, days)]
    for heard in ("dashboard_data=9", "evolution_data=1", "", "nonsense", "dashboard_data=", "dashboard_data=-1"):
        assert data_changes(parse_versions(heard), whole) == []


def test_of_several_runs_of_a_table_the_one_that_goes_on_is_told() -> None:
    waits = replace(RUN, run_id="r2", status=RunStatus.QUEUED, created_at=NOW - timedelta(hours=1))
    group = replace(RUN, run_id="r3", status=RunStatus.QUEUED, tags={}, job="refresh_dashboard")
    found = runs_by_table([waits, RUN, group], TABLES)
    assert {table: run.run_id for table, run in found.items()} == {"dashboard_data": "r1", "evolution_data": "r3"}


SHOWN_DAYS = DayRange(TODAY - timedelta(days=CALENDAR_DAYS - 1), TODAY)


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
def test_the_calendar_shows_the_last_attempt_of_each_day_that_was_never_loaded(attempts: list[tuple[date, date, str]]) -> None:
    tried = [(*attempt, NOW, str(n)) for n, attempt in enumerate(attempts)]
    days = calendar(DASHBOARD, SHOWN_DAYS, {}, tried, NOW)
    assert [day.day for day in days] == [TODAY - timedelta(days=n) for n in reversed(range(CALENDAR_DAYS))]
    for day in days:
        covering = [(n, status) for n, (start, end, status) in enumerate(attempts) if start <= day.day <= end]
        if not covering or covering[-1][1] == "success":
            assert (day.state, day.run_id, day.check) == (DayState.MISSING, None, None)
        else:
            assert (day.state, day.run_id, day.check) == (DayState.FAILED, str(covering[-1][0]), DayCheck.FAILED)


def test_a_failed_read_of_loaded_days_leaves_them_loaded_and_is_told_beside() -> None:
    at = NOW - timedelta(hours=3)
    held = {day: DayHeld(170, at, at, day + timedelta(days=7), "r0") for day in SHOWN_DAYS}
    tried = [(SHOWN_DAYS.start, TODAY, "success", at, "r0"), (SHOWN_DAYS.start, TODAY, "failed", NOW, "r1")]
    for day in calendar(DASHBOARD, SHOWN_DAYS, held, tried, NOW):
        assert (day.state, day.rows, day.loaded_at, day.run_id) == (DayState.LOADED, 170, at, "r0")
        assert (day.check, day.checked_at, day.check_run_id) == (DayCheck.FAILED, NOW, "r1")
    for day in calendar(DASHBOARD, SHOWN_DAYS, held, tried[:1], NOW):
        assert (day.check, day.checked_at, day.check_run_id) == (DayCheck.OK, at, None)


def test_a_day_is_told_with_what_is_usual_on_its_weekday_and_gaps_are_marked() -> None:
    at = NOW - timedelta(minutes=5)
    days = DayRange(TODAY - timedelta(days=100), TODAY)
    held = {day: DayHeld(100 if day.weekday() < 5 else 10, at, at, day, "r0") for day in days}
    yesterday, saturday = TODAY - timedelta(days=1), date(2026, 11, 21)
    held[yesterday] = replace(held[yesterday], rows=49)
    held[TODAY] = replace(held[TODAY], rows=30)
    held[saturday] = replace(held[saturday], rows=21)
    gone = date(2026, 11, 18)
    del held[gone]
    found = {day.day: day for day in calendar(DASHBOARD, SHOWN_DAYS, held, [], NOW)}
    assert (found[yesterday].usual_rows, found[yesterday].unusual, found[saturday].usual_rows) == (100, True, 10)
    assert {day for day, told in found.items() if told.unusual} == {yesterday, saturday}
    assert {day for day, told in found.items() if told.gap} == {gone}
    assert calendar(DASHBOARD, SHOWN_DAYS, {TODAY: held[TODAY]}, [], NOW)[-1].usual_rows is None
    assert not any(day.gap for day in calendar(DASHBOARD, SHOWN_DAYS, {TODAY: held[TODAY]}, [], NOW))


def test_an_open_day_that_nothing_has_compared_for_long_is_told_as_unverified() -> None:
    at = NOW - timedelta(hours=13)
    held = {day: DayHeld(170, at, at, day + timedelta(days=7), "r0") for day in SHOWN_DAYS}
    days = {day.day: day.check for day in calendar(DASHBOARD, SHOWN_DAYS, held, [], NOW)}
    assert {day for day, check in days.items() if check is DayCheck.UNVERIFIED} == {TODAY - timedelta(days=n) for n in range(7)}


LOST = Attempt("r7", DayRange(TODAY, TODAY), False, NOW, NOW, "the queue dropped it", cause=Cause.ABANDONED)


def test_a_run_that_died_before_its_load_is_the_last_attempt_until_something_else_happens() -> None:
    before = state(timedelta(hours=1), updated_at=NOW - timedelta(hours=1))
    for known in (before, None):
        found = told(known, beside=Beside([LOST]))
        assert (found.state, found.status, found.run_id) == (Condition.FAILED, LastStatus.FAILED, "r7")
        assert found.failure is not None
        assert (found.failure.cause, found.error) == (Cause.ABANDONED, "the queue dropped it")
    loaded = Attempt("r8", DayRange(TODAY - timedelta(days=30), TODAY), True, NOW, NOW + timedelta(seconds=1))
    since = state(timedelta(0), updated_at=NOW + timedelta(seconds=1), attempts=(loaded,))
    assert told(since, beside=Beside([LOST])).state is Condition.FRESH
    withdrawn = replace(LOST, withdrawn=True, cause=Cause.CANCELLED)
    assert told(before, beside=Beside([withdrawn])).state is Condition.FRESH


def test_a_failed_run_without_an_attempt_is_one_for_its_tables() -> None:
    died = replace(RUN, run_id="r7", status=RunStatus.FAILURE, started_at=None, ended_at=NOW)
    group = replace(died, run_id="r8", tags={}, job="refresh_dashboard")
    assert {table: [one.run_id for one in found] for table, found in lost_attempts([died, group], {}, TABLES).items()} == {
        "dashboard_data": ["r7", "r8"],
        "evolution_data": ["r8"],
    }
    written = Attempt("r8", DayRange(TODAY, TODAY), False, NOW, NOW)
    known = {"dashboard_data": state(timedelta(0), attempts=(written, replace(written, run_id="r7")))}
    assert lost_attempts([died, group], known, TABLES) == {}
    assert lost_attempts([replace(died, tags={**RUN.tags, SKIPPED_TAG: "fresh"})], {}, TABLES) == {}


def test_a_daemon_is_silent_after_two_heartbeats_and_a_part_of_it_after_ten() -> None:
    beats = dict.fromkeys(("SENSOR", "SCHEDULER"), NOW)
    assert timedelta(seconds=DEFAULT_HEARTBEAT_INTERVAL_SECONDS) == HEARTBEAT
    assert Daemon(beats).late(NOW + 2 * HEARTBEAT) == []
    assert Daemon(beats).late(NOW + 2 * HEARTBEAT + timedelta(seconds=1)) == ["SCHEDULER", "SENSOR"]
    assert Daemon({**beats, "SENSOR": NOW - 10 * HEARTBEAT - timedelta(seconds=1)}).late(NOW) == ["SENSOR"]
    assert Daemon(dict.fromkeys(beats)).late(NOW) == ["SCHEDULER", "SENSOR"]


def test_the_rows_of_the_table_and_of_its_last_load_are_told_apart_from_what_the_last_attempt_read() -> None:
    load = ("dashboard_data", "r0", 1, "success", TODAY, TODAY, NOW, NOW, 1.0, 1190, {"rows_inserted": 12}, None, None)
    reaches = NOW - timedelta(hours=4)
    found = told(state(timedelta(hours=1), "failed", records=None), beside=Beside(holding=Holding(5100, load, reaches)))
    assert found.last_load is not None
    assert (found.rows, found.records, found.last_load.inserted) == (5100, None, 12)
    assert (found.data_until, told(state(timedelta(hours=1))).data_until) == (reaches, NOW - timedelta(hours=1))
    ahead = Holding(5100, load, NOW + timedelta(hours=4))
    assert told(state(timedelta(hours=1)), beside=Beside(holding=ahead)).data_until == NOW


@given(st.integers(0, 20), st.integers(1, 30))
def test_slots_let_as_many_runs_go_on_as_asked_and_no_more(runs: int, max_concurrent: int) -> None:
    plan = RefreshPlan("dashboard_data", DayRange(TODAY, TODAY), "due")
    taken = [launch.tags[SLOT_TAG] for launch in in_slots([Launch.of(DASHBOARD, plan)] * runs, "p1", max_concurrent)]
    assert (len(taken), len(set(taken))) == (runs, min(runs, max_concurrent))


def test_chunks_of_a_table_are_told_as_one() -> None:
    def chunk(n: int, status: RunStatus) -> Run:
        window = DayRange(TODAY - timedelta(days=10 * n + 9), TODAY - timedelta(days=10 * n))
        return replace(
            RUN, run_id=f"r{n}", status=status, tags=range_tags(window) | {PIPELINE_TAG: "p1", TABLE_TAG: "dashboard_data"}
        )

    launched = replace(LAUNCHED, parts={"dashboard_data": LaunchedPart("r0", "every partition", more=["r1", "r2"])})
    good, bad, waiting = RunStatus.SUCCESS, RunStatus.FAILURE, RunStatus.QUEUED
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
        (RunStatus.QUEUED, ("running", "queued")),
        (RunStatus.STARTING, ("running", "queued")),
        (RunStatus.STARTED, ("running", "running")),
        (RunStatus.CANCELING, ("running", "running")),
        (RunStatus.SUCCESS, ("success", "success")),
        (RunStatus.FAILURE, ("failed", "failed")),
        (RunStatus.CANCELED, ("failed", "canceled")),
    ],
)
def test_a_refresh_is_as_far_as_its_runs(status: RunStatus, expected: tuple[str, str]) -> None:
    watched = Watched({"dashboard_data": [replace(RUN, status=status)]}, {"dashboard_data": 7}, {})
    found = progress(LAUNCHED, watched, "http://dagster")
    assert (found.status, found.runs["dashboard_data"].state) == expected
    assert found.runs["dashboard_data"].run_url == "http://dagster/runs/r1"
    assert (found.runs["evolution_data"].state, found.runs["evolution_data"].message) == (Progress.SKIPPED, "fresh")


def test_the_states_of_a_run_are_dagsters() -> None:
    assert [status.value for status in RunStatus] == [status.value for status in DagsterRunStatus]
    assert set(UNDER_WAY) == {status.value for status in NOT_FINISHED_STATUSES}


@pytest.mark.parametrize("status", [RunStatus.FAILURE, RunStatus.CANCELED])
def test_a_run_that_was_ended_after_its_load_has_loaded(status: RunStatus) -> None:
    run = replace(RUN, status=status)
    assert as_it_loaded(run, loaded=True).progress is Progress.SUCCESS
    assert as_it_loaded(run, loaded=False) == run
    under_way = replace(RUN, status=RunStatus.CANCELING)
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
    run = replace(RUN, tags={**RUN.tags, **tags})
    plan = RefreshPlan("dashboard_data", DayRange(TODAY - timedelta(days=6), TODAY), "due")
    assert (joinable(plan, [run], TABLES) is run) is joins
    assert joinable(replace(plan, table="evolution_data"), [run], TABLES) is None
    assert joinable(replace(plan, window=None), [run], TABLES) is None
    assert joinable(plan, [replace(run, tags=RUN.tags)], TABLES) is None


def test_a_run_that_took_the_place_of_a_crashed_one_is_the_one_that_counts() -> None:
    crashed = replace(RUN, status=RunStatus.FAILURE)
    again = replace(RUN, run_id="r9", created_at=NOW + timedelta(minutes=1), tags={PIPELINE_TAG: "p1", TABLE_TAG: "dashboard_data"})
    foreign = replace(again, run_id="r10", created_at=NOW + timedelta(minutes=2), tags={**again.tags, PIPELINE_TAG: "p2"})
    assert newest_runs(LAUNCHED, [foreign, again, crashed])["dashboard_data"][-1].run_id == "r9"


def test_a_run_of_another_tenant_s_is_not_told_of_whatever_the_table_of_refreshes_names() -> None:
    """A tenant's role may write to the table. It can learn the ids of others' runs: sessions carry them as names."""
    theirs = replace(RUN, tags={**RUN.tags, TENANT_TAG: "globex"})
    assert [*LAUNCHED.parts["dashboard_data"].run_ids] == [theirs.run_id]
    assert newest_runs(LAUNCHED, [theirs], "acme") == {}
    assert newest_runs(LAUNCHED, [theirs], "globex") == {"dashboard_data": [theirs]}
