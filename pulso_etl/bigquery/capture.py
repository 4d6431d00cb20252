"""Change capture: the rows of a base table that changed since its last load, from BigQuery's change history. Pure functions.

A refresh may read only the changes of a window if three conditions hold. First, the watermark says that at an instant of the same
day every day of the window was equal to the source. Then only later changes can differ. Second, the changes reach back to that
instant. Third, they end after the last load that wrote days of the window. Then no older state of a row overwrites a newer one. The
load makes the table equal to the source at the interval's end. Changes of days outside of the window are left out, as in a load of
the whole window.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from google.cloud import bigquery

from pulso_etl.sync.days import DayRange, contiguous
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.spec import CAPTURE_LAG, DELETED, ROW_SOURCE, ChangeCapture, Strategy, TableSpec

LONGEST = timedelta(days=1)
"""The longest interval of one call of CHANGES. The shortest time travel window, which also limits APPENDS, is longer."""
CHANGE = "_CHANGE_TYPE AS pulso_change_type, _CHANGE_TIMESTAMP AS pulso_changed_at"


@dataclass(frozen=True)
class Interval:
    """Changes committed from `start` until before `end`, instants with zone."""

    start: datetime
    end: datetime

    def __str__(self) -> str:
        return f"{self.start.isoformat(timespec='seconds')}..{self.end.isoformat(timespec='seconds')}"


def interval(
    spec: TableSpec, window: DayRange, watermark: Watermark, written_at: datetime | None, now: datetime, margin: timedelta
) -> Interval | str:
    """The changes that make the window equal to the source a little before `now`, or the reason to read the whole window.

    `written_at` is the end of the last load of days of the window, if it is later than the watermark. `margin` allows for clocks
    that differ. Instants carry a zone.
    """
    since, end = watermark.last_extracted_at, now - CAPTURE_LAG
    if since is None or watermark.last_partition is None:
        return "the window was never loaded"
    if window.end != watermark.last_partition:
        # Rows of a new day may be older than the last load. That load left them out, because the day was beyond its window.
        return f"the last load reached {watermark.last_partition}, not {window.end}"
    if window.days > spec.schedule.lookback_days:
        return f"the watermark covers only {spec.schedule.lookback_days} days"
    known = watermark.readings
    if before := [day for day in window if day not in known or known[day].at < since]:
        # Earlier loads had a shorter lookback and treated these days as final.
        return f"the watermark does not cover {', '.join(map(str, contiguous(before)))}"
    if undone := [day for day in window if known[day].is_undone]:
        # Their changes are older than the watermark.
        return f"a load of {', '.join(map(str, contiguous(undone)))} was undone"
    if max(since, written_at or since) >= end:
        return f"it was loaded less than {CAPTURE_LAG} ago"
    start = since - margin
    return Interval(start, end) if end - start <= LONGEST else f"its last load is more than {LONGEST} old"


def capture_refusal(table: bigquery.Table, changes: Interval) -> str | None:
    """Why this table cannot report its changes, as far as its metadata say."""
    if table.table_type != "TABLE":
        return f"{table.full_table_id} is a {table.table_type}, which has no change history"
    if table.created is None or table.created >= changes.start:
        return f"{table.full_table_id} was created after the last load"
    return None


def captured_sql(spec: TableSpec) -> str:
    """The table's query over the changes from `@since` until before `@until`, with `pulso_deleted` beside its columns.

    It gives each key once, in the state after its last change; more often only if the source holds the key more often. BigQuery
    reports a changed row as deleted and inserted at one instant, and also the rows of an overwritten table: the inserted row wins.
    With the strategy `append`, where a key may repeat, the query gives every row.
    """
    function = (spec.source.change_capture or ChangeCapture.CHANGES).upper()
    rows = ROW_SOURCE.sub(rf",\n  {CHANGE}\nFROM {function}(TABLE `{{\1}}`, @since, @until)", spec.source.query)
    deleted = "pulso_change_type = 'DELETE'"
    sql = f"SELECT * EXCEPT (pulso_change_type, pulso_changed_at), {deleted} AS {DELETED.name} FROM (\n{rows}\n)"  # noqa: S608 - the declared query
    if spec.loading.strategy is Strategy.APPEND:
        return sql
    keys = ", ".join(f"`{name}`" for name in spec.primary_key)
    latest = f"(PARTITION BY {keys} ORDER BY pulso_changed_at DESC, {deleted})"
    return f"{sql}\nWHERE TRUE\nQUALIFY IF({deleted}, ROW_NUMBER() OVER {latest}, RANK() OVER {latest}) = 1"
