"""Sensors: they read the state, let the pure functions decide, and ask Dagster for runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from time import monotonic
from typing import Any

import dagster as dg
import psycopg
from dagster._core.storage.asset_check_execution_record import COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES, RunRecord

from pulso_etl.access.permits import WHOLE_GRAPH
from pulso_etl.alerts.service import KEPT_OUT, Alerts, Flushed
from pulso_etl.automation.alerting import CheckOutcome, Situation, events
from pulso_etl.automation.announcements import listen
from pulso_etl.automation.looks import LedgerNotes, Looks
from pulso_etl.automation.memory import Memory
from pulso_etl.automation.recovery import EndedAttempt, recover
from pulso_etl.automation.tick import Tick, Ticked
from pulso_etl.bigquery import look
from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.checks.asset_checks import currency
from pulso_etl.refreshing.due import MEMORY, Decision, Rhythm, Standing, decide_due
from pulso_etl.refreshing.keys import run_request, up_to_date_key
from pulso_etl.refreshing.launch import Launch
from pulso_etl.refreshing.lost_runs import attempt_of
from pulso_etl.refreshing.planner import Planner, watermarks_of
from pulso_etl.refreshing.request import RefreshRequest
from pulso_etl.refreshing.runs import REFRESH_SENSOR, EndedRun, in_flight, is_of, table_job, tenant_of
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import BudgetExceeded, first_line
from pulso_etl.sync.ledger.ledger import server_clock
from pulso_etl.sync.ledger.watermarks import Attempt, TableState, Watermarks
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.patience import CONNECT_SECONDS, TICK_SECONDS, cut_after, within
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.redaction import clean_errors
from pulso_etl.sync.spec import TableSpec, qualified
from pulso_etl.sync.tags import TABLE_TAG, TENANT_TAG

FAILED_RUNS = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
SHOWN = 20
"""An evaluation gives reasons for at most this many tables, because Dagster keeps the text of every evaluation."""
RECOVERY_SECONDS = 10
"""The recovery runs at least this often. Until then, a dead run occupies a slot that other runs need."""
CUT_SECONDS = 30.0
"""Statements that a tick no longer waits for end after this time."""
LOOK_MILLISECONDS = 2_000
"""Longest time in which a tick counts the rows of a table."""
REPORTED = 100
"""An evaluation reports the check `up_to_date` for at most this many tables: each report is a write, and a tick has one minute."""


@dataclass(frozen=True)
class QueuedRun:
    """A run of Dagster's storage as `runs.SomeRun`."""

    run: dg.DagsterRun

    @property
    def run_id(self) -> str:
        return self.run.run_id

    @property
    def job(self) -> str:
        return self.run.job_name

    @property
    def tags(self) -> Mapping[str, str]:
        return self.run.tags

    @property
    def assets(self) -> Sequence[str] | None:
        chosen = self.run.asset_selection
        return None if chosen is None else [key.to_user_string() for key in chosen]


def standings(
    instance: dg.DagsterInstance, states: Mapping[str, TableState], tables: Mapping[str, TableSpec], now: datetime
) -> dict[str, Standing]:
    """The standing of each table, by the watermarks and by Dagster's runs. A run may have died before it wrote to the ledger."""
    under_way = in_flight(map(QueuedRun, instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))), tables)
    over: dict[str, list[Attempt]] = defaultdict(list)
    tenant = tenant_of(tables)
    tags: dict[str, str | list[str]] = {TABLE_TAG: list(tables)} | ({TENANT_TAG: tenant} if tenant else {})
    filters = dg.RunsFilter(statuses=FAILED_RUNS, tags=tags, created_after=now - MEMORY)
    for record in instance.get_run_records(filters, limit=500):
        table = record.dagster_run.tags[TABLE_TAG]
        over[table] += _attempt(record, tables[table])
    found = {}
    for table in tables:
        state = states.get(table)
        written = state.attempts if state else ()
        known = {attempt.run_id for attempt in written}
        attempts = (*written, *(attempt for attempt in over[table] if attempt.run_id not in known))
        runs = under_way.get(table, {})
        found[table] = (
            Standing(state.watermark, attempts, runs, state.days, state.source) if state else Standing(None, attempts, runs)
        )
    return found


def _attempt(record: RunRecord, spec: TableSpec) -> Iterator[Attempt]:
    """A failed run without an entry in the history of extractions."""
    if record.end_time is None:
        return
    run, ended = record.dagster_run, datetime.fromtimestamp(record.end_time, UTC)
    started = datetime.fromtimestamp(record.start_time, UTC) if record.start_time else None
    attempt = attempt_of(EndedRun(run.run_id, run.tags, run.status is dg.DagsterRunStatus.CANCELED, started, ended), spec)
    if attempt is not None:
        yield attempt


def explained(instance: dg.DagsterInstance, standing: Standing, since: datetime, tenant: str = "") -> Standing:
    """The standing, in which failed attempts after `since` without a reason get Dagster's reason for the tenant's run."""

    def reason(attempt: Attempt) -> str | None:
        told = attempt.error or attempt.succeeded or attempt.withdrawn or attempt.finished_at <= since
        if told or (run := instance.get_run_by_id(attempt.run_id)) is None or not is_of(run.tags, tenant):
            return attempt.error
        return failure_of(instance, attempt.run_id)

    return replace(standing, attempts=[replace(attempt, error=reason(attempt)) for attempt in standing.attempts])


def failure_of(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """Dagster's own text on why it dropped the run or marked it as failed."""
    kinds = {dg.DagsterEventType.ENGINE_EVENT, dg.DagsterEventType.RUN_FAILURE}
    reasons = []
    for record in instance.get_records_for_run(run_id, of_type=kinds, ascending=False).records:
        event = record.event_log_entry.get_dagster_event()
        if not event.is_engine_event:
            reasons.append(event.message)
        elif error := event.engine_event_data.error:
            return f"{event.message} ({error.cls_name})"
    return next(filter(None, reasons), None)


class Automation:
    """The sensors of one deployment."""

    def __init__(
        self,
        settings: Settings,
        tables: Mapping[str, TableSpec],
        jobs: Sequence[dg.UnresolvedAssetJobDefinition],
        checks: Sequence[dg.AssetCheckKey] = (),
    ) -> None:
        """`jobs` are the jobs of single tables; empty if Dagster's own job launches them. Failures of `checks` cause alerts."""
        self.settings = settings
        self.tables = tables
        self.tenant = tenant_of(tables)
        self.jobs = jobs
        self.checks = checks
        self.alerts = Alerts(settings)
        self.status = dg.DefaultSensorStatus.RUNNING if settings.automation else dg.DefaultSensorStatus.STOPPED
        self.marks = Watermarks(settings.database_schema)
        self.rhythm = Rhythm.of(settings)

    @property
    def planner(self) -> Planner:
        """The planner of the deployment's refreshes."""
        return Planner.of(self.settings, self.tables)

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        """A connection in autocommit mode with its own session. The ledger is migrated.

        Raises psycopg.OperationalError if the server does not answer. `Session.hold` and `migrate` list the other errors.
        """
        url = self.settings.database_url.get_secret_value()
        session = Session(url, "automation", connect_seconds=CONNECT_SECONDS)
        with session.hold() as conn, cut_after(CUT_SECONDS, conn):
            self.marks.create(conn)
            yield conn

    def observe(self, instance: dg.DagsterInstance, conn: psycopg.Connection, now: datetime) -> dict[str, Standing]:
        """The standing of each table at the instant `now`."""
        return standings(instance, self.marks.read(conn, now - MEMORY), self.tables, now)

    def watermarks(self) -> dict[str, Watermark]:
        """How far each table is loaded, for the tables that have a refresh."""
        with self.connect() as conn:
            return watermarks_of(self.marks.read(conn))

    def sensors(self) -> list[dg.SensorDefinition]:
        """Every sensor."""
        return [self.refresh_sensor(), self.recovery_sensor(), self.alert_sensor()]

    def refresh_sensor(self) -> dg.SensorDefinition:
        """Asks for a run of each table that is due."""
        source_key = qualified(self.tenant, "bigquery")

        @dg.sensor(
            name=qualified(self.tenant, REFRESH_SENSOR),
            jobs=self.jobs or None,
            job_name=None if self.jobs else WHOLE_GRAPH,
            minimum_interval_seconds=self.settings.sensor_interval_seconds,
            default_status=self.status,
            description="Refreshes the trailing range of each table whose last success is older than its refresh frequency. "
            "Refreshes the changed days of a table whose source has changed, or was updated as an event of its asset says.",
            required_resource_keys={source_key},
        )
        @clean_errors()
        def refresh(context: dg.SensorEvaluationContext) -> dg.SensorResult:
            source: Any = context.resources.original_resource_dict[source_key]

            def look() -> Ticked:
                with self.connect() as conn:
                    # The ledger's readings use the server's clock, and the sensor compares them with the instants of changes.
                    now = server_clock(conn)
                return self.tick(context.instance, source, now, context.cursor)

            try:
                ticked = within(TICK_SECONDS, look)
            except (psycopg.OperationalError, TimeoutError) as error:
                return dg.SensorResult(skip_reason=no_answer(error))
            requests, reasons = ticked.requests, ticked.reasons
            told = reasons if len(reasons) <= SHOWN else [*reasons[:SHOWN], f"and {len(reasons) - SHOWN} more tables"]
            # The reason of a tick that launches nothing stands with the tick. A line would be a file each minute, for ever.
            for line in told if requests else ():
                context.log.info(line)
            return dg.SensorResult(requests, skip_reason=None if requests else dg.SkipReason("; ".join(told)), cursor=ticked.cursor)

        return refresh

    def tick(self, instance: dg.DagsterInstance, source: BigQuerySource, now: datetime, cursor: str | None = None) -> Ticked:
        """The runs to request at the instant `now` (the server's clock), by what earlier ticks have left in the cursor."""
        memory = Memory.of(cursor)
        try:
            self.planner.admit(RefreshRequest())
        except BudgetExceeded as error:
            return Ticked([], [str(error)], memory.cursor(now))
        listen(instance, self.tables, memory, now)
        with self.connect() as conn:
            observed = self.observe(instance, conn, now)
            looks = Looks(
                source,
                LedgerNotes(self.marks, conn),
                monotonic() + look.LOOK_SECONDS,
                self.settings.change_aware,
                pace=memory.pace,
                most_requests=self.settings.change_look_requests,
                now=now,
            )
            tick = Tick(self.settings, self.planner, instance, conn, looks, memory, now, self._as_run)
            tick.of({table: (standing, self.decide(table, standing, now)) for table, standing in observed.items()})
            # Dagster's UI shows a check that is older than the last materialization as not evaluated.
            states = self.marks.read(conn) if tick.verified else {}
        for table in tick.verified:
            instance.report_runless_asset_event(currency(self.tables[table], states[table].watermark, now))
        memory.pace = looks.pace
        return Ticked(tick.run_requests(), tick.reasons + tick.waiting, memory.cursor(now))

    def _as_run(self, launch: Launch, run_key: str) -> dg.RunRequest:
        return run_request(launch, run_key, table_job(launch.spec) if self.jobs else WHOLE_GRAPH)

    def decide(self, table: str, standing: Standing, now: datetime) -> Decision:
        """Whether the table is due under this deployment's settings."""
        return decide_due(self.tables[table], standing, now, self.rhythm)

    def recovery_sensor(self) -> dg.SensorDefinition:
        """Ends attempts that died or hang, so that the refresh sensor refreshes their tables again."""

        @dg.sensor(
            name=qualified(self.tenant, "recovery_sensor"),
            minimum_interval_seconds=min(RECOVERY_SECONDS, self.settings.sensor_interval_seconds),
            default_status=self.status,
            description="Marks attempts as failed if their process died, and ends attempts that run past their table's time-out.",
        )
        @clean_errors()
        def recovery(context: dg.SensorEvaluationContext) -> dg.SkipReason:
            def end() -> list[EndedAttempt]:
                with self.connect() as conn:
                    return list(recover(conn, self.settings.database_schema, context.instance, self.tables, datetime.now(UTC)))

            try:
                ended = within(TICK_SECONDS, end)
            except (psycopg.OperationalError, TimeoutError) as error:
                return no_answer(error)
            told = [f"{one.table} {one.window}: run {one.run_id} ended: {one.reason}" for one in ended]
            return dg.SkipReason("; ".join(told) or "no attempt is stale")

        return recovery

    def alert_sensor(self) -> dg.SensorDefinition:
        """Sends alerts of failed runs, stale tables, failed checks, the limit of recoveries and the budget."""

        @dg.sensor(
            name=qualified(self.tenant, "alert_sensor"),
            minimum_interval_seconds=self.settings.sensor_interval_seconds,
            default_status=self.status,
            description="Sends new faults, and the end of faults, to the channels of ALERT_URLS.",
        )
        @clean_errors()
        def alert(context: dg.SensorEvaluationContext) -> dg.SkipReason:
            now = datetime.now(UTC)
            since = datetime.fromisoformat(context.cursor) if context.cursor else now - MEMORY
            try:
                flushed = within(TICK_SECONDS, lambda: self.tell(context.instance, now, since))
            except TimeoutError as error:
                return no_answer(error)
            if flushed.stored:
                context.update_cursor(now.isoformat())
            failed = [f"{delivery.channel}: {delivery.text}" for delivery in flushed.deliveries if not delivery.ok]
            return dg.SkipReason("; ".join([f"{flushed.due} message(s) due", *failed]))

        return alert

    def tell(self, instance: dg.DagsterInstance, now: datetime, since: datetime) -> Flushed:
        """Sends the alerts for the state at `now` and for the events after `since`."""
        try:
            with self.connect() as conn:
                states = self._counted(conn, self.marks.read(conn, now - MEMORY), now)
            seen = standings(instance, states, self.tables, now)
            found = {table: explained(instance, standing, since, self.tenant) for table, standing in seen.items()}
            failures = {table: self.decide(table, standing, now).failures for table, standing in found.items()}
            checks, budget = check_outcomes(instance, self.checks), self.planner.budget.today()
            situation = Situation(now, found, failures, checks, budget)
            happened = list(events(self.tables, situation, since=since, retry_limit=self.settings.retry_limit))
        except KEPT_OUT as error:
            return self.alerts.away(now, error)
        flushed = self.alerts.flush(now, happened)
        self._report_currency(instance, found, now)
        return flushed

    def _counted(self, conn: psycopg.Connection, states: Mapping[str, TableState], now: datetime) -> Mapping[str, TableState]:
        """The states after a count of the rows of tables whose files changed since their last load: somebody emptied, restored or
        rewrote them. Without such a table, the given states."""
        replaced = [self.tables[table] for table, state in states.items() if state.replaced and table in self.tables]
        if not replaced:
            return states
        for spec in replaced:
            try:
                with conn.transaction():
                    conn.execute("SELECT set_config('statement_timeout', %s, true)", (f"{LOOK_MILLISECONDS}ms",))
                    self.marks.look(conn, spec)
            except psycopg.errors.QueryCanceled:
                # The table is large: its next refresh counts the rows.
                break
        return self.marks.read(conn, now - MEMORY)

    def _report_currency(self, instance: dg.DagsterInstance, found: Mapping[str, Standing], now: datetime) -> None:
        """Reports to Dagster which tables became stale or up to date; no run does. If there are many, the next tick continues."""
        keys = [up_to_date_key(self.tables[table]) for table in found]
        known = {outcome.table: outcome.passed for outcome in check_outcomes(instance, keys)}
        told = (currency(self.tables[table], standing.watermark, now) for table, standing in found.items())
        changed = (one for one in told if one.passed is not known.get(one.asset_key.path[-1]))
        for one in islice(changed, REPORTED):
            instance.report_runless_asset_event(one)


def no_answer(error: psycopg.OperationalError | TimeoutError) -> dg.SkipReason:
    """The result of a tick that got no answer from PostgreSQL in time. The alert sensor reports the outage."""
    if isinstance(error, psycopg.OperationalError):
        return dg.SkipReason(f"PostgreSQL is away, the next tick tries again:  {first_line(error)}")
    return dg.SkipReason(f"no answer within {TICK_SECONDS:g} s; the next tick tries again")


def check_outcomes(instance: dg.DagsterInstance, keys: Sequence[dg.AssetCheckKey]) -> Iterator[CheckOutcome]:
    """The last finished evaluation of each check."""
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    for key, record in records.items():
        if record.status in COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES and record.event is not None:
            assert record.event.dagster_event is not None
            evaluation = record.event.dagster_event.asset_check_evaluation_data
            yield CheckOutcome(
                key.asset_key.path[-1],
                key.name,
                evaluation.passed,
                datetime.fromtimestamp(record.event.timestamp, UTC),
                record.run_id or None,
                evaluation.description or "",
            )
