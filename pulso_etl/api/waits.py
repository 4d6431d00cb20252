"""How long the tables' readers wait from a change of the source to fresh rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import psycopg
from psycopg import sql

from pulso_etl.api.models import SourceToFresh
from pulso_etl.sync.ledger.watermarks import TableState, Watermarks

DAYS = 7
WAITS = """
SELECT table_name, count(*), percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY waited)
FROM (
    SELECT table_name, greatest(extract(epoch FROM finished_at - source_changed_at)::float, 0) AS waited
    FROM {history} WHERE source_changed_at IS NOT NULL AND finished_at > now() - make_interval(days => %s)
) AS loads GROUP BY table_name
"""


@dataclass
class Waits:
    """Reads the waits of the last days. It reads them anew only after something has happened to a table."""

    marks: Watermarks
    _known: dict[str, SourceToFresh] = field(default_factory=dict)
    _as_of: Mapping[str, datetime] = field(default_factory=dict)

    async def read(self, conn: psycopg.AsyncConnection, states: Mapping[str, TableState]) -> Mapping[str, SourceToFresh]:
        """The waits of each table that has some."""
        as_of = {table: state.updated_at for table, state in states.items()}
        if as_of != self._as_of:
            found = await (await conn.execute(sql.SQL(WAITS).format(history=self.marks.history), (DAYS,))).fetchall()
            self._known = {
                table: SourceToFresh(days=DAYS, loads=loads, median_seconds=round(median, 1), p95_seconds=round(p95, 1))
                for table, loads, (median, p95) in found
            }
            self._as_of = as_of
        return self._known
