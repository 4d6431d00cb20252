"""Which partitions to refresh: pure functions of the table, its watermark, the mode and the time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
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
class Loss:
    """Rows that loads left in a table and that are not there any more: how many, and from which day to which."""

    window: DayRange
    rows: int

    def command(self, spec: TableSpec) -> str:
        """What brings them back, as far as the source has them."""
        return f"pulso-etl refresh {spec.as_argument} --from {self.window.start} --to {self.window.end}"

    def __str__(self) -> str:
        return f"{self.rows} rows of {self.window} that were loaded are not in the table any more"


@dataclass(frozen=True)
class Reading:
    """The last reading of a day from the source: `at` an instant with zone, and until which day the source changes the day read, by
    the lookback that was in force then."""

    at: datetime
    open_until: date

    @property
    def day(self) -> date:
        """That of the reading."""
        return lima_day(self.at)

    @property
    def is_final(self) -> bool:
        return self.day >= self.open_until


@dataclass(frozen=True)
class Watermark:
    """How far a table is loaded: at `last_extracted_at` (with zone) every day up to `last_partition` that could still change was as
    the source had it.

    `readings`: the last reading of each day, of the days that may be owed. `lost` are rows that were
    loaded and have gone since; `replaced`: the table lies in other files than at its last load, and nobody has looked yet at what
    it holds.
    """

    last_extracted_at: datetime | None
    last_partition: date | None
    readings: Mapping[date, Reading] = field(default_factory=dict)
    lost: Loss | None = None
    replaced: bool = False


@dataclass(frozen=True)
class Settlement:
    """What a load makes of the watermark: whether it `moved`, and the days that are `owed` where it did not."""

    watermark: Watermark
    moved: bool
    owed: tuple[DayRange, ...] = ()

    def as_metadata(self) -> dict[str, str]:
        return {} if self.moved else {"days_owed": ", ".join(map(str, self.owed))}

    def __str__(self) -> str:
        if self.moved:
            return f"the watermark is at {self.watermark.last_partition}"
        last = self.watermark.last_partition
        stays = "there is no watermark yet" if last is None else f"the watermark stays at {last}"
        return f"{stays}, as days are still owed: {', '.join(map(str, self.owed)) or 'none'}"


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


def contiguous(days: Iterable[date]) -> list[DayRange]:
    """The days as ranges without gaps, oldest first."""
    ranges: list[DayRange] = []
    for day in sorted(set(days)):
        if ranges and day - ranges[-1].end == timedelta(days=1):
            ranges[-1] = DayRange(ranges[-1].start, day)
        else:
            ranges.append(DayRange(day, day))
    return ranges


@dataclass(frozen=True)
class Horizon:
    """Which days of a table can be owed: none before `first_day` nor after `last_day`, and each as long as the source changes it,
    that is for `lookback_days` after it."""

    lookback_days: int = 1
    first_day: date = date.min
    last_day: date = date.max

    @classmethod
    def of(cls, spec: TableSpec, first_day: date, today: date, last_day: date = date.max) -> Horizon:
        """That of the table, whose partitions begin on `first_day`; the newest that there is now ends on `last_day`."""
        return cls(spec.lookback_days, max(first_day, first_kept_day(spec, today)), last_day)

    def open_until(self, day: date) -> date:
        """The first day on which a reading of that day is final."""
        return day + timedelta(days=self.lookback_days)

    def trailing(self, last: date) -> date:
        """The first of the days that the source still changes on the day `last`."""
        return max(self.first_day, last - timedelta(days=self.lookback_days - 1))


def owed_days(horizon: Horizon, watermark: Watermark, today: date) -> list[date]:
    """The days up to `today` that the source may have changed since they were last read, in order.

    Owed is each day whose last reading was not final, by the lookback that was in force then. From the table's lookback before the
    watermark (without one: before today) on, each day is owed, too, that was not read, or not as late as the lookback of now asks.
    Days before these that nobody has asked for are not owed.
    """
    reached = today if watermark.last_partition is None else min(watermark.last_partition, today)
    begin = horizon.trailing(reached)

    def closed(day: date, reading: Reading) -> bool:
        # A reading of days to come is of a clock that was wrong, and closes none.
        final = reading.is_final and reading.day <= today
        return final and (day < begin or reading.day >= horizon.open_until(day))

    still_open = {day for day, reading in watermark.readings.items() if not closed(day, reading)}
    unread = {day for day in DayRange(begin, today) if day not in watermark.readings} if begin <= today else set()
    return sorted(day for day in still_open | unread if horizon.first_day <= day <= min(today, horizon.last_day))


def settle(horizon: Horizon, watermark: Watermark, at: datetime) -> Settlement:
    """The watermark once days were read at the instant `at`, which stand in its `readings` already; these must hold every day read.

    It moves to the oldest reading among the days that are owed and the newest that was read, where every one of them has been read
    and the newest is the day of that reading, or the last that there is (of partitions that end before they can be read): at that
    instant, nothing was owed. So it does not matter which launches read the days, nor in which order.
    """
    today, last, known = lima_day(at), watermark.last_extracted_at, watermark.readings
    reached = max((day for day in known if day <= today), default=None)
    if reached is not None:
        readings = [known.get(day) for day in {*owed_days(horizon, watermark, reached), reached}]
        oldest = min(reading.at for reading in readings if reading is not None)
        covered = None not in readings and min(lima_day(oldest), horizon.last_day) <= reached
        # A watermark of the future was set by a clock that was wrong.
        future = last is not None and (last > at or (watermark.last_partition or today) > today)
        if covered and (last is None or oldest > last or future):
            return Settlement(replace(watermark, last_extracted_at=oldest, last_partition=reached), moved=True)
    overdue = [day for day in owed_days(horizon, watermark, today) if (read := known.get(day)) is None or read.at < at]
    return Settlement(watermark, False, tuple(contiguous(overdue)))


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


def is_stale(spec: TableSpec, watermark: Watermark | None, now: datetime) -> bool:
    """Whether the table's rows are too old to be shown: its last success is twice its refresh frequency old, or the newest
    partition is not today's (yesterday's will do until the new day is that old too). A load of older days changes nothing of that.
    So it is where rows that were loaded have gone.
    """
    if watermark is None or watermark.lost is not None or watermark.last_extracted_at is None or watermark.last_partition is None:
        return True
    today = lima_day(now)
    since_midnight = now - datetime.combine(today, time(), LIMA)
    newest = today if since_midnight > 2 * spec.refresh_every else today - timedelta(days=1)
    return now - watermark.last_extracted_at > 2 * spec.refresh_every or watermark.last_partition < newest
