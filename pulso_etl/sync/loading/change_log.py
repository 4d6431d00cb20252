"""Records what a load changes, by the statements that change it: each returns the rows that it wrote, as they were and as they are.

PostgreSQL 18 could return an updated row as it was by itself. The row is joined instead, which costs the same and which every
supported server can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import NamedTuple, Protocol

from psycopg import sql

from pulso_etl.sync.figures import EXACT, Part, parts
from pulso_etl.sync.ledger.changes import Changes, DayChange, Entry, Kept
from pulso_etl.sync.loading.imprints import Imprint, imprints
from pulso_etl.sync.loading.result import Counts, Digested
from pulso_etl.sync.loading.strategies import Write
from pulso_etl.sync.loading.under_way import Load
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import Adds, TableSpec
from pulso_etl.sync.target import Target

Sums = dict[date, list[Decimal]]
"""Of each day, a number for each part of the table's figures."""


class Entered(NamedTuple):
    """The number of a load in the change log, if it is there, and the imprints of the days that the load compared, as it left them,
    if the log has read them."""

    load_id: int | None
    left: Mapping[date, Imprint] | None


NOT_LOGGED = Entered(None, None)


class Log(Protocol):
    """Runs the statements of a load, and records what they do."""

    def run(self, write: Write) -> int:
        """Runs a statement. Returns how many rows it wrote."""

    def end(self, by_day: Mapping[date, Counts], digested: Digested | None) -> Entered:
        """Ends the entry."""


@dataclass
class Unlogged:
    """Records nothing."""

    load: Load
    statements: Statements

    def run(self, write: Write) -> int:
        return self.load.conn.execute(write.statement(self.statements), self.load.bounds).rowcount

    def end(self, by_day: Mapping[date, Counts], digested: Digested | None) -> Entered:
        return NOT_LOGGED


@dataclass
class Logged:
    """Records in the entry `load_id` of the change log. `kept`: whether it keeps the rows themselves."""

    load: Load
    statements: Statements
    changes: Changes
    load_id: int
    kept: Kept
    parts: tuple[Part, ...]
    moved: Sums = field(default_factory=dict)
    """By how much each part has risen."""

    def run(self, write: Write) -> int:
        if not (write.old or write.new) or (self.kept is not Kept.ROWS and not self.parts):
            return Unlogged(self.load, self.statements).run(write)
        written = 0
        for day, rows, *sums in self.load.conn.execute(self._returning(write), {**self.load.bounds, "load_id": self.load_id}):
            written += rows
            known = self.moved.setdefault(day, [Decimal(0)] * len(self.parts))
            self.moved[day] = [EXACT.add(before, more) for before, more in zip(known, sums, strict=True)]
        return written

    def end(self, by_day: Mapping[date, Counts], digested: Digested | None) -> Entered:
        after, left = _left(self.load, by_day, digested)
        none = [Decimal(0)] * len(self.parts)
        before = {
            day: [EXACT.subtract(end, more) for end, more in zip(after.get(day, none), self.moved.get(day, none), strict=True)]
            for day in by_day
        }
        self.changes.end(self.load.conn, self.load_id, day_changes(self.load.spec, by_day, (before, after)))
        return Entered(self.load_id, left)

    def _returning(self, write: Write) -> sql.Composed:
        """The statement, which also writes the rows to the log, and gives per day how many they are and how the parts rose."""
        statements, spec = self.statements, self.load.spec
        keys, values = columns_of(self.load, statements.spec)
        there = write.new or write.old
        changed = [
            sql.SQL("{} - {} AS {}").format(*(_part(spec, part, alias) for alias in (write.new, write.old)), _named(place))
            for place, part in enumerate(self.parts)
        ]
        returned = sql.SQL(", ").join(
            [
                sql.SQL("{}.{} AS pulso_day").format(sql.Identifier(there), statements.partition),
                *(
                    [
                        sql.SQL("{} AS pulso_key").format(as_texts(keys, there)),
                        sql.SQL("{} AS pulso_old").format(as_texts(values, write.old)),
                        sql.SQL("{} AS pulso_new").format(as_texts(values, write.new)),
                    ]
                    if self.kept is Kept.ROWS
                    else []
                ),
                *changed,
            ]
        )
        into = sql.SQL(
            ", pulso_logged AS (INSERT INTO {} (load_id, day, key, old, new) "
            "SELECT %(load_id)s, pulso_day, pulso_key, pulso_old, pulso_new FROM pulso_written)"
        ).format(self.changes.rows)
        return sql.SQL(
            "WITH pulso_written AS ({write} RETURNING {returned}){into} "
            "SELECT pulso_day, count(*){sums} FROM pulso_written GROUP BY pulso_day"
        ).format(
            write=write.statement(statements.beside_old() if write.old == "o" else statements),
            returned=returned,
            into=into if self.kept is Kept.ROWS else sql.SQL(""),
            sums=sql.Composed([sql.SQL(", sum({})").format(_named(place)) for place in range(len(self.parts))]),
        )


def log_of(load: Load, statements: Statements, total: Counts) -> Log:
    """The log of a load that is about to write so many rows."""
    changes = load.request.writer.changes
    if changes is None or not total.written:
        return Unlogged(load, statements)
    spec, bound = load.spec, load.spec.change_log.changed_rows_kept
    kept = Kept.ROWS if total.written <= bound else Kept.NONE
    reason = None if kept is Kept.ROWS else _beyond(total.written, bound)
    keys, values = columns_of(load, statements.spec) if kept is Kept.ROWS else ((), ())
    entry = Entry(
        table=spec.name, run_id=load.request.writer.run_id, kept=kept, reason=reason, key_columns=keys, value_columns=values
    )
    load_id = changes.begin(load.conn, entry)
    return Logged(load, statements, changes, load_id, kept, summed_parts(spec))


def log_first(load: Load, by_day: Mapping[date, Counts], digested: Digested | None) -> Entered:
    """Records a load into empty days. It keeps no rows, because the stamp of the rows that it wrote tells them."""
    changes, spec = load.request.writer.changes, load.spec
    if changes is None or not any(counts.written for counts in by_day.values()):
        return NOT_LOGGED
    written_by = _writer(load, [day for day, counts in by_day.items() if counts.written])
    entry = Entry(table=spec.name, run_id=load.request.writer.run_id, kept=Kept.STAMP, written_by=written_by)
    load_id = changes.begin(load.conn, entry)
    after, left = _left(load, by_day, digested)
    changes.end(load.conn, load_id, day_changes(spec, by_day, ({}, after)))
    return Entered(load_id, left)


def _left(load: Load, by_day: Mapping[date, Counts], digested: Digested | None) -> tuple[Sums, Mapping[date, Imprint] | None]:
    """The parts of the days that the load changed, as it left them. The scan that reads them also gives the imprints of the days
    that it compared, if it leaves traces."""
    summed = summed_parts(load.spec)
    if digested is None:
        return sums_by_day(load.target, summed, [day for day, counts in by_day.items() if counts.written]), None
    left = imprints(load.target, load.window, load.since, digested.compared(), summed)
    return {day: list(imprint.sums) for day, imprint in left.items()}, left


def _writer(load: Load, days: list[date]) -> int | None:
    """The transaction that has written the rows of the days. A savepoint is a transaction of its own, so the rows are asked."""
    query = sql.SQL("SELECT xmin::text::bigint FROM {} WHERE {} = ANY (%s) AND created_at = now() LIMIT 1").format(
        load.target.identifier, sql.Identifier(load.spec.partition_column)
    )
    row = load.conn.execute(query, (days,)).fetchone()
    return None if row is None else int(row[0])


def day_changes(spec: TableSpec, by_day: Mapping[date, Counts], sums: tuple[Sums, Sums]) -> list[DayChange]:
    """What is recorded of the days that changed."""
    summed = summed_parts(spec)

    def named(of: Sums, day: date) -> dict[str, Decimal]:
        return dict(zip((part.name for part in summed), of.get(day, [Decimal(0)] * len(summed)), strict=True))

    return [
        DayChange(day, counts.inserted, counts.updated, counts.deleted, *(named(of, day) for of in sums))
        for day, counts in sorted(by_day.items())
        if counts.written
    ]


def summed_parts(spec: TableSpec) -> tuple[Part, ...]:
    """The parts of the table's figures that add up. How many different values a column has does not."""
    return tuple(part for part in parts(spec.figures) if part.additive)


def sums_by_day(target: Target, wanted: tuple[Part, ...], days: list[date]) -> Sums:
    """The parts of those days as the table holds them now; days without rows left out."""
    if not wanted or not days:
        return {}
    statements = Statements(target.spec, target.schema, days=days)
    query = sql.SQL("SELECT {}, {} FROM {} WHERE {} AND {} GROUP BY 1").format(
        statements.partition,
        sql.SQL(", ").join(part.aggregate for part in wanted),
        statements.target,
        statements.staged_days,
        statements.current,
    )
    return {day: [Decimal(value) for value in sums] for day, *sums in target.conn.execute(query)}


def columns_of(load: Load, spec: TableSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns that tell a row, and all other columns of the table. `spec` has the columns that the load has added."""
    keys = spec.table_key or spec.primary_key
    every = dict.fromkeys((*spec.column_names, *load.table.columns, *(column.name for column in spec.kept_columns)))
    return keys, tuple(name for name in every if name not in keys)


def as_texts(names: tuple[str, ...], alias: str) -> sql.Composable:
    """The columns of a row as an array of texts; null without a row."""
    if not alias:
        return sql.SQL("NULL::text[]")
    return sql.SQL("ARRAY[{}]::text[]").format(
        sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(alias, name)) for name in names)
    )


def _part(spec: TableSpec, part: Part, alias: str) -> sql.Composable:
    """What a row adds to the part of its day; nothing without a row, and nothing for a version that is closed."""
    if not alias:
        return sql.SQL("0")
    one = sql.SQL("1") if part.adds is Adds.COUNT else _exact(alias, part.column)
    if not spec.keeps_versions:
        return one
    return sql.SQL("CASE WHEN {}.valid_to IS NULL THEN {} ELSE 0 END").format(sql.Identifier(alias), one)


def _exact(alias: str, column: str) -> sql.Composed:
    """The value of a column, 0 for null. A bigint may be too small for the difference of two of them."""
    return sql.SQL("coalesce({}::numeric, 0)").format(sql.Identifier(alias, column))


def _named(place: int) -> sql.Identifier:
    return sql.Identifier(f"pulso_part{place}")


def _beyond(written: int, bound: int) -> str:
    if not bound:
        return "the table keeps no values of changed rows (changed_rows_kept=0)"
    return f"the load changed {written} rows, and the values of at most {bound} are kept (changed_rows_kept)"
