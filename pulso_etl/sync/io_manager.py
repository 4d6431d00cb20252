"""The IO manager loads what an asset yields into its PostgreSQL table, data and watermark in one transaction."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from dagster import ConfigurableIOManager, DagsterEventType, Failure, InputContext, OutputContext, RetryRequested
from dagster._core.execution.context.system import StepExecutionContext
from psycopg.pq import TransactionStatus
from pydantic import ValidationError

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import (
    Cause,
    ContractError,
    DestinationError,
    LoadFailed,
    PulsoError,
    SchemaRefused,
    cause_of,
    first_line,
    interrupted,
)
from pulso_etl.sync.ledger import locks
from pulso_etl.sync.ledger.changes import Changes
from pulso_etl.sync.ledger.ledger import Loaded, server_clock
from pulso_etl.sync.ledger.traces import Trace, Traces
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.loading.load import load, translated
from pulso_etl.sync.loading.missed import missed_days
from pulso_etl.sync.loading.months import create_months, refuse_expired
from pulso_etl.sync.loading.request import LoadRequest, Past, Source, Writer
from pulso_etl.sync.loading.result import LoadResult
from pulso_etl.sync.loading.source_change import source_change
from pulso_etl.sync.loading.verify import verify
from pulso_etl.sync.movements import WEEKS, Implausible, implausible
from pulso_etl.sync.owed import Horizon, Settlement
from pulso_etl.sync.partitions import first_day, last_day, one_range, partition_days, ranges_of
from pulso_etl.sync.postgres.roles import as_role
from pulso_etl.sync.postgres.session_settings import Limits
from pulso_etl.sync.postgres.sessions import Session, buffer_temporary_tables
from pulso_etl.sync.postgres.strangers import refuse_strangers
from pulso_etl.sync.reading import chosen_columns, form_of, read
from pulso_etl.sync.reasons import Reasons
from pulso_etl.sync.redaction import clean_errors, scrubbed
from pulso_etl.sync.schema.schema import is_as_declared
from pulso_etl.sync.source_state import SourceState
from pulso_etl.sync.spec import CAPTURE_LAG, TableSpec
from pulso_etl.sync.streams import ChangeStream, Stream, as_stream
from pulso_etl.sync.tags import ALLOW_SHRINK_TAG, ANNOUNCED_TAG, CAPTURE_TAG, COMPARE_TAG, FORCE_TAG, SPEC_KEY
from pulso_etl.sync.target import Target
from pulso_etl.sync.zone import DEFAULT

RECORD_TIMEOUT = timedelta(minutes=1)
EVERY_DAY = DayRange(date.min, date.max)


@dataclass
class AttemptRecord:
    """What the history stores of an attempt: which attempt it is, its progress, and the metadata of its stream.

    `began` is a time of the process's monotonic clock.
    """

    extraction: RunningAttempt
    began: float
    timeout: timedelta = timedelta(minutes=1)
    running: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long the attempt has run."""
        return time.monotonic() - self.began


class PostgresUpsertIOManager(ConfigurableIOManager):
    """Upserts an asset's partitions into PostgreSQL.

    Works for any daily-partitioned asset whose definition metadata hold a TableSpec under `pulso_etl/table`. Takes a
    DeferredStream, pyarrow.RecordBatchReader, pyarrow.Table or pandas.DataFrame; gives a downstream asset its partition or range
    as pyarrow.Table, or pandas.DataFrame by type annotation. The login of `database_url` works as `database_role`, if that is
    set. `lock_timeout_seconds` bounds the wait for another writer. `work_mem_mb` is the server's work memory in MiB: a load's join
    may take twice as much, and so may its stage before it goes to disk.
    """

    database_url: str
    database_role: str = ""
    database_schema: str = "public"
    lock_timeout_seconds: int = 900
    work_mem_mb: int = 256

    @contextmanager
    def connect(self, purpose: str, timeout: timedelta) -> Iterator[psycopg.Connection]:
        """A connection in autocommit mode, named after its purpose (a run's id) so that its server session can be found.

        The server ends work that takes longer than `timeout`. Raises DestinationError if a pooler shares the session.
        """
        limits = Limits.of_work(timeout, timedelta(seconds=self.lock_timeout_seconds))
        with Session(as_role(self.database_url, self.database_role), purpose, limits).hold() as conn:
            # The stage may take as much as a hash join.
            buffer_temporary_tables(conn, 2 * self.work_mem_mb)
            # A killed process must not leave its statement running on the server, with the table's lock held.
            conn.execute("SET client_connection_check_interval = '2s'")
            yield conn

    def handle_output(self, context: OutputContext, obj: Any) -> None:
        """Loads what the asset yielded.

        Raises an error of `pulso_etl.sync.errors` if a retry may succeed, and dagster.Failure, which Dagster does not retry, for
        every other error. In both cases the table does not change.
        """
        with _permanent_errors_end_the_step():
            self._load(context, obj)

    def _load(self, context: OutputContext, obj: Any) -> None:
        asset, step, started = context.asset_key.to_user_string(), context.step_context, datetime.now(UTC)
        # Until the table and the days are known, an error is recorded under the asset's name and today.
        named = RunningAttempt(asset, DayRange(today := DEFAULT.day(started), today), context.run_id, _number(step), started)
        attempt = AttemptRecord(named, time.monotonic())
        with self._recorded(context, attempt):
            spec = _spec(context.definition_metadata, asset)
            definition = context.asset_partitions_def if context.has_asset_partitions else None
            partitions = partition_days(spec.name, definition, context.asset_partition_keys if definition else ())
            window = one_range(spec.name, partitions)
            attempt.extraction, attempt.timeout = (
                replace(named, table=spec.name, window=window, reasons=Reasons.of_run(step.run_tags, window)),
                spec.loading.timeout,
            )
            stream = as_stream(spec, window, obj)
            attempt.metadata = stream.metadata
        with (
            translated(spec, window),
            self.connect(context.run_id, spec.loading.timeout) as conn,
            self._recorded(context, attempt, conn),
            _named(spec, window),
            translated(spec, window),
        ):
            definition = context.asset_partitions_def
            horizon = Horizon.of(spec, first_day(definition), spec.zone.day(started), last_day(definition))
            done = self._attempt(Target(conn, spec, self.database_schema), attempt, stream, step, horizon)
        details = _details(done.result, stream.metadata) | done.settlement.as_metadata()
        _log(context, spec, window, done.result, done.settlement, details)
        context.add_output_metadata(details | done.of_table(attempt.seconds))
        for key, days in partitions.items():
            # Output metadata are the same for all partitions of the range, but these numbers belong to one partition.
            step.add_asset_metadata(done.of_partition(days), context.asset_key, partition_key=key)

    def _attempt(
        self, target: Target, attempt: AttemptRecord, stream: Stream, step: StepExecutionContext, horizon: Horizon
    ) -> Committed:
        """Loads the stream, data and watermark in one transaction. During the load, the attempt is marked as running."""
        window = attempt.extraction.window
        writer = self._enter(target, attempt)
        read_at = server_clock(target.conn)
        if not stream.deferred:
            read_at -= _since_start(step)
        as_of = _capture(target, stream.changes, window, step.run_tags, read_at) if target.spec.source.change_capture else None
        source = Source(
            stream.open,
            repeatable=stream.repeatable,
            captured=as_of is not None,
            past=Past(horizon.first_day, stream.read_past),
            read_at=None if stream.deferred else read_at,
            # Before the read starts: the next look sees a change that happens during the read.
            state=None if as_of is not None else _look(target, stream),
            announced_at=_announced(step.run_tags),
        )
        request = LoadRequest(
            window,
            source,
            writer,
            allow_shrink=step.run_tags.get(ALLOW_SHRINK_TAG) == "true",
            last=_last(target, window, step.run_tags),
        )
        try:
            return _commit(target, attempt, request, horizon, as_of or read_at)
        except DestinationError as error:
            if stream.changes is None or as_of is None or error.retryable:
                raise
            # The guards need all rows of the window to decide.
            stream.changes.whole(f"the load of the changed rows was refused: {error}")
            whole = replace(request, source=replace(source, captured=False, state=_look(target, stream)))
            return _commit(target, attempt, whole, horizon, read_at)

    def _enter(self, target: Target, attempt: AttemptRecord) -> Writer:
        """Takes the locks of the load, marks the attempt as running, and creates the months that the table lacks.

        The session holds the locks until it ends: `running` is never committed without them, and a day has one writer at a time.
        """
        conn, spec, extraction = target.conn, target.spec, attempt.extraction
        marks = Watermarks(target.schema)
        sole = locks.hold(target, extraction.window)
        locks.take(conn, [extraction.lock(target.schema)])
        marks.create(conn)
        with conn.transaction():
            refuse_strangers(conn, target.schema, spec.name)
            marks.start(conn, extraction)
        attempt.running = True
        # A separate transaction: in the load's transaction, the lock would keep other loads from adding months until its end.
        with conn.transaction():
            refuse_expired(spec, extraction.window, spec.zone.day(extraction.started_at))
            if not sole:
                create_months(target, extraction.window)
        return Writer(extraction.run_id, self.work_mem_mb, sole, Changes(target.schema))

    @contextmanager
    def _recorded(self, context: OutputContext, attempt: AttemptRecord, conn: psycopg.Connection | None = None) -> Iterator[None]:
        """Records every error, interrupts included, as the end of the attempt. The attempt's data are rolled back.

        `conn` is the session that holds the attempt's lock, if there is one. The failure is recorded by that session, because
        without the lock the next writer would take the attempt for abandoned.
        """
        try:
            yield
        except BaseException as error:
            message = str(error) if isinstance(error, Exception) else "interrupted: somebody or the machine stopped the run"
            marks, extraction = Watermarks(self.database_schema), attempt.extraction
            cause = cause_of(error)
            if cause is Cause.CANCELLED:
                cause = interrupted(timedelta(seconds=attempt.seconds), attempt.timeout)
            if conn is not None and conn.info.transaction_status is not TransactionStatus.IDLE:
                # An interrupt that comes just before a commit ends the block, but not the transaction, which holds rows locked.
                conn.close()
            session = self.connect(context.run_id, attempt.timeout) if conn is None or conn.closed else nullcontext(conn)
            try:
                with session as recorder:
                    marks.create(recorder)
                    with recorder.transaction():
                        if not attempt.running:
                            marks.start(recorder, extraction)
                        marks.fail(
                            *(recorder, extraction),
                            error=message or type(error).__name__,
                            cause=cause,
                            seconds=attempt.seconds,
                            metadata=attempt.metadata,
                        )
            except SchemaRefused:
                context.log.warning(
                    f"{extraction.table}: the failure was not recorded, because tables carry objects that Pulso ETL has not made"
                )
            except (psycopg.Error, DestinationError) as refusal:
                context.log.warning(f"{extraction.table}: the failure was not recorded: {first_line(refusal)}")
            raise

    def load_input(self, context: InputContext) -> Any:
        """The upstream asset's partition or range; all days if none are asked for.

        The input's annotation chooses pyarrow.Table (the default), pyarrow.RecordBatchReader or pandas.DataFrame. The input's
        metadata may name the `columns`, and `dtype_backend="pyarrow"` for a DataFrame with Arrow's types.

        Raises as `handle_output` does.
        """
        with _permanent_errors_end_the_step():
            asset, upstream = context.asset_key.to_user_string(), context.upstream_output
            if upstream is None:
                raise ContractError(f"{asset}: this input has no upstream asset; give it an asset that this IO manager wrote")
            spec = _spec(upstream.definition_metadata, asset)
            asked = context.definition_metadata or {}
            form = form_of(spec.name, context.dagster_type.typing_type, asked.get("dtype_backend"))
            names = chosen_columns(spec, asked.get("columns"))
            ranges = [EVERY_DAY]
            if context.has_asset_partitions:
                ranges = ranges_of(partition_days(spec.name, context.asset_partitions_def, context.asset_partition_keys))
            window = DayRange(ranges[0].start, ranges[-1].end) if ranges else EVERY_DAY
            with translated(spec, window), self.connect("load_input", spec.loading.timeout) as conn, conn.transaction():
                table = read(Target(conn, spec, self.database_schema), ranges, names)
        return form(table)


@dataclass(frozen=True)
class Committed:
    """A load that has been committed: what it did, how many rows it left on each day and in the table, and how old the table's rows
    had become when they were read again (None for the first load). `waited`: how long readers have waited for the change of the
    source that it brings (None if it brings none that is known)."""

    result: LoadResult
    settlement: Settlement
    held: Mapping[date, int]
    rows: int
    age: timedelta | None
    waited: timedelta | None = None

    def of_table(self, seconds: float) -> dict[str, Any]:
        """Metadata of every materialization of the load, which Dagster plots over time; ages and duration in seconds."""
        ages = {"age_seconds": self.age, "source_to_fresh_seconds": self.waited}
        told = {name: round(age.total_seconds(), 1) for name, age in ages.items() if age is not None}
        return {"dagster/row_count": self.rows, "seconds": round(seconds, 3), **told}

    def of_partition(self, days: DayRange) -> dict[str, Any]:
        """Metadata of the materialization of one partition."""
        rows = sum(self.held.get(day, 0) for day in days)
        return {**self.result.of(days).as_dict(), "dagster/partition_row_count": rows}


@contextmanager
def _permanent_errors_end_the_step() -> Iterator[None]:
    """Turns an error after which a retry cannot succeed into a Failure that forbids retries, and blanks secrets in every error.

    Dagster retries every other error that a step raises. It records all errors.
    """
    try:
        with clean_errors():
            yield
    except PulsoError as error:
        if error.retryable:
            raise
        raise Failure(description=str(error), allow_retries=False) from error


@contextmanager
def _named(spec: TableSpec, window: DayRange) -> Iterator[None]:
    """Turns an untranslated error, most often of the asset's own stream, into an error that names table and partitions."""
    try:
        yield
    except (PulsoError, Failure, RetryRequested):
        raise
    except Exception as error:
        raise LoadFailed(f"{spec.name} {window}: {type(error).__name__}: {first_line(error)}") from error


def _commit(target: Target, attempt: AttemptRecord, request: LoadRequest, horizon: Horizon, read_at: datetime) -> Committed:
    """Loads and verifies the rows that the source had at `read_at`, and settles the watermark, in one transaction."""
    conn, spec, window, marks = target.conn, target.spec, request.window, Watermarks(target.schema)
    with translated(spec, window), conn.transaction(), marks.taking_over(conn, spec, window):
        known = marks.ledger.of_days(conn, spec.name, window)
        result = load(target, request)
        changes = Changes(target.schema)
        changes.prune(conn, spec.name, timedelta(days=spec.change_log.changes_kept_days))
        result.implausible = _implausible(target, changes, result.load_id)
        verified = verify(target, request, result)
        Traces(target.schema).write(conn, spec.name, verified.traces)
        result.missed = missed_days(spec, known, request.source.state, result, verified.rows)
        loaded = Loaded(
            read_at,
            {day: verified.rows.get(day, 0) for day in window},
            records=result.total.read,
            seconds=attempt.seconds,
            changed=result.total.written > 0,
            horizon=horizon,
            metadata=_details(result, attempt.metadata),
            source=request.source.state,
            source_changed_at=source_change(known, request.source.state, request.source.announced_at),
        )
        before = marks.last_extracted_at(conn, spec.name)
        settlement = marks.succeed(conn, attempt.extraction, loaded)
        marks.keep_files(conn, spec)
        changed = loaded.source_changed_at
        return Committed(
            *(result, settlement, verified.rows, marks.ledger.rows(conn, spec.name)),
            age=read_at - before if before else None,
            waited=max(server_clock(conn) - changed, timedelta(0)) if changed else None,
        )


def _announced(tags: Mapping[str, str]) -> datetime | None:
    """The announced instant in the tags of a run; None if there is none, or it is no instant with a zone."""
    try:
        at = datetime.fromisoformat(tags.get(ANNOUNCED_TAG, ""))
    except ValueError:
        return None
    return at if at.tzinfo else None


def _implausible(target: Target, changes: Changes, load_id: int | None) -> Sequence[Implausible]:
    """The movements of the load that raise an alert. The log is read only if a figure of the table is watched."""
    conn, spec = target.conn, target.spec
    change = changes.of(conn, load_id) if load_id is not None and any(figure.alert_factor for figure in spec.figures) else None
    if change is None:
        return []
    earlier = (one for one in changes.since(conn, spec.name, change.at - WEEKS) if one.load_id != load_id)
    return implausible(spec, change, earlier)


def _last(target: Target, window: DayRange, tags: Mapping[str, str]) -> Mapping[date, Trace]:
    """The traces that earlier loads of the days have left; none if the run asks to compare every day with the table."""
    if tags.get(FORCE_TAG) == "true" or tags.get(COMPARE_TAG) == "true":
        return {}
    return Traces(target.schema).read(target.conn, target.spec.name, window)


def _look(target: Target, stream: Stream) -> SourceState | None:
    """The source's state, with the states of the partitions that the ledger lacks."""
    return stream.look(Watermarks(target.schema).partitions(target.conn, target.spec.name))


def _capture(
    target: Target, stream: ChangeStream | None, window: DayRange, tags: Mapping[str, str], now: datetime
) -> datetime | None:
    """Makes the stream read only the rows that changed, if this is possible; see `ChangeStream.capture`.

    The caller has held the locks of the load since the instant `now` of the server's clock.
    """
    if stream is None:
        return None
    if tags.get(CAPTURE_TAG) != "true":
        stream.whole("the run asks for it")
        return None
    if not is_as_declared(target):
        stream.whole("the table is missing or not as declared")
        return None
    state = Watermarks(target.schema).read(target.conn, now - CAPTURE_LAG)[target.spec.name]
    # A load of changes writes the rows as they were at the instant of the watermark. So the time at which it ended does not count.
    written = [
        attempt.finished_at
        for attempt in state.attempts
        if attempt.succeeded and attempt.window.overlaps(window) and "capture_interval" not in attempt.metadata
    ] + [known.at for day, known in state.days.items() if day in window]
    return stream.capture(state.watermark, max(written, default=None), now)


def _spec(metadata: Any, asset: str) -> TableSpec:
    value = metadata.get(SPEC_KEY)
    if value is None:
        raise ContractError(f"asset {asset} has no TableSpec: add {{'{SPEC_KEY}': spec.as_metadata()}} to its metadata")
    try:
        return TableSpec.from_metadata(getattr(value, "value", value))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(part) for part in fault['loc'])} {fault['msg']}" for fault in error.errors())
        raise ContractError(f"asset {asset}: the metadata '{SPEC_KEY}' are not a valid TableSpec: {faults}") from error


def _since_start(step: StepExecutionContext) -> timedelta:
    """How long ago the step's attempt began, by this process's clock. Rows that the step yields may be as old as that."""
    kinds = {DagsterEventType.STEP_START, DagsterEventType.STEP_RESTARTED}
    began = [
        record.timestamp
        for record in step.instance.get_records_for_run(step.run_id, of_type=kinds).records
        if record.event_log_entry.step_key == step.step.key
    ]
    return timedelta(seconds=max(0.0, time.time() - max(began, default=time.time())))


def _number(step: StepExecutionContext) -> int:
    """The number of the step's attempt, from 1."""
    return step.previous_attempt_count + 1


def _log(
    context: OutputContext,
    spec: TableSpec,
    window: DayRange,
    result: LoadResult,
    settlement: Settlement,
    details: Mapping[str, Any],
) -> None:
    """Writes the report of a load to the run's log."""
    if not settlement.moved:
        context.log.info(f"{spec.name} {window}: {settlement}")
    for warning in result.drift.warnings():
        context.log.warning(f"{spec.name}: {warning}")
    for statement in result.migration:
        context.log.info(f"{spec.name}: the table was migrated: {statement}")
    if "capture_reason" in details:
        context.log.info(f"{spec.name} {window}: read all rows, not only the changed ones: {details['capture_reason']}")
    if result.missed:
        days = ", ".join(map(str, result.missed))
        context.log.warning(
            f"{spec.name}: rows of {days} have changed although the source reported no change, see docs/source-changes.md"
        )
    if result.quarantine_reasons:
        context.log.warning(f"{spec.name} {window}: rows put in etl_quarantine, by column and reason: {result.quarantine_reasons}")
    context.log.info(f"{spec.name} {window}: {result.plan}, {result.total.as_dict()}, seconds {result.seconds}")


def _days_left_alone(result: LoadResult) -> dict[str, int]:
    digested = result.digested
    return {"days_unchanged": len(digested.unchanged), "days_in_buckets": len(digested.in_buckets)} if digested else {}


def _details(result: LoadResult, metadata: Mapping[str, Any]) -> dict[str, Any]:
    told = {
        **result.total.as_dict(),
        **metadata,
        "load_plan": result.plan,
        "quarantined_share": result.quarantined_share,
        **_days_left_alone(result),
        **({"quarantine_reasons": result.quarantine_reasons} if result.quarantine_reasons else {}),
        **({"changes_missed": len(result.missed)} if result.missed else {}),
        **({"load_id": result.load_id} if result.load_id is not None else {}),
        **({"implausible_movements": [one.as_metadata() for one in result.implausible]} if result.implausible else {}),
        **({"migration": result.migration} if result.migration else {}),
        **result.drift.as_dict(),
        **{f"seconds_{stage}": seconds for stage, seconds in result.seconds.items()},
    }
    return {name: scrubbed(value) for name, value in told.items()}
