"""Decides how old a table's rows are. Plans, sensor, checks, alerts and the API share this decision."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.spec import TableSpec


class FreshnessState(StrEnum):
    """How old a table's rows are: within its refresh frequency, past it, so old that people must know, or never loaded."""

    FRESH = "fresh"
    DUE = "due"
    STALE = "stale"
    NEVER = "never"


class Condition(StrEnum):
    """The one state of a table, the worst that applies: a refresh failed and no later one has made it good, else its freshness."""

    FAILED = "failed"
    STALE = "stale"
    DUE = "due"
    FRESH = "fresh"
    NEVER = "never"

    @property
    def is_well(self) -> bool:
        """Whether the rows are there and not too old, and nothing failed."""
        return self in (Condition.DUE, Condition.FRESH)


@dataclass(frozen=True)
class Freshness:
    """`since`: the rows equal the source's rows of this instant; None before the first load. `due_at`: when the table's rhythm
    asks for the next load; None for at once. `stale_after`: the last instant at which the rows are not too old; None if they are
    already. All have a zone.
    """

    state: FreshnessState
    since: datetime | None
    due_at: datetime | None
    stale_after: datetime | None = None

    def condition(self, *, failed: bool) -> Condition:
        """The table's one state. `failed`: a refresh failed, and no later one has made it good."""
        return Condition.FAILED if failed else Condition(self.state.value)

    @property
    def is_stale(self) -> bool:
        """Whether the rows are too old to be shown."""
        return self.state in (FreshnessState.STALE, FreshnessState.NEVER)

    def waits(self, now: datetime) -> bool:
        """Whether the table's rhythm asks for no load yet."""
        return self.due_at is not None and now < self.due_at


def freshness(spec: TableSpec, watermark: Watermark | None, now: datetime) -> Freshness:
    """How old the table's rows are at the instant `now`.

    They are stale if loaded rows have disappeared, if the last success is older than twice the refresh frequency, or if the
    newest partition is not today's. Yesterday's is enough until the new day is twice the frequency old. A load of older days
    does not change this. A table of which a load was undone is due, but not before the hold ends.
    """
    since = watermark.last_extracted_at if watermark else None
    if watermark is None or since is None:
        return Freshness(FreshnessState.NEVER, None, None)
    # A watermark in the future comes from a wrong clock, so it does not decide when the next load is due.
    due_at = since + spec.schedule.refresh_every if since <= now else None
    if watermark.held_until is not None:
        due_at = max(watermark.held_until, due_at or watermark.held_until)
    stale_after = _stale_after(spec, watermark, since)
    if stale_after is None or now > stale_after:
        state = FreshnessState.STALE
    elif due_at is None or now >= due_at or watermark.replaced or watermark.held_until is not None:
        state = FreshnessState.DUE
    else:
        state = FreshnessState.FRESH
    return Freshness(state, since, due_at, stale_after)


def _stale_after(spec: TableSpec, watermark: Watermark, since: datetime) -> datetime | None:
    if watermark.lost is not None or watermark.last_partition is None:
        return None
    patience = 2 * spec.schedule.refresh_every
    following, second = (spec.zone.begin(watermark.last_partition + timedelta(days=days)) for days in (1, 2))
    return min(since + patience, following + patience, second)
