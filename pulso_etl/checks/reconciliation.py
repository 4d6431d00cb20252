"""Reconciliation: compares the totals of a table's SELECT in BigQuery with the table in PostgreSQL, partition by partition.

It compares the number of rows, the sum of every numeric column, a digest of every column with exact values, and the number of
values of every nullable column. It leaves out the time at which the source computed a row. A digest of whole rows finds values
that moved between rows. For doubles, a sum with a weight for each key finds them. Integers and NUMERIC must agree exactly. A sum
of doubles depends on the order of its terms, so it may differ by 1e-9 of its size, or by 1e-6.

If each partition owns its rows, it is compared as it is. If a key lives in several partitions, the table keeps the newest version
of a key, or the newest snapshot of a value. Both sides then count a row in the partition of that version or snapshot. They stop at
the newest partition of the table, because later rows of the source are not loaded yet.

For a table with a quarantine, rows that cannot be loaded are left out, see `_Look.staged_sides`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Literal

from psycopg import sql

from pulso_etl.bigquery.source import BigQuerySource, BigQueryStream
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger import locks
from pulso_etl.sync.ledger.ledger import Ledger
from pulso_etl.sync.ledger.queries import Purpose, Usage
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.loading.months import refuse_expired
from pulso_etl.sync.loading.request import Past, Source
from pulso_etl.sync.loading.result import Clock
from pulso_etl.sync.loading.staging import stage_rows
from pulso_etl.sync.owed import Horizon, Watermark, owed_days
from pulso_etl.sync.postgres.bookkeeping import exists
from pulso_etl.sync.postgres.catalog import read_table
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import Column, ColumnType, OnReject, TableSpec
from pulso_etl.sync.streams import as_stream
from pulso_etl.sync.target import Target

RELATIVE_TOLERANCE = 1e-9
ABSOLUTE_TOLERANCE = 1e-6
NUMBERS = {ColumnType.INTEGER, ColumnType.NUMERIC, ColumnType.DOUBLE}
DIGESTED = {ColumnType.TEXT, ColumnType.DATE, ColumnType.BOOLEAN, ColumnType.BYTES}
MICROSECONDS = "(extract(epoch FROM {}) * 1000000)::bigint::text"
TEXTS: dict[ColumnType, tuple[str, str]] = {
    ColumnType.TEXT: ("{}", "{}::text"),
    ColumnType.DATE: ("CAST({} AS STRING)", "{}::text"),
    ColumnType.BOOLEAN: ("CAST({} AS STRING)", "{}::text"),
    ColumnType.INTEGER: ("CAST({} AS STRING)", "{}::text"),
    # Without zeros at the end, because BigQuery leaves them out.
    ColumnType.NUMERIC: (
        r"RTRIM(REGEXP_REPLACE(CAST({} AS STRING), r'(\.[0-9]*?)0+$', r'\1'), '.')",
        "trim_scale({})::text",
    ),
    ColumnType.TIMESTAMP: ("CAST(UNIX_MICROS({}) AS STRING)", MICROSECONDS),
    # Names the zone, because a project's default may not be UTC.
    ColumnType.DATETIME: ("CAST(UNIX_MICROS(TIMESTAMP({}, 'UTC')) AS STRING)", MICROSECONDS),
    ColumnType.TIME: ("CAST(TIME_DIFF({}, TIME '00:00:00', MICROSECOND) AS STRING)", MICROSECONDS),
    ColumnType.BYTES: ("TO_HEX({})", "encode({}, 'hex')"),
}
"""How BigQuery and PostgreSQL write a value as the same text. Doubles and JSON have no such text."""

Value = int | float | Decimal | None
Figures = Sequence[Any]
"""The values of a partition's measures, the number of rows first."""


@dataclass(frozen=True)
class Measure:
    """One figure of a partition: a column's sum, digest or number of values, or the number of rows.

    The digest adds the first 32 bits of an MD5 of each row, so the order of rows does not matter. The MD5 covers the columns of
    `parts`. A weighted sum multiplies each value by a weight from 0 to 1, which is the MD5 of the key; `parts` is then the key.
    Arrays have elements. `type` is the type of a column that is summed.
    """

    function: Literal["count", "sum", "digest", "elements", "weighted sum"]
    column: str | None = None
    parts: tuple[Column, ...] = ()
    type: ColumnType | None = None

    def __str__(self) -> str:
        if self.column is None:
            return "digest of whole rows" if self.parts else "rows"
        return f"{'values' if self.function == 'count' else self.function} of {self.column}"

    def in_bigquery(self) -> str:
        hashed = f"CAST(CONCAT('0x', SUBSTR(TO_HEX(MD5({self._text_in_bigquery()})), 1, 8)) AS INT64)" if self.parts else ""
        match self.function:
            case "sum" if self.type is ColumnType.INTEGER:
                # BigQuery refuses a sum of INT64 beyond INT64. PostgreSQL's own is numeric.
                return f"sum(CAST(`{self.column}` AS NUMERIC))"
            case "digest":
                return f"sum({hashed})"
            case "weighted sum":
                return f"sum(`{self.column}` * ({hashed} / 4294967296))"
            case "elements":
                return f"IFNULL(sum(ARRAY_LENGTH(`{self.column}`)), 0)"
        return f"{self.function}({'*' if self.column is None else f'`{self.column}`'})"

    def in_postgres(self) -> sql.Composed:
        column = sql.SQL("*") if self.column is None else sql.Identifier(self.column)
        # MD5 of the UTF-8 bytes, as in BigQuery, with every encoding of the database.
        hashed = sql.SQL("('x' || left(md5(convert_to({}, 'UTF8')), 8))::bit(32)::bigint").format(self._text_in_postgres())
        match self.function:
            case "digest":
                return sql.SQL("sum({})::bigint").format(hashed)
            case "weighted sum":
                # PostgreSQL refuses a product that is too small for a double. BigQuery takes it as 0.
                weighted = "sum(CASE WHEN abs({0}) < 1e-290 THEN 0 ELSE {0} * ({1} / 4294967296::float8) END)"
                return sql.SQL(weighted).format(column, hashed)
            case "elements":
                return sql.SQL("coalesce(sum(cardinality({})), 0)::bigint").format(column)
        return sql.SQL("{}({})").format(sql.SQL(self.function), column)

    def _text_in_bigquery(self) -> str:
        texts = [_text_in_bigquery(part) for part in self.parts]
        marked = (f"COALESCE(CONCAT('=', {text}), '-')" for text in texts)
        return texts[0] if self._is_of_one else f"CONCAT({', '.join(marked)})"

    def _text_in_postgres(self) -> sql.Composed:
        texts = [_text_in_postgres(part) for part in self.parts]
        marked = (sql.SQL("coalesce('=' || {}, '-')").format(text) for text in texts)
        return sql.Composed(texts) if self._is_of_one else sql.SQL(" || ").join(marked)

    @property
    def _is_of_one(self) -> bool:
        """Whether its text is a single column, which is null if the column is null."""
        return self.function == "digest" and self.column is not None


def has_text(column: Column) -> bool:
    """Whether both sides write values of the column as the same text."""
    return column.type in TEXTS


def _text_in_bigquery(column: Column) -> str:
    form = TEXTS[column.type][0]
    if not column.repeated:
        return form.replace("{}", f"`{column.name}`")
    item = form.replace("{}", "pulso_item")
    rows = f"UNNEST(`{column.name}`) AS pulso_item WITH OFFSET AS pulso_place"
    return f"(SELECT STRING_AGG(CONCAT('=', {item}), '' ORDER BY pulso_place) FROM {rows})"  # noqa: S608 - names of the declaration


def _text_in_postgres(column: Column) -> sql.Composed:
    form, name = sql.SQL(TEXTS[column.type][1]), sql.Identifier(column.name)
    if not column.repeated:
        return form.format(name)
    return sql.SQL(
        "(SELECT string_agg('=' || {}, '' ORDER BY pulso_place) FROM unnest({}) WITH ORDINALITY AS u (pulso_item, pulso_place))"
    ).format(form.format(sql.Identifier("pulso_item")), name)


@dataclass(frozen=True)
class Difference:
    """A figure that differs between the two sides."""

    day: date
    measure: Measure
    source: Value
    target: Value


@dataclass(frozen=True)
class Reconciliation:
    """What was compared, and what differs. `cost` is the metadata of the BigQuery job.

    `read`: the days that were read in BigQuery. They are more than the window if newer rows of a key may be outside of it.
    `quarantined`: the number of source rows of each day that cannot be loaded. They were left out, and so were the rows of their
    keys in PostgreSQL. `owed_since`: the first day that the next refresh reads again by itself.
    """

    window: DayRange
    read: DayRange
    source_rows: int
    target_rows: int
    differences: tuple[Difference, ...]
    quarantined: Mapping[date, int] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    owed_since: date = date.max


def reconcile(target: Target, bigquery: BigQuerySource, window: DayRange | None, today: date, run_id: str) -> Reconciliation:
    """Compares the window's partitions; without a window, the last complete and loaded days (see `default_window`).

    Takes the table's lock until the connection ends, so that no refresh commits between the two readings.
    Raises the errors of `BigQueryStream.open`, ContractError for days that the table no longer keeps, and psycopg's errors.
    """
    conn, spec, schema = target.conn, target.spec, target.schema
    Watermarks(schema).create(conn)
    locks.take(conn, [locks.table_lock(schema, spec.name)])
    names = Statements(spec, schema)
    bounds = conn.execute(sql.SQL("SELECT min({0}), max({0}) FROM {1}").format(names.partition, names.target)).fetchone()
    assert bounds is not None
    first, last = bounds
    if window is None:
        # A loaded day may have no rows: it never had any, or they are gone.
        loaded = Ledger(schema).readings(conn, spec.name) if exists(conn, schema, "etl_days") else {}
        window = default_window(spec, today, min({*loaded, first} - {None}, default=None))
    refuse_expired(spec, window, today)
    read = window if spec.partition_in_key or last is None or last < window.start else DayRange(window.start, last)

    by = measures(spec)
    look = _Look(target, bigquery, read, run_id)
    sides = look.staged_sides() if spec.loading.on_reject is OnReject.QUARANTINE else look.sides()
    source, held = sides.source, sides.target
    compared = [day for day in sorted({*source, *held}) if day in window]
    return Reconciliation(
        window,
        read,
        sum(source[day][0] for day in compared if day in source),
        sum(held[day][0] for day in compared if day in held),
        tuple(difference for day in compared for difference in differences(by, day, source.get(day), held.get(day))),
        {day: rows for day, rows in sorted(sides.quarantined.items()) if day in window},
        sides.cost,
        _owed_since(target, today),
    )


def _owed_since(target: Target, today: date) -> date:
    """The first day that is owed by the ledger or that today's lookback reads in any case."""
    state = Watermarks(target.schema).read(target.conn).get(target.spec.name)
    horizon = Horizon.of(target.spec, date.min, today)
    owed = owed_days(horizon, state.watermark if state else Watermark(None, None), today)
    return min([horizon.trailing(today), *owed])


@dataclass(frozen=True)
class _Sides:
    """The figures of both sides by day, the number of rows per day that cannot be loaded and were left out, and the cost."""

    source: Mapping[date, Figures]
    target: Mapping[date, Figures]
    quarantined: Mapping[date, int]
    cost: dict[str, Any]


@dataclass(frozen=True)
class _Look:
    """What is compared: a table over some days, on both sides."""

    target: Target
    bigquery: BigQuerySource
    days: DayRange
    run_id: str

    @property
    def spec(self) -> TableSpec:
        return self.target.spec

    def sides(self) -> _Sides:
        """The figures of both sides. Each server adds up its own rows."""
        query = source_query(self.spec, measures(self.spec))
        stream = self.bigquery.stream(self.spec.with_query(query), self.days, self.run_id)
        with self._recorded(stream), stream.open() as reader:
            columns = reader.read_all().columns
            source = {day: values for day, *values in zip(*(column.to_pylist() for column in columns), strict=True)}
        names = Statements(self.spec, self.target.schema)
        return _Sides(source, self._in_postgres(names.target, names.current), {}, stream.metadata)

    def staged_sides(self) -> _Sides:
        """The figures of a table with a quarantine. The source's rows are staged as in a load, so that the same rows are set aside.

        Rows with a quarantined key are left out on both sides, because PostgreSQL keeps the last good row of such a key.
        """
        stream = self.bigquery.stream(self.spec, self.days, self.run_id)
        conn = self.target.conn
        with self._recorded(stream), conn.transaction(force_rollback=True):
            table = read_table(conn, self.target.schema, self.spec.name)
            assert table is not None
            # Only the compared days and later days matter.
            rows = Source(as_stream(self.spec, self.days, stream).open, past=Past(self.days.start))
            staged = stage_rows(self.target, table, self.days, rows, Clock())
            assert staged.quarantine is not None
            rest = sql.SQL("NOT {}").format(staged.quarantine.kept("r"))
            source = self._in_postgres(staged.statements.newest_staged(), rest)
            target = self._in_postgres(staged.statements.target, sql.SQL("{} AND {}").format(staged.statements.current, rest))
        return _Sides(source, target, staged.quarantine.by_day, stream.metadata)

    @contextmanager
    def _recorded(self, stream: BigQueryStream) -> Iterator[None]:
        """Records what the stream's query used, also if the comparison fails, so that the budget counts it."""
        try:
            yield
        finally:
            Watermarks(self.target.schema).queries.record(
                self.target.conn, self.spec.name, Purpose.RECONCILIATION, self.run_id, Usage.of(stream.metadata)
            )

    def _in_postgres(self, rows: sql.Composable, which: sql.Composable) -> dict[date, Figures]:
        """The figures of each day, over the rows `r` that fulfil `which`."""
        day = sql.Identifier(self.spec.partition_column)
        by = sql.SQL(", ").join(measure.in_postgres() for measure in measures(self.spec))
        query = sql.SQL("SELECT {}, {} FROM {} r WHERE {} BETWEEN %s AND %s AND {} GROUP BY 1").format(day, by, rows, day, which)
        return {day: values for day, *values in self.target.conn.execute(query, (self.days.start, self.days.end))}


def default_window(spec: TableSpec, today: date, first_loaded: date | None) -> DayRange:
    """The table's last `reconcile_days` up to yesterday, but not before its first loaded day.

    Today still changes between a refresh and the comparison. A table that keeps only the newest versions is compared up to today,
    because those are its rows.
    """
    start = today - timedelta(days=spec.quality.reconcile_days)
    if first_loaded is not None:
        start = max(start, min(first_loaded, today))
    return DayRange(start, max(start, today - timedelta(days=1) if spec.partition_in_key else today))


def measures(spec: TableSpec) -> tuple[Measure, ...]:
    """The figures to compare; the number of rows is the first."""
    found = [Measure("count")]
    key = tuple(c for name in spec.primary_key if name != spec.partition_column and has_text(c := spec.column(name)))
    for column in spec.columns:
        if column.name in spec.stamp_columns:
            continue
        if column.repeated:
            # Inside a query, BigQuery distinguishes a missing array from an empty one. In its results both are empty.
            found.append(Measure("elements", column.name))
            continue
        if column.type in NUMBERS:
            found.append(Measure("sum", column.name, type=column.type))
        if column.type in DIGESTED and column.name != spec.partition_column:
            found.append(Measure("digest", column.name, (column,)))
        if column.type is ColumnType.DOUBLE and key:
            found.append(Measure("weighted sum", column.name, key))
        if not spec.required(column):
            found.append(Measure("count", column.name))
    exact = tuple(c for c in spec.columns if has_text(c) and c.name not in {spec.partition_column, *spec.stamp_columns})
    return (*found, Measure("digest", None, exact)) if exact else tuple(found)


def source_query(spec: TableSpec, by: Sequence[Measure]) -> str:
    """The totals of the table's own SELECT by partition: the day, then every measure. BigQuery SQL with the spec's placeholders."""
    rows = f"(\n{spec.source.query}\n)"
    if spec.snapshot_of:
        values, day = ", ".join(f"`{name}`" for name in spec.snapshot_of), f"`{spec.partition_column}`"
        rows = f"(SELECT * FROM {rows} WHERE TRUE QUALIFY {day} = MAX({day}) OVER (PARTITION BY {values}))"  # noqa: S608 - names of the declaration, quoted
    if spec.version_column is not None:
        keys = ", ".join(f"`{name}`" for name in spec.primary_key)
        rows = (
            f"(SELECT * FROM {rows} WHERE TRUE "  # noqa: S608 - names of the declaration, quoted
            f"QUALIFY ROW_NUMBER() OVER (PARTITION BY {keys} ORDER BY `{spec.version_column}` DESC) = 1)"
        )
    figures = ", ".join(f"{measure.in_bigquery()} AS pulso_{number}" for number, measure in enumerate(by))
    return f"SELECT `{spec.partition_column}` AS pulso_day, {figures}\nFROM {rows}\nGROUP BY `{spec.partition_column}`"


def differences(
    by: Sequence[Measure], day: date, source: Sequence[Value] | None, target: Sequence[Value] | None
) -> list[Difference]:
    """The figures of one day that differ. A side without rows has the count 0 and no other figures."""
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
