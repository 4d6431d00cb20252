"""What the queries at the source used: those of the loads, in the history, and those that load nothing, in `etl_queries`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql


@dataclass(frozen=True)
class Usage:
    """What queries used: bytes that the source billed, and milliseconds of its slots."""

    bytes_billed: int = 0
    slot_millis: int = 0

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Usage:
        """What the metadata of a load or of a query tells."""
        return cls(int(metadata.get("bytes_billed") or 0), int(metadata.get("slot_millis") or 0))

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.bytes_billed + other.bytes_billed, self.slot_millis + other.slot_millis)


class Queries:
    """Reads and writes what queries used, over the caller's connection; the caller owns the transaction."""

    def __init__(self, schema: str) -> None:
        self.table = sql.Identifier(schema, "etl_queries")
        self.history = sql.Identifier(schema, "etl_extractions")

    def record(self, conn: psycopg.Connection, table: str, purpose: str, run_id: str, used: Usage) -> None:
        """Records a query for the table that is no load, such as a reconciliation."""
        conn.execute(
            sql.SQL("INSERT INTO {} (table_name, purpose, run_id, bytes_billed, slot_millis) VALUES (%s, %s, %s, %s, %s)").format(
                self.table
            ),
            (table, purpose, run_id, used.bytes_billed, used.slot_millis),
        )

    def used(self, conn: psycopg.Connection, since: datetime) -> Usage:
        """What all queries used that ended since then, also those of failed loads. The ledger must exist."""
        row = conn.execute(
            sql.SQL(
                "SELECT coalesce(sum(bytes_billed), 0)::bigint, coalesce(sum(slot_millis), 0)::bigint FROM ("
                "SELECT (metadata->>'bytes_billed')::numeric AS bytes_billed, (metadata->>'slot_millis')::numeric AS slot_millis "
                "FROM {history} WHERE finished_at >= %(since)s "
                "UNION ALL SELECT bytes_billed, slot_millis FROM {queries} WHERE finished_at >= %(since)s) AS queries"
            ).format(history=self.history, queries=self.table),
            {"since": since},
        ).fetchone()
        assert row is not None
        return Usage(*row)
