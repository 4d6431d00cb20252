"""Recovery: ends attempts that died or hang, and marks them as failed, so that their tables become due again.

A living attempt holds its own advisory lock. If an attempt is marked as running and nobody holds its lock, it is dead, even if
Dagster still shows its run as started.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from time import monotonic, sleep

import dagster as dg
import psycopg

from pulso_etl.refreshing.due import MEMORY
from pulso_etl.refreshing.presence import is_gone
from pulso_etl.refreshing.runs import is_of, tenant_of
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger import locks
from pulso_etl.sync.ledger.watermarks import RunningAttempt, TableState, Watermarks
from pulso_etl.sync.postgres.roles import as_login
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.tags import PROCESS_TAG, QUEUED_TAG, TABLE_TAG

SESSION_END_SECONDS = 10.0
RUN_END = timedelta(minutes=2)
"""After an attempt, a run starts the next one or ends within this time. If it does not, its process is gone or hangs."""
RUN_BEGIN = timedelta(minutes=5)
"""After its start, a run has its first attempt or waits for its table's lock within this time."""


class Action(StrEnum):
    """What to do about an attempt that is marked as running."""

    LEAVE = "leave"
    MARK_FAILED = "mark as failed"
    END_SESSION = "end its server session"
    TERMINATE_RUN = "terminate its run"


@dataclass(frozen=True)
class EndedAttempt:
    """An attempt that the recovery has ended, and the reason."""

    table: str
    window: DayRange
    run_id: str
    reason: str
    recovery_attempts: int


def recovery_action(*, lock_held: bool, run_alive: bool | None, age: timedelta, timeout: timedelta) -> Action:
    """`run_alive` is None if this Dagster instance does not know the run. `age` is the time since the attempt began."""
    if not lock_held:
        return Action.MARK_FAILED
    if run_alive is False:
        return Action.END_SESSION
    if age > timeout:
        return Action.TERMINATE_RUN if run_alive else Action.END_SESSION
    return Action.LEAVE


def recover(
    conn: psycopg.Connection,
    schema: str,
    instance: dg.DagsterInstance,
    tables: Mapping[str, TableSpec],
    now: datetime,
) -> Iterator[EndedAttempt]:
    """Ends every attempt that is dead or past its table's time-out, and yields each of them.

    `conn` is in autocommit mode. Its role must be the role of the loads, or be allowed to end their sessions.
    """
    marks = Watermarks(schema)
    marks.create(conn)
    states = marks.read(conn, now - MEMORY)
    tenant = tenant_of(tables)
    _end_lost(conn, schema, instance, tenant)
    _end_runs(conn, instance, states.values(), tables, now)
    for extraction in [extraction for state in states.values() for extraction in state.running]:
        timeout = tables[extraction.table].loading.timeout if extraction.table in tables else timedelta(minutes=30)
        key = extraction.lock(schema)
        run = instance.get_run_by_id(extraction.run_id)
        if run is not None and not is_of(run.tags, tenant):
            run = None
        holder = locks.holder(conn, key)
        action = recovery_action(
            lock_held=holder is not None,
            run_alive=None if run is None else not run.is_finished,
            age=now - extraction.started_at,
            timeout=timeout,
        )
        if action is Action.LEAVE:
            continue
        reason, cause = "its process or its server session was killed", Cause.ABANDONED
        if action in (Action.TERMINATE_RUN, Action.END_SESSION):
            reason, cause = f"it ran for {str(now - extraction.started_at).split('.')[0]}, its time-out is {timeout}", Cause.TIMEOUT
            if run is not None and run.is_finished:
                cause = Cause.ABANDONED
                reason = f"its run had ended ({run.status.value}), but its server session was still open"
        if action is Action.TERMINATE_RUN and _terminate(instance, extraction.run_id):
            holder = locks.holder(conn, key)
        if holder is not None:
            with as_login(conn):
                conn.execute("SELECT pg_terminate_backend(%s, %s)", (holder, int(SESSION_END_SECONDS * 1000)))
        if _mark_failed(conn, marks, extraction, key, f"stale: {reason}", cause):
            recoveries = marks.read(conn)[extraction.table].recovery_attempts
            yield EndedAttempt(extraction.table, extraction.window, extraction.run_id, reason, recoveries)


def _end_runs(
    conn: psycopg.Connection,
    instance: dg.DagsterInstance,
    states: Collection[TableState],
    tables: Mapping[str, TableSpec],
    now: datetime,
) -> None:
    """Ends runs without an attempt that Dagster still shows as running: they occupy a slot, and their tables' next runs wait."""
    alive, tenant = {extraction.run_id for state in states for extraction in state.running}, tenant_of(tables)
    ended: dict[str, dict[str, datetime]] = defaultdict(dict)
    for state in states:
        for attempt in state.attempts:
            ended[attempt.run_id][state.table_name] = attempt.finished_at
    going = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
    for record in instance.get_run_records(going):
        run, attempts = record.dagster_run, ended.get(record.dagster_run.run_id)
        if run.run_id in alive or not is_of(run.tags, tenant):
            continue
        if attempts and now - max(attempts.values()) > RUN_END:
            why = f"{', '.join(attempts)}: the run did not end after its last attempt; its process is gone or hangs"
        elif not attempts and _never_begins(conn, record, tables, now):
            why = "the run has begun no load, and has no session on PostgreSQL; its process is gone or hangs"
        else:
            continue
        _terminate(instance, run.run_id)
        found = instance.get_run_by_id(run.run_id)
        if found is not None and not found.is_finished:
            instance.report_run_failed(found, why)


def _never_begins(conn: psycopg.Connection, record: dg.RunRecord, tables: Mapping[str, TableSpec], now: datetime) -> bool:
    """Whether a run of this deployment should have begun an attempt by now. A run that waits for its table's lock has a session."""
    run = record.dagster_run
    loads = run.tags.get(TABLE_TAG) in tables or any(key.path[-1] in tables for key in run.asset_selection or ())
    if not loads or record.start_time is None or now - datetime.fromtimestamp(record.start_time, UTC) <= RUN_BEGIN:
        return False
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, %s)"
    return conn.execute(sessions, (f"pulso-etl {run.run_id[:8]}",)).fetchone() == (0,)


def _end_lost(conn: psycopg.Connection, schema: str, instance: dg.DagsterInstance, tenant: str) -> None:
    """Ends runs of the command line whose process is gone: each occupies a slot, and Dagster does not watch it."""
    lost: dict[str, bool] = {}
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])):
        process = run.tags.get(PROCESS_TAG)
        # If Dagster launched the run again, it has the same tags, but Dagster watches its process.
        if process is None or QUEUED_TAG in run.tags or not is_of(run.tags, tenant):
            continue
        if process not in lost:
            lost[process] = is_gone(conn, schema, process)
        if lost[process]:
            instance.report_run_failed(run, "the process of the command line that worked on this is gone")


def _terminate(instance: dg.DagsterInstance, run_id: str) -> bool:
    try:
        return instance.run_launcher.terminate(run_id)
    except Exception:
        # The launcher cannot end the run, or the code server that started it is gone. The caller ends the rest of the run.
        return False


def _mark_failed(
    conn: psycopg.Connection, marks: Watermarks, extraction: RunningAttempt, key: int, reason: str, cause: Cause
) -> bool:
    """Marks the attempt as failed, under its lock. Returns False if the attempt has ended by itself or is still alive."""
    deadline = monotonic() + SESSION_END_SECONDS
    while conn.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone() == (False,):
        if monotonic() > deadline:
            return False
        sleep(0.1)
    try:
        with conn.transaction():
            return marks.abandon(conn, extraction, reason, cause)
    finally:
        conn.execute("SELECT pg_advisory_unlock(%s)", (key,))
