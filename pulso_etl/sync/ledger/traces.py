"""The traces of loads, `etl_digests`: for each day, what the source had, and the rows that the load left in the table.

A trace says: if the source has rows with this digest, and the table has rows with this imprint, then a load of the day changes
nothing. This stays true, whatever other loads or other programs do meanwhile: if they change rows, the imprint of the rows is no
longer the one of the trace. So a trace needs no clean-up, and an old trace does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

import psycopg
from psycopg import sql

from pulso_etl.sync.days import DayRange


@dataclass(frozen=True)
class Digest:
    """Of the source's rows of a day: how many `rows` there are, and the sum of their hashes (16 bytes), in any order of the rows.

    Digests are equal if rows and sum are. `sample` has the smallest hashes: 4 bytes each, the smallest first (see `day_digests`).
    `buckets` has the sums of parts of the day, 8 bytes each (see `buckets`); it is empty if the day has none.
    """

    rows: int
    total: bytes
    sample: bytes = field(compare=False)
    buckets: bytes = field(compare=False)


@dataclass(frozen=True)
class Trace:
    """What the last load of a day read, and the `imprint` of the rows that it left in the table.

    `made_by` names the way in which rows are hashed, the declaration, and the columns of source and table. Traces of two makers
    cannot be compared.
    """

    made_by: str
    digest: Digest
    imprint: str


class Traces:
    """Reads and writes the traces over the caller's connection; the caller owns the transaction."""

    def __init__(self, schema: str) -> None:
        self.table = sql.Identifier(schema, "etl_digests")

    def read(self, conn: psycopg.Connection, table: str, window: DayRange) -> dict[date, Trace]:
        """The traces of the days of the window."""
        query = sql.SQL(
            "SELECT day, made_by, imprint, rows, digest, sample, buckets FROM {} WHERE table_name = %s AND day BETWEEN %s AND %s"
        ).format(self.table)
        found = conn.execute(query, (table, window.start, window.end), binary=True)
        return {day: Trace(made_by, Digest(*digest), imprint) for day, made_by, imprint, *digest in found}

    def write(self, conn: psycopg.Connection, table: str, traces: Mapping[date, Trace]) -> None:
        """Writes the traces of days, in the transaction of the data."""
        if not traces:
            return
        found = traces.values()
        conn.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, day, made_by, rows, digest, sample, buckets, imprint) SELECT %s, * "
                "FROM unnest(%s::date[], %s::text[], %s::bigint[], %s::bytea[], %s::bytea[], %s::bytea[], %s::text[]) "
                "ON CONFLICT (table_name, day) DO UPDATE SET made_by = excluded.made_by, rows = excluded.rows, "
                "digest = excluded.digest, sample = excluded.sample, buckets = excluded.buckets, imprint = excluded.imprint"
            ).format(self.table),
            (
                table,
                list(traces),
                [trace.made_by for trace in found],
                [trace.digest.rows for trace in found],
                [trace.digest.total for trace in found],
                [trace.digest.sample for trace in found],
                [trace.digest.buckets for trace in found],
                [trace.imprint for trace in found],
            ),
        )

    def forget(self, conn: psycopg.Connection, table: str, start: date | None, end: date | None) -> None:
        """Deletes the traces of the days from `start` to before `end`, which the table no longer keeps."""
        conn.execute(
            sql.SQL("DELETE FROM {} WHERE table_name = %s AND day >= coalesce(%s, day) AND day < coalesce(%s, day + 1)").format(
                self.table
            ),
            (table, start, end),
        )
