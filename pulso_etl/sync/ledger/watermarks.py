"""Watermarks (how far each table is loaded) and the append-only history of extractions, both in PostgreSQL.

`etl_watermarks` holds one row a table, its state now, and `etl_running` one for each attempt that goes on: several of a table, over
different days, may. `etl_extractions` gains one row an attempt, when that ends; no row of it is ever changed. How far a table is
loaded follows from its ledger of days (`ledger`), whoever launched the loads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from pulso_etl.sync.days import DayRange, lima_day
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger import ledger
from pulso_etl.sync.ledger.ledger import Day, Ledger
from pulso_etl.sync.ledger.locks import attempt_lock
from pulso_etl.sync.owed import (
    Horizon,
    Loss,
    Settlement,
    Watermark,
    settle,
)
from pulso_etl.sync.postgres.bookkeeping import create_missing, exists
from pulso_etl.sync.postgres.identifiers import quoted_name
from pulso_etl.sync.postgres.strangers import refuse_strangers
from pulso_etl.sync.redaction import scrub, scrubbed
from pulso_etl.sync.spec import TableSpec

CREATE = """
CREATE TABLE IF NOT EXISTS {watermarks} (
    table_name text PRIMARY KEY,
    last_extracted_at timestamptz,
    last_partition date,
    last_extraction_status text NOT NULL CHECK (last_extraction_status IN ('running', 'success', 'failed')),
    records_extracted bigint,
    extraction_duration_seconds double precision,
    error_message text,
    error_cause text,
    extraction_id text,
    recovery_attempts integer NOT NULL DEFAULT 0,
    data_version bigint NOT NULL DEFAULT 0,
    lookback_days integer,
    table_files text,
    looked_at timestamptz,
    metadata jsonb NOT NULL DEFAULT '{{}}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS {history} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name text NOT NULL,
    extraction_id text NOT NULL,
    attempt integer NOT NULL,
    partition_start date NOT NULL,
    partition_end date NOT NULL,
    status text NOT NULL CHECK (status IN ('success', 'failed')),
    records_extracted bigint,
    extraction_duration_seconds double precision,
    error_message text,
    error_cause text,
    metadata jsonb NOT NULL DEFAULT '{{}}',
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS etl_extractions_table_idx ON {history} (table_name, id DESC);
CREATE INDEX IF NOT EXISTS etl_extractions_finished_idx ON {history} (table_name, finished_at);
"""
CREATE_RUNNING = """
CREATE TABLE IF NOT EXISTS {running} (
    table_name text NOT NULL,
    extraction_id text NOT NULL,
    attempt integer NOT NULL,
    partition_start date NOT NULL,
    partition_end date NOT NULL,
    started_at timestamptz NOT NULL,
    PRIMARY KEY (table_name, extraction_id, attempt)
);
"""
IS_CURRENT = """
SELECT to_regclass(%(running)s) IS NOT NULL AND to_regclass(%(finished)s) IS NOT NULL AND to_regclass(%(days)s) IS NOT NULL AND (
    SELECT count(*) = 5 FROM pg_attribute WHERE NOT attisdropped
    AND attrelid = to_regclass(%(watermarks)s)
    AND attname IN ('data_version', 'lookback_days', 'table_files', 'looked_at', 'error_cause')
) AND (
    SELECT count(*) = 2 FROM pg_attribute WHERE NOT attisdropped
    AND attrelid = to_regclass(%(days)s) AND attname IN ('found', 'open_until')
)
"""
UPGRADE = """
CREATE INDEX IF NOT EXISTS etl_extractions_finished_idx ON {history} (table_name, finished_at);
ALTER TABLE {watermarks} ADD COLUMN IF NOT EXISTS data_version bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS lookback_days integer,
    ADD COLUMN IF NOT EXISTS table_files text,
    ADD COLUMN IF NOT EXISTS looked_at timestamptz,
    ADD COLUMN IF NOT EXISTS error_cause text;
ALTER TABLE {history} ADD COLUMN IF NOT EXISTS error_cause text;
INSERT INTO {running} SELECT table_name, extraction_id, (metadata->>'attempt')::int, (metadata->>'partition_start')::date,
    (metadata->>'partition_end')::date, (metadata->>'started_at')::timestamptz
FROM {watermarks} WHERE last_extraction_status = 'running' ON CONFLICT DO NOTHING;
"""
KNOWN_DAYS = """
(SELECT jsonb_object_agg(d.day, jsonb_build_array(d.read_at, d.open_until, d.loaded_at)) FROM {days} d
 WHERE d.table_name = w.table_name AND (d.day > w.last_partition - w.lookback_days
    OR (d.read_at AT TIME ZONE 'America/Lima')::date < d.open_until OR d.read_at > clock_timestamp()))
"""
"""Of the ledger, the days that may be owed. Others from the lookback of now on were final by that of the last load, which was
smaller, and count as not read: they are owed either way."""
NAME = "(quote_ident({schema}) || '.' || quote_ident(w.table_name))"
LOST = f"""
(SELECT jsonb_build_array(min(d.day), max(d.day), sum(d.rows - CASE WHEN to_regclass({NAME}) IS NULL THEN 0 ELSE d.found END))
 FROM {{days}} d WHERE d.table_name = w.table_name
 AND CASE WHEN to_regclass({NAME}) IS NULL THEN d.rows > 0 ELSE d.found < d.rows END)
"""  # noqa: S608 - made of constants
"""Of the ledger, the days that hold fewer rows than their last load left: all of them where the table is gone."""
REPLACED = f"coalesce(w.table_files <> {ledger.FILES.format(name=NAME)}, false)"
LOOK_EVERY = timedelta(days=1)
"""How often the rows of each day are counted where nothing says that the table was touched."""
CHANNEL = "pulso_etl_data"
"""Where PostgreSQL notifies of each load that changed rows: JSON with schema, table, data_version, first and last partition."""
ABANDONED = "the attempt ended without a word: its process or its server session was killed"


@dataclass(frozen=True)
class Extraction:
    """One attempt to load one range: which run (Dagster's id), which try of it (from 1), since when (with zone)."""

    table: str
    window: DayRange
    run_id: str
    attempt: int
    started_at: datetime

    def as_metadata(self) -> dict[str, Any]:
        return {
            "attempt": self.attempt,
            "partition_start": str(self.window.start),
            "partition_end": str(self.window.end),
            "started_at": self.started_at.isoformat(),
        }

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Extraction:
        """The attempt out of its row of `etl_running`, as JSON."""
        window = DayRange.parse(row["partition_start"], row["partition_end"])
        return cls(row["table_name"], window, row["extraction_id"], row["attempt"], datetime.fromisoformat(row["started_at"]))

    def lock(self, schema: str) -> int:
        """The key of the lock that the attempt's session holds for as long as the attempt lives."""
        return attempt_lock(schema, self.table, self.run_id, self.attempt)


@dataclass(frozen=True)
class Attempt:
    """An attempt that is over: what it loaded, whether that went well, and when (with zone) it began and ended.

    `error` is the reason of a failure for people, `cause` the one for programs; `metadata` is what the load told of itself.
    `withdrawn`: its run was cancelled before it began.
    """

    run_id: str
    window: DayRange
    succeeded: bool
    started_at: datetime
    finished_at: datetime
    error: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    withdrawn: bool = False
    cause: Cause | None = None


@dataclass(frozen=True)
class Loaded:
    """What a load that went well says of itself.

    `read_at`: when its rows were read, by the server's clock. `rows`: how many each day of its range holds now. `records` were read
    from the source, `seconds` is how long it took in all. `changed`: rows of the table are not as they were.
    """

    read_at: datetime
    rows: Mapping[date, int]
    records: int
    seconds: float
    changed: bool
    horizon: Horizon = field(default_factory=Horizon)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TableState:
    """A table's row of `etl_watermarks`. Instants carry a zone; the duration is in seconds."""

    table_name: str
    last_extracted_at: datetime | None
    last_partition: date | None
    status: str
    records: int | None
    seconds: float | None
    error: str | None
    extraction_id: str | None
    recovery_attempts: int
    metadata: dict[str, Any]
    updated_at: datetime
    data_version: int = 0
    """Greater by one after each load that changed rows, and never otherwise."""
    running: tuple[Extraction, ...] = ()
    """The attempts that go on, the oldest first; one may have died without a word."""
    attempts: tuple[Attempt, ...] = ()
    days: Mapping[date, Day] = field(default_factory=dict)
    """The days of the ledger that may be owed."""
    lost: Loss | None = None
    replaced: bool = False
    cause: Cause | None = None
    """Why the last attempt failed, where it did."""

    @property
    def watermark(self) -> Watermark:
        return Watermark(self.last_extracted_at, self.last_partition, self.days, self.lost, self.replaced)


class Watermarks:
    """Reads and writes these tables over the caller's connection; the caller owns the transaction."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.table = sql.Identifier(schema, "etl_watermarks")
        self.running = sql.Identifier(schema, "etl_running")
        self.history = sql.Identifier(schema, "etl_extractions")
        self.ledger = Ledger(schema)

    def create(self, conn: psycopg.Connection) -> None:
        """Creates schema and tables where they are missing, one process at a time."""
        create_missing(conn, self.schema, "etl_extractions", sql.SQL(CREATE).format(watermarks=self.table, history=self.history))
        self._upgrade(conn)

    def _upgrade(self, conn: psycopg.Connection) -> None:
        """Adds what an earlier release did not make. Looked for first, since ALTER TABLE locks all others out."""
        finished = sql.Identifier(self.schema, "etl_extractions_finished_idx")
        names = {"watermarks": self.table, "running": self.running, "finished": finished, "days": self.ledger.days}
        if conn.execute(IS_CURRENT, {key: name.as_string(conn) for key, name in names.items()}).fetchone() == (True,):
            return
        create_missing(conn, self.schema, "etl_running", sql.SQL(CREATE_RUNNING).format(running=self.running))
        create_missing(conn, self.schema, "etl_days", sql.SQL(ledger.CREATE).format(days=self.ledger.days))
        conn.execute(sql.SQL(UPGRADE).format(watermarks=self.table, running=self.running, history=self.history))
        # In the columns of the watermarks that the statement before has made sure of.
        conn.execute(sql.SQL(ledger.UPGRADE).format(days=self.ledger.days, watermarks=self.table))

    def abandon(self, conn: psycopg.Connection, extraction: Extraction, reason: str, cause: Cause = Cause.ABANDONED) -> bool:
        """Ends an attempt that is dead: it enters the history as failed, and counts as a recovery.

        The caller holds the attempt's lock, which it would not have let go alive. Returns whether it was marked as running.
        """
        if not self._leave(conn, extraction):
            return False
        conn.execute(
            sql.SQL(
                "UPDATE {} SET last_extraction_status = {}, error_message = %(reason)s, error_cause = %(cause)s, "
                "recovery_attempts = recovery_attempts + 1, updated_at = clock_timestamp() WHERE table_name = %(table)s"
            ).format(self.table, self._status("failed")),
            {"reason": reason, "cause": cause, "table": extraction.table},
        )
        values = self._values(extraction, (datetime.now(UTC) - extraction.started_at).total_seconds(), {})
        self._append(conn, values | {"status": "failed", "error": reason, "cause": cause, "records": None})
        return True

    def start(self, conn: psycopg.Connection, extraction: Extraction) -> None:
        """Marks the table as running, after ending attempts that died without a word.

        The caller's session holds the locks of the load, and the attempt's own. Raises SchemaRefused (see `strangers`).
        """
        refuse_strangers(conn, self.schema)
        for other in self._running(conn, extraction.table):
            # For this transaction: whoever looks at the same time must not end it a second time.
            if conn.execute("SELECT pg_try_advisory_xact_lock(%s)", (other.lock(self.schema),)).fetchone() == (True,):
                self.abandon(conn, other, ABANDONED)
        conn.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, extraction_id, attempt, partition_start, partition_end, started_at) "
                "VALUES (%(table)s, %(run)s, %(attempt)s, %(start)s, %(end)s, %(started)s) "
                "ON CONFLICT (table_name, extraction_id, attempt) DO NOTHING"
            ).format(self.running),
            self._values(extraction, 0, {}),
        )
        conn.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, last_extraction_status, extraction_id, metadata) "
                "VALUES (%(table)s, 'running', %(run)s, %(metadata)s) "
                "ON CONFLICT (table_name) DO UPDATE SET last_extraction_status = 'running', extraction_id = %(run)s, "
                "metadata = %(metadata)s, error_message = NULL, error_cause = NULL, updated_at = clock_timestamp()"
            ).format(self.table),
            {"table": extraction.table, "run": extraction.run_id, "metadata": Jsonb(extraction.as_metadata())},
        )

    def succeed(self, conn: psycopg.Connection, extraction: Extraction, loaded: Loaded) -> Settlement:
        """Success, in the transaction that holds the data; returns what it makes of the watermark.

        Where the load changed rows, those who listen are told at the commit.
        """
        # First, as it lets one attempt of the table end after the other: each sees what those before have read.
        self._leave(conn, extraction)
        self.ledger.record(conn, extraction.table, loaded.rows, loaded.read_at, loaded.horizon, extraction.run_id)
        settlement = self._settle(conn, extraction.table, loaded.horizon, loaded.read_at)
        values = self._values(extraction, loaded.seconds, {**loaded.metadata, **settlement.as_metadata()}) | {
            "records": loaded.records,
            "changed": int(loaded.changed),
            "lookback": loaded.horizon.lookback_days,
            "at": settlement.watermark.last_extracted_at,
            "last": settlement.watermark.last_partition,
        }
        row = conn.execute(
            sql.SQL(
                "UPDATE {} SET last_extraction_status = {status}, extraction_id = %(run)s, records_extracted = %(records)s, "
                "extraction_duration_seconds = %(seconds)s, error_message = NULL, error_cause = NULL, metadata = %(metadata)s, "
                "recovery_attempts = 0, data_version = data_version + %(changed)s, updated_at = clock_timestamp(), "
                "last_extracted_at = %(at)s, last_partition = %(last)s, lookback_days = %(lookback)s "
                "WHERE table_name = %(table)s RETURNING data_version"
            ).format(self.table, status=self._status("success")),
            values,
        ).fetchone()
        self._append(conn, values | {"status": "success", "error": None, "cause": None})
        if loaded.changed and row is not None:
            told = {"schema": self.schema, "table": extraction.table, "data_version": row[0]}
            days = {"first": str(extraction.window.start), "last": str(extraction.window.end)}
            conn.execute("SELECT pg_notify(%s, %s)", (CHANNEL, json.dumps(told | days)))
        return settlement

    def _settle(self, conn: psycopg.Connection, table: str, horizon: Horizon, at: datetime) -> Settlement:
        """What the ledger makes of the watermark. The caller has locked the table's row."""
        query = sql.SQL("SELECT last_extracted_at, last_partition FROM {} WHERE table_name = %s").format(self.table)
        extracted, last = conn.execute(query, (table,)).fetchone() or (None, None)
        return settle(horizon, Watermark(extracted, last, self.ledger.readings(conn, table)), at)

    def look(self, conn: psycopg.Connection, spec: TableSpec, every: timedelta | None = None) -> None:
        """Counts the rows of each day, and notes in the ledger which hold fewer than their last load left.

        `every`: not where the last look is younger than that and the table lies in the same files as then. In a transaction of its
        own, or the caller's; loads that end meanwhile wait.
        """
        files = self._files(spec)
        with conn.transaction():
            refuse_strangers(conn, self.schema, spec.name)
            due = conn.execute(
                sql.SQL(
                    "SELECT {files} IS DISTINCT FROM table_files OR coalesce(looked_at < clock_timestamp() - %s, true), "
                    "{files} IS NOT NULL FROM {} WHERE table_name = %s FOR UPDATE"
                ).format(self.table, files=files),
                (every or timedelta(0), spec.name),
            ).fetchone()
            # Of a table that is gone all is missing, which needs no look.
            if due != (True, True):
                return
            self.ledger.look(conn, spec, lima_day(ledger.server_clock(conn)))
            conn.execute(
                sql.SQL("UPDATE {} SET table_files = {}, looked_at = clock_timestamp() WHERE table_name = %s").format(
                    self.table, files
                ),
                (spec.name,),
            )

    def keep_files(self, conn: psycopg.Connection, spec: TableSpec) -> None:
        """In a load's transaction, after its success: looks at the days that it did not load, where the table was emptied, dropped,
        restored or rewritten since the last one."""
        query = sql.SQL("SELECT coalesce(table_files <> {}, false) FROM {} WHERE table_name = %s").format(
            self._files(spec), self.table
        )
        if conn.execute(query, (spec.name,)).fetchone() == (True,):
            self.look(conn, spec)
        else:
            conn.execute(
                sql.SQL("UPDATE {} SET table_files = {} WHERE table_name = %s AND table_files IS NULL").format(
                    self.table, self._files(spec)
                ),
                (spec.name,),
            )

    @contextmanager
    def taking_over(self, conn: psycopg.Connection, spec: TableSpec, window: DayRange) -> Iterator[None]:
        """Around a load of the window, in its transaction: where a key lives in several partitions, days outside of the window lose
        and gain rows by it."""
        if spec.partition_in_key:
            yield
            return
        refuse_strangers(conn, self.schema, spec.name)
        there = conn.execute("SELECT to_regclass(%s)", (quoted_name(self.schema, spec.name),)).fetchone() != (None,)
        before = self.ledger.rows_by_day(conn, spec) if there else {}
        yield
        after = self.ledger.rows_by_day(conn, spec)
        changes = {day: after.get(day, 0) - before.get(day, 0) for day in before.keys() | after.keys() if day not in window}
        self.ledger.shift(conn, spec.name, {day: change for day, change in changes.items() if change})

    def _files(self, spec: TableSpec) -> sql.Composed:
        return sql.SQL(ledger.FILES).format(name=sql.Literal(quoted_name(self.schema, spec.name)))

    def fail(
        self,
        conn: psycopg.Connection,
        extraction: Extraction,
        *,
        error: str,
        cause: Cause,
        seconds: float,
        metadata: Mapping[str, Any],
    ) -> None:
        """Failure with its reason, after the data were rolled back. Does nothing where the attempt was ended by others."""
        told = {"error": scrub(error)[:4000].replace("\0", ""), "cause": cause, "records": None}
        values = self._values(extraction, seconds, metadata) | told
        if not self._leave(conn, extraction):
            return
        conn.execute(
            sql.SQL(
                "UPDATE {} SET last_extraction_status = {}, extraction_id = %(run)s, error_message = %(error)s, "
                "error_cause = %(cause)s, metadata = %(metadata)s, extraction_duration_seconds = %(seconds)s, "
                "updated_at = clock_timestamp() "
                "WHERE table_name = %(table)s"
            ).format(self.table, self._status("failed")),
            values,
        )
        self._append(conn, values | {"status": "failed"})

    def unchanged(self, conn: psycopg.Connection, table: str, days: Sequence[date], as_of: datetime, horizon: Horizon) -> None:
        """Days that have not changed at the source since they were loaded, as it told after the instant `as_of` (the server's
        clock): they are as good as read then. In a transaction of its own.
        """
        with conn.transaction():
            self._lock(conn, table)
            self.ledger.unchanged(conn, table, days, as_of, horizon)
            settled = self._settle(conn, table, horizon, as_of).watermark
            conn.execute(
                sql.SQL(
                    "UPDATE {} SET last_extracted_at = %(at)s, last_partition = %(last)s, metadata = metadata || %(metadata)s, "
                    "updated_at = clock_timestamp() WHERE table_name = %(table)s"
                ).format(self.table),
                {
                    "table": table,
                    "at": settled.last_extracted_at,
                    "last": settled.last_partition,
                    "metadata": Jsonb({"partitions_verified": len(days), "verified_at": as_of.isoformat()}),
                },
            )

    def read(self, conn: psycopg.Connection, since: datetime | None = None) -> dict[str, TableState]:
        """The state of every table that was ever refreshed, by name, with its attempts that ended after `since`; one query."""
        if not exists(conn, self.schema, "etl_extractions"):
            return {}
        self._upgrade(conn)
        return self.states(conn.execute(*self.query(since)).fetchall())

    def query(self, since: datetime | None = None) -> tuple[sql.Composed, tuple[datetime]]:
        """The query of `read`, with its parameters, for those who run it themselves and give its rows to `states`."""
        query = sql.SQL(
            "SELECT w.table_name, last_extracted_at, last_partition, last_extraction_status, w.records_extracted, "
            "w.extraction_duration_seconds, w.error_message, w.extraction_id, recovery_attempts, w.metadata, w.updated_at, "
            "data_version, (SELECT jsonb_agg(r ORDER BY r.started_at) FROM {} r WHERE r.table_name = w.table_name), "
            "{}, {}, {}, e.extraction_id, e.partition_start, e.partition_end, status = 'success', e.started_at, e.finished_at, "
            "e.error_message, e.metadata, e.error_cause, w.error_cause "
            "FROM {} w LEFT JOIN {} e ON e.table_name = w.table_name AND e.finished_at > %s ORDER BY w.table_name, e.id"
        ).format(
            self.running,
            *(sql.SQL(part).format(days=self.ledger.days, schema=self.schema) for part in (KNOWN_DAYS, LOST, REPLACED)),
            self.table,
            self.history,
        )
        return query, (since or datetime.max.replace(tzinfo=UTC),)

    def states(self, rows: Sequence[tuple[Any, ...]]) -> dict[str, TableState]:
        """What the rows of `query` tell, by table."""
        states: dict[str, TableState] = {}
        for table, entries in groupby(rows, key=lambda row: row[0]):
            found = list(entries)
            running = tuple(Extraction.of(row) for row in found[0][12] or ())
            days = {
                date.fromisoformat(day): Day(datetime.fromisoformat(at), date.fromisoformat(until), datetime.fromisoformat(loaded))
                for day, (at, until, loaded) in (found[0][13] or {}).items()
            }
            first, last, missing = found[0][14]
            lost = Loss(DayRange.parse(first, last), int(missing)) if missing else None
            attempts = tuple(
                Attempt(*(row[16], DayRange(row[17], row[18]), *row[19:24], False, _cause(row[24], failed=not row[19])))
                for row in found
                if row[16] is not None
            )
            cause = _cause(found[0][25], failed=found[0][3] == "failed")
            states[table] = TableState(*(*found[0][:12], running, attempts, days, lost, found[0][15], cause))
        return states

    def ever_loaded(self, conn: psycopg.Connection, table: str) -> bool:
        """Whether a load of the table has ended well, at any time."""
        if not exists(conn, self.schema, "etl_extractions"):
            return False
        query = sql.SQL("SELECT FROM {} WHERE table_name = %s AND status = 'success' LIMIT 1").format(self.history)
        return conn.execute(query, (table,)).fetchone() is not None

    def billed(self, conn: psycopg.Connection, since: datetime) -> int:
        """Bytes that attempts which ended since then were billed, failed ones included."""
        if not exists(conn, self.schema, "etl_extractions"):
            return 0
        row = conn.execute(
            sql.SQL("SELECT coalesce(sum((metadata->>'bytes_billed')::numeric), 0)::bigint FROM {} WHERE finished_at >= %s").format(
                self.history
            ),
            (since,),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def _running(self, conn: psycopg.Connection, table: str) -> list[Extraction]:
        """The table's attempts that are marked as running."""
        query = sql.SQL("SELECT to_jsonb(r) FROM {} r WHERE table_name = %s").format(self.running)
        return [Extraction.of(row) for (row,) in conn.execute(query, (table,)).fetchall()]

    def _leave(self, conn: psycopg.Connection, extraction: Extraction) -> bool:
        """The attempt goes on no longer; whether it was marked as running."""
        # One after the other: of two that end at once, neither would see the other gone, and the table would stay running.
        self._lock(conn, extraction.table)
        ended = conn.execute(
            sql.SQL("DELETE FROM {} WHERE table_name = %s AND extraction_id = %s AND attempt = %s").format(self.running),
            (extraction.table, extraction.run_id, extraction.attempt),
        )
        return ended.rowcount > 0

    def _lock(self, conn: psycopg.Connection, table: str) -> None:
        refuse_strangers(conn, self.schema)
        conn.execute(sql.SQL("SELECT FROM {} WHERE table_name = %s FOR UPDATE").format(self.table), (table,))

    def _status(self, ended: str) -> sql.Composed:
        """The table's status after an attempt that `ended` so: while others of it go on, it is running."""
        return sql.SQL("CASE WHEN EXISTS (SELECT FROM {} r WHERE r.table_name = {}.table_name) THEN 'running' ELSE {} END").format(
            self.running, self.table, ended
        )

    def _values(self, extraction: Extraction, seconds: float, metadata: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "table": extraction.table,
            "run": extraction.run_id,
            "attempt": extraction.attempt,
            "start": extraction.window.start,
            "end": extraction.window.end,
            "started": extraction.started_at,
            "seconds": seconds,
            "metadata": Jsonb(scrubbed({**extraction.as_metadata(), **metadata})),
        }

    def _append(self, conn: psycopg.Connection, values: dict[str, Any]) -> None:
        conn.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, extraction_id, attempt, partition_start, partition_end, status, records_extracted, "
                "extraction_duration_seconds, error_message, error_cause, metadata, started_at) VALUES (%(table)s, %(run)s, "
                "%(attempt)s, %(start)s, %(end)s, %(status)s, %(records)s, %(seconds)s, %(error)s, %(cause)s, %(metadata)s, "
                "%(started)s)"
            ).format(self.history),
            values,
        )


def _cause(written: str | None, *, failed: bool) -> Cause | None:
    """The cause as it stands in a row; a row of an earlier release has none."""
    return Cause.of(written) if failed else None
