"""The months of a partitioned table: created when a load needs them, removed when the table no longer keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta

from psycopg import errors as pg
from psycopg import sql

from pulso_etl.sync.days import DayRange, first_kept_day
from pulso_etl.sync.errors import ContractError, DestinationError, SchemaRefused, TableBusy, first_line
from pulso_etl.sync.ledger import locks
from pulso_etl.sync.ledger.ledger import Ledger
from pulso_etl.sync.ledger.traces import Traces
from pulso_etl.sync.postgres.bookkeeping import exists
from pulso_etl.sync.postgres.identifiers import quoted_name
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.target import Target

PARTITIONS = """
SELECT n.nspname, c.relname, b.bounds[1], b.bounds[2], nullif(c.reltuples, -1)::bigint, pg_total_relation_size(c.oid)
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (SELECT regexp_match(pg_get_expr(c.relpartbound, c.oid),
    '^FOR VALUES FROM \\((?:MINVALUE|''(.+?)'')\\) TO \\((?:MAXVALUE|''(.+?)'')\\)$') AS bounds) AS b
WHERE i.inhparent = to_regclass(%s) AND b.bounds IS NOT NULL ORDER BY b.bounds[1]::date NULLS FIRST
"""
DETACH_SECONDS = 5
"""How long a removal waits for readers of the table. Readers that come later wait for the removal."""


@dataclass(frozen=True)
class Partition:
    """A range partition: the days from `start` to the day before `end`. None means that it has no bound on that side.

    `rows` is an estimate, None before the server has one; `size` is in bytes.
    """

    schema: str
    name: str
    start: date | None
    end: date | None
    rows: int | None
    size: int

    def holds(self, day: date) -> bool:
        return (self.start is None or self.start <= day) and (self.end is None or day < self.end)


def months(window: DayRange) -> Iterator[date]:
    """The first day of each month that the window touches."""
    first = window.start.replace(day=1)
    while first <= window.end:
        yield first
        first = _next(first)


def partition_name(table: str, first: date) -> str:
    """The name of the month's partition."""
    return f"{table}_y{first:%Y}m{first:%m}"


def partitions(target: Target) -> list[Partition]:
    """The table's partitions in order, whoever made them, without a default partition."""
    found = target.conn.execute(PARTITIONS, (target.quoted_name,))
    return [
        Partition(place, name, date.fromisoformat(start) if start else None, date.fromisoformat(end) if end else None, rows, size)
        for place, name, start, end, rows, size in found
    ]


def refuse_expired(spec: TableSpec, window: DayRange, today: date) -> None:
    """Raises ContractError for a window that begins before the days that the table keeps."""
    kept = first_kept_day(spec, today)
    if window.start < kept:
        raise ContractError(
            f"{spec.name} {window}: the table keeps days from {kept} on (retention_months={spec.retention.retention_months}); "
            "launch the range from that day, or declare a longer retention"
        )


def create_months(target: Target, window: DayRange) -> None:
    """Adds the months of the window that a partitioned table lacks, in the caller's transaction.

    Readers and loads of other months go on. Raises SchemaRefused if the name of a month is taken.
    """
    conn, spec, schema = target.conn, target.spec, target.schema
    if spec.retention.partition_by is None or not _missing(target, window):
        return
    # ATTACH takes this lock as well: one transaction at a time adds months.
    conn.execute(sql.SQL("LOCK TABLE ONLY {} IN SHARE UPDATE EXCLUSIVE MODE").format(target.identifier))
    # Another load may have added them during the wait.
    for first in _missing(target, window):
        name = partition_name(spec.name, first)
        attach = _attach(spec, schema, first)
        if conn.execute("SELECT to_regclass(%s)", (quoted_name(schema, name),)).fetchone() != (None,):
            raise SchemaRefused(
                f"{spec.name} {window}: {schema}.{name} exists but is not attached to the table; rename it, or attach it: "
                f"{attach.as_string()};"
            )
        # CREATE TABLE … PARTITION OF would keep readers of the whole table out until the load commits; ATTACH does not.
        conn.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(sql.Identifier(schema, name), target.identifier))
        conn.execute(attach)


def expired(target: Target, today: date) -> list[Partition]:
    """The partitions whose days are all older than the days that the table keeps."""
    kept = first_kept_day(target.spec, today)
    return [partition for partition in partitions(target) if partition.end is not None and partition.end <= kept]


def remove_expired(target: Target, today: date, *, drop: bool, lock_timeout_seconds: int) -> Iterator[Partition]:
    """Detaches the expired partitions from the table, each in a transaction of its own, and drops them if asked to.

    No load of the table runs meanwhile. The connection is in autocommit mode. Raises TableBusy if a load or a reader does not
    end in time, and DestinationError if the server refuses. The partitions that were yielded before the error stay removed.
    """
    conn, spec, schema = target.conn, target.spec, target.schema
    with _alone(target, lock_timeout_seconds):
        for partition in expired(target, today):
            name = sql.Identifier(partition.schema, partition.name)
            try:
                with conn.transaction():
                    conn.execute("SELECT set_config('lock_timeout', %s, true)", (f"{DETACH_SECONDS}s",))
                    conn.execute(sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(target.identifier, name))
                    if drop:
                        conn.execute(sql.SQL("DROP TABLE {}").format(name))
                    for kept, records in (("etl_digests", Traces(schema)), ("etl_days", Ledger(schema))):
                        if exists(conn, schema, kept):
                            records.forget(conn, spec.name, partition.start, partition.end)
            except pg.LockNotAvailable as error:
                raise TableBusy(
                    f"{spec.name}: a reader held the table longer than {DETACH_SECONDS} s; {partition.name} and later months "
                    "were not removed, try again later"
                ) from error
            except (pg.DependentObjectsStillExist, pg.ForeignKeyViolation, pg.InsufficientPrivilege) as error:
                reason = "; ".join(filter(None, [error.diag.message_primary, error.diag.message_detail]))
                raise DestinationError(
                    f"{spec.name}: PostgreSQL refuses: {reason}; {partition.name} and later months were not removed"
                ) from error
            yield partition


@contextmanager
def _alone(target: Target, lock_timeout_seconds: int) -> Iterator[None]:
    """Keeps every load of the table out."""
    conn, spec = target.conn, target.spec
    key = locks.table_lock(target.schema, spec.name)
    conn.execute("SELECT set_config('lock_timeout', %s, false)", (f"{lock_timeout_seconds}s",))
    try:
        locks.take(conn, [key])
    except pg.LockNotAvailable as error:
        raise TableBusy(
            f"{spec.name}: a load held the table for too long: {first_line(error)}; nothing was removed, try again later"
        ) from error
    try:
        yield
    finally:
        conn.execute("SELECT pg_advisory_unlock(%s)", (key,))


def _missing(target: Target, window: DayRange) -> list[date]:
    found = partitions(target)
    return [first for first in months(window) if not any(partition.holds(first) for partition in found)]


def _attach(spec: TableSpec, schema: str, first: date) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
        sql.Identifier(schema, spec.name),
        sql.Identifier(schema, partition_name(spec.name, first)),
        sql.Literal(first.isoformat()),
        sql.Literal(_next(first).isoformat()),
    )


def _next(first: date) -> date:
    return (first + timedelta(days=31)).replace(day=1)
