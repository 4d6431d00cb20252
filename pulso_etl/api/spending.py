"""What the queries of BigQuery cost and avoided, for the status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import psycopg
from psycopg import sql

from pulso_etl.api.models import Costs, Spent
from pulso_etl.bigquery.pricing import Pricing
from pulso_etl.refreshing.spending import Instants, Spending
from pulso_etl.sync.ledger.queries import Queries, Usage
from pulso_etl.sync.zone import Zone

Version = tuple[datetime, int | None, int | None]
"""The minute, and the newest rows of the history and of the queries."""


@dataclass
class Spendings:
    """Reads what the tables' queries used. It adds up only after a query has ended, and once a minute."""

    queries: Queries
    pricing: Pricing
    zone: Zone
    _known: tuple[Version, dict[str, Spending]] | None = field(default=None, repr=False)

    async def read(self, conn: psycopg.AsyncConnection, tables: Mapping[str, object], now: datetime) -> dict[str, Costs]:
        """The costs of each table, and under the empty name those of all. The ledger must exist."""
        at = Instants.at(now, self.zone)
        newest = await conn.execute(
            sql.SQL("SELECT (SELECT max(id) FROM {}), (SELECT max(id) FROM {})").format(self.queries.history, self.queries.table)
        )
        extraction, query = await newest.fetchone() or (None, None)
        version = (now.replace(second=0, microsecond=0), extraction, query)
        if self._known is None or self._known[0] != version:
            cursor = await conn.execute(*self.queries.query(at.since))
            self._known = version, at.spendings(await cursor.fetchall(), tables)
        return {name: self._costs(spending) for name, spending in self._known[1].items()}

    def _costs(self, spending: Spending) -> Costs:
        return Costs(
            today=self._spent(spending.today), month=self._spent(spending.month), month_end=self._spent(spending.month_end)
        )

    def _spent(self, used: Usage) -> Spent:
        by_bytes = self.pricing.per_slot_hour is None
        return Spent(
            bytes_billed=used.bytes_billed,
            bytes_avoided=used.bytes_avoided,
            cost_usd=round(self.pricing.cost(used), 6),
            avoided_usd=round(self.pricing.cost(Usage(used.bytes_avoided)), 6) if by_bytes else None,
        )
