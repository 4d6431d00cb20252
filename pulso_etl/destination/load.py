"""The load: a stream of Arrow batches makes a range of days of one table equal to the source, in the caller's transaction."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from pgpq import ArrowToPostgresBinaryEncoder
from psycopg import errors as pg
from psycopg import sql

from pulso_etl.destination.conform import conform, new_columns, wire_schema
from pulso_etl.destination.statements import STAGE, Statements
from pulso_etl.errors import (
    ContractError,
    DestinationError,
    DestinationUnavailable,
    DuplicateKeyError,
    ShrinkRefused,
)
from pulso_etl.refresh import DayRange
from pulso_etl.tables.spec import TableSpec

Plan = Literal["direct", "merge"]
Open = Callable[[], AbstractContextManager[pa.RecordBatchReader]]

CHUNK_ROWS = 2_500
"""Rows encoded at once, so that memory does not follow the size of the source's batches."""
SMALL_PARTITION_ROWS = 20
"""A partition with fewer rows may shrink freely; the whole range is still guarded."""


@dataclass
class Counts:
    """Rows of one partition: read from the source, and what became of the table's."""

    read: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    @property
    def unchanged(self) -> int:
        """Read, and already there as they are (or, with a version column, superseded by a newer row)."""
        return self.read - self.inserted - self.updated

    def as_dict(self) -> dict[str, int]:
        return {
            "rows_read": self.read,
            "rows_inserted": self.inserted,
            "rows_updated": self.updated,
            "rows_unchanged": self.unchanged,
            "rows_deleted": self.deleted,
        }


@dataclass
class LoadResult:
    """What a load did: counts by day, the plan, and the seconds of each stage."""

    plan: Plan
    by_day: dict[date, Counts]
    seconds: dict[str, float] = field(default_factory=dict)
    new_columns: list[str] = field(default_factory=list)

    @property
    def total(self) -> Counts:
        total = Counts()
        for counts in self.by_day.values():
            total.read += counts.read
            total.inserted += counts.inserted
            total.updated += counts.updated
            total.deleted += counts.deleted
        return total


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
) -> LoadResult:
    """Makes the window's rows equal to the stream's, inside the transaction that `conn` is in; the caller commits.

    The plan follows what the window holds: nothing, and the rows are copied straight into the table; something, and they are
    staged, compared in one join, and only differences are written. `plan` overrules that choice. `repeatable`: the stream
    can be opened a second time, which tells a duplicate key that a direct copy hits as fully as the merge does.
    Raises ContractError, DuplicateKeyError and ShrinkRefused; the caller rolls back. Errors of the server stay psycopg's.
    """
    statements = Statements(spec, schema)
    bounds = {"start": window.start, "end": window.end}
    clock = _Clock()
    with clock("lock"):
        # The name is locked as well as the table, so that first loads which create the table queue up too.
        conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"pulso_etl:{schema}.{spec.name}",))
        conn.execute(statements.lock_target())
        conn.execute("SELECT set_config('work_mem', %s, true)", (f"{work_mem_mb}MB",))
        existing: dict[date, int] = dict(conn.execute(statements.rows_by_day(), bounds).fetchall())
        # A key that lives in several partitions can clash with rows outside of the window.
        empty = not existing and (spec.partition_in_key or not _has_rows(conn, statements))
    if plan is None:
        plan = "direct" if empty and spec.version_column is None else "merge"

    if plan == "direct":
        try:
            with conn.transaction(), open_stream() as reader:
                wire = wire_schema(spec, reader.schema, window)
                if not _text_columns(spec, wire):
                    with clock("copy"):
                        read = _copy(conn, statements, statements.target, spec, reader, wire, window)
                    by_day = _every_day(window, {day: Counts(read=n, inserted=n) for day, n in read.items()})
                    return LoadResult("direct", by_day, clock.seconds, new_columns(spec, reader.schema))
        except pg.UniqueViolation as error:
            if not repeatable:
                raise DuplicateKeyError(
                    f"{spec.name} {window}: the source holds 2 or more rows of one primary key: {error.diag.message_detail}"
                ) from error

    with open_stream() as reader:
        wire = wire_schema(spec, reader.schema, window)
        texts = _text_columns(spec, wire)
        with clock("copy"):
            conn.execute(statements.create_stage(texts))
            read = _copy(conn, statements, STAGE, spec, reader, wire, window)
        extra = new_columns(spec, reader.schema)
    by_day = _every_day(window, {day: Counts(read=n) for day, n in read.items()})
    if spec.partition_in_key and not allow_shrink:
        refuse_shrink(spec, window, existing, read)
    with clock("analyze"):
        if texts:
            conn.execute(statements.read_text_as_numeric(texts))
        conn.execute(statements.analyze_stage())
        if spec.version_column is not None:
            _refuse_duplicates(conn, statements, spec, window)
    with clock("diff"):
        conn.execute(statements.create_diff(), bounds)
        for day, inserted, updated, deleted in conn.execute(statements.count_diff()):
            counts = by_day.setdefault(day, Counts())
            counts.inserted, counts.updated, counts.deleted = inserted, updated, deleted
    result = LoadResult("merge", by_day, clock.seconds, extra)
    total = result.total
    if spec.version_column is None and total.read - total.inserted > sum(existing.values()) - total.deleted:
        # More staged rows than rows of the table found their partner. Counting this is free, grouping by the key is not.
        _refuse_duplicates(conn, statements, spec, window)
    with clock("write"):
        if total.deleted:
            conn.execute(statements.delete_vanished())
        if total.updated:
            conn.execute(statements.update_changed())
        if total.inserted:
            try:
                with conn.transaction():
                    conn.execute(statements.insert_new())
            except pg.UniqueViolation:
                _refuse_duplicates(conn, statements, spec, window)
                raise
    return result


def refuse_shrink(spec: TableSpec, window: DayRange, existing: dict[date, int], read: dict[date, int]) -> None:
    """Raises ShrinkRefused where the range, or a partition of some size, would lose more than the table allows."""
    held, got = sum(existing.values()), sum(read.values())
    faults = []
    if held and got < max(1, held * spec.minimum_kept_share):
        faults.append(f"the range {window} holds {held} rows and the source has {got}")
    faults += [
        f"partition {day} holds {rows} rows and the source has {read.get(day, 0)}"
        for day, rows in sorted(existing.items())
        if rows >= SMALL_PARTITION_ROWS and read.get(day, 0) < rows * spec.minimum_kept_share
    ]
    if faults:
        raise ShrinkRefused(
            f"{spec.name}: refused to delete: {'; '.join(faults[:5])}; at least {spec.minimum_kept_share:.0%} must stay. "
            "If the rows are really gone, launch the range again with --allow-shrink (tag pulso_etl/allow_shrink=true)"
        )


@contextmanager
def translated(spec: TableSpec, window: DayRange) -> Iterator[None]:
    """Errors of the server become errors of ours, which name the table and the range. Values of rows stay out of them."""
    where = f"{spec.name} {window}: PostgreSQL"
    try:
        yield
    except (pg.LockNotAvailable, pg.QueryCanceled) as error:
        raise DestinationUnavailable(f"{where}: another writer held the table too long; try again later") from error
    except (pg.DataError, pg.IntegrityError) as error:
        raise ContractError(f"{where} refuses a row: {error.diag.message_primary}; nothing was loaded") from error
    except pg.DiskFull as error:
        raise DestinationUnavailable(f"{where} has no disk left: {error.diag.message_primary}") from error
    except (pg.SerializationFailure, pg.DeadlockDetected) as error:
        raise DestinationUnavailable(f"{where} gave the load up: {error.diag.message_primary}") from error
    except pg.InsufficientPrivilege as error:
        raise DestinationError(f"{where}: {error.diag.message_primary}; grant the role that right") from error
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DestinationUnavailable(f"{where} is away: {_first_line(error)}") from error
    except psycopg.Error as error:
        raise DestinationError(f"{where}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _copy(
    conn: psycopg.Connection,
    statements: Statements,
    into: sql.Identifier,
    spec: TableSpec,
    reader: pa.RecordBatchReader,
    wire: pa.Schema,
    window: DayRange,
) -> dict[date, int]:
    """Sends every batch, checked, as COPY BINARY; returns the rows of each day."""
    encoder = ArrowToPostgresBinaryEncoder(wire)
    rows: Counter[date] = Counter()

    def encoded() -> Iterator[bytes]:
        yield encoder.write_header()
        for batch in reader:
            if not batch.num_rows:
                continue
            batch = conform(spec, batch, wire, window)
            if into != STAGE:
                # Neighbours in the primary key's index go in together, which takes a fifth off the server's work.
                batch = batch.sort_by([(key, "ascending") for key in spec.primary_key])
            for start in range(0, batch.num_rows, CHUNK_ROWS):
                yield encoder.write_batch(batch.slice(start, CHUNK_ROWS))
            for entry in pc.value_counts(batch.column(spec.partition_column)).to_pylist():
                rows[entry["values"]] += entry["counts"]
        yield encoder.finish()

    # The next batch is read and encoded while the server takes this one: neither waits for the other, and two are in memory.
    chunks = encoded()
    with conn.cursor() as cursor, cursor.copy(statements.copy(into)) as copy, ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = ahead.submit(next, chunks, None)
            copy.write(chunk)
    return dict(rows)


def _refuse_duplicates(conn: psycopg.Connection, statements: Statements, spec: TableSpec, window: DayRange) -> None:
    row = conn.execute(statements.duplicates()).fetchone()
    if row is not None:
        *key, copies, duplicated = row
        named = ", ".join(f"{name}={value}" for name, value in zip(spec.primary_key, key, strict=True))
        raise DuplicateKeyError(
            f"{spec.name} {window}: the source holds {copies} rows of the primary key ({named}); "
            f"{duplicated} key(s) are duplicated in all; correct the source or declare a version_column"
        )


def _has_rows(conn: psycopg.Connection, statements: Statements) -> bool:
    return conn.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(statements.target)).fetchone() is not None


def _text_columns(spec: TableSpec, wire: pa.Schema) -> frozenset[str]:
    return frozenset(c.name for c in spec.columns if c.type == "numeric" and pa.types.is_string(wire.field(c.name).type))


def _every_day(window: DayRange, counts: dict[date, Counts]) -> dict[date, Counts]:
    days = (date.fromordinal(n) for n in range(window.start.toordinal(), window.end.toordinal() + 1))
    return {day: counts.get(day, Counts()) for day in days}


class _Clock:
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
