"""The load: a stream of Arrow batches makes a range of days of one table equal to the source, in the caller's transaction."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime
from queue import Empty, Queue
from threading import Thread
from typing import Literal, TypeVar

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from pgpq import ArrowToPostgresBinaryEncoder
from pgpq.encoders import StringEncoderBuilder
from pgpq.schema import Jsonb
from psycopg import errors as pg
from psycopg import sql

from pulso_etl.sync.days import DayRange, lima_day
from pulso_etl.sync.errors import (
    DestinationUnavailable,
    DuplicateKeyError,
    RejectedRows,
    ShrinkRefused,
    VerificationFailed,
)
from pulso_etl.sync.ledger.locks import table_lock
from pulso_etl.sync.loading.arrow_types import travels_as_text
from pulso_etl.sync.loading.conform import conform
from pulso_etl.sync.loading.contract import Drift, fit
from pulso_etl.sync.loading.months import create_months, refuse_expired
from pulso_etl.sync.loading.quarantine import Quarantine
from pulso_etl.sync.loading.snapshots import NO_PAST, Past, rows_by_value, settle
from pulso_etl.sync.loading.strategies import STRATEGIES
from pulso_etl.sync.postgres.catalog import Table
from pulso_etl.sync.postgres.encoding import Encoding
from pulso_etl.sync.postgres.server_errors import meaning
from pulso_etl.sync.postgres.strangers import refuse_strangers
from pulso_etl.sync.schema.schema import ensure_table, migrate_table
from pulso_etl.sync.schema.statements import STAGE, Statements
from pulso_etl.sync.spec import DELETED, ColumnType, OnReject, TableSpec

Plan = Literal["direct", "merge", "changes"]
Item = TypeVar("Item", bytes, pa.RecordBatch)
Open = Callable[[], AbstractContextManager[pa.RecordBatchReader]]

CHUNK_ROWS = 600
"""Rows encoded at once, so that memory does not follow the size of the source's batches."""
CHUNKS_AHEAD = 12
"""Chunks encoded before the server asks for them, at most: it goes on while the source's next batch comes."""
SMALL_PARTITION_ROWS = 20
"""A partition with fewer rows may shrink freely; the whole range is still guarded."""


@dataclass
class Counts:
    """Rows of one partition: read from the source, and what became of the table's.

    Where the table keeps history, an updated row is one that was closed and opened anew, a deleted one was closed.
    """

    read: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    quarantined: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, count.name) + getattr(other, count.name) for count in fields(self)))

    @property
    def unchanged(self) -> int:
        """Read, and already there as they are (or, with a version column, superseded by a newer row)."""
        return self.read - self.inserted - self.updated - self.quarantined

    @property
    def written(self) -> int:
        """Rows of the table that are not as they were."""
        return self.inserted + self.updated + self.deleted

    def as_dict(self) -> dict[str, int]:
        return {
            "rows_read": self.read,
            "rows_inserted": self.inserted,
            "rows_updated": self.updated,
            "rows_unchanged": self.unchanged,
            "rows_deleted": self.deleted,
            "rows_quarantined": self.quarantined,
        }


@dataclass
class LoadResult:
    """What a load did: counts by day, the plan, and the seconds of each stage.

    `quarantine_reasons` are counts by `column: reason`. `migration` are the statements that changed the table's columns. `expected`
    are the rows that each day should hold now, where they are not those that were read; of a table with `snapshot_of` the rows of
    the values that the load settled, on whatever day.
    """

    plan: Plan
    by_day: dict[date, Counts]
    seconds: dict[str, float] = field(default_factory=dict)
    drift: Drift = field(default_factory=Drift)
    migration: list[str] = field(default_factory=list)
    quarantine_reasons: dict[str, int] = field(default_factory=dict)
    expected: dict[date, int] | None = None

    @property
    def quarantined_share(self) -> float:
        """Of the rows read, 0..1."""
        total = self.total
        return total.quarantined / total.read if total.read else 0.0

    @property
    def total(self) -> Counts:
        return sum(self.by_day.values(), Counts())

    def of(self, days: DayRange) -> Counts:
        """The counts of those days together."""
        return sum((self.by_day[day] for day in days if day in self.by_day), Counts())


@dataclass(frozen=True)
class Staged:
    """Rows in the stage, and how: the declaration as the source fits it, with its statements; the rows of each day that the source
    gave; those of them that were set aside; the drift."""

    spec: TableSpec
    statements: Statements
    read: dict[date, int]
    quarantine: Quarantine | None
    drift: Drift


def load(
    conn: psycopg.Connection,
    spec: TableSpec,
    schema: str,
    window: DayRange,
    open_stream: Open,
    *,
    repeatable: bool = True,
    allow_shrink: bool = False,
    work_mem_mb: int = 256,
    plan: Plan | None = None,
    run_id: str = "",
    sole_writer: bool = True,
    captured: bool = False,
    past: Past = NO_PAST,
) -> LoadResult:
    """Makes the window's rows equal to the stream's, inside the transaction that `conn` is in; the caller commits.

    The plan follows what the window holds: nothing, and the rows are copied straight into the table; something, and they are
    staged, compared in one join, and only differences are written, as the table's strategy has it. `plan` overrules that choice.
    `repeatable`: the stream can be opened a second time, which tells a duplicate key that a direct copy hits as fully as the
    merge does, and lets the merge sort out rows that the table quarantines. `run_id` stands with those. `sole_writer` keeps every
    other writer out; without it the caller holds locks of the window's days, and others may load other days.
    `captured`: the stream holds the rows that changed, with the column DELETED; rows of other keys stay as they are.
    `past`: the days before the window, for a table with `snapshot_of` whose newest snapshot may lie there.
    Raises ContractError (with RejectedRows, QuarantineExceeded, SchemaRefused under it) and ShrinkRefused; the caller rolls
    back. Errors of the server stay psycopg's.
    """
    statements, strategy = Statements(spec, schema), STRATEGIES[spec.strategy]
    quarantines = spec.on_reject is OnReject.QUARANTINE
    bounds = {"start": window.start, "end": window.end}
    clock = Clock()
    refuse_expired(spec, window, lima_day(datetime.now(UTC)))
    with clock("lock"):
        if sole_writer:
            # The name is locked as well as the table, so that first loads which create the table queue up too.
            conn.execute("SELECT pg_advisory_xact_lock(%s)", (table_lock(schema, spec.name),))
        table = ensure_table(conn, spec, schema)
        create_months(conn, spec, schema, window)
        conn.execute(statements.lock_target(sole_writer))
        refuse_strangers(conn, schema, spec.name)
        conn.execute("SELECT set_config('work_mem', %s, true)", (f"{work_mem_mb}MB",))
        # The joins of the stage need to know how large it is, which a small sample tells as well.
        conn.execute("SELECT set_config('default_statistics_target', '10', true)")
        existing: dict[date, int] = dict(conn.execute(statements.rows_by_day(), bounds).fetchall())
        empty = not existing and conn.execute(statements.holds_rows(), bounds).fetchone() is None
    if captured and not existing:
        raise VerificationFailed(f"{spec.name} {window}: PostgreSQL holds no row of these days, which changes can't bring back")
    if captured:
        plan = "changes"
    elif plan is None:
        as_read = spec.version_column is None and not spec.snapshot_of
        plan = "direct" if empty and as_read and (repeatable or not quarantines) else "merge"

    if plan == "direct":
        try:
            with conn.transaction(), open_stream() as reader:
                fitted, wire, drift = fit(spec, reader.schema, table, window)
                if not _text_columns(fitted, wire):
                    migration = migrate_table(conn, fitted, schema, table)
                    with clock("copy"):
                        read = _copy(conn, Statements(fitted, schema), statements.target, fitted, reader, wire, window)
                    by_day = _every_day(window, {day: Counts(read=n, inserted=n) for day, n in read.items()})
                    return LoadResult("direct", by_day, clock.seconds, drift, migration)
        except RejectedRows:
            if not (quarantines and repeatable):
                raise
        except pg.UniqueViolation as error:
            if not repeatable:
                raise DuplicateKeyError(
                    f"{spec.name} {window}: the source holds 2 or more rows of one primary key: {error.diag.message_detail}"
                ) from error
        except psycopg.Error as error:
            if not (quarantines and repeatable and meaning(error).by_row):
                raise

    staged = stage_rows(conn, spec, schema, table, window, open_stream, captured=captured, past=past, clock=clock)
    spec, statements, quarantine, read = staged.spec, staged.statements, staged.quarantine, staged.read
    set_aside: Counter[date] = Counter()
    if quarantine:
        quarantine.write(conn, schema, run_id)
        set_aside = quarantine.by_day
    gone: dict[date, int] = dict(conn.execute(statements.deletions_by_day()).fetchall()) if captured else {}
    by_day = _every_day(window, {day: Counts(n - gone.get(day, 0), quarantined=set_aside[day]) for day, n in read.items()})
    counted = strategy.counts_duplicates and not (spec.version_column or spec.snapshot_of or quarantine or captured)
    with clock("analyze"):
        conn.execute(statements.analyze_stage())
        if strategy.unique and not quarantine and not counted:
            _refuse_duplicates(conn, statements, spec, window)
    with clock("diff"):
        migration = migrate_table(conn, spec, schema, table)
        conn.execute(strategy.create_diff(statements), bounds)
        if quarantine:
            quarantine.spare(conn, statements)
        for day, inserted, updated, deleted in conn.execute(statements.count_diff()):
            counts = by_day.setdefault(day, Counts())
            counts.inserted, counts.updated, counts.deleted = inserted, updated, deleted
    reasons = dict(quarantine.by_reason) if quarantine else {}
    result = LoadResult("changes" if captured else "merge", by_day, clock.seconds, staged.drift, migration, reasons)
    total = result.total
    if spec.snapshot_of:
        held, left = rows_by_value(conn, statements)
    else:
        held = {f"partition {day}": rows for day, rows in existing.items()}
        left = {f"partition {day}": existing.get(day, 0) + n.inserted - n.deleted for day, n in by_day.items()}
    if (spec.partition_in_key or spec.snapshot_of) and strategy.removes and not allow_shrink:
        refuse_shrink(spec, window, held, left)
    if captured:
        result.expected = {day: existing.get(day, 0) + n.inserted - n.deleted for day, n in by_day.items()}
    elif spec.snapshot_of:
        result.expected = dict(conn.execute(statements.staged_by_day()).fetchall())
    elif spec.version_column is not None and spec.partition_in_key:
        result.expected = dict(conn.execute(statements.keys_by_day()).fetchall())
    if counted and total.read - total.inserted > sum(existing.values()) - total.deleted:
        # More staged rows than rows of the table found their partner. Counting this is free, grouping by the key is not.
        _refuse_duplicates(conn, statements, spec, window)
    with clock("write"):
        for write in strategy.writes:
            if not any(getattr(total, count) for count in write.counts):
                continue
            try:
                with conn.transaction() if counted and "inserted" in write.counts else nullcontext():
                    written = conn.execute(write.statement(statements), bounds).rowcount
            except pg.UniqueViolation:
                if counted:
                    _refuse_duplicates(conn, statements, spec, window)
                raise
            # Nobody else is kept from the rows, whose addresses the differences hold.
            if not sole_writer and write.by_address and written != sum(getattr(total, count) for count in write.counts):
                raise DestinationUnavailable(
                    f"{spec.name} {window}: another program changed rows of these days meanwhile; nothing was loaded, "
                    "a later attempt may pass"
                )
    return result


def stage_rows(
    conn: psycopg.Connection,
    spec: TableSpec,
    schema: str,
    table: Table,
    window: DayRange,
    open_stream: Open,
    *,
    captured: bool = False,
    past: Past = NO_PAST,
    clock: Clock | None = None,
) -> Staged:
    """Brings the stream's rows to the stage, without those that are quarantined or of no newest snapshot. For the arguments see
    `load`; `table` is the one in PostgreSQL. Raises ContractError."""
    clock = clock or Clock()
    with open_stream() as reader:
        staged_spec, wire, drift = fit(spec.with_columns((DELETED,)) if captured else spec, reader.schema, table, window)
        spec, texts = staged_spec.without(DELETED) if captured else staged_spec, _text_columns(staged_spec, wire)
        statements = Statements(spec, schema, captured=captured, carried=tuple(drift.vanished))
        stage = Statements(staged_spec, schema)
        quarantine = Quarantine(spec, window, Encoding.of(conn)) if spec.on_reject is OnReject.QUARANTINE else None

        def fill(reader: pa.RecordBatchReader, days: DayRange) -> dict[date, int]:
            if quarantine:
                return _copy_what_fits(conn, stage, reader, wire, days, quarantine)
            return _copy(conn, stage, STAGE, staged_spec, reader, wire, days)

        with clock("copy"):
            conn.execute(stage.create_stage(texts))
            rows = fill(reader, window)
    if spec.snapshot_of:
        with clock("snapshots"):
            earlier = settle(conn, statements, window, past, fill, quarantine)
        # What was read of earlier days counts with the first.
        rows[window.start] = rows.get(window.start, 0) + earlier
    if texts:
        with clock("analyze"):
            conn.execute(statements.read_text(texts))
    if quarantine:
        with clock("quarantine"):
            quarantine.settle(conn, rows)
        rows = dict(quarantine.source_rows(rows))
    return Staged(spec, statements, rows, quarantine, drift)


def refuse_shrink(spec: TableSpec, window: DayRange, held: Mapping[str, int], left: Mapping[str, int]) -> None:
    """Raises ShrinkRefused where the range, or a part of it of some size, would lose more than the table allows.

    `held` and `left` are the rows of each part, by its name: a partition, or a value whose snapshot is loaded.
    """
    before, after = sum(held.values()), sum(left.values())
    faults = []
    if before and after < max(1, before * spec.minimum_kept_share):
        faults.append(f"the range {window} holds {before} rows and the source has {after}")
    faults += [
        f"{part} holds {rows} rows and the source has {left.get(part, 0)}"
        for part, rows in sorted(held.items())
        if rows >= SMALL_PARTITION_ROWS and left.get(part, 0) < rows * spec.minimum_kept_share
    ]
    if faults:
        raise ShrinkRefused(
            f"{spec.name}: refused to delete: {'; '.join(faults[:5])}; at least {spec.minimum_kept_share:.0%} must stay. "
            "If the rows are really gone, launch the range again with --allow-shrink (tag pulso_etl/allow_shrink=true)"
        )


@contextmanager
def translated(spec: TableSpec, window: DayRange) -> Iterator[None]:
    """Errors of the server become errors of ours, which name the table and the range: see `server_errors`."""
    try:
        yield
    except psycopg.Error as error:
        raise meaning(error).tell(error, f"{spec.name} {window}") from error


def _copy(
    conn: psycopg.Connection,
    statements: Statements,
    into: sql.Identifier,
    spec: TableSpec,
    reader: pa.RecordBatchReader,
    wire: pa.Schema,
    window: DayRange,
) -> dict[date, int]:
    """Sends every batch, checked, as COPY BINARY; returns the rows of each day. Raises RejectedRows, see `conform`."""
    encoder, encoding = _encoder(spec, wire), Encoding.of(conn)
    rows: Counter[date] = Counter()

    def encoded() -> Iterator[bytes]:
        yield encoder.write_header()
        for batch in reader:
            if not batch.num_rows:
                continue
            batch = conform(spec, batch, wire, window, encoding=encoding)
            if into != STAGE:
                # Neighbours in the primary key's index go in together, which takes a fifth off the server's work.
                batch = batch.sort_by([(key, "ascending") for key in spec.primary_key])
            for start in range(0, batch.num_rows, CHUNK_ROWS):
                yield encoder.write_batch(batch.slice(start, CHUNK_ROWS))
            rows.update(rows_by_day(spec, batch))
        yield encoder.finish()

    with conn.cursor() as cursor, cursor.copy(statements.copy(into)) as copy, read_ahead(encoded()) as chunks:
        for chunk in chunks:
            copy.write(chunk)
    return dict(rows)


def _copy_what_fits(
    conn: psycopg.Connection,
    stage: Statements,
    reader: pa.RecordBatchReader,
    wire: pa.Schema,
    days: DayRange,
    quarantine: Quarantine,
) -> dict[date, int]:
    """Sends every batch to the stage as a COPY of its own, without the rows that can't be loaded, which the quarantine takes.

    What the server alone refuses is found by halving. Returns the rows of each day in the stage.
    """
    rows: Counter[date] = Counter()
    refused: list[tuple[pa.RecordBatch, psycopg.Error]] = []

    def copy(batch: pa.RecordBatch) -> None:
        encoder = _encoder(stage.spec, wire)
        try:
            with conn.transaction(), conn.cursor() as cursor, cursor.copy(stage.copy(STAGE)) as into:
                into.write(encoder.write_header())
                for start in range(0, batch.num_rows, CHUNK_ROWS):
                    into.write(encoder.write_batch(batch.slice(start, CHUNK_ROWS)))
                into.write(encoder.finish())
            rows.update(rows_by_day(stage.spec, batch))
        except psycopg.Error as error:
            if not meaning(error).by_row:
                raise
            if batch.num_rows == 1:
                refused.append((batch, error))
                return
            middle = batch.num_rows // 2
            copy(batch.slice(0, middle))
            copy(batch.slice(middle))

    reject, encoding = quarantine.take, quarantine.encoding
    batches = (conform(stage.spec, batch, wire, days, reject, encoding) for batch in reader if batch.num_rows)
    with read_ahead(batches) as conformed:
        for batch in conformed:
            if batch.num_rows:
                copy(batch)
    for batch, error in refused:
        quarantine.take_refused(batch, error)
    return dict(rows)


def rows_by_day(spec: TableSpec, batch: pa.RecordBatch) -> Counter[date]:
    """How many rows of the batch each day has."""
    entries = pc.value_counts(batch.column(spec.partition_column)).to_pylist()
    return Counter({entry["values"]: entry["counts"] for entry in entries})


@contextmanager
def read_ahead(chunks: Iterator[Item]) -> Iterator[Iterator[Item]]:
    """The chunks, made while the server takes those before; by a thread that nobody waits for: an interrupt must not wait for the
    source."""
    ready: Queue[Item | BaseException | None] = Queue(CHUNKS_AHEAD)
    wanted = True

    def make() -> None:
        try:
            for chunk in chunks:
                ready.put(chunk)
                if not wanted:
                    return
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    def take() -> Iterator[Item]:
        while (chunk := ready.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    Thread(target=make, daemon=True).start()
    try:
        yield take()
    finally:
        wanted = False
        # A thread that waits for room finds it, and ends.
        with suppress(Empty):
            while True:
                ready.get_nowait()


def _refuse_duplicates(conn: psycopg.Connection, statements: Statements, spec: TableSpec, window: DayRange) -> None:
    row = conn.execute(statements.duplicates()).fetchone()
    if row is not None:
        *key, copies, duplicated = row
        named = ", ".join(f"{name}={value}" for name, value in zip(spec.primary_key, key, strict=True))
        alike = f" at one {spec.version_column}" if spec.version_column else ""
        advice = "" if spec.version_column or spec.snapshot_of else " or declare a version_column"
        raise DuplicateKeyError(
            f"{spec.name} {window}: the source holds {copies} rows of the primary key ({named}){alike}; "
            f"{duplicated} key(s) are duplicated in all; correct the source{advice}"
        )


def _text_columns(spec: TableSpec, wire: pa.Schema) -> frozenset[str]:
    return frozenset(c.name for c in spec.columns if travels_as_text(c, wire.field(c.name).type))


def _encoder(spec: TableSpec, wire: pa.Schema) -> ArrowToPostgresBinaryEncoder:
    """An encoder of one COPY."""
    builders = {field.name: ArrowToPostgresBinaryEncoder.infer_encoder(field) for field in wire}
    for column in spec.columns:
        if column.type is ColumnType.JSON:
            builders[column.name] = StringEncoderBuilder.new_with_output(wire.field(column.name), Jsonb())
    return ArrowToPostgresBinaryEncoder.new_with_encoders(wire, builders)


def _every_day(window: DayRange, counts: dict[date, Counts]) -> dict[date, Counts]:
    return {day: counts.get(day, Counts()) for day in window}


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)
