"""Reconciliation: what a table's SELECT adds up to in BigQuery, partition by partition, against what PostgreSQL holds.

Compared are the number of rows, the sum of every numeric column, a digest of every text, date and boolean, and how many values a
column has that may be null; not when the source computed a row. Integers and NUMERIC must agree exactly. Sums of doubles depend on
the order of their terms and may differ by 1e-9 of their size, or by 1e-6.

Where a partition owns its rows, it is compared as it stands. Where a key lives in several partitions, the table keeps the newest
version of a key, or the newest snapshot of a value, and so both sides count rows in the partition of these, up to the newest
partition that the table holds; what the source has beyond is not loaded yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Literal

import psycopg
from psycopg import sql

from pulso_etl.destination.bookkeeping import exists
from pulso_etl.destination.ledger import Ledger
from pulso_etl.destination.locks import table_lock
from pulso_etl.destination.months import refuse_expired
from pulso_etl.destination.statements import Statements
from pulso_etl.refresh import DayRange
from pulso_etl.source.bigquery import BigQuerySource
from pulso_etl.tables.spec import ColumnType, TableSpec

RELATIVE_TOLERANCE = 1e-9
ABSOLUTE_TOLERANCE = 1e-6
NUMBERS = {ColumnType.INTEGER, ColumnType.NUMERIC, ColumnType.DOUBLE}
DIGESTED = {ColumnType.TEXT, ColumnType.DATE, ColumnType.BOOLEAN}
"""Of these BigQuery and PostgreSQL write the same text."""

Value = int | float | Decimal | None


@dataclass(frozen=True)
class Measure:
    """One figure of a partition: a column's sum, digest or number of values, or the number of rows.

    The digest is the sum of the first 32 bits of each value's MD5, in whatever order the rows come.
    """

    function: Literal["count", "sum", "digest"]
    column: str | None = None

    def __str__(self) -> str:
        if self.column is None:
            return "rows"
        return f"{'values' if self.function == 'count' else self.function} of {self.column}"

    def in_bigquery(self) -> str:
        if self.function == "digest":
            return f"sum(CAST(CONCAT('0x', SUBSTR(TO_HEX(MD5(CAST(`{self.column}` AS STRING))), 1, 8)) AS INT64))"
        return f"{self.function}({'*' if self.column is None else f'`{self.column}`'})"

    def in_postgres(self) -> sql.Composed:
        column = sql.SQL("*") if self.column is None else sql.Identifier(self.column)
        if self.function == "digest":
            # Of its UTF-8, as BigQuery has it, whatever the database's encoding.
            digest = "sum(('x' || left(md5(convert_to({}::text, 'UTF8')), 8))::bit(32)::bigint)::bigint"
            return sql.SQL(digest).format(column)
        return sql.SQL("{}({})").format(sql.SQL(self.function), column)


@dataclass(frozen=True)
class Difference:
    """A figure that is not the same on both sides."""

    day: date
    measure: Measure
    source: Value
    target: Value


@dataclass(frozen=True)
class Reconciliation:
    """What was compared and what differs. `cost` is the metadata of the BigQuery job.

    `read`: the days that were read in BigQuery, more than the window where newer rows of a key may lie beyond.
    """

    window: DayRange
    read: DayRange
    source_rows: int
    target_rows: int
    differences: tuple[Difference, ...]
    cost: dict[str, Any] = field(default_factory=dict)


def reconcile(
    conn: psycopg.Connection,
    bigquery: BigQuerySource,
    spec: TableSpec,
    schema: str,
    window: DayRange | None,
    today: date,
    run_id: str,
) -> Reconciliation:
    """Compares the window's partitions; without one, the last days that are over and loaded (see `default_window`).

    Takes the table's lock for as long as the session of `conn` lasts: no refresh commits between the two readings.
    Raises the errors of `BigQueryStream.open`, and ContractError for days that the table no longer keeps; those of the server
    stay psycopg's.
    """
    conn.execute("SELECT pg_advisory_lock(%s)", (table_lock(schema, spec.name),))
    names = Statements(spec, schema)
    bounds = conn.execute(sql.SQL("SELECT min({0}), max({0}) FROM {1}").format(names.partition, names.target)).fetchone()
    assert bounds is not None
    first, last = bounds
    if window is None:
        # A day that was loaded may hold no row: not its own, or none any more.
        loaded = Ledger(schema).read_at(conn, spec.name) if exists(conn, schema, "etl_days") else {}
        window = default_window(spec, today, min({*loaded, first} - {None}, default=None))
    refuse_expired(spec, window, today)
    read = window if spec.partition_in_key or last is None or last < window.start else DayRange(window.start, last)

    by = measures(spec)
    stream = bigquery.stream(spec.model_copy(update={"query": source_query(spec, by)}), read, run_id)
    with stream.open() as reader:
        columns = reader.read_all().columns
        source = {day: values for day, *values in zip(*(column.to_pylist() for column in columns), strict=True)}
    rows = conn.execute(
        sql.SQL("SELECT {partition}, {measures} FROM {target} WHERE {partition} BETWEEN %s AND %s AND {current} GROUP BY 1").format(
            partition=names.partition,
            measures=sql.SQL(", ").join(measure.in_postgres() for measure in by),
            target=names.target,
            current=names.current,
        ),
        (read.start, read.end),
    )
    held = {day: values for day, *values in rows}
    compared = [day for day in sorted({*source, *held}) if day in window]
    return Reconciliation(
        window,
        read,
        sum(source[day][0] for day in compared if day in source),
        sum(held[day][0] for day in compared if day in held),
        tuple(difference for day in compared for difference in differences(by, day, source.get(day), held.get(day))),
        stream.metadata,
    )


def default_window(spec: TableSpec, today: date, first_loaded: date | None) -> DayRange:
    """The table's `reconcile_days` up to yesterday, as far back as it was loaded.

    Today moves on between a refresh and a look at the source; but where only the newest are kept, those are what to compare.
    """
    start = today - timedelta(days=spec.reconcile_days)
    if first_loaded is not None:
        start = max(start, min(first_loaded, today))
    return DayRange(start, max(start, today - timedelta(days=1) if spec.partition_in_key else today))


def measures(spec: TableSpec) -> tuple[Measure, ...]:
    """The figures that are compared, the number of rows first."""
    found = [Measure("count")]
    for column in spec.columns:
        if column.name in spec.stamp_columns:
            continue
        if column.type in NUMBERS:
            found.append(Measure("sum", column.name))
        if column.type in DIGESTED and column.name != spec.partition_column:
            found.append(Measure("digest", column.name))
        if not spec.required(column):
            found.append(Measure("count", column.name))
    return tuple(found)


def source_query(spec: TableSpec, by: Sequence[Measure]) -> str:
    """The table's own SELECT, added up by partition: the day, then every measure. BigQuery SQL with the spec's placeholders."""
    rows = f"(\n{spec.query}\n)"
    if spec.snapshot_of:
        values, day = ", ".join(f"`{name}`" for name in spec.snapshot_of), f"`{spec.partition_column}`"
        rows = f"(SELECT * FROM {rows} WHERE TRUE QUALIFY {day} = MAX({day}) OVER (PARTITION BY {values}))"
    if spec.version_column is not None:
        keys = ", ".join(f"`{name}`" for name in spec.primary_key)
        rows = (
            f"(SELECT * FROM {rows} WHERE TRUE "
            f"QUALIFY ROW_NUMBER() OVER (PARTITION BY {keys} ORDER BY `{spec.version_column}` DESC) = 1)"
        )
    figures = ", ".join(f"{measure.in_bigquery()} AS pulso_{number}" for number, measure in enumerate(by))
    return f"SELECT `{spec.partition_column}` AS pulso_day, {figures}\nFROM {rows}\nGROUP BY `{spec.partition_column}`"


def differences(
    by: Sequence[Measure], day: date, source: Sequence[Value] | None, target: Sequence[Value] | None
) -> list[Difference]:
    """The figures of one day that do not agree; a side without rows has the count 0 and nothing else."""
    nothing: list[Value] = [0 if measure.function == "count" else None for measure in by]
    pairs = zip(by, source or nothing, target or nothing, strict=True)
    return [Difference(day, measure, left, right) for measure, left, right in pairs if not agree(left, right)]


def agree(source: Value, target: Value) -> bool:
    """Whether two figures are the same: doubles within the tolerance, everything else exactly."""
    if source is None or target is None:
        return source is target
    if isinstance(source, float) or isinstance(target, float):
        return math.isclose(source, target, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
    return source == target
