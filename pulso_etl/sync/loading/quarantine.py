"""Keeps rows that can't be loaded in `etl_quarantine`, in the transaction of the data.

A row is stored once, even if many loads meet it. It is stored with the times at which it was first and last seen, and with the last
run that saw it. If one load meets several equal rows, each of them is stored, with a number.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import QuarantineExceeded
from pulso_etl.sync.ledger.migrations import migrate
from pulso_etl.sync.loading.arrow_types import decoded
from pulso_etl.sync.loading.conform import ColumnFault, Reason
from pulso_etl.sync.loading.strategies import STRATEGIES
from pulso_etl.sync.postgres.bookkeeping import exists
from pulso_etl.sync.postgres.encoding import UTF8, Encoding, plain
from pulso_etl.sync.postgres.identifiers import equal, listed
from pulso_etl.sync.postgres.server_errors import meaning
from pulso_etl.sync.schema.statements import DIFF, STAGE, Statements
from pulso_etl.sync.spec import TableSpec

KEEP = """
INSERT INTO {table} (table_name, extraction_id, partition, column_name, reason, source_row, copy)
SELECT %s, %s, partition, column_name, reason, source_row::jsonb,
    row_number() OVER (PARTITION BY partition, column_name, reason, source_row::jsonb::text ORDER BY line)
FROM {lines} ORDER BY line
ON CONFLICT (table_name, partition, column_name, reason, md5(source_row::text), copy)
DO UPDATE SET extraction_id = EXCLUDED.extraction_id, last_seen = now()
"""
LINES = sql.Identifier("pulso_lines")
Line = tuple[date | None, str, str, str]
"""Day, column, reason, and the row as JSON."""
KEPT = sql.Identifier("pulso_kept")
REPEATED = sql.Identifier("pulso_repeated")
TRIAL = sql.Identifier("pulso_trial")
LONG_KEY = 2000
"""An index may refuse a key of this many bytes or more. Its limit of 2,704 bytes includes other columns and bytes of its own."""
MAXIMUM_ROWS = 100_000
"""The most rows that one load may quarantine, whatever their share: they stay in memory until the end of the stream."""


@dataclass
class Quarantine:
    """The rows that one load sets aside, counted by day and by column and reason.

    A row whose day is null, or before the window, counts with the window's first day. The quarantine remembers each usable key:
    the table's row of that key has not vanished and stays as it is, and no other row of the source with that key is loaded.
    """

    spec: TableSpec
    window: DayRange
    encoding: Encoding = UTF8
    by_day: Counter[date] = field(default_factory=Counter)
    by_reason: Counter[str] = field(default_factory=Counter)
    _lines: list[Line] = field(default_factory=list)
    _keys: set[tuple[Any, ...]] = field(default_factory=set)
    _taken_out: Counter[date] = field(default_factory=Counter)
    _kept: set[tuple[Any, ...]] = field(default_factory=set)
    """The keys in the table KEPT."""

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns that identify a row of the source: the key, and the version or the snapshot's day."""
        version = self.spec.partition_column if self.spec.snapshot_of else self.spec.version_column
        return self.spec.primary_key + ((version,) if version and version not in self.spec.primary_key else ())

    @property
    def identifying(self) -> tuple[str, ...]:
        """The columns that must be usable for a row to be remembered: the key, or a snapshot's value and day.

        Other columns of the key are remembered as null if they are not usable. A key with null matches no row.
        """
        return (*self.spec.snapshot_of, self.spec.partition_column) if self.spec.snapshot_of else self.spec.primary_key

    def take(self, batch: pa.RecordBatch, conformed: pa.RecordBatch, faults: list[ColumnFault]) -> pa.RecordBatch:
        """Sets the faulty rows of a batch aside and returns the others: a `conform.Reject`. Raises QuarantineExceeded."""
        good = identified = pa.repeat(True, batch.num_rows)
        unusable: dict[str, pa.Array] = {}
        given = batch.select(list(self.spec.column_names))
        for fault in faults:
            bad = pc.fill_null(fault.rows, False)
            first, good = pc.and_(good, bad), pc.and_not(good, bad)
            if fault.column.name in self.spec.primary_key:
                unusable[fault.column.name] = pc.or_(unusable.get(fault.column.name, bad), bad)
            if fault.column.name in self.identifying:
                identified = pc.and_not(identified, bad)
            days = conformed.column(self.spec.partition_column).filter(first).to_pylist()
            self._add(fault.reason, fault.column.name, days, _rows(given.filter(first)))
        keys = conformed.select(list(self.identity))
        for name, bad in unusable.items():
            known = pc.if_else(bad, pa.scalar(None, keys.schema.field(name).type), keys.column(name))
            keys = keys.set_column(keys.schema.get_field_index(name), pa.field(name, known.type), known)
        keys = keys.filter(pc.and_not(identified, good))
        self._keys.update(zip(*(column.to_pylist() for column in keys.columns), strict=True))
        return conformed.filter(good)

    def take_refused(self, row: pa.RecordBatch, error: psycopg.Error) -> None:
        """Sets aside one row that only the server refused, such as a row too big for a page. Raises QuarantineExceeded."""
        self._add(
            Reason.REFUSED,
            error.diag.column_name or "the row",
            row.column(self.spec.partition_column).to_pylist(),
            row.to_pylist(),
        )
        self._keys.update(zip(*(row.column(name).to_pylist() for name in self.identity), strict=True))

    def remember(self, conn: psycopg.Connection) -> None:
        """Writes the remembered keys to the temporary table KEPT."""
        types = {name: sql.SQL(self.spec.column(name).sql_type) for name in self.identity}
        if not self._kept:
            columns = [sql.SQL("{} {}").format(sql.Identifier(name), kind) for name, kind in types.items()]
            conn.execute(
                sql.SQL("CREATE TEMP TABLE IF NOT EXISTS {} ({}) ON COMMIT DROP").format(KEPT, sql.SQL(", ").join(columns))
            )
        if more := self._keys - self._kept:
            arrays = sql.SQL(", ").join(sql.SQL("%s::{}[]").format(kind) for kind in types.values())
            conn.execute(
                sql.SQL("INSERT INTO {} SELECT * FROM unnest({})").format(KEPT, arrays),
                [list(column) for column in zip(*more, strict=True)],
            )
            self._kept |= more

    def settle(self, conn: psycopg.Connection, staged: Mapping[date, int]) -> None:
        """Takes rows out of the stage whose key repeats or is too long.

        `staged` says how many rows of each day the stage has. Raises QuarantineExceeded.
        """
        self.remember(conn)
        read = sum(staged.values()) + self.by_day.total()
        self._take_unindexable(conn)
        if STRATEGIES[self.spec.loading.strategy].unique:
            self._take_repeated(conn, read)
        self._refuse_excess(self.by_day.total(), read)

    def write(self, conn: psycopg.Connection, schema: str, run_id: str) -> None:
        """Writes every row that was set aside to `etl_quarantine`."""
        if not self._lines:
            return
        _keep(conn, schema, self.spec.name, run_id, self._lines)

    def source_rows(self, staged: Mapping[date, int]) -> Counter[date]:
        """How many rows of each day the source gave; `staged` of them came to the stage."""
        return Counter(staged) + (self.by_day - self._taken_out)

    def kept(self, alias: str) -> sql.Composed:
        """The condition that a row's key is remembered; valid after `settle`."""
        return sql.SQL("EXISTS (SELECT FROM {} k WHERE {})").format(KEPT, equal(self.spec.primary_key, alias, "k"))

    def newer(self, conn: psycopg.Connection, schema: str) -> sql.Composed | None:
        """The condition that the quarantine holds a row of a day after the window, with the snapshot value of the row `v`.

        Such a row counts until another load has read its day. None if no row was ever quarantined.
        """
        if not exists(conn, schema, "etl_quarantine"):
            return None
        same = [
            sql.SQL("v.{}::text = q.source_row->>{}").format(sql.Identifier(name), sql.Literal(name))
            for name in self.spec.snapshot_of
        ]
        if exists(conn, schema, "etl_days"):
            same.append(
                sql.SQL(
                    "NOT EXISTS (SELECT FROM {} d WHERE d.table_name = q.table_name AND d.day = q.partition "
                    "AND d.extraction_id <> q.extraction_id)"
                ).format(sql.Identifier(schema, "etl_days"))
            )
        return sql.SQL("EXISTS (SELECT FROM {} q WHERE q.table_name = {} AND q.partition > %(end)s AND {})").format(
            sql.Identifier(schema, "etl_quarantine"), sql.Literal(self.spec.name), sql.SQL(" AND ").join(same)
        )

    def spare(self, conn: psycopg.Connection, statements: Statements) -> None:
        """Drops differences that would remove or replace a row of the table whose key is remembered."""
        if self._keys:
            same = equal(self.spec.primary_key, "t", "k")
            conn.execute(
                sql.SQL("DELETE FROM {} d USING {} t, {} k WHERE {} AND {}").format(
                    DIFF, statements.target, KEPT, statements.same_row, same
                ),
                {"start": self.window.start, "end": self.window.end},
            )

    def _take_unindexable(self, conn: psycopg.Connection) -> None:
        """Takes rows out of the stage whose key is too long for its index.

        The server compresses keys, so only a trial can tell whether a long key fits.
        """
        texts = [name for name in self.spec.primary_key if not self.spec.column(name).has_width]
        if not texts:
            return
        size = sql.SQL(" + ").join(sql.SQL("octet_length({}::text)").format(sql.Identifier(name)) for name in texts)
        found = conn.execute(sql.SQL("SELECT ctid::text FROM {} WHERE {} > {}").format(STAGE, size, LONG_KEY)).fetchall()
        if not found:
            return
        keys = listed(self.spec.primary_key)
        conn.execute(
            sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {}, 0::bigint AS pulso_room FROM {} LIMIT 0").format(
                TRIAL, keys, STAGE
            )
        )
        conn.execute(sql.SQL("CREATE INDEX ON {} ({}, pulso_room)").format(TRIAL, keys))
        trial = sql.SQL("INSERT INTO {} SELECT {}, 0 FROM {} WHERE ctid = ANY (%s::tid[])").format(TRIAL, keys, STAGE)
        refused = _refused(conn, trial, [address for (address,) in found])
        self._take_out(conn, sql.SQL("WHERE s.ctid = ANY (%s::tid[])"), (refused,), Reason.TOO_LONG)

    def _take_out(self, conn: psycopg.Connection, which: sql.Composable, values: tuple[Any, ...], reason: Reason) -> set[Any]:
        """Takes the rows that `which` selects out of the stage `s`, because of their key; returns what identifies them."""
        columns = self.spec.column_names
        taken = conn.execute(
            sql.SQL("DELETE FROM {} s {} RETURNING {}").format(STAGE, which, listed(columns, "s")), values
        ).fetchall()
        rows = [dict(zip(columns, row, strict=True)) for row in taken]
        days = [row[self.spec.partition_column] for row in rows]
        self._add(reason, ", ".join(self.spec.primary_key), days, rows)
        self._taken_out.update(map(self._counted_on, days))
        return {tuple(row[name] for name in self.identity) for row in rows}

    def _take_repeated(self, conn: psycopg.Connection, read: int) -> None:
        by = listed(self.identity)
        conn.execute(
            sql.SQL(
                "CREATE TEMP TABLE {repeated} ON COMMIT DROP AS SELECT {by}, count(*) FILTER (WHERE pulso_staged) AS pulso_copies "
                "FROM (SELECT {by}, true AS pulso_staged FROM {stage} UNION ALL SELECT {by}, false FROM {kept}) k "
                "GROUP BY {by} HAVING count(*) > 1"
            ).format(repeated=REPEATED, by=by, stage=STAGE, kept=KEPT)
        )
        copies = conn.execute(sql.SQL("SELECT coalesce(sum(pulso_copies), 0)::bigint FROM {}").format(REPEATED)).fetchone()
        if copies is None or not copies[0]:
            return
        named = ", ".join(self.spec.primary_key)
        self._refuse_excess(
            self.by_day.total() + copies[0], read, self.by_reason + Counter({f"{named}: {Reason.DUPLICATE}": copies[0]})
        )
        same = sql.SQL("USING {} r WHERE {}").format(REPEATED, equal(self.identity, "s", "r"))
        self._keys |= self._take_out(conn, same, (), Reason.DUPLICATE)
        self.remember(conn)

    def _add(self, reason: Reason, column: str, days: list[date | None], rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        self.by_day.update(map(self._counted_on, days))
        self.by_reason[f"{column}: {reason}"] += len(rows)
        self._refuse_excess(self.by_day.total())
        self._lines += [(day, column, reason.value, as_json(row, self.encoding)) for day, row in zip(days, rows, strict=True)]

    def _counted_on(self, day: date | None) -> date:
        return self.window.start if day is None else max(day, self.window.start)

    def _refuse_excess(self, rows: int, read: int | None = None, reasons: Counter[str] | None = None) -> None:
        share = self.spec.loading.maximum_quarantined_share
        told = "; ".join(f"{reason} ({count})" for reason, count in (reasons or self.by_reason).most_common(5))
        where, advice = f"{self.spec.name} {self.window}", "correct the source, nothing was loaded or quarantined"
        if read and rows > read * share:
            raise QuarantineExceeded(
                f"{where}: {rows} of {read} rows can't be loaded, more than the share {share:g} that the declaration allows "
                f"(maximum_quarantined_share): {told}; {advice}"
            )
        if rows > MAXIMUM_ROWS:
            raise QuarantineExceeded(f"{where}: more than {MAXIMUM_ROWS} rows can't be loaded: {told}; {advice}")


def _refused(conn: psycopg.Connection, trial: sql.Composed, addresses: list[str]) -> list[str]:
    """The rows that the server refuses. The function halves the rows until it finds them."""
    try:
        with conn.transaction():
            conn.execute(trial, (addresses,))
    except psycopg.Error as error:
        if not meaning(error).by_row:
            raise
        if len(addresses) == 1:
            return addresses
        middle = len(addresses) // 2
        return _refused(conn, trial, addresses[:middle]) + _refused(conn, trial, addresses[middle:])
    return []


def _keep(conn: psycopg.Connection, schema: str, table: str, run_id: str, lines: Sequence[Line]) -> None:
    """Writes the rows. If a row with the same fault is stored already, its last run and last time are updated."""
    quarantine = sql.Identifier(schema, "etl_quarantine")
    # The IO manager has done this before the load.
    migrate(conn, schema)
    conn.execute(
        sql.SQL(
            "CREATE TEMP TABLE {} (line integer, partition date, column_name text, reason text, source_row text) ON COMMIT DROP"
        ).format(LINES)
    )
    with conn.cursor() as cursor, cursor.copy(sql.SQL("COPY {} FROM STDIN").format(LINES)) as copy:
        for number, line in enumerate(lines):
            copy.write_row((number, *line))
    conn.execute(sql.SQL(KEEP).format(table=quarantine, lines=LINES), (table, run_id))


def as_json(row: dict[str, Any], encoding: Encoding = UTF8) -> str:
    """A row as JSON that jsonb takes and that loses nothing: decimals, NaN and infinities as strings, times in ISO 8601.

    jsonb can't hold a NUL character: it is written as the six characters `\\u0000`. A character that the database's encoding
    can't hold is written in the same way.
    """
    return json.dumps(plain({name: _plain(value) for name, value in row.items()}, encoding), ensure_ascii=False)


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as the source gave them. Bytes of a text that are not UTF-8 are written in the form `\\xff`."""
    columns = []
    for column in batch.columns:
        try:
            columns.append(column.to_pylist())
        except UnicodeDecodeError:
            plain = decoded(column)
            raw = plain.cast(pa.list_(pa.binary()) if pa.types.is_list(plain.type) else pa.binary())
            columns.append([_text(value) for value in raw.to_pylist()])
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(one) for one in value]
    return None if value is None else value.decode(errors="backslashreplace")


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return f"\\x{value.hex()}"
        case list() | tuple():
            return [_plain(one) for one in value]
        case Decimal():
            return f"{value:f}"
        case float() if not math.isfinite(value):
            return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
        case str():
            return value.replace("\0", "\\u0000")
        case date():
            return value.isoformat()
        case None | bool() | int() | float():
            return value
    return str(value)
