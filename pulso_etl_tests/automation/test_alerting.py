"""From the state of a deployment to what people are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.events import EngineEventData
from dagster_shared.error import SerializableErrorInfo
from pydantic import SecretStr

from pulso_etl.alerts.incidents import Event, Failed, State, Topic
from pulso_etl.alerts.incidents import Recovered as Well
from pulso_etl.automation.alerting import CheckOutcome, Situation, events
from pulso_etl.automation.jobs import build_jobs
from pulso_etl.automation.sensors import Automation, check_outcomes, explained, standings
from pulso_etl.bigquery.pricing import Pricing
from pulso_etl.definitions import build_defs, build_resources
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.refreshing.budget import Budget, Limit, Spent
from pulso_etl.refreshing.due import Standing
from pulso_etl.refreshing.freshness import freshness
from pulso_etl.refreshing.keys import up_to_date_key
from pulso_etl.refreshing.launch import refresh_tags, run_tags
from pulso_etl.refreshing.period import Period
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause, interrupted
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.queries import Usage
from pulso_etl.sync.ledger.watermarks import Attempt, RunningAttempt, Watermarks
from pulso_etl.sync.owed import Loss, Watermark
from pulso_etl.sync.tags import TENANT_TAG
from pulso_etl.tables import TABLES
from pulso_etl_tests import clock
from pulso_etl_tests.alerts.receivers import Inbox, Receiver
from pulso_etl_tests.conftest import seed

NAME = "dashboard_data"
DASHBOARD = {NAME: TABLES[NAME]}
NOW = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
TODAY = date(2026, 3, 2)
WINDOW = DayRange(date(2026, 2, 24), TODAY)
HOUR = timedelta(hours=1)
FRESH = Watermark(NOW - HOUR, TODAY)


def attempt(failed: Cause | None, ago: timedelta = HOUR, **metadata: Any) -> Attempt:
    ended = NOW - ago
    return Attempt("run-1", WINDOW, failed is None, ended, ended, failed and "why", metadata, cause=failed)


def told(
    standing: Standing, *, failures: Sequence[Attempt] = (), checks: Sequence[CheckOutcome] = (), spent: int = 0
) -> list[Event]:
    limit = Limit("BIGQUERY_DAILY_BUDGET_BYTES", Period.DAY, size=100)
    budget, since = Budget((Spent(limit, Usage(spent), Pricing()),)), NOW - 3 * HOUR
    situation = Situation(NOW, {NAME: standing}, {NAME: failures}, checks, budget)
    return list(events(DASHBOARD, situation, since=since, retry_limit=2))


def causes(given: list[Event]) -> set[Topic]:
    return {event.cause for event in given if isinstance(event, Failed)}


@pytest.mark.parametrize("cause", [Cause.SOURCE_UNAVAILABLE, Cause.DUPLICATE_KEY, Cause.SHRINK, Cause.TIMEOUT, Cause.INTERNAL])
def test_a_failed_attempt_is_told_with_its_cause_range_and_run(cause: Cause) -> None:
    (failed,) = [event for event in told(Standing(FRESH, [attempt(cause)])) if isinstance(event, Failed)]
    assert failed == Failed(cause, NAME, NOW - HOUR, window=WINDOW, run_id="run-1", detail="why")


def test_an_attempt_that_was_ended_after_its_time_took_too_long() -> None:
    timeout = TABLES[NAME].loading.timeout
    assert interrupted(timeout, timeout) is Cause.TIMEOUT
    assert interrupted(timeout - timedelta(seconds=1), timeout) is Cause.CANCELLED


def test_what_ended_before_the_last_look_is_not_told_again() -> None:
    assert causes(told(Standing(FRESH, [attempt(Cause.SOURCE_UNAVAILABLE, ago=4 * HOUR)]))) == set()


def test_a_success_ends_failures_and_new_columns_are_told() -> None:
    given = told(Standing(FRESH, [attempt(None, columns_not_loaded=["extra"])]))
    assert causes(given) == {State.DRIFT}
    assert any(isinstance(event, Well) and Cause.SOURCE_UNAVAILABLE in event.causes for event in given)
    assert any(isinstance(event, Well) and State.DRIFT in event.causes for event in told(Standing(FRESH, [attempt(None)])))


def test_many_quarantined_rows_are_told_and_few_are_not() -> None:
    shares = {share: causes(told(Standing(FRESH, [attempt(None, quarantined_share=share)]))) for share in (0.01, 0.02)}
    assert shares == {0.01: set(), 0.02: {State.QUARANTINE}}


def test_a_change_that_the_source_did_not_report_is_told() -> None:
    assert causes(told(Standing(FRESH, [attempt(None, changes_missed=2)]))) == {State.MISSED_CHANGE}


def test_a_movement_that_is_not_plausible_is_told_and_an_undoing_ends_that_and_no_failure() -> None:
    moved = {"day": "2026-11-26", "figure": "Recupero", "before": "10.00", "after": "9,000.00", "least": "-5.00", "most": "5.00"}
    [failed] = [
        event for event in told(Standing(FRESH, [attempt(None, implausible_movements=[moved])])) if isinstance(event, Failed)
    ]
    assert (failed.cause, failed.detail) == (
        State.MOVEMENT,
        "2026-11-26: Recupero pasó de 10.00 a 9,000.00 (lo habitual es un cambio de -5.00 a 5.00)",
    )
    ends = [event for event in told(Standing(FRESH, [attempt(None, undoes=3)])) if isinstance(event, Well)]
    assert any(State.MOVEMENT in event.causes for event in ends)
    assert not any(Cause.SOURCE_UNAVAILABLE in event.causes for event in ends)


def test_repeated_failures_reach_the_limit() -> None:
    failures = [attempt(Cause.SOURCE_UNAVAILABLE), attempt(Cause.SOURCE_UNAVAILABLE)]
    assert State.RECOVERY_LIMIT in causes(told(Standing(FRESH, failures), failures=failures))
    assert State.RECOVERY_LIMIT not in causes(told(Standing(FRESH, failures), failures=failures[:1]))


def test_a_run_cancelled_in_the_queue_is_nobody_s_failure() -> None:
    withdrawn = [replace(attempt(Cause.CANCELLED), withdrawn=True)] * 2
    assert causes(told(Standing(FRESH, withdrawn), failures=withdrawn)) == set()


def test_why_the_queue_dropped_a_run_is_told_and_one_cancelled_in_it_is_not() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        tags = run_tags(TABLES[NAME], WINDOW)
        dropped, cancelled = (instance.create_run_for_job(dg.job(name=NAME)(lambda: None), tags=tags) for _ in range(2))
        unreachable = SerializableErrorInfo("gRPC Error code: UNAVAILABLE", [], "DagsterUserCodeUnreachableError")
        instance.report_engine_event("Could not reach it", dropped, EngineEventData.engine_error(unreachable))
        instance.report_run_failed(dropped)
        instance.report_run_canceled(cancelled)
        now = datetime.now(UTC)
        standing = explained(instance, standings(instance, {}, DASHBOARD, now)[NAME], now - HOUR)
    assert {one.run_id: (one.error, one.withdrawn) for one in standing.attempts} == {
        dropped.run_id: ("Could not reach it (DagsterUserCodeUnreachableError)", False),
        cancelled.run_id: (None, True),
    }


def test_a_dropped_run_that_names_no_days_is_told_too() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        dropped = instance.create_run_for_job(dg.job(name=NAME)(lambda: None), tags=refresh_tags([TABLES[NAME]]))
        instance.report_run_failed(dropped, "the code server is away")
        standing = standings(instance, {}, DASHBOARD, datetime.now(UTC))[NAME]
    (found,) = standing.attempts
    today = TABLES[NAME].zone.day(found.finished_at)
    assert (found.run_id, found.succeeded, found.window) == (dropped.run_id, False, DayRange(today, today))


def test_why_a_run_of_another_tenant_s_failed_is_told_to_nobody_who_names_it() -> None:
    """The tenant's role may write the id of any run into the history, because the history is in the tenant's schema."""
    with dg.DagsterInstance.ephemeral() as instance:
        theirs = instance.create_run_for_job(dg.job(name=NAME)(lambda: None), tags={TENANT_TAG: "globex"})
        instance.report_run_failed(theirs, "globex's secret")
        named = Standing(FRESH, [replace(attempt(None), succeeded=False, error=None, run_id=theirs.run_id)])
        told = {tenant: explained(instance, named, datetime.min.replace(tzinfo=UTC), tenant) for tenant in ("acme", "globex")}
    assert [one.error for one in told["acme"].attempts] == [None]
    assert [one.error for one in told["globex"].attempts] == ["globex's secret"]


def test_the_budget_is_told_at_eighty_and_at_a_hundred_percent() -> None:
    standing = Standing(FRESH)
    spent = {size: causes(told(standing, spent=size)) for size in (79, 80, 99, 100)}
    assert spent == {79: set(), 80: {State.BUDGET_80}, 99: {State.BUDGET_80}, 100: {State.BUDGET_100}}


def test_a_failed_check_is_told_and_a_passed_one_ends_it() -> None:
    outcome = CheckOutcome(NAME, "value_limits", False, NOW, "run-2", "3 rows")
    assert Failed(State.CHECK, NAME, NOW, "value_limits", run_id="run-2", detail="3 rows") in told(
        Standing(FRESH), checks=[outcome]
    )


@pytest.mark.parametrize(
    ("watermark", "stale"),
    [
        (Watermark(NOW - 12 * HOUR, TODAY), False),
        (Watermark(NOW - 13 * HOUR, TODAY), True),
        # It is 10:00 in Lima: the day is younger than two refreshes, yesterday's partition will do.
        (Watermark(NOW - HOUR, TODAY - timedelta(days=1)), False),
        (Watermark(NOW - HOUR, TODAY - timedelta(days=2)), True),
        (Watermark(None, None), True),
        (None, True),
    ],
)
def test_stale_is_twice_the_frequency_or_a_newest_partition_too_old(watermark: Watermark | None, stale: bool) -> None:
    assert freshness(TABLES[NAME], watermark, NOW).is_stale is stale


def test_rows_that_have_gone_are_told_with_the_command_that_brings_them_back() -> None:
    lost = Loss(DayRange(TODAY - timedelta(days=40), TODAY - timedelta(days=7)), 793)
    (event,) = [one for one in told(Standing(replace(FRESH, lost=lost))) if isinstance(one, Failed)]
    assert event.cause is State.STALE
    assert event.detail.startswith("faltan 793 filas de 2026-")
    assert f"pulso-etl refresh {NAME} --from {lost.window.start} --to {lost.window.end}" in event.detail


def test_yesterday_s_partition_will_not_do_in_the_evening() -> None:
    evening = datetime(2026, 3, 3, 4, 0, tzinfo=UTC)
    assert freshness(TABLES[NAME], Watermark(evening - HOUR, TODAY - timedelta(days=1)), evening).is_stale


def test_a_table_that_was_never_loaded_is_not_called_stale() -> None:
    assert causes(told(Standing())) == set()


def test_each_outage_of_bigquery_is_told_with_its_end_whenever_its_tables_are_loaded_again(
    settings: Settings, schema: str, conn: psycopg.Connection, receiver: Receiver, inbox: Inbox
) -> None:
    mail = f"mailto://127.0.0.1:{inbox.port}?from=a@example.com"
    changed = {
        "database_schema": schema,
        "alert_urls": SecretStr(f"{mail} json://127.0.0.1:{receiver.port}/hook"),
        "alert_gather_seconds": 60,
    }
    given, marks, start = settings.model_copy(update=changed), Watermarks(schema), datetime.now(UTC)
    tables = {name: TABLES[name] for name in ("dashboard_data", "operation_data", "productivity_data")}
    marks.create(conn)

    def ran(table: str, minute: float, well: bool) -> None:
        at = start + timedelta(minutes=minute)
        run = RunningAttempt(table, WINDOW, f"{table}/{minute}", 1, at)
        with conn.transaction():
            marks.start(conn, run)
            if well:
                marks.succeed(conn, run, Loaded(at, dict.fromkeys(WINDOW, 1), 1, 1.0, True))
            else:
                marks.fail(conn, run, error="503", cause=Cause.SOURCE_UNAVAILABLE, seconds=1.0, metadata={})
            ended = "UPDATE etl_extractions SET started_at = %s, finished_at = %s WHERE extraction_id = %s"
            conn.execute(ended, (at, at + timedelta(seconds=10), run.run_id))

    with dg.DagsterInstance.ephemeral() as instance:

        def look(minute: float) -> None:
            # A new object each time, because Dagster may use another process.
            automation = Automation(given, tables, build_jobs(tables))
            automation.tell(instance, start + timedelta(minutes=minute), start - HOUR)

        for first in (0.0, 30.0):
            ran("dashboard_data", first, well=False)
            ran("operation_data", first + 1, well=False)
            for minute in (2, 3):
                look(first + minute)
            ran("productivity_data", first + 5, well=True)
            for minute in (6, 7, 10):
                look(first + minute)
    begun, ended = "[Pulso] BigQuery no responde (2 tablas)", "[Pulso] Recuperado: BigQuery volvió a responder (2 tablas)"
    outages = [(title, body["message"]) for _, body in receiver.posts if "BigQuery" in (title := body["title"])]
    assert [title for title, _ in outages] == [begun, ended] * 2
    assert all("Duró: 5 min" in body for title, body in outages if title == ended)
    assert [mail["Subject"] for mail in inbox.mails if "BigQuery" in mail["Subject"]] == [begun, ended] * 2


def test_a_failed_run_reaches_people_once_and_so_does_its_recovery(
    settings: Settings, schema: str, emulator: BigQueryEmulator, receiver: Receiver
) -> None:
    seed(settings, emulator)
    changed = {
        "database_schema": schema,
        "alert_urls": SecretStr(f"json://127.0.0.1:{receiver.port}/hook"),
        "alert_gather_seconds": 0,
        "initial_window_days": 7,
        "retry_wait_seconds": 1,
    }
    given = settings.model_copy(update=changed)
    dashboard = {NAME: clock.TABLES[NAME]}
    automation = Automation(given, dashboard, build_jobs(dashboard))
    broken = given.model_copy(update={"bigquery_view_prefix": "nope"})
    with dg.DagsterInstance.ephemeral() as instance:

        def refresh(with_settings: Settings) -> None:
            now = datetime.now(UTC) + timedelta(seconds=2)
            (request,) = automation.tick(instance, build_resources(given)["bigquery"], now).requests
            job = build_defs(with_settings, tables=dashboard).resolve_job_def("refresh_dashboard_data")
            job.execute_in_process(tags=request.tags, instance=instance, raise_on_error=False)

        began = datetime.now(UTC)
        refresh(broken)
        for _ in range(3):
            automation.tell(instance, datetime.now(UTC) + timedelta(seconds=1), began)
        assert receiver.titles() == ["[Pulso] BigQuery no encuentra la tabla de origen (Tablero de cobranzas)"]
        refresh(given)
        for _ in range(2):
            automation.tell(instance, datetime.now(UTC) + timedelta(seconds=1), began)
        assert len(receiver.posts) == 2
        assert "Recuperado" in receiver.titles()[1]

        def up_to_date() -> bool:
            (outcome,) = check_outcomes(instance, [up_to_date_key(dashboard[NAME])])
            return outcome.passed

        assert up_to_date()
        automation.tell(instance, datetime.now(UTC) + 13 * HOUR, datetime.now(UTC))
        assert not up_to_date()
        assert any("Datos vencidos" in title for title in receiver.titles())
