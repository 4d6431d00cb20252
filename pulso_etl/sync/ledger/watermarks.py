"""Watermarks (how far each table is loaded) and the append-only history of extractions, both in PostgreSQL.

`etl_watermarks` has one row per table: its present state. `etl_running` has one row per running attempt; a table may have several,
over different days. `etl_extractions` gets one row per attempt when the attempt ends, and no row of it ever changes. The ledger of
days (`ledger`) decides how far a table is loaded. It does not matter who launched the loads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger import ledger
from pulso_etl.sync.ledger.ledger import Day, Ledger, Loaded, Unchanged
from pulso_etl.sync.ledger.locks import attempt_lock
from pulso_etl.sync.ledger.migrations import LedgerState, migrate, state
from pulso_etl.sync.ledger.queries import Queries, Usage
from pulso_etl.sync.owed import (
    NEVER_FINAL,
    Horizon,
    Loss,
    Settlement,
    Watermark,
    settle,
)
from pulso_etl.sync.postgres.identifiers import quoted_name
from pulso_etl.sync.postgres.strangers import refuse_strangers
from pulso_etl.sync.reasons import Reasons
from pulso_etl.sync.redaction import scrub, scrubbed
from pulso_etl.sync.source_state import KeptPartitions, PartitionStates, SourceState
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.zone import DEFAULT_ZONE

KNOWN_DAYS = """
(SELECT jsonb_object_agg(d.day, to_jsonb(d)) FROM {days} d
 WHERE d.table_name = w.table_name AND (d.day > w.last_partition - w.lookback_days
    OR (d.read_at AT TIME ZONE coalesce(w.timezone, {zone}))::date < d.open_until OR d.read_at > clock_timestamp()))
"""
"""The days of the ledger that may be owed. If the lookback has grown since the last load, the new days are missing. They count
as not read, so they are owed too."""
NAME = "(quote_ident({schema}) || '.' || quote_ident(w.table_name))"
GONE = f"(SELECT to_regclass({NAME}) IS NULL)"
"""Whether the table is gone. As a query of its own, the server looks this up once for all days of the table."""
LOST = f"""
(SELECT jsonb_build_array(min(d.day), max(d.day), sum(d.rows - CASE WHEN {GONE} THEN 0 ELSE d.found END))
 FROM {{days}} d WHERE d.table_name = w.table_name AND CASE WHEN {GONE} THEN d.rows > 0 ELSE d.found < d.rows END)
"""  # noqa: S608 - made of constants
"""The days of the ledger that have fewer rows than after their last load; all days with rows if the table is gone."""
ATTEMPTS = """
(SELECT jsonb_agg(jsonb_build_object(
    'run', e.extraction_id, 'first', e.partition_start, 'last', e.partition_end, 'status', e.status, 'began', e.started_at,
    'ended', e.finished_at, 'error', e.error_message, 'cause', e.error_cause, 'metadata', e.metadata) ORDER BY e.id)
 FROM {history} e WHERE e.table_name = w.table_name AND e.finished_at > %s)
"""
"""The attempts that ended after an instant. A join would repeat the table's row, and look up its days, for each of them."""
REPLACED = f"coalesce(w.table_files <> {ledger.FILES.format(name=NAME)}, false)"
LOOK_EVERY = timedelta(days=1)
"""How often the rows of each day are counted if there is no sign of a foreign change."""
CHANNEL = "pulso_etl_data"
"""Where PostgreSQL notifies of each load that changed rows: JSON with schema, table, data_version, load_id (see
`changes`), first and last partition."""
ABANDONED = "the attempt ended without a word: its process or its server session was killed"


@dataclass(frozen=True)
class RunningAttempt:
    """One attempt to load one range: which run (Dagster's id), which try of it (from 1), since when (with zone), and why."""

    table: str
    window: DayRange
    run_id: str
    attempt: int
    started_at: datetime
    reasons: Reasons | None = None

    def as_metadata(self) -> dict[str, Any]:
        return {
            **(self.reasons.as_metadata() if self.reasons else {}),
            "attempt": self.attempt,
            "partition_start": str(self.window.start),
            "partition_end": str(self.window.end),
            "started_at": self.started_at.isoformat(),
        }

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> RunningAttempt:
        """The attempt from its row of `etl_running`, as JSON."""
        window = DayRange.parse(row["partition_start"], row["partition_end"])
        reasons = Reasons.of_metadata(row["reasons"]) if row.get("reasons") else None
        started = datetime.fromisoformat(row["started_at"])
        return cls(row["table_name"], window, row["extraction_id"], row["attempt"], started, reasons)

    def lock(self, schema: str) -> int:
        """The key of the lock that the attempt's session holds for as long as the attempt lives."""
        return attempt_lock(schema, self.table, self.run_id, self.attempt)


@dataclass(frozen=True)
class Attempt:
    """A finished attempt: what it loaded, whether it succeeded, and when (with zone) it began and ended.

    `error` is the reason of a failure for people, `cause` is the reason for programs. `metadata` is the load's own report.
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

    @property
    def is_undoing(self) -> bool:
        """Whether it undid a load, and read nothing."""
        return "undoes" in self.metadata

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Attempt:
        """The attempt from its JSON in a row of `Watermarks.query`."""
        return cls(
            run_id=row["run"],
            window=DayRange.parse(row["first"], row["last"]),
            succeeded=row["status"] == "success",
            started_at=datetime.fromisoformat(row["began"]),
            finished_at=datetime.fromisoformat(row["ended"]),
            error=row["error"],
            metadata=row["metadata"],
            cause=_cause(row["cause"], failed=row["status"] == "failed"),
        )


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
    """Rises by one with each load that changes rows, and never otherwise."""
    running: tuple[RunningAttempt, ...] = ()
    """The attempts that are marked as running, the oldest first. An attempt may have died without a report."""
    attempts: tuple[Attempt, ...] = ()
    days: Mapping[date, Day] = field(default_factory=dict)
    """The days of the ledger that may be owed."""
    lost: Loss | None = None
    replaced: bool = False
    cause: Cause | None = None
    """Why the last attempt failed, if it failed."""
    source: SourceState | None = None
    """What the source was like when days of the table were last read or found unchanged."""
    held_until: datetime | None = None
    """Until then only people refresh the table; see `Watermark`."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> TableState:
        """The table's state in a row of `Watermarks.query`."""
        first, last, missing = row["lost"]
        return cls(
            table_name=row["table_name"],
            last_extracted_at=row["last_extracted_at"],
            last_partition=row["last_partition"],
            status=row["last_extraction_status"],
            records=row["records_extracted"],
            seconds=row["extraction_duration_seconds"],
            error=row["error_message"],
            extraction_id=row["extraction_id"],
            recovery_attempts=row["recovery_attempts"],
            metadata=row["metadata"],
            updated_at=row["updated_at"],
            data_version=row["data_version"],
            running=tuple(RunningAttempt.of(one) for one in row["running"] or ()),
            attempts=tuple(Attempt.of(one) for one in row["attempts"] or ()),
            days={date.fromisoformat(day): Day.of(known) for day, known in (row["days"] or {}).items()},
            lost=Loss(DayRange.parse(first, last), int(missing)) if missing else None,
            replaced=row["replaced"],
            cause=_cause(row["error_cause"], failed=row["last_extraction_status"] == "failed"),
            source=SourceState(row["source_state"]) if row["source_state"] else None,
            held_until=row["held_until"],
        )

    @property
    def watermark(self) -> Watermark:
        return Watermark(self.last_extracted_at, self.last_partition, self.days, self.lost, self.replaced, self.held_until)


@dataclass(frozen=True)
class Reverted:
    """What an undoing left: the number of rows of each day, until when only people refresh the table, and how long it took."""

    rows: Mapping[date, int]
    held_until: datetime | None
    seconds: float
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Watermarks:
    """Reads and writes these tables over the caller's connection; the caller owns the transaction."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.table = sql.Identifier(schema, "etl_watermarks")
        self.running = sql.Identifier(schema, "etl_running")
        self.history = sql.Identifier(schema, "etl_extractions")
        self.ledger = Ledger(schema)
        self.queries = Queries(schema)

    def create(self, conn: psycopg.Connection) -> None:
        """Creates missing tables, and migrates tables of an earlier release; see `migrate`."""
        migrate(conn, self.schema)

    def abandon(self, conn: psycopg.Connection, extraction: RunningAttempt, reason: str, cause: Cause = Cause.ABANDONED) -> bool:
        """Ends a dead attempt: it enters the history as failed, and counts as a recovery.

        The caller holds the attempt's lock; a living attempt never releases it. Returns whether it was marked as running.
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

    def start(self, conn: psycopg.Connection, extraction: RunningAttempt) -> None:
        """Ends attempts that died without a report, and marks the table as running.

        The caller's session holds the locks of the load, and the attempt's own. Raises SchemaRefused (see `strangers`).
        """
        refuse_strangers(conn, self.schema)
        for other in self._running(conn, extraction.table):
            # Held until the end of this transaction, so that nobody else ends the attempt a second time.
            if conn.execute("SELECT pg_try_advisory_xact_lock(%s)", (other.lock(self.schema),)).fetchone() == (True,):
                self.abandon(conn, other, ABANDONED)
        conn.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, extraction_id, attempt, partition_start, partition_end, started_at, reasons) "
                "VALUES (%(table)s, %(run)s, %(attempt)s, %(start)s, %(end)s, %(started)s, %(reasons)s) "
                "ON CONFLICT (table_name, extraction_id, attempt) DO NOTHING"
            ).format(self.running),
            self._values(extraction, 0, {})
            | {"reasons": Jsonb(scrubbed(extraction.reasons.as_metadata())) if extraction.reasons else None},
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

    def succeed(self, conn: psycopg.Connection, extraction: RunningAttempt, loaded: Loaded) -> Settlement:
        """Records a success, in the transaction of the data. Returns the new watermark and the owed days.

        If the load changed rows, PostgreSQL notifies listeners at the commit.
        """
        # First, because its lock lets the table's attempts end one after the other: each sees the readings of the earlier ones.
        self._leave(conn, extraction)
        self.ledger.record(conn, extraction.table, extraction.run_id, loaded)
        settlement = self._settle(conn, extraction.table, loaded.horizon, loaded.read_at)
        values = self._values(extraction, loaded.seconds, {**loaded.metadata, **settlement.as_metadata()}) | {
            "records": loaded.records,
            "changed": int(loaded.changed),
            "lookback": loaded.horizon.lookback_days,
            "zone": loaded.horizon.zone.name,
            "source": Jsonb(loaded.source.facts) if loaded.source else None,
            "partitions": _partitions_as_json(loaded.source, loaded.read_at),
            "source_changed": loaded.source_changed_at,
            "at": settlement.watermark.last_extracted_at,
            "last": settlement.watermark.last_partition,
        }
        row = conn.execute(
            sql.SQL(
                "UPDATE {} SET last_extraction_status = {status}, extraction_id = %(run)s, records_extracted = %(records)s, "
                "extraction_duration_seconds = %(seconds)s, error_message = NULL, error_cause = NULL, metadata = %(metadata)s, "
                "recovery_attempts = 0, data_version = data_version + %(changed)s, updated_at = clock_timestamp(), "
                "last_extracted_at = %(at)s, last_partition = %(last)s, lookback_days = %(lookback)s, "
                "timezone = %(zone)s, source_state = coalesce(%(source)s, source_state), "
                "source_partitions = coalesce(source_partitions, '{{}}') || %(partitions)s, "
                "held_until = CASE WHEN held_until IS NOT NULL AND EXISTS "
                "(SELECT FROM {days} WHERE table_name = %(table)s AND open_until = %(undone)s) THEN held_until END "
                "WHERE table_name = %(table)s RETURNING data_version"
            ).format(self.table, status=self._status("success"), days=self.ledger.days),
            values | {"undone": NEVER_FINAL},
        ).fetchone()
        self._append(conn, values | {"status": "success", "error": None, "cause": None})
        if loaded.changed and row is not None:
            self._notify(conn, extraction, row[0], loaded.metadata.get("load_id"))
        return settlement

    def undo(self, conn: psycopg.Connection, extraction: RunningAttempt, undone: Reverted) -> None:
        """Records that a load was undone, in the transaction of the data. Its days are owed, and the watermark stays.

        If rows changed, PostgreSQL notifies listeners at the commit.
        """
        self._lock(conn, extraction.table)
        self.ledger.reopen(conn, extraction.table, undone.rows)
        values = self._values(extraction, undone.seconds, undone.metadata)
        row = conn.execute(
            sql.SQL(
                "UPDATE {} SET data_version = data_version + 1, held_until = %s, updated_at = clock_timestamp() "
                "WHERE table_name = %s RETURNING data_version"
            ).format(self.table),
            (undone.held_until, extraction.table),
        ).fetchone()
        self._append(conn, values | {"status": "success", "error": None, "cause": None, "records": 0})
        if row is not None:
            self._notify(conn, extraction, row[0], undone.metadata.get("load_id"))

    def _notify(self, conn: psycopg.Connection, extraction: RunningAttempt, version: int, load_id: int | None) -> None:
        told = {"schema": self.schema, "table": extraction.table, "data_version": version, "load_id": load_id}
        days = {"first": str(extraction.window.start), "last": str(extraction.window.end)}
        conn.execute("SELECT pg_notify(%s, %s)", (CHANNEL, json.dumps(told | days)))

    def last_extracted_at(self, conn: psycopg.Connection, table: str) -> datetime | None:
        """Since when the table is as the source was; None before the first load."""
        query = sql.SQL("SELECT last_extracted_at FROM {} WHERE table_name = %s").format(self.table)
        row = conn.execute(query, (table,)).fetchone()
        return None if row is None else row[0]

    def _settle(self, conn: psycopg.Connection, table: str, horizon: Horizon, at: datetime) -> Settlement:
        """The watermark that follows from the ledger. The caller has locked the table's row."""
        query = sql.SQL("SELECT last_extracted_at, last_partition FROM {} WHERE table_name = %s").format(self.table)
        extracted, last = conn.execute(query, (table,)).fetchone() or (None, None)
        return settle(horizon, Watermark(extracted, last, self.ledger.readings(conn, table)), at)

    def look(self, conn: psycopg.Connection, spec: TableSpec, every: timedelta | None = None) -> None:
        """Counts the rows of each day, and marks in the ledger the days that have fewer rows than after their last load.

        With `every`, it skips a table whose last count is younger than that and whose files are the same as then. It uses its own
        transaction or the caller's; loads that end at the same time wait.
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
            # If the table is gone, all rows are missing, and there is nothing to count.
            if due != (True, True):
                return
            self.ledger.look(conn, spec, spec.zone.day(ledger.server_clock(conn)))
            conn.execute(
                sql.SQL("UPDATE {} SET table_files = {}, looked_at = clock_timestamp() WHERE table_name = %s").format(
                    self.table, files
                ),
                (spec.name,),
            )

    def keep_files(self, conn: psycopg.Connection, spec: TableSpec) -> None:
        """In a load's transaction, after its success: counts the rows of the other days if somebody emptied, dropped, restored or
        rewrote the table since the last load."""
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
    def taking_over(self, conn: psycopg.Connection, spec: TableSpec, days: DayRange | Set[date]) -> Iterator[None]:
        """Wraps a load or an undoing, in its transaction, which records how many rows each of the `days` has. If a key lives in
        several partitions, it changes the number of rows of other days as well; this records the change."""
        if spec.partition_in_key:
            yield
            return
        refuse_strangers(conn, self.schema, spec.name)
        there = conn.execute("SELECT to_regclass(%s)", (quoted_name(self.schema, spec.name),)).fetchone() != (None,)
        before = self.ledger.rows_by_day(conn, spec) if there else {}
        yield
        after = self.ledger.rows_by_day(conn, spec)
        changes = {day: after.get(day, 0) - before.get(day, 0) for day in before.keys() | after.keys() if day not in days}
        self.ledger.shift(conn, spec.name, {day: change for day, change in changes.items() if change})

    def _files(self, spec: TableSpec) -> sql.Composed:
        return sql.SQL(ledger.FILES).format(name=sql.Literal(quoted_name(self.schema, spec.name)))

    def fail(
        self,
        conn: psycopg.Connection,
        extraction: RunningAttempt,
        *,
        error: str,
        cause: Cause,
        seconds: float,
        metadata: Mapping[str, Any],
    ) -> None:
        """Records a failure with its reason, after the rollback of the data. Does nothing if somebody else ended the attempt."""
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

    def unchanged(self, conn: psycopg.Connection, table: str, days: Sequence[date], seen: Unchanged) -> None:
        """Marks days as read at the instant of `seen`, because the source reported after it that they have not changed since their
        load; keeps what the source was like. In a transaction of its own, or in the caller's.
        """
        with conn.transaction():
            self._lock(conn, table)
            self.ledger.unchanged(conn, table, days, seen)
            settled = self._settle(conn, table, seen.horizon, seen.at).watermark
            conn.execute(
                sql.SQL(
                    "UPDATE {} SET last_extracted_at = %(at)s, last_partition = %(last)s, metadata = metadata || %(metadata)s, "
                    "source_state = %(source)s, source_partitions = coalesce(source_partitions, '{{}}') || %(partitions)s, "
                    "updated_at = clock_timestamp() WHERE table_name = %(table)s"
                ).format(self.table),
                {
                    "table": table,
                    "at": settled.last_extracted_at,
                    "last": settled.last_partition,
                    "metadata": Jsonb({"partitions_verified": len(days), "verified_at": seen.at.isoformat()}),
                    "source": Jsonb(seen.source.facts),
                    "partitions": _partitions_as_json(seen.source, seen.at),
                },
            )

    def partitions(self, conn: psycopg.Connection, table: str) -> dict[str, KeptPartitions]:
        """The states of the partitions of the table's base tables, as far as they were ever asked for."""
        query = sql.SQL("SELECT source_partitions FROM {} WHERE table_name = %s").format(self.table)
        row = conn.execute(query, (table,)).fetchone()
        return {name: KeptPartitions.of(kept) for name, kept in ((row and row[0]) or {}).items()}

    def known_partitions(self, conn: psycopg.Connection, facts: Mapping[str, Any]) -> PartitionStates:
        """The states of partitions that were asked for, for whichever table, when their base table was like these `facts` (by name
        of the base table). Base tables without such an answer are left out."""
        query = sql.SQL(
            "SELECT source_partitions -> %(base)s -> 'states' FROM {} "
            "WHERE source_partitions -> %(base)s -> 'facts' = %(facts)s LIMIT 1"
        ).format(self.table)
        found = {base: conn.execute(query, {"base": base, "facts": Jsonb(one)}).fetchone() for base, one in facts.items()}
        return {base: row[0] for base, row in found.items() if row is not None}

    def read(self, conn: psycopg.Connection, since: datetime | None = None) -> dict[str, TableState]:
        """The state of every table that has a refresh, by name, with its attempts that ended after `since`.

        Changes nothing. Raises LedgerMismatch for a ledger of an earlier release, and for a ledger that a newer release has made
        unreadable.
        """
        found = self._readable(conn)
        if found.empty:
            return {}
        query, parameters = self.query(since)
        with found.reading():
            return self.states(conn.cursor(row_factory=dict_row).execute(query, parameters).fetchall())

    def query(self, since: datetime | None = None) -> tuple[sql.Composed, tuple[datetime]]:
        """The query of `read`, with its parameters. A caller that runs it itself passes the rows, as dicts, to `states`."""
        query = sql.SQL(
            "SELECT w.table_name, w.last_extracted_at, w.last_partition, w.last_extraction_status, w.records_extracted, "
            "w.extraction_duration_seconds, w.error_message, w.extraction_id, w.recovery_attempts, w.metadata, w.updated_at, "
            "w.data_version, (SELECT jsonb_agg(r ORDER BY r.started_at) FROM {} r WHERE r.table_name = w.table_name) AS running, "
            "{} AS days, {} AS lost, {} AS replaced, {} AS attempts, w.error_cause, w.source_state, w.held_until "
            "FROM {} w ORDER BY w.table_name"
        ).format(
            self.running,
            *(
                sql.SQL(part).format(days=self.ledger.days, history=self.history, schema=self.schema, zone=DEFAULT_ZONE)
                for part in (KNOWN_DAYS, LOST, REPLACED, ATTEMPTS)
            ),
            self.table,
        )
        return query, (since or datetime.max.replace(tzinfo=UTC),)

    def states(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, TableState]:
        """The states of the tables, from the rows of `query`: one for each table."""
        return {row["table_name"]: TableState.of(row) for row in rows}

    def _readable(self, conn: psycopg.Connection) -> LedgerState:
        """The state of the ledger's migrations. Raises LedgerMismatch if a writer must migrate the ledger first."""
        found = state(conn, self.schema)
        if found.is_older:
            raise found.too_old()
        return found

    def ever_loaded(self, conn: psycopg.Connection, table: str) -> bool:
        """Whether a load of the table has ever succeeded."""
        if self._readable(conn).empty:
            return False
        query = sql.SQL("SELECT FROM {} WHERE table_name = %s AND status = 'success' LIMIT 1").format(self.history)
        return conn.execute(query, (table,)).fetchone() is not None

    def loaded_by(self, conn: psycopg.Connection, table: str, run_id: str) -> DayRange | None:
        """The days of the table that the run has loaded; None if it has loaded none. Changes nothing."""
        query = sql.SQL(
            "SELECT partition_start, partition_end FROM {} WHERE table_name = %s AND extraction_id = %s AND status = 'success' "
            "ORDER BY id DESC LIMIT 1"
        ).format(self.history)
        row = conn.execute(query, (table, run_id)).fetchone()
        return DayRange(*row) if row else None

    def used(self, conn: psycopg.Connection, since: datetime) -> Usage:
        """What all queries used that ended since then, also those of failed loads and of reconciliations."""
        return Usage() if self._readable(conn).empty else self.queries.used(conn, since)

    def _running(self, conn: psycopg.Connection, table: str) -> list[RunningAttempt]:
        """The table's attempts that are marked as running."""
        query = sql.SQL("SELECT to_jsonb(r) FROM {} r WHERE table_name = %s").format(self.running)
        return [RunningAttempt.of(row) for (row,) in conn.execute(query, (table,)).fetchall()]

    def _leave(self, conn: psycopg.Connection, extraction: RunningAttempt) -> bool:
        """Removes the attempt from the running ones. Returns whether it was marked as running."""
        # The lock lets attempts end one after the other. If two ended at once, neither would see the end of the other, and the
        # table would keep the status `running`.
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
        """The table's status after an attempt with the end `ended`. It is running as long as other attempts go on."""
        return sql.SQL("CASE WHEN EXISTS (SELECT FROM {} r WHERE r.table_name = {}.table_name) THEN 'running' ELSE {} END").format(
            self.running, self.table, ended
        )

    def _values(self, extraction: RunningAttempt, seconds: float, metadata: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "table": extraction.table,
            "run": extraction.run_id,
            "attempt": extraction.attempt,
            "start": extraction.window.start,
            "end": extraction.window.end,
            "started": extraction.started_at,
            "source_changed": None,
            "seconds": seconds,
            "metadata": Jsonb(scrubbed({**extraction.as_metadata(), **metadata})),
        }

    def _append(self, conn: psycopg.Connection, values: dict[str, Any]) -> None:
        conn.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, extraction_id, attempt, partition_start, partition_end, status, records_extracted, "
                "extraction_duration_seconds, error_message, error_cause, metadata, started_at, source_changed_at) "
                "VALUES (%(table)s, %(run)s, "
                "%(attempt)s, %(start)s, %(end)s, %(status)s, %(records)s, %(seconds)s, %(error)s, %(cause)s, %(metadata)s, "
                "%(started)s, %(source_changed)s)"
            ).format(self.history),
            values,
        )


def _partitions_as_json(source: SourceState | None, at: datetime) -> Jsonb:
    return Jsonb({base: kept.as_json for base, kept in source.kept_partitions(at).items()} if source else {})


def _cause(written: str | None, *, failed: bool) -> Cause | None:
    """The cause in a row. A row of an earlier release has no cause."""
    return Cause.of(written) if failed else None
