"""The ledger of days, `etl_days`. For each day of a table it has the last reading from the source, the date until which the source
may change the day (by the lookback at that reading), and the number of rows after the load.

Loads write it in the transaction of the data: one row for each day of their range, also for days without rows. What is owed follows
from it (`refresh.owed_days`), and so does the watermark (`refresh.settle`). Its instants come from the PostgreSQL server's
clock, because the clocks of the loading machines may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import psycopg
from psycopg import sql

from pulso_etl.sync.days import DayRange, first_kept_day
from pulso_etl.sync.errors import NewerReading
from pulso_etl.sync.owed import NEVER_FINAL, Horizon, Reading
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.source_state import SourceState
from pulso_etl.sync.spec import TableSpec

PARTS = """
SELECT to_regclass({name})::oid AS part WHERE to_regclass({name}) IS NOT NULL
UNION ALL SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass({name})
"""
FILES = f"""
(SELECT md5(string_agg(part || ':' || coalesce(pg_relation_filenode(part), 0), ',' ORDER BY part)) FROM ({PARTS}) AS parts)
"""  # noqa: S608 - made of constants
"""The files of the table. They change with a TRUNCATE, a DROP, a restore or a rewrite. Null if there is no table.

The query reads only the catalog. It waits for no lock."""


@dataclass(frozen=True)
class Day(Reading):
    """A day of the ledger. At the instant `at` it was equal to the source. At `loaded_at` (with zone) its last load read it.

    `at` is later than `loaded_at` if the source has reported after that load that the day did not change. `rows`: how many rows
    the day held after its last load. `is_short`: a later count found fewer. `source`: the digest of the source's state when the day
    was last read or found unchanged.
    """

    loaded_at: datetime
    rows: int = 0
    is_short: bool = False
    source: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Day:
        """The day from its row of `etl_days`, as JSON."""
        read_at, loaded_at = datetime.fromisoformat(row["read_at"]), datetime.fromisoformat(row["loaded_at"])
        found, rows = row["found"], row["rows"]
        is_short = found is not None and found < rows
        return cls(read_at, date.fromisoformat(row["open_until"]), loaded_at, rows, is_short, row["source_state"])


@dataclass(frozen=True)
class Loaded:
    """The report of a successful load.

    `read_at`: when its rows were read, by the server's clock. `rows`: how many rows each day of its range has now. `records`: how
    many rows were read from the source. `seconds`: its total duration. `changed`: whether it changed rows of the table. `source`:
    the source's state just before the rows were read. `source_changed_at`: see `loading.source_change`.
    """

    read_at: datetime
    rows: Mapping[date, int]
    records: int
    seconds: float
    changed: bool
    horizon: Horizon = field(default_factory=Horizon)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: SourceState | None = None
    source_changed_at: datetime | None = None


@dataclass(frozen=True)
class Unchanged:
    """At the instant `at` (with zone, by the server's clock) the source was in a state that shows no change of the days.

    `empty`: days that were never loaded, and that have no rows at the source. There is nothing to load of them.
    """

    at: datetime
    source: SourceState
    horizon: Horizon = field(default_factory=Horizon)
    empty: Sequence[date] = ()


def server_clock(conn: psycopg.Connection) -> datetime:
    """The instant now, by the server's clock."""
    row = conn.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    now: datetime = row[0]
    return now


class Ledger:
    """Reads and writes the ledger over the caller's connection; the caller owns the transaction."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.days = sql.Identifier(schema, "etl_days")

    def record(self, conn: psycopg.Connection, table: str, extraction_id: str, loaded: Loaded) -> None:
        """Writes the days of a load, each with its present number of rows."""
        conn.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, day, read_at, loaded_at, rows, extraction_id, open_until, source_state) "
                "SELECT %(table)s, u.day, %(at)s, %(at)s, u.rows, %(run)s, u.open_until, %(source)s "
                "FROM unnest(%(days)s::date[], %(rows)s::bigint[], %(open)s::date[]) AS u (day, rows, open_until) "
                "ON CONFLICT (table_name, day) DO UPDATE SET read_at = excluded.read_at, loaded_at = excluded.loaded_at, "
                "rows = excluded.rows, found = NULL, extraction_id = excluded.extraction_id, open_until = excluded.open_until, "
                "source_state = excluded.source_state"
            ).format(self.days),
            {
                "table": table,
                "at": loaded.read_at,
                "run": extraction_id,
                "days": list(loaded.rows),
                "rows": list(loaded.rows.values()),
                "open": [loaded.horizon.open_until(day) for day in loaded.rows],
                "source": loaded.source.digest if loaded.source else None,
            },
        )

    def unchanged(self, conn: psycopg.Connection, table: str, days: Sequence[date], seen: Unchanged) -> None:
        """Marks loaded days as equal to the source, because the source reports no change. Writes the days that are empty there.

        A day that was undone after the look stays owed.
        """
        conn.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, day, read_at, loaded_at, rows, extraction_id, open_until, source_state) "
                "SELECT %s, u.day, %s, %s, 0, '', u.until, %s FROM unnest(%s::date[], %s::date[]) AS u (day, until) "
                "ON CONFLICT (table_name, day) DO NOTHING"
            ).format(self.days),
            (
                *(table, seen.at, seen.at, seen.source.digest, list(seen.empty)),
                [seen.horizon.open_until(day) for day in seen.empty],
            ),
        )
        conn.execute(
            sql.SQL(
                "UPDATE {} d SET read_at = %s, open_until = u.until, source_state = %s "
                "FROM unnest(%s::date[], %s::date[]) AS u (day, until) "
                "WHERE d.table_name = %s AND d.day = u.day AND d.read_at <= %s AND d.open_until <> %s"
            ).format(self.days),
            (
                *(seen.at, seen.source.digest, list(days), [seen.horizon.open_until(day) for day in days]),
                *(table, seen.at, NEVER_FINAL),
            ),
        )

    def reopen(self, conn: psycopg.Connection, table: str, rows: Mapping[date, int]) -> None:
        """Makes days owed until a load reads them again, because they are not as the source was. `rows`: how many each day has."""
        conn.execute(
            sql.SQL(
                "UPDATE {} d SET open_until = %s, source_state = NULL, rows = u.rows, found = NULL "
                "FROM unnest(%s::date[], %s::bigint[]) AS u (day, rows) WHERE d.table_name = %s AND d.day = u.day"
            ).format(self.days),
            (NEVER_FINAL, list(rows), list(rows.values()), table),
        )

    def rows(self, conn: psycopg.Connection, table: str) -> int:
        """The number of current rows of the table, from what its loads left on each day; it does not read the table."""
        query = sql.SQL("SELECT coalesce(sum(coalesce(found, rows)), 0)::bigint FROM {} WHERE table_name = %s").format(self.days)
        (rows,) = conn.execute(query, (table,)).fetchone() or (0,)
        return int(rows)

    def of_days(self, conn: psycopg.Connection, table: str, window: DayRange) -> dict[date, Day]:
        """The days of the window that were loaded."""
        query = sql.SQL("SELECT to_jsonb(d) FROM {} d WHERE table_name = %s AND day BETWEEN %s AND %s").format(self.days)
        found = conn.execute(query, (table, window.start, window.end)).fetchall()
        return {date.fromisoformat(row["day"]): Day.of(row) for (row,) in found}

    def rows_by_day(self, conn: psycopg.Connection, spec: TableSpec) -> dict[date, int]:
        """The number of current rows of each day. Reads the whole index of the key."""
        names = Statements(spec, self.schema)
        query = sql.SQL("SELECT {}, count(*) FROM {} WHERE {} GROUP BY 1").format(names.partition, names.target, names.current)
        return dict(conn.execute(query).fetchall())

    def look(self, conn: psycopg.Connection, spec: TableSpec, today: date) -> None:
        """Marks days that have fewer rows than after their last load. Months that the table no longer keeps do not count."""
        held = self.rows_by_day(conn, spec)
        conn.execute(
            sql.SQL(
                "UPDATE {0} d SET found = h.found FROM (SELECT d.day, CASE WHEN coalesce(n, 0) < d.rows AND d.day >= %(kept)s "
                "THEN coalesce(n, 0) END AS found FROM {0} d LEFT JOIN unnest(%(days)s::date[], %(rows)s::bigint[]) AS u (day, n) "
                "ON u.day = d.day WHERE d.table_name = %(table)s) AS h "
                "WHERE d.table_name = %(table)s AND d.day = h.day AND d.found IS DISTINCT FROM h.found"
            ).format(self.days),
            {
                "table": spec.name,
                "kept": first_kept_day(spec, today),
                "days": list(held),
                "rows": list(held.values()),
            },
        )

    def shift(self, conn: psycopg.Connection, table: str, changes: Mapping[date, int]) -> None:
        """Changes the numbers of rows of days, because a load of other days took rows from them or gave rows back to them."""
        conn.execute(
            sql.SQL(
                "UPDATE {} d SET rows = d.rows + u.n, found = d.found + u.n FROM unnest(%s::date[], %s::bigint[]) AS u (day, n) "
                "WHERE d.table_name = %s AND d.day = u.day"
            ).format(self.days),
            (list(changes), list(changes.values()), table),
        )

    def forget(self, conn: psycopg.Connection, table: str, start: date | None, end: date | None) -> None:
        """Deletes the days from `start` to before `end`, which the table no longer keeps."""
        conn.execute(
            sql.SQL("DELETE FROM {} WHERE table_name = %s AND day >= coalesce(%s, day) AND day < coalesce(%s, day + 1)").format(
                self.days
            ),
            (table, start, end),
        )

    def readings(self, conn: psycopg.Connection, table: str) -> dict[date, Reading]:
        """The last reading of each day of the table."""
        query = sql.SQL("SELECT day, read_at, open_until FROM {} WHERE table_name = %s").format(self.days)
        return {day: Reading(at, open_until) for day, at, open_until in conn.execute(query, (table,))}

    def refuse_older(self, conn: psycopg.Connection, table: str, window: DayRange, read_at: datetime) -> None:
        """Raises NewerReading if a day of the window was read after `read_at`: the rows of that day are newer than the caller's."""
        query = sql.SQL(
            "SELECT day, read_at FROM {} WHERE table_name = %s AND day BETWEEN %s AND %s AND read_at > %s "
            # Readings in the future come from a wrong clock. They would stop all loads until that time.
            "AND read_at <= clock_timestamp() ORDER BY day LIMIT 1"
        ).format(self.days)
        newer = conn.execute(query, (table, window.start, window.end, read_at)).fetchone()
        if newer is not None:
            raise NewerReading(
                f"{table} {window}: these rows were read at {read_at:%Y-%m-%d %H:%M:%S %Z}, and another load has committed "
                f"{newer[0]} as it was at {newer[1]:%Y-%m-%d %H:%M:%S %Z}; nothing was loaded, a retry reads the rows again"
            )
