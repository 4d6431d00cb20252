"""The last look before the commit: what the load wrote is what the source gave, and not fewer rows than the table must have."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import psycopg

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import VerificationFailed
from pulso_etl.sync.loading.load import Counts
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import Strategy, TableSpec


def verify(
    conn: psycopg.Connection,
    spec: TableSpec,
    schema: str,
    window: DayRange,
    by_day: Mapping[date, Counts],
    *,
    allow_shrink: bool = False,
    expected: Mapping[date, int] | None = None,
) -> dict[date, int]:
    """Compares PostgreSQL with what the load read, inside its transaction, after the write; `by_day` and `expected` are of its
    `LoadResult`.

    Where a partition owns its rows, each day holds exactly as many rows as were read, and a window as long as the table's
    lookback does not fall below `minimum_records`. Of a table with `snapshot_of`, the values that the load settled hold exactly
    the newest snapshots that were read. A table whose key lives in several partitions (a version column) keeps one row
    of many that were read, and never loses one: nothing is compared; nor where the table keeps what the source no longer has
    (append, scd2). Quarantined rows are not counted, and the rows that they protect may come on top.

    Too few rows stop the load only where those same days held enough before it: then rows are about to be lost that the dashboard
    shows. Days that never held so many (a new deployment, a holiday, sample data) are loaded, and the check `minimum_records`
    warns.
    Returns the rows that each day of the window holds now, days without rows left out.
    Raises VerificationFailed; the caller rolls back. `allow_shrink` is for rows that are really gone.
    """
    statements, bounds = Statements(spec, schema), {"start": window.start, "end": window.end}
    held: dict[date, int] = dict(conn.execute(statements.rows_by_day(), bounds).fetchall())
    if not (spec.partition_in_key or spec.snapshot_of) or spec.strategy in (Strategy.APPEND, Strategy.SCD2):
        return held
    found = dict(conn.execute(statements.settled_by_day()).fetchall()) if spec.snapshot_of else held
    read = {day: counts.read - counts.quarantined for day, counts in by_day.items()} if expected is None else expected
    # The row that the table holds of a quarantined key stays.
    spared = any(counts.quarantined for counts in by_day.values())
    differing = [
        day
        for day in sorted({*found, *read})
        if found.get(day, 0) != read.get(day, 0) and not (spared and found.get(day, 0) > read.get(day, 0))
    ]
    if differing:
        due = "read" if expected is None else "due"
        days = "; ".join(
            f"partition {day}: {read.get(day, 0)} rows {due}, {found.get(day, 0)} in PostgreSQL" for day in differing[:5]
        )
        raise VerificationFailed(
            f"{spec.name} {window}: {len(differing)} partition(s) do not hold what the source gave: {days}. Nothing was loaded. "
            f"Look for triggers, rules or row security on {schema}.{spec.name}; without any, report it as a fault of Pulso ETL"
        )
    if spec.snapshot_of or window.days < spec.lookback_days or allow_shrink:
        return held
    last = sorted(by_day)[-spec.lookback_days :]
    after = sum(held.get(day, 0) for day in last)
    before = after + sum(by_day[day].deleted - by_day[day].inserted for day in last)
    if after < spec.minimum_records <= before:
        raise VerificationFailed(
            f"{spec.name} {DayRange(last[0], last[-1])}: {after} rows would be left of {before}, and the table should have "
            f"{spec.minimum_records} at least. Nothing was loaded. Look at the source; if the rows are really gone, launch the "
            "range again with --allow-shrink (tag pulso_etl/allow_shrink=true)"
        )
    return held
