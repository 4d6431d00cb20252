"""Looks at the sources of due tables, and decides which days need to be read again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from time import monotonic
from typing import TypeVar

from pulso_etl.bigquery.look import Look, changed_tables, is_daily, state_of
from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.refreshing.due import Standing, loaded_days, unchanged_days
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PulsoError, SourceUnavailable
from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.source_state import SourceState
from pulso_etl.sync.spec import TableSpec

Answer = TypeVar("Answer")
RECHECK_EVERY = timedelta(hours=24)
"""A table whose source reports no change needs no new load if its last load is at most this old."""


@dataclass(frozen=True)
class Seen:
    """The result of a look: the days to read, a note for people, and the source's state (None: no signal).

    `look`: what BigQuery told of the statement over the whole window; None if it was not asked, or did not answer.
    """

    days: Collection[date]
    note: str
    state: SourceState | None = None
    look: Look | None = None

    @property
    def bytes_avoided(self) -> int:
        """The bytes that need not be read because nothing has changed."""
        return self.look.bytes_processed if self.look and not self.days else 0


@dataclass
class Looks:
    """The looks of one tick. Together they may last until `until` on the monotonic clock. `margin`: how far clocks may differ.
    `change_aware`: whether the deployment asks for changes at all.

    After a question without an answer it asks no more: the source is away, and every table is read as if everything had changed.
    """

    source: BigQuerySource
    margin: timedelta
    until: float
    change_aware: bool = True
    away: SourceUnavailable | None = None

    @property
    def are_over(self) -> bool:
        """Whether the time is up although the source answers."""
        return self.away is None and monotonic() > self.until

    def captures(self, spec: TableSpec) -> bool:
        """Whether the run itself reads only the changes."""
        return self.change_aware and spec.source.change_capture is not None

    def seen(self, spec: TableSpec, window: DayRange, standing: Standing, now: datetime) -> Seen:
        """The days of the window to read again at the instant `now` (the server's clock). A day is left out if the source is in the
        state of the day's last reading, or if only other partitions of the source have changed since."""
        every = list(window)
        if not self.change_aware:
            return Seen(every, "the whole window: detection of changes is turned off")
        if self.captures(spec):
            return Seen(every, "only the changes, if the source reports them")
        loaded = loaded_days(window, standing.days, now, RECHECK_EVERY)
        known = {day: one for day, one in loaded.items() if not one.is_short}
        if not known:
            return Seen(every, "the whole window: nothing of it was loaded in the last day")
        try:
            look = self._asked(lambda seconds: self.source.look(spec, window, seconds))
            state = state_of(look, spec)
            if isinstance(state, str):
                return Seen(every, f"the whole window: the source gives no signal of changes: {state}", look=look)
            unchanged = {day for day, one in known.items() if one.source == state.digest}
            if standing.source is not None:
                # Only the last state is kept as a whole. A day of another state may have missed more changes.
                last = {day: one for day, one in known.items() if one.source == standing.source.digest}
                unchanged |= set(self._in_unchanged_partitions(spec, look, changed_tables(standing.source, state), last))
        except PulsoError as error:
            # Detection of changes only saves work. The run itself will report what is wrong with the source.
            return Seen(every, f"the whole window: the source does not report its changes ({error})")
        days = [day for day in every if day not in unchanged]
        note = f"{len(days)} of {window.days} partitions to read, {window.days - len(days)} verified"
        return Seen(days, note, state, look)

    def _in_unchanged_partitions(
        self, spec: TableSpec, look: Look, names: Collection[str] | None, loaded: Mapping[date, Day]
    ) -> Collection[date]:
        """The loaded days whose partitions have not changed in the changed base tables `names`; none if that is not certain."""
        if not names or not loaded or not all(is_daily(look, spec, name) for name in names):
            return ()
        since = min(one.loaded_at for one in loaded.values()) - self.margin
        tables = [look.tables[name] for name in names]
        days = DayRange(min(loaded), max(loaded))
        found = self._asked(lambda seconds: self.source.changed_partitions(spec, days, tables, since, seconds))
        return () if found is None else unchanged_days(loaded, *found, self.margin)

    def _asked(self, ask: Callable[[float], Answer]) -> Answer:
        if self.away is not None:
            raise self.away
        try:
            return ask(max(self.until - monotonic(), 0.1))
        except SourceUnavailable as error:
            self.away = error
            raise
