"""The last check before the commit: the load wrote the source's rows, and the table keeps the rows that it must have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date
from typing import NamedTuple

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import VerificationFailed
from pulso_etl.sync.ledger.traces import Trace
from pulso_etl.sync.loading.imprints import imprints, traces
from pulso_etl.sync.loading.meanwhile import changed_by_others, changed_meanwhile
from pulso_etl.sync.loading.request import LoadRequest
from pulso_etl.sync.loading.result import LoadResult
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import Strategy
from pulso_etl.sync.target import Target


class Verified(NamedTuple):
    """How many rows each day of the window holds after a load, days without rows left out, and the traces of days that the load
    leaves for the next one."""

    rows: Mapping[date, int]
    traces: Mapping[date, Trace]


def verify(target: Target, request: LoadRequest, result: LoadResult) -> Verified:
    """Compares PostgreSQL with what the load read, inside its transaction, after the write.

    Where a partition owns its rows, each day holds exactly as many rows as were read, and a window as long as the table's
    lookback does not fall below `minimum_records`. In a table with `snapshot_of`, the values that the load settled hold exactly
    the newest snapshots that were read. In a table that keeps history (scd2), the current versions are the rows. Nothing is
    compared in two kinds of tables. One keeps a single row of many that were read, because its key lives in several partitions (a
    version column). The other keeps rows that the source no longer has (append). Quarantined rows are not counted. The table may
    keep its own rows of their keys, so it may hold more rows than were read.

    Too few rows stop the load only if the same days held enough rows before it, because the load would take away rows that the
    dashboard shows. Days that never held so many (a new deployment, a holiday, sample data) are loaded, and the check
    `minimum_records` warns.
    Returns how many rows each day of the window holds now, and the traces that the load leaves.
    Raises VerificationFailed, and TableBusy if another program changed the number of a day's rows during the load; the caller rolls
    back. The request's `allow_shrink` is for rows that are really gone.
    """
    spec, statements = target.spec, Statements(target.spec, target.schema)
    verified, by_others = _look(target, request, result)
    if not (spec.partition_in_key or spec.snapshot_of) or spec.loading.strategy is Strategy.APPEND:
        return verified
    held = verified.rows
    found = dict(target.conn.execute(statements.settled_by_day()).fetchall()) if spec.snapshot_of else held
    _refuse_differing(target, request.window, result, found, by_others)
    if not (spec.snapshot_of or request.window.days < spec.schedule.lookback_days or request.allow_shrink):
        _refuse_too_few(target, result, held)
    return verified


def _look(target: Target, request: LoadRequest, result: LoadResult) -> tuple[Verified, Collection[date]]:
    """Counts the rows. Of days that the load left as they are, it takes the count from before the load.

    Also returns the days that another program has changed, see `changed_by_others`.
    """
    digested, held = result.digested, result.held
    if digested is None and request.writer.sole:
        query = Statements(target.spec, target.schema).rows_by_day()
        return Verified(dict(target.conn.execute(query, request.bounds).fetchall()), {}), ()
    days = digested.compared() if digested else None
    now = imprints(target, request.window, held.since, days) if result.left is None else result.left
    left = {day: rows for day, rows in held.rows.items() if digested and day in digested.unchanged}
    by_day = result.by_day
    verified = Verified(
        left | {day: imprint.rows for day, imprint in now.items()}, traces(digested, held, by_day, now) if digested else {}
    )
    compared = by_day if days is None else days
    return verified, () if request.writer.sole else changed_by_others(compared, held, by_day, now)


def _refuse_differing(
    target: Target, window: DayRange, result: LoadResult, found: Mapping[date, int], by_others: Collection[date]
) -> None:
    """Raises VerificationFailed if a day does not have the rows that it should have.

    Raises TableBusy if all such days are in `by_others`.
    """
    read = {day: counts.read - counts.quarantined for day, counts in result.by_day.items()}
    should = read if result.expected is None else result.expected
    # The table keeps its row of a quarantined key.
    spared = result.total.quarantined > 0

    def differs(day: date) -> bool:
        rows, wanted = found.get(day, 0), should.get(day, 0)
        return rows != wanted and not (spared and rows > wanted)

    if differing := [day for day in sorted({*found, *should}) if differs(day)]:
        if set(differing) <= set(by_others):
            raise changed_meanwhile(f"{target.spec.name} {window}")
        due = "read" if result.expected is None else "expected"
        days = "; ".join(
            f"partition {day}: {should.get(day, 0)} rows {due}, {found.get(day, 0)} in PostgreSQL" for day in differing[:5]
        )
        name = target.spec.name
        raise VerificationFailed(
            f"{name} {window}: {len(differing)} partition(s) do not hold what the source gave: {days}. Nothing was loaded. "
            f"Look for triggers, rules or row security on {target.schema}.{name}; if there are none, report a fault of Pulso ETL"
        )


def _refuse_too_few(target: Target, result: LoadResult, held: Mapping[date, int]) -> None:
    """Raises VerificationFailed if the load makes the last days fall below `minimum_records`."""
    spec = target.spec
    last = sorted(result.by_day)[-spec.schedule.lookback_days :]
    after = sum(held.get(day, 0) for day in last)
    before = sum(result.by_day[day].held(held.get(day, 0)) for day in last)
    if after < spec.quality.minimum_records <= before:
        raise VerificationFailed(
            f"{spec.name} {DayRange(last[0], last[-1])}: only {after} of {before} rows would be left, and the table should have "
            f"at least {spec.quality.minimum_records}. Nothing was loaded. Look at the source; if the rows are really gone, launch "
            "the range again with --allow-shrink (tag pulso_etl/allow_shrink=true)"
        )
