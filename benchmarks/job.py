"""One load of the benchmark, and the statements that several ways share."""

from __future__ import annotations

import time
from dataclasses import dataclass

from psycopg import sql

from benchmarks.rows import SPEC, WINDOW
from pulso_etl.sync.postgres.identifiers import listed


@dataclass(frozen=True)
class Job:
    """One load: the same rows as an Arrow stream and in COPY's binary format, a schema, and a folder for the way's own files.

    `start` and `end` are the first and the last day of the rows.
    """

    way: str
    url: str
    schema: str
    arrow: str
    binary: str
    folder: str
    start: str = str(WINDOW.start)
    end: str = str(WINDOW.end)

    @property
    def target(self) -> sql.Identifier:
        return sql.Identifier(self.schema, SPEC.name)


class Stopwatch:
    """Seconds of wall-clock of one block."""

    seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began


def upsert(job: Job, stage: sql.Identifier) -> sql.Composed:
    """An expert's own statement: it upserts the rows of the stage that differ."""
    old, new = (sql.SQL(", ").join(sql.Identifier(a, name) for name in SPEC.value_columns) for a in ("t", "excluded"))
    return sql.SQL("INSERT INTO {} AS t ({names}) SELECT {names} FROM {} {} WHERE ({}) IS DISTINCT FROM ({})").format(
        job.target, stage, on_conflict(), old, new, names=listed(SPEC.column_names)
    )


def on_conflict() -> sql.Composed:
    """What an upsert does with a key that is there."""
    pairs = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in SPEC.value_columns]
    return sql.SQL("ON CONFLICT ({}) DO UPDATE SET {}, updated_at = now()").format(
        listed(SPEC.primary_key), sql.SQL(", ").join(pairs)
    )
