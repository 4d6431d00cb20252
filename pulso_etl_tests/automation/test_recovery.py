"""Attempts that died or hang are ended; those that live are left alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import psycopg
import pytest
from dagster import DagsterEvent, DagsterEventType

from pulso_etl.automation import recovery
from pulso_etl.automation.recovery import Action, EndedAttempt, recover, recovery_action
from pulso_etl.refreshing.launch import run_tags
from pulso_etl.refreshing.presence import present
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger import locks
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.tags import PROCESS_TAG, QUEUED_TAG, TENANT_TAG
from pulso_etl.tables import TABLES
from pulso_etl_tests.conftest import wait_until

TABLE = "dashboard_data"
NOW = datetime(2026, 3, 8, 12, tzinfo=UTC)
WINDOW = DayRange(date(2026, 3, 1), date(2026, 3, 7))
TIMEOUT = TABLES[TABLE].loading.timeout


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def writer(server_url: str) -> Iterator[psycopg.Connection]:
    """Another session, as a load has it."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        yield connection


def begin(conn: psycopg.Connection, schema: str, age: timedelta, run_id: str = "run-1") -> None:
    marks = Watermarks(schema)
    marks.create(conn)
    with conn.transaction():
        marks.start(conn, RunningAttempt(TABLE, WINDOW, run_id, 1, NOW - age))


def live(writer: psycopg.Connection, schema: str, run_id: str = "run-1") -> int:
    """Marks the session as the session of a living attempt."""
    key = locks.attempt_lock(schema, TABLE, run_id, 1)
    locks.take(writer, [key])
    return key


def run(conn: psycopg.Connection, schema: str, instance: dg.DagsterInstance) -> list[EndedAttempt]:
    return list(recover(conn, schema, instance, TABLES, NOW))


@pytest.mark.parametrize(
    ("lock_held", "run_alive", "late", "action"),
    [
        (False, True, False, Action.MARK_FAILED),
        (False, None, True, Action.MARK_FAILED),
        (True, True, False, Action.LEAVE),
        (True, None, False, Action.LEAVE),
        (True, False, False, Action.END_SESSION),
        (True, None, True, Action.END_SESSION),
        (True, True, True, Action.TERMINATE_RUN),
    ],
)
def test_what_is_done(lock_held: bool, run_alive: bool | None, late: bool, action: Action) -> None:
    age = TIMEOUT + timedelta(seconds=1) if late else TIMEOUT
    assert recovery_action(lock_held=lock_held, run_alive=run_alive, age=age, timeout=TIMEOUT) is action


def test_a_dead_attempt_is_marked_once_and_enters_the_history(
    conn: psycopg.Connection, schema: str, instance: dg.DagsterInstance
) -> None:
    begin(conn, schema, timedelta(minutes=1))
    assert [(one.run_id, one.window, one.recovery_attempts) for one in run(conn, schema, instance)] == [("run-1", WINDOW, 1)]
    assert run(conn, schema, instance) == []
    state = Watermarks(schema).read(conn, NOW - timedelta(days=1))[TABLE]
    assert (state.status, state.recovery_attempts) == ("failed", 1)
    assert state.error is not None
    assert "stale" in state.error
    assert [(a.run_id, a.window, a.succeeded) for a in state.attempts] == [("run-1", WINDOW, False)]


def test_a_living_attempt_is_left_alone(
    conn: psycopg.Connection, schema: str, instance: dg.DagsterInstance, writer: psycopg.Connection
) -> None:
    key = live(writer, schema)
    begin(conn, schema, TIMEOUT - timedelta(seconds=5))
    assert locks.holder(conn, key) == writer.info.backend_pid
    assert run(conn, schema, instance) == []
    assert Watermarks(schema).read(conn)[TABLE].status == "running"


def test_a_hung_attempt_loses_its_server_session(
    conn: psycopg.Connection, schema: str, instance: dg.DagsterInstance, writer: psycopg.Connection
) -> None:
    key = live(writer, schema)
    begin(conn, schema, TIMEOUT + timedelta(minutes=1))
    (ended,) = run(conn, schema, instance)
    assert "0:31:00" in ended.reason
    with pytest.raises(psycopg.OperationalError):
        writer.execute("SELECT 1")
    assert locks.holder(conn, key) is None
    assert Watermarks(schema).read(conn)[TABLE].status == "failed"


def test_a_session_that_outlives_its_run_is_ended(
    conn: psycopg.Connection, schema: str, instance: dg.DagsterInstance, writer: psycopg.Connection
) -> None:
    job = dg.GraphDefinition(name="empty").to_job()
    run_id = job.execute_in_process(instance=instance).run_id
    live(writer, schema, run_id)
    begin(conn, schema, timedelta(minutes=1), run_id)
    (ended,) = run(conn, schema, instance)
    assert "its run had ended (SUCCESS)" in ended.reason


def test_a_recovered_table_starts_again_and_success_clears_the_count(
    conn: psycopg.Connection, schema: str, instance: dg.DagsterInstance
) -> None:
    marks = Watermarks(schema)
    for n in (1, 2):
        begin(conn, schema, timedelta(minutes=1), f"run-{n}")
        assert [one.recovery_attempts for one in run(conn, schema, instance)] == [n]
    begin(conn, schema, timedelta(0), "run-3")
    extraction = RunningAttempt(TABLE, WINDOW, "run-3", 1, NOW)
    with conn.transaction():
        marks.succeed(conn, extraction, Loaded(NOW, dict.fromkeys(extraction.window, 1), 1, 1.0, True))
    assert marks.read(conn)[TABLE].recovery_attempts == 0


def test_a_run_that_goes_on_after_its_last_attempt_is_ended_and_one_that_may_still_go_on_is_not(
    conn: psycopg.Connection, schema: str, instance: dg.DagsterInstance
) -> None:
    job = dg.GraphDefinition(name="empty").to_job()
    lost = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    begin(conn, schema, timedelta(minutes=1), lost.run_id)
    assert len(run(conn, schema, instance)) == 1
    list(recover(conn, schema, instance, TABLES, datetime.now(UTC) + timedelta(minutes=1)))
    assert instance.get_run_by_id(lost.run_id).status is dg.DagsterRunStatus.STARTED  # type: ignore[union-attr]
    list(recover(conn, schema, instance, TABLES, datetime.now(UTC) + timedelta(minutes=3)))
    assert instance.get_run_by_id(lost.run_id).status is dg.DagsterRunStatus.FAILURE  # type: ignore[union-attr]


def test_a_run_of_another_tenant_s_is_left_alone_whatever_the_tables_name(
    conn: psycopg.Connection,
    schema: str,
    instance: dg.DagsterInstance,
    writer: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tenant's role may write to its tables. It can learn the ids of others' runs: sessions carry them as names."""
    ended: list[str] = []
    monkeypatch.setattr(recovery, "_terminate", lambda instance, run_id: ended.append(run_id))
    job = dg.GraphDefinition(name="empty").to_job()
    hung, lost = (
        instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={TENANT_TAG: "globex"}) for _ in range(2)
    )
    live(writer, schema, hung.run_id)
    begin(conn, schema, TIMEOUT + timedelta(minutes=1), hung.run_id)
    begin(conn, schema, timedelta(minutes=1), lost.run_id)
    assert {one.run_id for one in run(conn, schema, instance)} == {hung.run_id, lost.run_id}
    list(recover(conn, schema, instance, TABLES, datetime.now(UTC) + timedelta(minutes=3)))
    assert ended == []
    statuses = {instance.get_run_by_id(one.run_id).status for one in (hung, lost)}  # type: ignore[union-attr]
    assert statuses == {dg.DagsterRunStatus.STARTED}


def command_line_run(instance: dg.DagsterInstance, process: str, **more: str) -> str:
    """A run of the command line that Dagster knows as started. It has not begun its load."""
    tags = run_tags(TABLES[TABLE], WINDOW) | {PROCESS_TAG: process} | more
    run = instance.create_run_for_job(dg.job(name=TABLE)(lambda: None), tags=tags)
    instance.report_dagster_event(DagsterEvent(DagsterEventType.RUN_START.value, TABLE), run.run_id)
    return run.run_id


def test_a_run_that_died_before_its_first_attempt_is_ended_and_one_that_waits_for_its_table_is_not(
    conn: psycopg.Connection, schema: str, instance: dg.DagsterInstance, server_url: str
) -> None:
    Watermarks(schema).create(conn)
    job = dg.job(name="refresh")(lambda: None)

    def started(ago: timedelta, tags: dict[str, str]) -> str:
        one = instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
        at = NOW - ago
        instance.handle_run_event(one.run_id, DagsterEvent(DagsterEventType.RUN_START.value, "refresh"), at)
        return one.run_id

    ours, late = run_tags(TABLES[TABLE], WINDOW), timedelta(minutes=6)
    dead, young = started(late, ours), started(timedelta(minutes=4), ours)
    waits, of_others = started(late, ours), started(late, {})
    with Session(server_url, f"{waits[:8]}-{TABLE}").open():
        assert run(conn, schema, instance) == []
    status = {run_id: instance.get_run_by_id(run_id).status for run_id in (dead, young, waits, of_others)}  # type: ignore[union-attr]
    going = dg.DagsterRunStatus.STARTED
    assert status == {dead: dg.DagsterRunStatus.FAILURE, young: going, waits: going, of_others: going}


def test_a_run_of_the_command_line_whose_process_is_gone_gives_its_slot_back_at_once(
    settings: Settings, conn: psycopg.Connection, schema: str, instance: dg.DagsterInstance
) -> None:
    Watermarks(schema).create(conn)
    with present(settings.model_copy(update={"database_schema": schema})) as process:
        run_id = command_line_run(instance, process)
        retried = command_line_run(instance, "gone", **{QUEUED_TAG: "1"})
        run(conn, schema, instance)
        assert status(instance, run_id) is dg.DagsterRunStatus.STARTED
        # The lock ends when the server restarts. The process takes it again.
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pulso-etl presence'")
        run(conn, schema, instance)
        assert status(instance, run_id) is dg.DagsterRunStatus.STARTED

    def is_over() -> bool:
        # The server may take a moment to end the session, and with it the lock.
        run(conn, schema, instance)
        return status(instance, run_id) is dg.DagsterRunStatus.FAILURE

    wait_until(is_over)
    assert status(instance, retried) is dg.DagsterRunStatus.STARTED


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    found = instance.get_run_by_id(run_id)
    assert found is not None
    return found.status
