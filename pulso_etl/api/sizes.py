"""How much room the tables of the ledger and Dagster's storage take, for the metrics."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from time import monotonic

import psycopg
from psycopg import sql

from pulso_etl.api.database import Database
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import PulsoError, first_line
from pulso_etl.sync.postgres.sessions import Session

log = logging.getLogger(__name__)
KEPT_SECONDS = 60.0
"""Sizes change slowly, so they are measured once a minute."""
SIZES = """
SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = {schema}
"""
"""With indexes and long values."""
DAGSTERS = sql.SQL("(SELECT relnamespace FROM pg_class WHERE oid = to_regclass('event_logs'))")
"""The schema of Dagster's tables."""
LEDGER, DAGSTER = "ledger", "dagster"


@dataclass
class Sizes:
    """Measures the tables. `dagster` is the address of Dagster's storage; None if it is not known or not the caller's."""

    database: Database
    dagster: str | None
    _known: tuple[float, dict[tuple[str, str], int]] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: Settings, database: Database) -> Sizes:
        """The sizes of a deployment. A tenant sees only those of its own ledger."""
        secret = settings.dagster_postgres_url if not settings.owner.tenant else None
        return cls(database, secret.get_secret_value() if secret else None)

    async def read(self, conn: psycopg.AsyncConnection) -> dict[tuple[str, str], int]:
        """The bytes of each table, by store and name. Without an answer of Dagster's storage, those of the ledger alone."""
        if self._known is None or monotonic() - self._known[0] > KEPT_SECONDS:
            schema = sql.SQL("{}::regnamespace").format(sql.Literal(sql.Identifier(self.database.schema).as_string(conn)))
            rows = await (await conn.execute(sql.SQL(SIZES).format(schema=schema))).fetchall()
            found = {(LEDGER, name): size for name, size in rows if name.startswith("etl_")}
            self._known = monotonic(), found | await asyncio.to_thread(self._of_dagster)
        return self._known[1]

    def _of_dagster(self) -> dict[tuple[str, str], int]:
        if self.dagster is None:
            return {}
        try:
            with Session(self.dagster, "sizes", connect_seconds=2).open() as conn:
                rows = conn.execute(sql.SQL(SIZES).format(schema=DAGSTERS)).fetchall()
        except (psycopg.Error, PulsoError) as error:
            log.warning("Dagster's storage can't be measured: %s", first_line(error))
            return {}
        return {(DAGSTER, name): size for name, size in rows}
