"""Runs of Dagster that failed and wrote nothing to the ledger: they count as failed attempts of their tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pulso_etl.refreshing.ranges import names_days, range_of
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause, interrupted
from pulso_etl.sync.ledger.watermarks import Attempt
from pulso_etl.sync.spec import TableSpec


@dataclass(frozen=True)
class EndedRun:
    """A run that failed or was canceled. Instants carry a zone. `started_at` is None if it never began."""

    run_id: str
    tags: Mapping[str, str]
    canceled: bool
    started_at: datetime | None
    ended_at: datetime

    def attempt(self, spec: TableSpec) -> Attempt | None:
        """The run as an attempt to load the table: it loaded nothing.

        A run that names no days counts for the day on which it ended. A run whose days are not a range could load nothing: None.
        """
        # The time in the queue does not count. A run that never began has the duration 0.
        began, last = self.started_at or self.ended_at, spec.zone.day(self.ended_at)
        window = range_of(self.tags) if names_days(self.tags) else DayRange(last, last)
        if window is None:
            return None
        cause = interrupted(self.ended_at - began, spec.loading.timeout, Cause.CANCELLED if self.canceled else Cause.ABANDONED)
        withdrawn = self.canceled and self.started_at is None
        return Attempt(self.run_id, window, False, began, self.ended_at, withdrawn=withdrawn, cause=cause)
