"""What the tables hold: their rows, their last load, and the hour that they reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pulso_etl.sync.ledger.watermarks import TableState, Watermarks
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import TableSpec


@dataclass(frozen=True)
class Holding:
    """`rows`: how many are in the table, or None before the first load. `last_load`: its row of the history, with the columns that
    the reader asked for. `reaches`: the beginning of the greatest hour of an hourly table, with zone."""

    rows: int | None = None
    last_load: tuple[Any, ...] | None = None
    reaches: datetime | None = None


@dataclass
class Holdings:
    """Reads what the tables hold. It looks for the greatest hour only after a load has changed rows."""

    marks: Watermarks
    tables: Mapping[str, TableSpec]
    columns: sql.SQL
    """The columns of the history to read; the first is the table's name."""
    _hours: dict[str, tuple[int, datetime | None]] = field(default_factory=dict)

    async def read(self, conn: psycopg.AsyncConnection, states: Mapping[str, TableState]) -> dict[str, Holding]:
        """The holding of each table that has a state. The connection is in autocommit mode."""
        counted = await conn.execute(
            sql.SQL("SELECT table_name, sum(coalesce(found, rows))::bigint FROM {} GROUP BY table_name").format(
                self.marks.ledger.days
            )
        )
        rows: dict[str, int] = dict(await counted.fetchall())
        loads = await conn.execute(
            sql.SQL(
                "SELECT e.* FROM {} w CROSS JOIN LATERAL (SELECT {} FROM {} h WHERE h.table_name = w.table_name "
                "AND h.status = 'success' ORDER BY h.finished_at DESC, h.id DESC LIMIT 1) AS e"
            ).format(self.marks.table, self.columns, self.marks.history)
        )
        last = {row[0]: row for row in await loads.fetchall()}
        hours = {
            name: await self._hour(conn, states[name]) for name, spec in self.tables.items() if spec.hour_column and name in states
        }
        return {name: Holding(rows.get(name), last.get(name), hours.get(name)) for name in self.tables if name in states}

    async def _hour(self, conn: psycopg.AsyncConnection, state: TableState) -> datetime | None:
        version, reached = self._hours.get(state.table_name, (-1, None))
        if version != state.data_version:
            reached = await self._greatest_hour(conn, self.tables[state.table_name])
            self._hours[state.table_name] = (state.data_version, reached)
        return reached

    async def _greatest_hour(self, conn: psycopg.AsyncConnection, spec: TableSpec) -> datetime | None:
        names = Statements(spec, self.marks.schema)
        assert spec.hour_column is not None
        query = sql.SQL(
            "SELECT {day}, max({hour}) FROM {target} WHERE {current} AND {day} = (SELECT max({day}) FROM {target} WHERE {current}) "
            "GROUP BY 1"
        ).format(day=names.partition, hour=sql.Identifier(spec.hour_column), target=names.target, current=names.current)
        try:
            row = await (await conn.execute(query)).fetchone()
        except (pg.UndefinedTable, pg.UndefinedColumn, pg.InsufficientPrivilege):
            # Somebody dropped the table, or keeps the API from it. The rest of the status is still true.
            return None
        return None if row is None or row[1] is None else _begin_of_hour(spec, *row)


def _begin_of_hour(spec: TableSpec, day: date, hour: int) -> datetime | None:
    return datetime.combine(day, time(hour), spec.zone.tzinfo) if 0 <= hour <= 23 else None
