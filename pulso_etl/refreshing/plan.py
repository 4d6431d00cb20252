"""Which partitions to refresh: pure functions of the table, its watermark, the mode and the time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import StrEnum

from pulso_etl.sync.days import DayRange, first_kept_day, lima_day
from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.owed import Horizon, Watermark, owed_days
from pulso_etl.sync.spec import TableSpec


class Mode(StrEnum):
    """How the range of a refresh is found."""

    INCREMENTAL = "incremental"
    SLIDING_WINDOW = "sliding_window"
    FULL_REFRESH = "full_refresh"


@dataclass(frozen=True)
class RefreshPlan:
    """What to do about one table: `window` to refresh, or None where it is fresh; `reason` says why, for people."""

    table: str
    window: DayRange | None
    reason: str


def plan_refresh(
    spec: TableSpec,
    watermark: Watermark | None,
    mode: Mode,
    now: datetime,
    *,
    first_day: date,
    initial_days: int,
    days: int | None = None,
    start: date | None = None,
    end: date | None = None,
    force: bool = False,
) -> RefreshPlan:
    """The partitions that a refresh of `spec` takes at the instant `now`.

    An explicit `start` or `end` (a missing one is the first day, or today) wins over the mode; so do the `days` of a
    sliding_window. Every other range begins with the table's lookback or with the first day that is owed, whichever is earlier.
    Freshness skips an incremental refresh only, and `force` overrules it.
    No range leaves `first_day`..today, nor takes days that the table no longer keeps. Raises PlanError for a range that can't be.
    """
    today = lima_day(now)
    first_day = max(first_day, first_kept_day(spec, today))
    if first_day > today:
        raise PlanError(f"{spec.name}: the first partition {first_day} lies after today {today}")
    if days is not None and days < 1:
        raise PlanError(f"{spec.name}: --days must be 1 or more, not {days}")
    if days is not None and (start or end):
        raise PlanError(f"{spec.name}: give either days or an explicit range, not both")
    if days is not None and mode is not Mode.SLIDING_WINDOW:
        raise PlanError(f"{spec.name}: days goes with the mode sliding_window, not with {mode}")
    if start or end:
        window = DayRange(start or first_day, end or today)
        if window.start < first_day or window.end > today:
            kept = f" (retention_months={spec.retention_months})" if spec.retention_months else ""
            raise PlanError(f"{spec.name}: {window} leaves the partitions {first_day}..{today}{kept}")
        return RefreshPlan(spec.name, window, "explicit range")

    owed = owed_days(Horizon.of(spec, first_day, today), watermark or Watermark(None, None), today)

    def trailing(count: int, *, since: date = today) -> DayRange:
        return DayRange(max(first_day, min(since, today - timedelta(days=count - 1))), today)

    if mode is Mode.FULL_REFRESH:
        return RefreshPlan(spec.name, DayRange(first_day, today), "every partition")
    if mode is Mode.SLIDING_WINDOW and days is not None:
        return RefreshPlan(spec.name, trailing(days), f"last {days} days")
    first_owed = min(owed, default=today)
    window = trailing(spec.lookback_days, since=first_owed)
    behind = f"; owed since {first_owed}" if window.days > spec.lookback_days + 1 else ""
    if mode is Mode.SLIDING_WINDOW:
        return RefreshPlan(spec.name, window, f"last {spec.lookback_days} days{behind}")
    if watermark is None or watermark.last_partition is None:
        count = max(initial_days, spec.lookback_days)
        return RefreshPlan(spec.name, trailing(count, since=first_owed), f"first load, {count} days")
    # A watermark of the future (a clock that was wrong) says nothing about freshness.
    if not force and watermark.last_extracted_at is not None:
        age = now - watermark.last_extracted_at
        if timedelta(0) <= age < spec.refresh_every:
            state = "fresh" if watermark.lost is None else "not due"
            return RefreshPlan(spec.name, None, f"{state}: loaded {str(age).split('.')[0]} ago, due every {spec.refresh_every}")
    return RefreshPlan(spec.name, window, f"lookback of {spec.lookback_days} days from {watermark.last_partition}{behind}")


def chunks(spec: TableSpec, plan: RefreshPlan) -> list[RefreshPlan]:
    """The plan in pieces of the table's `chunk_days` at most, the newest days first."""
    return [plan] if plan.window is None else [replace(plan, window=part) for part in plan.window.chunks(spec.chunk_days)]
