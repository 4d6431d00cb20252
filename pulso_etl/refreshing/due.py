"""Which tables are due for a refresh, and over which days: pure functions of what is known at one instant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta

from pulso_etl.refreshing.freshness import freshness
from pulso_etl.refreshing.plan import Calendar, plan_refresh, skipped
from pulso_etl.refreshing.request import Grants, RefreshRequest
from pulso_etl.refreshing.runs import run_over
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.ledger.watermarks import Attempt
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.source_state import SourceState
from pulso_etl.sync.spec import TableSpec

MEMORY = timedelta(days=2)
"""How far back attempts matter. It is longer than the time between two daily re-checks, and than any back-off."""


@dataclass(frozen=True)
class Standing:
    """What is known about one table: its watermark, the attempts within MEMORY, the queued and running runs, and the `days` of
    its ledger. `source`: what its source was like when it was last read or found unchanged.

    `in_flight` has these runs by id, each with its days, or None if the run does not name them.
    """

    watermark: Watermark | None = None
    attempts: Sequence[Attempt] = ()
    in_flight: Mapping[str, DayRange | None] = field(default_factory=dict)
    days: Mapping[date, Day] = field(default_factory=dict)
    source: SourceState | None = None


@dataclass(frozen=True)
class BackOff:
    """How long after its n-th failed run in a row a table waits: `base` doubled n-1 times, at most `cap`.

    From `limit` failed runs on the table is retried at its ordinary rhythm only.
    """

    base: timedelta = timedelta(minutes=2)
    cap: timedelta = timedelta(hours=1)
    limit: int = 5

    @classmethod
    def of(cls, settings: Settings) -> BackOff:
        """What the settings describe."""
        return cls(
            base=timedelta(seconds=settings.retry_wait_seconds),
            cap=timedelta(seconds=settings.retry_wait_maximum_seconds),
            limit=settings.retry_limit,
        )

    def wait(self, failures: int, refresh_every: timedelta) -> timedelta:
        if failures >= self.limit:
            return max(self.cap, refresh_every)
        # After twenty doublings every usual cap is reached, and the number stays small.
        return min(self.cap, self.base * (1 << min(failures - 1, 20)))


@dataclass(frozen=True)
class Rhythm:
    """When and over which days a deployment refreshes its tables by itself."""

    calendar: Calendar
    back_off: BackOff

    @classmethod
    def of(cls, settings: Settings) -> Rhythm:
        """What the settings describe."""
        return cls(Calendar.of(settings), BackOff.of(settings))


@dataclass(frozen=True)
class Decision:
    """What to do about a table: `window` to refresh, or None; `reason` for people.

    `trailing`: the days that a refresh reads. `slot` names the refresh: it changes when, and only when, a run of the table has
    ended. `failures` are the failed runs that no later one has made good. `due` is when the table is to be refreshed next, None for
    at once. `run_under_way`: the run that refreshes these days now, if there is one.
    """

    table: str
    window: DayRange | None
    reason: str
    trailing: DayRange
    slot: str = ""
    failures: Sequence[Attempt] = ()
    due: datetime | None = None
    run_under_way: str | None = None


def failed_runs(attempts: Iterable[Attempt], window: DayRange) -> list[Attempt]:
    """The last failed attempt of each run, oldest first, if it left days of the window that no later attempt has loaded."""
    attempts = list(attempts)
    if all(attempt.succeeded for attempt in attempts):
        # Nearly always, and a thousand tables are looked at each second.
        return []
    loaded: set[date] = set()
    failures: dict[str, Attempt] = {}
    for attempt in sorted(attempts, key=lambda attempt: attempt.finished_at, reverse=True):
        days = {day for day in attempt.window if day in window}
        if attempt.is_undoing:
            continue
        if attempt.succeeded:
            loaded |= days
        elif days - loaded:
            failures.setdefault(attempt.run_id, attempt)
    return list(reversed(failures.values()))


def due_at(
    spec: TableSpec, watermark: Watermark | None, failures: Sequence[Attempt], back_off: BackOff, now: datetime
) -> datetime | None:
    """When the next refresh of the table is due: after the wait for its failed runs, or by its usual rhythm. None means at once.
    It is never before the end of a hold."""
    if failures:
        retry = failures[-1].finished_at + back_off.wait(len(failures), spec.schedule.refresh_every)
        return max(retry, watermark.held_until) if watermark and watermark.held_until else retry
    return freshness(spec, watermark, now).due_at


def decide_due(spec: TableSpec, standing: Standing, now: datetime, rhythm: Rhythm) -> Decision:
    """Whether the table is due at `now`.

    It is due if its last success is too old, or if days of its trailing range failed. It waits while a run of these days goes
    on, and for some time after failures.
    """
    forced = RefreshRequest((spec.name,), grants=Grants(force=True))
    trailing = plan_refresh(spec, standing.watermark, forced, now, rhythm.calendar)
    assert trailing.window is not None
    failures = failed_runs(standing.attempts, trailing.window)
    due = due_at(spec, standing.watermark, failures, rhythm.back_off, now)

    run = run_over(standing.in_flight, trailing.window)
    since = standing.watermark.last_extracted_at if standing.watermark else None
    last = max(standing.attempts, key=lambda attempt: attempt.finished_at, default=None)
    slot = f"{since.isoformat() if since else 'never'}/{last.run_id if last else 'none'}"
    due_now = Decision(spec.name, trailing.window, trailing.reason, trailing.window, slot, failures, due, run)

    def wait(reason: str) -> Decision:
        return replace(due_now, window=None, reason=reason)

    if run is not None:
        return wait(f"run {run} is under way")
    if not failures:
        not_due = skipped(spec, standing.watermark, now)
        return wait(not_due) if not_due else due_now
    if due is not None and now < due:
        return wait(f"waits until {due:%Y-%m-%d %H:%M:%S %Z} after {len(failures)} failed run(s)")
    return replace(due_now, reason=f"{trailing.reason}; retry after {len(failures)} failed run(s)")


def loaded_days(window: DayRange, days: Mapping[date, Day], now: datetime, recheck_every: timedelta) -> dict[date, Day]:
    """The days of the window that were loaded within `recheck_every`.

    `now` and the readings are by the server's clock. A reading after `now` comes from a wrong clock and does not count.
    """
    return {day: known for day, known in days.items() if day in window and timedelta(0) <= now - known.loaded_at < recheck_every}
