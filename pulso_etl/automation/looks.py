"""Looks at the sources of tables, and decides which days need to be read again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any, Protocol, TypeVar

import psycopg

from pulso_etl.bigquery.look import NO_DAYS, Look, Size, changed_tables, holds_nothing, is_daily, state_of, unchanged_days
from pulso_etl.bigquery.pace import Pace
from pulso_etl.bigquery.pricing import question_pays
from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.refreshing.due import Standing, loaded_days
from pulso_etl.sync.days import DayRange, contiguous
from pulso_etl.sync.errors import PulsoError, SourceQuotaSpent, SourceUnavailable
from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.ledger.queries import Purpose, Usage
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.source_state import KeptPartitions, PartitionStates, SourceState
from pulso_etl.sync.spec import TableSpec

Answer = TypeVar("Answer")
BY_LOOK = "look"
"""Stands for the id of a run in the ledger: the sensor and a plan look outside of runs."""
RECHECK_EVERY = timedelta(hours=24)
"""A table whose source reports no change needs no new load if its last load is at most this old."""


UNASKED = "to ask which of them have changed would bill as much as to read them all"
NO_BOUND = 10**9
LEAST_SECONDS = 0.5
"""No look begins if it would have less time than this: it would be cut off, and a healthy source would seem to be away."""


@dataclass(frozen=True)
class Sight:
    """What BigQuery told of a statement over a window, and the source's state, or why it gives no signal."""

    look: Look
    state: SourceState | str

    @property
    def digest(self) -> str:
        """The digest of the state; empty if there is no signal."""
        return self.state.digest if isinstance(self.state, SourceState) else ""


@dataclass(frozen=True)
class Seen:
    """The result of a look: the days to read, a note for people, and the source's state (None: no signal).

    `look`: what BigQuery told of the statement over the whole window; None if it was not asked, or did not answer. `empty`: days
    that were never loaded and have no rows at the source. `bytes_avoided`: what BigQuery would have billed for the whole window,
    and does not for these days.
    """

    days: Collection[date]
    note: str
    state: SourceState | None = None
    look: Look | None = None
    empty: Sequence[date] = ()
    bytes_avoided: int = 0


class Notes(Protocol):
    """What a look needs to remember from one time to the next, and to write down."""

    def partitions(self, table: str) -> Mapping[str, KeptPartitions]:
        """The states of the partitions of the table's base tables, as far as they were ever asked for."""

    def known(self, facts: Mapping[str, Any]) -> PartitionStates:
        """The states of partitions that were asked for, for whichever table, when their base table was like these facts."""

    def asked(self, table: str, used: Usage) -> None:
        """Writes down what a question about partitions billed."""


@dataclass(frozen=True)
class LedgerNotes:
    """Notes in the ledger, over a connection in autocommit mode."""

    marks: Watermarks
    conn: psycopg.Connection

    def partitions(self, table: str) -> Mapping[str, KeptPartitions]:
        return self.marks.partitions(self.conn, table)

    def known(self, facts: Mapping[str, Any]) -> PartitionStates:
        return self.marks.known_partitions(self.conn, facts)

    def asked(self, table: str, used: Usage) -> None:
        self.marks.queries.record(self.conn, table, Purpose.CHANGES, BY_LOOK, used)


@dataclass
class Looks:
    """The looks of one tick. Together they may last until `until` on the monotonic clock.
    `change_aware`: whether the deployment asks for changes at all. `pace`: what is known of the requests of earlier looks, to which
    each look adds; at most `most_requests` are sent in a minute. `now`: the instant of the tick, for the pace.

    After a question without an answer it asks no more: the source is away, and every table is read as if everything had changed.
    """

    source: BigQuerySource
    notes: Notes
    until: float
    change_aware: bool = True
    pace: Pace = field(default_factory=Pace)
    most_requests: int = NO_BOUND
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    away: PulsoError | None = None
    told: dict[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)
    """States of partitions that these looks asked for, by base table and what it was like."""

    def halt(self) -> str:
        """Why no look can begin; empty if one can."""
        if self.away is not None:
            return self.pace.halt(self.now, self.most_requests) or f"its source was not looked at: {self.away}"
        if monotonic() + LEAST_SECONDS > self.until:
            return "the next tick asks whether its source has changed"
        return self.pace.halt(self.now, self.most_requests)

    def delay(self) -> str:
        """Why a table that is due must wait for a later tick; empty if it need not. If the source refuses looks, it does not wait:
        then its whole window is read."""
        return "" if self.away is not None or self.pace.backs_off(self.now) else self.halt()

    def captures(self, spec: TableSpec) -> bool:
        """Whether the run itself reads only the changes."""
        return self.change_aware and spec.source.change_capture is not None

    def asks(self, spec: TableSpec) -> bool:
        """Whether the source of the table is looked at before a run."""
        return self.change_aware and not self.captures(spec)

    def sight(self, spec: TableSpec, window: DayRange) -> Sight:
        """What the source tells of the window. Raises the errors of `BigQuerySource.look`."""
        look = self._asked(lambda seconds: self.source.look(spec, window, seconds))
        # Beside the dry run.
        self.pace = self.pace.after(len(look.tables) + len(look.views), self.now)
        return Sight(look, state_of(look, spec))

    def seen(self, spec: TableSpec, window: DayRange, standing: Standing, now: datetime, sight: Sight | None = None) -> Seen:
        """The days of the window to read again at the instant `now` (the server's clock). A day is left out if the source is in the
        state of the day's last reading, or if only other partitions of the source have changed since. `sight`: what it has told."""
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
            look, state = (found := sight or self.sight(spec, window)).look, found.state
            if isinstance(state, str):
                return Seen(every, f"the whole window: the source gives no signal of changes: {state}", look=look)
            unchanged, unasked = {day for day, one in known.items() if one.source == state.digest}, ""
            if standing.source is not None:
                # Only the last state is kept as a whole. A day of another state may have missed more changes.
                last = {day: one for day, one in known.items() if one.source == standing.source.digest}
                names = self._comparable(spec, look, changed_tables(standing.source, state), last)
                partitions = self._partitions(spec, window, look, {name: state.facts["tables"][name] for name in names})
                state = replace(state, partitions=partitions or {})
                if partitions is None:
                    unasked = f"; {UNASKED}"
                elif partitions:
                    read_at = {day: one.at for day, one in last.items()}
                    unchanged |= unchanged_days(self.notes.partitions(spec.name), state.partitions, read_at)
        except PulsoError as error:
            # Detection of changes only saves work. The run itself will report what is wrong with the source.
            return Seen(every, f"the whole window: the source does not report its changes ({error})")
        empty = self._empty(spec, look, [day for day in every if day not in standing.days])
        days = [day for day in every if day not in unchanged and day not in empty]
        note = f"{len(days)} of {window.days} partitions to read, {window.days - len(days)} verified{unasked}"
        return self._with_avoided(spec, window, Seen(days, note, state, look, empty))

    def _comparable(
        self, spec: TableSpec, look: Look, changed: Collection[str] | None, loaded: Mapping[date, Day]
    ) -> Sequence[str]:
        """The changed base tables whose partitions can tell which days have changed; none if a partition is no day of the result,
        or if there is no loaded day that they could tell about."""
        return sorted(changed) if changed and loaded and all(is_daily(look, spec, name) for name in changed) else ()

    def _partitions(self, spec: TableSpec, window: DayRange, look: Look, facts: Mapping[str, Any]) -> PartitionStates | None:
        """The states of the partitions of base tables, by the facts of each of them; None if it can't pay to ask for them.

        An answer that was given when a base table was like these facts still holds, whichever table asked."""
        known = {name: self.told[name, str(one)] for name, one in facts.items() if (name, str(one)) in self.told}
        known |= self.notes.known({name: one for name, one in facts.items() if name not in known})
        tables = [look.tables[name] for name in facts if name not in known]
        if tables:
            if not question_pays(look.bytes_processed, len(look.tables), len(tables)):
                return None
            found = self._asked(lambda seconds: self.source.partitions(spec, window, tables, seconds))
            self.notes.asked(spec.name, found.used)
            self.told |= {(name, str(facts[name])): states for name, states in found.states.items()}
            known |= found.states
        return known

    def _empty(self, spec: TableSpec, look: Look, new: Sequence[date]) -> Sequence[date]:
        """Those of the days, of which none was ever loaded, that have no rows at the source."""
        if not new or not any(is_daily(look, spec, name) for name in look.tables):
            return ()
        try:
            none = self._asked(partial(self.source.size, spec, NO_DAYS))
            return [day for day in new if holds_nothing(self._size(spec, day), none, look.size)]
        except PulsoError:
            return ()

    def _size(self, spec: TableSpec, day: date) -> Size:
        return self._asked(partial(self.source.size, spec, DayRange(day, day)))

    def _with_avoided(self, spec: TableSpec, window: DayRange, seen: Seen) -> Seen:
        """Completes the bytes that are avoided. Without an answer nothing is said to be avoided."""
        assert seen.look is not None
        if len(seen.days) == window.days:
            return seen
        try:
            parts = [self._asked(partial(self.source.size, spec, part)) for part in contiguous(seen.days)]
        except PulsoError:
            return seen
        return replace(seen, bytes_avoided=max(0, seen.look.size.bytes_billed - sum(part.bytes_billed for part in parts)))

    def _asked(self, ask: Callable[[float], Answer]) -> Answer:
        if self.away is not None:
            raise self.away
        if self.pace.backs_off(self.now):
            raise SourceUnavailable(self.pace.halt(self.now, self.most_requests))
        try:
            answer = ask(max(self.until - monotonic(), 0.1))
        except (SourceUnavailable, SourceQuotaSpent) as error:
            self.away, self.pace = error, self.pace.refused(str(error), self.now)
            raise
        self.pace = self.pace.after(1, self.now)
        return answer
