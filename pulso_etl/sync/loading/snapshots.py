"""Snapshots, for a table with `snapshot_of`: which staged rows count, and which rows of the table they replace.

For each value of those columns, the table holds the newest snapshot of the source as a whole; docs/tables.md has the rule. A load
lists the values that it settles in the temporary table VALUES. Each has the day of its newest snapshot (`pulso_newest`, null
where the source has none), the day of the load on which its changes count (`pulso_day`), and the number of its rows in the table
(`pulso_held`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import date, timedelta
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import SnapshotWithdrawn
from pulso_etl.sync.loading.quarantine import KEPT, Quarantine
from pulso_etl.sync.loading.request import Past
from pulso_etl.sync.schema.statements import STAGE, VALUES, Statements
from pulso_etl.sync.spec import TableSpec

Value = tuple[Any, ...]
Fill = Callable[[pa.RecordBatchReader, DayRange], Mapping[date, int]]
"""Stages the rows of a reader over those days. Returns the number of rows per day."""


def settle_snapshots(
    conn: psycopg.Connection,
    statements: Statements,
    window: DayRange,
    past: Past,
    fill: Fill,
    quarantine: Quarantine | None,
) -> int:
    """Creates VALUES, and keeps only the rows of the newest snapshots in the stage. Returns how many earlier rows were read.

    If the source has withdrawn all snapshots of a value in the window, its newest snapshot is older than the window. Then earlier
    days are read, twice as many each time, until it is found. Raises SnapshotWithdrawn if earlier days can't be read.
    """
    spec, start, days, rows = statements.spec, window.start, statements.spec.schedule.lookback_days, 0
    while (withdrawn := _find(conn, statements, window, quarantine)) and start > past.first_day:
        if past.read is None:
            raise _refusal(spec, window, withdrawn, past.first_day)
        before = DayRange(start - timedelta(days=min(days, (start - past.first_day).days)), start - timedelta(days=1))
        with past.read(before) as reader:
            rows += sum(fill(_of_values(reader, spec, withdrawn), before).values())
        start, days = before.start, 2 * days
    for staged in (STAGE, KEPT) if quarantine else (STAGE,):
        conn.execute(statements.drop_superseded(staged))
    return rows


def rows_by_value(conn: psycopg.Connection, statements: Statements) -> tuple[dict[str, int], dict[str, int]]:
    """How many rows the table holds of each value, and how many the differences leave; values as text for people."""
    held, left = {}, {}
    for *value, before, after in conn.execute(statements.rows_by_value()):
        name = _named(statements.spec, tuple(value))
        held[name], left[name] = before, after
    return held, left


def _find(conn: psycopg.Connection, statements: Statements, window: DayRange, quarantine: Quarantine | None) -> set[Value]:
    """Creates VALUES again. Returns the values of which no row was read."""
    if quarantine:
        quarantine.remember(conn)
    conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(VALUES))
    kept, newer = (KEPT, quarantine.newer(conn, statements.schema)) if quarantine else (None, None)
    conn.execute(statements.create_values(kept, newer), {"start": window.start, "end": window.end})
    return set(conn.execute(statements.withdrawn_values()).fetchall())


def _of_values(reader: pa.RecordBatchReader, spec: TableSpec, values: Collection[Value]) -> pa.RecordBatchReader:
    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            columns = (batch.column(name).to_pylist() for name in spec.snapshot_of)
            yield batch.filter(pa.array([value in values for value in zip(*columns, strict=True)], pa.bool_()))

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def _named(spec: TableSpec, value: Value) -> str:
    return ", ".join(f"{name}={part}" for name, part in zip(spec.snapshot_of, value, strict=True))


def _refusal(spec: TableSpec, window: DayRange, withdrawn: Collection[Value], first_day: date) -> SnapshotWithdrawn:
    named = "; ".join(_named(spec, value) for value in sorted(withdrawn, key=str)[:5])
    earlier = first_day if first_day > date.min else window.start - timedelta(days=spec.schedule.lookback_days)
    return SnapshotWithdrawn(
        f"{spec.name} {window}: the table holds a snapshot of {named} from these days, and the source no longer has it. If the "
        "source has another snapshot, it is older than these days. Nothing was loaded. Launch a range that includes it: "
        f"pulso-etl refresh {spec.as_argument} --from {earlier} --to {window.end}"
    )
