"""What the queries at the source used and avoided: those of the loads, in the history, and those that load nothing, in
`etl_queries`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import psycopg
from psycopg import sql


class Purpose(StrEnum):
    """Why a query ran that loads nothing, or why a refresh ran no query at all."""

    RECONCILIATION = "reconciliation"
    CHANGES = "changes"
    """It asked for the states of the source's partitions."""
    SKIPPED = "skipped"
    """The source had not changed, so nothing was read."""


@dataclass(frozen=True)
class Usage:
    """What queries used: bytes that the source billed, and milliseconds of its slots. `bytes_avoided`: what it would have billed,
    and did not, because nothing had changed, only some days had, or its cache answered."""

    bytes_billed: int = 0
    slot_millis: int = 0
    bytes_avoided: int = 0

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Usage:
        """What the metadata of a load or of a query tells."""
        return cls(*(int(metadata.get(name) or 0) for name in ("bytes_billed", "slot_millis", "bytes_avoided")))

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.bytes_billed + other.bytes_billed,
            self.slot_millis + other.slot_millis,
            self.bytes_avoided + other.bytes_avoided,
        )

    def __mul__(self, times: float) -> Usage:
        return Usage(round(self.bytes_billed * times), round(self.slot_millis * times), round(self.bytes_avoided * times))


USED = """
SELECT p.place, u.table_name, sum(u.bytes_billed)::bigint, sum(u.slot_millis)::bigint, sum(u.bytes_avoided)::bigint,
    min(u.finished_at)
FROM unnest(%(since)s::timestamptz[]) WITH ORDINALITY AS p (since, place) JOIN (
    SELECT table_name, finished_at, coalesce((metadata->>'bytes_billed')::numeric, 0) AS bytes_billed,
        coalesce((metadata->>'slot_millis')::numeric, 0) AS slot_millis,
        CASE status WHEN 'success' THEN coalesce((metadata->>'bytes_avoided')::numeric, 0) ELSE 0 END AS bytes_avoided
    FROM {history} WHERE finished_at >= %(first)s
    UNION ALL SELECT table_name, finished_at, bytes_billed, slot_millis, bytes_avoided FROM {queries} WHERE finished_at >= %(first)s
) AS u ON u.finished_at >= p.since GROUP BY 1, 2
"""
"""A load that failed avoided nothing: it is done again."""


@dataclass(frozen=True)
class Used:
    """What the queries of each table used since one instant, by table. `first`: when the first of them ended; None without any."""

    tables: Mapping[str, Usage]
    first: datetime | None = None

    @property
    def total(self) -> Usage:
        return sum(self.tables.values(), Usage())

    def of(self, table: str) -> Usage:
        return self.tables.get(table, Usage())


class Queries:
    """Reads and writes what queries used, over the caller's connection; the caller owns the transaction."""

    def __init__(self, schema: str) -> None:
        self.table = sql.Identifier(schema, "etl_queries")
        self.history = sql.Identifier(schema, "etl_extractions")

    def record(self, conn: psycopg.Connection, table: str, purpose: Purpose, run_id: str, used: Usage) -> None:
        """Records a query for the table that is no load, such as a reconciliation."""
        conn.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, purpose, run_id, bytes_billed, slot_millis, bytes_avoided) "
                "VALUES (%s, %s, %s, %s, %s, %s)"
            ).format(self.table),
            (table, purpose, run_id, used.bytes_billed, used.slot_millis, used.bytes_avoided),
        )

    def used(self, conn: psycopg.Connection, since: datetime) -> Usage:
        """What all queries used that ended since then, also those of failed loads. The ledger must exist."""
        [found] = self.split(conn.execute(*self.query([since])).fetchall(), 1)
        return found.total

    def query(self, since: Sequence[datetime]) -> tuple[sql.Composed, dict[str, Any]]:
        """The query of what each table used since each of these instants, with its parameters. `split` reads its rows."""
        return (
            sql.SQL(USED).format(history=self.history, queries=self.table),
            {"since": list(since), "first": min(since)},
        )

    @staticmethod
    def split(rows: Iterable[Sequence[Any]], instants: int) -> list[Used]:
        """What was used since each of the instants of `query`, from its rows."""
        found: list[dict[str, Usage]] = [{} for _ in range(instants)]
        first: list[datetime | None] = [None] * instants
        for place, table, billed, slots, avoided, began in rows:
            found[place - 1][table] = Usage(billed, slots, avoided)
            first[place - 1] = min(filter(None, (first[place - 1], began)))
        return [Used(tables, began) for tables, began in zip(found, first, strict=True)]
