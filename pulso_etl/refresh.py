"""Which partitions to refresh: pure functions of the table, its watermark, the mode and the time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from pulso_etl.errors import PlanError
from pulso_etl.tables.spec import TableSpec

LIMA = ZoneInfo("America/Lima")


class Mode(StrEnum):
    """How the range of a refresh is found."""

    INCREMENTAL = "incremental"
    SLIDING_WINDOW = "sliding_window"
    FULL_REFRESH = "full_refresh"


@dataclass(frozen=True)
class DayRange:
    """Days of America/Lima, both ends included."""

    start: date
    end: date

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise PlanError(f"the range starts on {self.start}, after its end {self.end}")

    @classmethod
    def parse(cls, start: str, end: str) -> DayRange:
        """The range of two ISO dates. Raises ValueError."""
        return cls(date.fromisoformat(start), date.fromisoformat(end))

    @property
    def days(self) -> int:
        return (self.end - self.start).days + 1

    def overlaps(self, other: DayRange) -> bool:
        """Whether both have a day."""
        return self.start <= other.end and other.start <= self.end

    def chunks(self, days: int) -> list[DayRange]:
        """The range in pieces of so many days at most, the newest first."""
        ends = range(0, self.days, days)
        return [DayRange(max(self.start, self.end - timedelta(n + days - 1)), self.end - timedelta(n)) for n in ends]

    def __contains__(self, day: date) -> bool:
        return self.start <= day <= self.end

    def __iter__(self) -> Iterator[date]:
        return (self.start + timedelta(days=n) for n in range(self.days))

    def __str__(self) -> str:
        return str(self.start) if self.start == self.end else f"{self.start}..{self.end}"


@dataclass(frozen=True)
class Watermark:
    """How far a table is loaded: the last refresh that reached its own today (instant with zone), and the newest day."""

    last_extracted_at: datetime | None
    last_partition: date | None


@dataclass(frozen=True)
class RefreshPlan:
    """What to do about one table: `window` to refresh, or None where it is fresh; `reason` says why, for people."""

    table: str
    window: DayRange | None
    reason: str


def lima_day(now: datetime) -> date:
    """The day in America/Lima of an instant. Raises PlanError for a time without zone."""
    if now.tzinfo is None:
        raise PlanError("the time now has no zone")
    return now.astimezone(LIMA).date()


def first_kept_day(spec: TableSpec, today: date) -> date:
    """The first day of the oldest month that the table keeps; `date.min` where it keeps all."""
    if spec.retention_months is None:
        return date.min
    months = today.year * 12 + today.month - 1 - spec.retention_months
    return date(months // 12, months % 12 + 1, 1)


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

    An explicit `start` or `end` (a missing one is the first day, or today) wins over the mode. `days` goes with
    sliding_window; without it that is the table's lookback. Freshness skips an incremental refresh only, and `force` overrules it.
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

    def trailing(last: date, count: int) -> DayRange:
        return DayRange(max(first_day, min(last, today) - timedelta(days=count - 1)), today)

    if mode is Mode.FULL_REFRESH:
        return RefreshPlan(spec.name, DayRange(first_day, today), "every partition")
    if mode is Mode.SLIDING_WINDOW:
        count = days or spec.lookback_days
        return RefreshPlan(spec.name, trailing(today, count), f"last {count} days")
    if watermark is None or watermark.last_partition is None:
        count = max(initial_days, spec.lookback_days)
        return RefreshPlan(spec.name, trailing(today, count), f"first load, {count} days")
    # A watermark of the future (a clock that was wrong) says nothing about freshness.
    if not force and watermark.last_extracted_at is not None:
        age = now - watermark.last_extracted_at
        if timedelta(0) <= age < spec.refresh_every:
            return RefreshPlan(spec.name, None, f"fresh: loaded {str(age).split('.')[0]} ago, due every {spec.refresh_every}")
    window = trailing(max(watermark.last_partition, first_day), spec.lookback_days)
    return RefreshPlan(spec.name, window, f"lookback of {spec.lookback_days} days from {watermark.last_partition}")


def is_stale(spec: TableSpec, watermark: Watermark | None, now: datetime) -> bool:
    """Whether the table's rows are too old to be shown: its last success is twice its refresh frequency old, or the newest
    partition is not today's (yesterday's will do until the new day is that old too). A load of older days changes nothing of that.
    """
    if watermark is None or watermark.last_extracted_at is None or watermark.last_partition is None:
        return True
    today = lima_day(now)
    since_midnight = now - datetime.combine(today, time(), LIMA)
    newest = today if since_midnight > 2 * spec.refresh_every else today - timedelta(days=1)
    return now - watermark.last_extracted_at > 2 * spec.refresh_every or watermark.last_partition < newest
