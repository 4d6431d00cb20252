"""The change log: what each load changed, in `etl_changes`, `etl_changed_days` and `etl_changed_rows`.

A load that changes nothing leaves no entry. Values of rows are texts, as PostgreSQL prints them: `key_columns` and `value_columns`
of the entry name them. PostgreSQL reads each back exactly, whatever its type is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from pulso_etl.sync.days import DayRange

COUNTS_KEPT = timedelta(days=400)
"""How long the counts and the figures of a load stay: a year and some days."""


class Kept(StrEnum):
    """How a load can be undone: by its `rows`, whose values are kept; by the `stamp` of the rows that it wrote into empty days; not
    at all."""

    ROWS = "rows"
    STAMP = "stamp"
    NONE = "none"


@dataclass(frozen=True)
class DayChange:
    """What a load did to a day: how many rows are new, changed and gone, and the parts of figures before and after, by name."""

    day: date
    new: int
    changed: int
    gone: int
    before: Mapping[str, Decimal] = field(default_factory=dict)
    after: Mapping[str, Decimal] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> DayChange:
        """The day from its row, as JSON with decimals."""
        new, changed, gone = (int(row[f"rows_{kind}"]) for kind in ("new", "changed", "gone"))
        return cls(date.fromisoformat(row["day"]), new, changed, gone, sums_of(row["before"]), sums_of(row["after"]))

    @property
    def rows(self) -> int:
        """How many rows changed, of whatever kind."""
        return self.new + self.changed + self.gone


def sums_of(logged: Mapping[str, Decimal | str]) -> dict[str, Decimal]:
    """The parts of a day, as the log has them: JSON has no number for NaN and infinity, so these are texts."""
    return {name: Decimal(number) for name, number in logged.items()}


def with_decimals(text: str) -> Any:
    """The JSON of the log, with numbers as decimals: a float would not hold every amount."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What an entry says of a load of the run `run_id`.

    `reason`: why its rows are not kept. `key_columns` tell a row, and `value_columns` are all others: the columns of rows that are
    kept. `undoes`: the load that this one undoes. `written_by`: the number of the transaction that wrote its rows, where it
    tells them.
    """

    table: str
    run_id: str
    kept: Kept
    reason: str | None = None
    key_columns: tuple[str, ...] = ()
    value_columns: tuple[str, ...] = ()
    undoes: int | None = None
    written_by: int | None = None


@dataclass(frozen=True, kw_only=True)
class Change(Entry):
    """The entry of the load `load_id`, committed at `at` (with zone), and the days that the load changed, in order.

    `stamp`: the instant that is in `created_at` or `updated_at` of the rows that it wrote. `undone_by`: the load that undid it.
    """

    load_id: int
    at: datetime
    stamp: datetime
    days: tuple[DayChange, ...]
    undone_by: int | None = None

    @property
    def window(self) -> DayRange:
        """From the first to the last day that changed."""
        return DayRange(self.days[0].day, self.days[-1].day)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Change:
        """The entry from its row, with its days as JSON."""
        return cls(
            table=row["table_name"],
            run_id=row["extraction_id"],
            kept=Kept(row["kept"]),
            reason=row["reason"],
            key_columns=tuple(row["key_columns"]),
            value_columns=tuple(row["value_columns"]),
            undoes=row["undoes"],
            written_by=row["written_by"],
            load_id=row["load_id"],
            at=row["committed_at"],
            stamp=row["stamp"],
            days=tuple(map(DayChange.of, with_decimals(row["days"] or "[]"))),
            undone_by=row["undone_by"],
        )

    def __str__(self) -> str:
        return f"load {self.load_id} of {self.at:%Y-%m-%d %H:%M:%S %Z} (run {self.run_id})"


@dataclass(frozen=True)
class ChangedRow:
    """A row before and after a load, by column; None where there was no row, or is none."""

    day: date
    key: Mapping[str, str | None]
    old: Mapping[str, str | None] | None
    new: Mapping[str, str | None] | None


class Changes:
    """Reads and writes the change log over the caller's connection; the caller owns the transaction."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.loads = sql.Identifier(schema, "etl_changes")
        self.days = sql.Identifier(schema, "etl_changed_days")
        self.rows = sql.Identifier(schema, "etl_changed_rows")

    def begin(self, conn: psycopg.Connection, entry: Entry) -> int:
        """Makes an entry in the transaction of a load, and returns its number."""
        row = conn.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, extraction_id, kept, reason, key_columns, value_columns, undoes, written_by) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING load_id"
            ).format(self.loads),
            (
                *(entry.table, entry.run_id, entry.kept, entry.reason, list(entry.key_columns), list(entry.value_columns)),
                *(entry.undoes, entry.written_by),
            ),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def end(self, conn: psycopg.Connection, load_id: int, days: Sequence[DayChange]) -> None:
        """Writes what the load did to each day."""
        texts = [[json.dumps(dict(parts), default=str) for parts in (day.before, day.after)] for day in days]
        conn.execute(
            # Decimals come as texts, and are stored as numbers.
            sql.SQL(
                "INSERT INTO {} (load_id, day, rows_new, rows_changed, rows_gone, before, after) "
                "SELECT %s, u.day, u.new, u.changed, u.gone, {number}, {other} "
                "FROM unnest(%s::date[], %s::bigint[], %s::bigint[], %s::bigint[], %s::jsonb[], %s::jsonb[]) "
                "AS u (day, new, changed, gone, before, after)"
            ).format(self.days, number=_numbers("before"), other=_numbers("after")),
            (
                load_id,
                [day.day for day in days],
                [day.new for day in days],
                [day.changed for day in days],
                [day.gone for day in days],
                [before for before, _ in texts],
                [after for _, after in texts],
            ),
        )

    def prune(self, conn: psycopg.Connection, table: str, rows_for: timedelta) -> None:
        """Deletes the table's values of rows that are older than `rows_for`, and entries that are older than COUNTS_KEPT.

        Skips what another load deletes at the same time.
        """
        conn.execute(
            sql.SQL(
                "DELETE FROM {rows} WHERE ctid = ANY (ARRAY(SELECT r.ctid FROM {rows} r JOIN {loads} c USING (load_id) "
                "WHERE c.table_name = %s AND c.committed_at < clock_timestamp() - %s FOR UPDATE OF r SKIP LOCKED))"
            ).format(rows=self.rows, loads=self.loads),
            (table, min(rows_for, COUNTS_KEPT)),
        )
        conn.execute(
            sql.SQL(
                "WITH gone AS (DELETE FROM {loads} WHERE load_id = ANY (ARRAY(SELECT load_id FROM {loads} "
                "WHERE table_name = %s AND committed_at < clock_timestamp() - %s FOR UPDATE SKIP LOCKED)) RETURNING load_id) "
                "DELETE FROM {days} d USING gone WHERE d.load_id = gone.load_id"
            ).format(loads=self.loads, days=self.days),
            (table, COUNTS_KEPT),
        )

    def of(self, conn: psycopg.Connection, load_id: int) -> Change | None:
        """The entry of that number."""
        found = self._read(conn, sql.SQL("load_id = %(load)s"), {"load": load_id}, 1)
        return found[0] if found else None

    def latest(self, conn: psycopg.Connection, table: str, limit: int, before: int | None = None) -> list[Change]:
        """The table's last entries, the newest first; those before the number `before`, if it is given."""
        where = sql.SQL("table_name = %(table)s AND load_id < coalesce(%(before)s, 9223372036854775807)")
        return self._read(conn, where, {"table": table, "before": before}, limit)

    def since(self, conn: psycopg.Connection, table: str, at: datetime) -> list[Change]:
        """The table's entries that were committed after `at`, the newest first."""
        return self._read(conn, sql.SQL("table_name = %(table)s AND committed_at > %(at)s"), {"table": table, "at": at}, None)

    def to_undo(self, conn: psycopg.Connection, table: str) -> Change | None:
        """The table's last load that is not undone."""
        where = sql.SQL("table_name = %(table)s AND undoes IS NULL AND undone_by IS NULL")
        found = self._read(conn, where, {"table": table}, 1)
        return found[0] if found else None

    def later(self, conn: psycopg.Connection, change: Change, touches: sql.Composable) -> list[Change]:
        """The loads after `change` that are not undone and that meet the condition `touches` on the entry `c`."""
        where = sql.SQL("table_name = %(table)s AND load_id > %(load)s AND undoes IS NULL AND undone_by IS NULL AND {}").format(
            touches
        )
        return self._read(conn, where, {"table": change.table, "load": change.load_id}, None)

    @property
    def unknown(self) -> sql.Composed:
        """The condition of `later` that the load changed one of the days of the change, and that its rows are not kept."""
        return sql.SQL(
            "(c.kept <> 'rows' AND EXISTS "
            "(SELECT FROM {days} l JOIN {days} e USING (day) WHERE l.load_id = c.load_id AND e.load_id = %(load)s))"
        ).format(days=self.days)

    def undoings(self, conn: psycopg.Connection, change: Change) -> list[tuple[datetime, int | None]]:
        """The stamps of the undoings of the table after `change`, and their transactions."""
        query = sql.SQL("SELECT stamp, written_by FROM {} WHERE table_name = %s AND load_id > %s AND undoes IS NOT NULL")
        return conn.execute(query.format(self.loads), (change.table, change.load_id)).fetchall()

    def undone(self, conn: psycopg.Connection, load_id: int, by: int) -> None:
        """Marks the load as undone."""
        conn.execute(sql.SQL("UPDATE {} SET undone_by = %s WHERE load_id = %s").format(self.loads), (by, load_id))

    def rows_of(
        self, conn: psycopg.Connection, change: Change, limit: int, *, day: date | None = None, offset: int = 0
    ) -> list[ChangedRow]:
        """Rows of the entry, in the order of their days and keys."""
        query = sql.SQL(
            "SELECT day, key, old, new FROM {} WHERE load_id = %s AND day = coalesce(%s, day) ORDER BY day, key, new IS NULL DESC "
            "LIMIT %s OFFSET %s"
        ).format(self.rows)
        found = conn.execute(query, (change.load_id, day, limit, offset))

        def named(values: Sequence[str | None] | None) -> dict[str, str | None] | None:
            return None if values is None else dict(zip(change.value_columns, values, strict=True))

        return [
            ChangedRow(on, dict(zip(change.key_columns, key, strict=True)), named(old), named(new)) for on, key, old, new in found
        ]

    def counted(self, conn: psycopg.Connection, load_ids: Sequence[int], column: str) -> dict[tuple[int, date], int]:
        """How many different values of that column of the key the changed rows have, by load and day. Loads whose rows are not kept
        are left out."""
        query = sql.SQL(
            "SELECT load_id, day, count(DISTINCT key[array_position(key_columns, %s)]) FROM {} JOIN {} USING (load_id) "
            "WHERE load_id = ANY (%s) GROUP BY 1, 2"
        ).format(self.rows, self.loads)
        return {(load_id, day): count for load_id, day, count in conn.execute(query, (column, list(load_ids)))}

    def _read(self, conn: psycopg.Connection, where: sql.Composable, values: Mapping[str, Any], limit: int | None) -> list[Change]:
        query = sql.SQL(
            "SELECT c.*, (SELECT json_agg(d ORDER BY d.day)::text FROM {} d WHERE d.load_id = c.load_id) AS days "
            "FROM {} c WHERE {} ORDER BY load_id DESC LIMIT %(limit)s"
        ).format(self.days, self.loads, where)
        found = conn.cursor(row_factory=dict_row).execute(query, {**values, "limit": limit})
        return [Change.of(row) for row in found]


def _numbers(name: str) -> sql.Composed:
    """An object of texts as an object of numbers."""
    return sql.SQL("coalesce((SELECT jsonb_object_agg(key, value::numeric) FROM jsonb_each_text(u.{})), '{{}}')").format(
        sql.Identifier(name)
    )
