"""Which partitions to refresh: pure functions of the table, its watermark, the request and the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from uuid import uuid4

from pulso_etl.refreshing.freshness import freshness
from pulso_etl.refreshing.grounds import Known, reasons_of
from pulso_etl.refreshing.request import NO_GRANTS, Grants, Mode, RefreshRequest
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange, first_kept_day
from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.owed import Horizon, Watermark, owed_days
from pulso_etl.sync.reasons import Reasons
from pulso_etl.sync.shared_reads import SharedRead
from pulso_etl.sync.spec import TableSpec

NOTHING_LOADED = Watermark(None, None)


@dataclass(frozen=True)
class Calendar:
    """The days of a deployment: its first partition, and how many trailing days the first refresh of a table loads."""

    first_day: date
    initial_days: int

    @classmethod
    def of(cls, settings: Settings) -> Calendar:
        """What the settings describe."""
        return cls(settings.partitions_start, settings.initial_window_days)


@dataclass(frozen=True)
class RefreshPlan:
    """What to do about one table: the `window` to refresh, or None if the table is fresh. `reason` tells people why.

    `grants`, `asked_by` and `announced_at` are those of the request. `known`: what the reasons of its days follow from; None if
    nobody planned the days. `shared`: the read that it shares with another plan of the same launch (see `pieces`).
    """

    table: str
    window: DayRange | None
    reason: str
    grants: Grants = NO_GRANTS
    asked_by: str = ""
    announced_at: datetime | None = None
    known: Known | None = field(default=None, compare=False, repr=False)
    shared: SharedRead | None = None

    @property
    def reasons(self) -> Reasons | None:
        """Why its days are read. Worked out when it is asked for: most plans are not launched."""
        if self.known is None or self.window is None:
            return None
        return Reasons(self.reason, tuple(reasons_of(self.known, self.window)))


def plan_refresh(
    spec: TableSpec, watermark: Watermark | None, request: RefreshRequest, now: datetime, calendar: Calendar
) -> RefreshPlan:
    """The partitions that the request takes of the table `spec` at the instant `now`.

    An explicit `start` or `end` (a missing one is the first day, or today) wins over the mode; so do the `days` of a
    sliding_window. Every other range begins with the table's lookback or with the first day that is owed, whichever is earlier.
    A fresh table is skipped by an incremental refresh only, and `force` overrules that.
    No range has days after today, days before the first partition, or days that the table no longer keeps. Raises PlanError for a
    request for such days, and for an invalid request.
    """
    window, reason = _window(spec, watermark or NOTHING_LOADED, request, now, calendar)
    known = known_at(spec, watermark, now, calendar, {}) if window else None
    return RefreshPlan(spec.name, window, reason, request.grants, request.asked_by, request.announced_at, known)


def known_at(
    spec: TableSpec, watermark: Watermark | None, now: datetime, calendar: Calendar, changed: Mapping[str, datetime]
) -> Known:
    """What the reasons of the table's days follow from at the instant `now`; `changed`: see `Known`."""
    return Known(spec, watermark or NOTHING_LOADED, calendar.first_day, spec.zone.day(now), changed)


def _window(
    spec: TableSpec, watermark: Watermark, request: RefreshRequest, now: datetime, calendar: Calendar
) -> tuple[DayRange | None, str]:
    """The days to refresh, or None, and why."""
    every = _partitions(spec, now, calendar)
    _refuse_nonsense(spec, request)
    if request.start or request.end:
        return _explicit(spec, request, every), "explicit range"
    if request.mode is Mode.FULL_REFRESH:
        return every, "every partition"
    if request.days is not None:
        return _trailing(every, request.days), f"last {request.days} days"
    first_owed = min(owed_days(Horizon.of(spec, every.start, every.end), watermark, every.end), default=every.end)
    window = _trailing(every, spec.schedule.lookback_days, since=first_owed)
    behind = f"; owed since {first_owed}" if window.days > spec.schedule.lookback_days + 1 else ""
    if request.mode is Mode.SLIDING_WINDOW:
        return window, f"last {spec.schedule.lookback_days} days{behind}"
    if watermark.last_partition is None:
        count = max(calendar.initial_days, spec.schedule.lookback_days)
        return _trailing(every, count, since=first_owed), f"first load, {count} days"
    if not request.grants.force and (why_skipped := skipped(spec, watermark, now)):
        return None, why_skipped
    return window, f"lookback of {spec.schedule.lookback_days} days from {watermark.last_partition}{behind}"


def _partitions(spec: TableSpec, now: datetime, calendar: Calendar) -> DayRange:
    """Every day that the table keeps, up to today."""
    today = spec.zone.day(now)
    first_day = max(calendar.first_day, first_kept_day(spec, today))
    if first_day > today:
        raise PlanError(f"{spec.name}: the first partition {first_day} lies after today {today}")
    return DayRange(first_day, today)


def _refuse_nonsense(spec: TableSpec, request: RefreshRequest) -> None:
    if request.days is None:
        return
    if request.days < 1:
        raise PlanError(f"{spec.name}: --days must be 1 or more, not {request.days}")
    if request.start or request.end:
        raise PlanError(f"{spec.name}: give either days or an explicit range, not both")
    if request.mode is not Mode.SLIDING_WINDOW:
        raise PlanError(f"{spec.name}: days goes with the mode sliding_window, not with {request.mode}")


def _explicit(spec: TableSpec, request: RefreshRequest, every: DayRange) -> DayRange:
    window = DayRange(request.start or every.start, request.end or every.end)
    if window.start < every.start or window.end > every.end:
        kept = f" (retention_months={spec.retention.retention_months})" if spec.retention.retention_months else ""
        raise PlanError(f"{spec.name}: {window} is not within the partitions {every}{kept}")
    return window


def _trailing(every: DayRange, count: int, *, since: date | None = None) -> DayRange:
    """The last `count` days, or the days from `since` on if these are more."""
    first = every.end - timedelta(days=count - 1)
    return DayRange(max(every.start, min(since or first, first)), every.end)


def skipped(spec: TableSpec, watermark: Watermark | None, now: datetime) -> str | None:
    """Why an incremental refresh without `force` skips the table; None if it is due, as a table without a load always is."""
    if watermark is None or watermark.last_partition is None:
        return None
    fresh = freshness(spec, watermark, now)
    if fresh.since is None or not fresh.waits(now):
        return None
    if watermark.is_held(now):
        return f"{held(watermark)}; --force does"
    age = now - fresh.since
    state = "fresh" if watermark.lost is None else "not due"
    return f"{state}: loaded {str(age).split('.')[0]} ago, due every {spec.schedule.refresh_every}"


def held(watermark: Watermark) -> str:
    """Why only people refresh a table that is held."""
    return f"a load was undone: only people refresh the table until {watermark.held_until:%Y-%m-%d %H:%M:%S %Z}"


def pieces(tables: Mapping[str, TableSpec], plans: Iterable[RefreshPlan]) -> list[RefreshPlan]:
    """The plans of one launch as its runs: in pieces of the table's `chunk_days` at most, the newest days first.

    A piece of a table that reads with another one shares the read of a piece of that one if it covers its days. The key of the read
    is new each time. Plans without days have no pieces.
    """
    found = [
        replace(plan, window=part)
        for plan in plans
        if plan.window is not None
        for part in plan.window.chunks(tables[plan.table].loading.chunk_days)
    ]
    reads = {place: host for place, piece in enumerate(found) if (host := _host_of(piece, tables, found)) is not None}
    shared = {host: SharedRead(uuid4().hex, tables[found[host].table], _days(found[host])) for host in reads.values()}
    return [replace(piece, shared=shared.get(reads.get(place, place))) for place, piece in enumerate(found)]


def _host_of(guest: RefreshPlan, tables: Mapping[str, TableSpec], among: Sequence[RefreshPlan]) -> int | None:
    """The place of the piece whose read has the guest's rows; None if there is none."""
    host = tables[guest.table].source.reads_with
    covering = (place for place, one in enumerate(among) if one.table == host and _days(one).covers(_days(guest)))
    return next(covering, None)


def _days(piece: RefreshPlan) -> DayRange:
    assert piece.window is not None
    return piece.window
