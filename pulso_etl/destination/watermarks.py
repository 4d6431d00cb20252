"""Watermarks (how far each table is loaded) and the append-only history of extractions, both in PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from pulso_etl.refresh import DayRange, Watermark

COLUMNS = """
    last_extraction_status text CHECK (last_extraction_status IN ('running', 'success', 'failed')),
    records_extracted bigint,
    extraction_duration_seconds double precision,
    error_message text,
    extraction_id text,
    metadata jsonb NOT NULL DEFAULT '{{}}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
"""


@dataclass(frozen=True)
class TableState:
    """A table's row of `etl_watermarks`. Instants carry a zone; the duration is in seconds."""

    table_name: str
    last_extracted_at: datetime | None
    last_partition: date | None
    status: str | None
    records: int | None
    seconds: float | None
    error: str | None
    extraction_id: str | None

    @property
    def watermark(self) -> Watermark:
        return Watermark(self.last_extracted_at, self.last_partition)


class Watermarks:
    """Reads and writes the two tables over the caller's connection; the caller owns the transaction."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.table = sql.Identifier(schema, "etl_watermarks")
        self.history = sql.Identifier(schema, "etl_extractions")

    def create(self, conn: psycopg.Connection) -> None:
        """Creates schema and tables where they are missing, one process at a time."""
        conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('pulso_etl:ddl', 0))")
        if conn.execute("SELECT to_regclass(%s)", (f'"{self.schema}".etl_extractions',)).fetchone() != (None,):
            return
        if conn.execute("SELECT to_regnamespace(%s)", (f'"{self.schema}"',)).fetchone() == (None,):
            conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self.schema)))
        columns = sql.SQL(COLUMNS.replace("{{}}", "{}"))
        conn.execute(
            sql.SQL(
                "CREATE TABLE IF NOT EXISTS {} (table_name text PRIMARY KEY, last_extracted_at timestamptz, "
                "last_partition date, recovery_attempts integer NOT NULL DEFAULT 0, {})"
            ).format(self.table, columns)
        )
        conn.execute(
            sql.SQL(
                "CREATE TABLE IF NOT EXISTS {} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, table_name text NOT NULL, "
                "attempt integer NOT NULL, partition_start date NOT NULL, partition_end date NOT NULL, "
                "finished_at timestamptz, {})"
            ).format(self.history, columns)
        )
        conn.execute(
            sql.SQL("CREATE INDEX IF NOT EXISTS etl_extractions_table_idx ON {} (table_name, id DESC)").format(self.history)
        )

    def start(self, conn: psycopg.Connection, table: str, window: DayRange, run_id: str, attempt: int) -> int:
        """Marks the table as running and opens a row of the history; returns that row's id."""
        conn.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, last_extraction_status, extraction_id) VALUES (%(table)s, 'running', %(run)s) "
                "ON CONFLICT (table_name) DO UPDATE SET last_extraction_status = 'running', extraction_id = %(run)s, "
                "error_message = NULL, updated_at = now()"
            ).format(self.table),
            {"table": table, "run": run_id},
        )
        row = conn.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, attempt, partition_start, partition_end, last_extraction_status, extraction_id) "
                "VALUES (%s, %s, %s, %s, 'running', %s) RETURNING id"
            ).format(self.history),
            (table, attempt, window.start, window.end, run_id),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def succeed(
        self,
        conn: psycopg.Connection,
        extraction: int,
        table: str,
        window: DayRange,
        *,
        records: int,
        seconds: float,
        reached_today: bool,
        metadata: dict[str, Any],
    ) -> None:
        """Success, in the transaction that holds the data. Only a load that reached today moves the watermark."""
        values = {
            "id": extraction,
            "table": table,
            "records": records,
            "seconds": seconds,
            "metadata": Jsonb(metadata),
            "moved": reached_today,
            "end": window.end,
        }
        conn.execute(
            sql.SQL(
                "UPDATE {} SET last_extraction_status = 'success', records_extracted = %(records)s, "
                "extraction_duration_seconds = %(seconds)s, error_message = NULL, metadata = %(metadata)s, "
                "recovery_attempts = 0, updated_at = now(), "
                "last_extracted_at = CASE WHEN %(moved)s THEN clock_timestamp() ELSE last_extracted_at END, "
                "last_partition = CASE WHEN %(moved)s THEN %(end)s ELSE last_partition END WHERE table_name = %(table)s"
            ).format(self.table),
            values,
        )
        conn.execute(
            sql.SQL(
                "UPDATE {} SET last_extraction_status = 'success', records_extracted = %(records)s, "
                "extraction_duration_seconds = %(seconds)s, metadata = %(metadata)s, finished_at = clock_timestamp(), "
                "updated_at = now() WHERE id = %(id)s"
            ).format(self.history),
            values,
        )

    def fail(self, conn: psycopg.Connection, extraction: int, table: str, *, error: str, seconds: float) -> None:
        """Failure with its reason, after the data were rolled back."""
        values = {"id": extraction, "table": table, "error": error[:4000].replace("\0", ""), "seconds": seconds}
        conn.execute(
            sql.SQL(
                "UPDATE {} SET last_extraction_status = 'failed', error_message = %(error)s, "
                "extraction_duration_seconds = %(seconds)s, updated_at = now() WHERE table_name = %(table)s"
            ).format(self.table),
            values,
        )
        conn.execute(
            sql.SQL(
                "UPDATE {} SET last_extraction_status = 'failed', error_message = %(error)s, finished_at = clock_timestamp(), "
                "extraction_duration_seconds = %(seconds)s, updated_at = now() WHERE id = %(id)s"
            ).format(self.history),
            values,
        )

    def read(self, conn: psycopg.Connection) -> dict[str, TableState]:
        """The state of every table that was ever refreshed, by name."""
        if conn.execute("SELECT to_regclass(%s)", (f'"{self.schema}".etl_watermarks',)).fetchone() == (None,):
            return {}
        rows = conn.execute(
            sql.SQL(
                "SELECT table_name, last_extracted_at, last_partition, last_extraction_status, records_extracted, "
                "extraction_duration_seconds, error_message, extraction_id FROM {}"
            ).format(self.table)
        )
        return {row[0]: TableState(*row) for row in rows}
