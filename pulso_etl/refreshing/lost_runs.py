"""Runs of Dagster that failed and wrote nothing to the ledger: they count as failed attempts of their tables."""

from __future__ import annotations

from pulso_etl.refreshing.ranges import names_days, range_of
from pulso_etl.refreshing.runs import EndedRun
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause, interrupted
from pulso_etl.sync.ledger.watermarks import Attempt
from pulso_etl.sync.spec import TableSpec


def attempt_of(run: EndedRun, spec: TableSpec) -> Attempt | None:
    """The run as an attempt to load the table: it loaded nothing.

    A run that names no days counts for the day on which it ended. A run whose days are not a range could load nothing: None.
    """
    # The time in the queue does not count. A run that never began has the duration 0.
    began, last = run.started_at or run.ended_at, spec.zone.day(run.ended_at)
    window = range_of(run.tags) if names_days(run.tags) else DayRange(last, last)
    if window is None:
        return None
    cause = interrupted(run.ended_at - began, spec.loading.timeout, Cause.CANCELLED if run.canceled else Cause.ABANDONED)
    withdrawn = run.canceled and run.started_at is None
    return Attempt(run.run_id, window, False, began, run.ended_at, withdrawn=withdrawn, cause=cause)
