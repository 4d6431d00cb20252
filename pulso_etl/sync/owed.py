"""Which days of a table are owed, and how a load moves the watermark: pure functions of what was read, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta

from pulso_etl.sync.days import DayRange, contiguous, first_kept_day
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.zone import DEFAULT, Zone


@dataclass(frozen=True)
class Loss:
    """Rows that were loaded into a table and are gone: how many, and of which days."""

    window: DayRange
    rows: int

    def command(self, spec: TableSpec) -> str:
        """The command that loads the rows again, as far as the source has them."""
        return f"pulso-etl refresh {spec.as_argument} --from {self.window.start} --to {self.window.end}"

    def __str__(self) -> str:
        return f"{self.rows} rows of {self.window} that were loaded are no longer in the table"


NEVER_FINAL = date.max
"""The `open_until` of a day that was undone. Every load of the day sets another."""


@dataclass(frozen=True)
class Reading:
    """The last reading of a day from the source, at the instant `at` (with zone).

    The source may change the day until `open_until`, by the lookback in force at the reading.
    """

    at: datetime
    open_until: date

    @property
    def is_undone(self) -> bool:
        """Whether a load of the day was undone after the reading, so that the day is not as it was read."""
        return self.open_until == NEVER_FINAL


@dataclass(frozen=True)
class Watermark:
    """How far a table is loaded. At `last_extracted_at` (with zone), every day up to `last_partition` that could still change was
    equal to the source.

    `readings` has the last reading of each day that may be owed. `lost` are rows that were loaded and are gone. `replaced`: the
    table has other files than at its last load, and nothing has counted its rows since then. `held_until`: a load was undone, and
    its days have not been read since. Until that instant no refresh of the deployment's own accord reads the table.
    """

    last_extracted_at: datetime | None
    last_partition: date | None
    readings: Mapping[date, Reading] = field(default_factory=dict)
    lost: Loss | None = None
    replaced: bool = False
    held_until: datetime | None = None

    def is_held(self, now: datetime) -> bool:
        """Whether only people refresh the table at the instant `now`."""
        return self.held_until is not None and now < self.held_until


@dataclass(frozen=True)
class Settlement:
    """How a load moves the watermark: whether it `moved`, and if not, the days that are still `owed`."""

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
        return f"{stays}, because days are still owed: {', '.join(map(str, self.owed)) or 'none'}"


@dataclass(frozen=True)
class Horizon:
    """Which days of a table can be owed: days from `first_day` to `last_day`.

    The source changes a day for `lookback_days` after it, and the day is owed for that time. `zone` decides on which day a reading
    happened.
    """

    lookback_days: int = 1
    first_day: date = date.min
    last_day: date = date.max
    zone: Zone = DEFAULT

    @classmethod
    def of(cls, spec: TableSpec, first_day: date, today: date, last_day: date = date.max) -> Horizon:
        """The horizon of a table whose partitions begin on `first_day`; its newest partition ends on `last_day`."""
        return cls(spec.schedule.lookback_days, max(first_day, first_kept_day(spec, today)), last_day, spec.zone)

    def open_until(self, day: date) -> date:
        """The first day on which a reading of that day is final."""
        return day + timedelta(days=self.lookback_days)

    def trailing(self, last: date) -> date:
        """The first day that the source still changes on the day `last`."""
        return max(self.first_day, last - timedelta(days=self.lookback_days - 1))


def owed_days(horizon: Horizon, watermark: Watermark, today: date) -> list[date]:
    """The days up to `today` that the source may have changed since they were last read, in order.

    A day is owed if its last reading was not final, by the lookback at that reading. A second rule holds for the last days before
    the watermark (without a watermark: before today), as many as the lookback, and for all later days: such a day is also owed if
    it was never read, or was read too early for today's lookback. Earlier days that nobody has asked for are not owed.
    """
    reached = today if watermark.last_partition is None else min(watermark.last_partition, today)
    begin = horizon.trailing(reached)

    def closed(day: date, reading: Reading) -> bool:
        # A reading in the future comes from a wrong clock, and closes no day.
        read_on = horizon.zone.day(reading.at)
        final = reading.open_until <= read_on <= today
        return final and (day < begin or read_on >= horizon.open_until(day))

    still_open = {day for day, reading in watermark.readings.items() if not closed(day, reading)}
    unread = {day for day in DayRange(begin, today) if day not in watermark.readings} if begin <= today else set()
    return sorted(day for day in still_open | unread if horizon.first_day <= day <= min(today, horizon.last_day))


def settle(horizon: Horizon, watermark: Watermark, at: datetime) -> Settlement:
    """The watermark after days were read at the instant `at`. Its `readings` already have these days, and every day read before.

    The watermark moves to the oldest reading among two kinds of days: those that are owed, and the newest day that was read. It
    moves only if all of them were read, and if the newest is the day of that oldest reading, or the last partition that exists
    (partitions may end before they can be read). At that instant nothing was owed. So it does not matter which launches read the
    days, or in which order.
    """
    today, last, known = horizon.zone.day(at), watermark.last_extracted_at, watermark.readings
    reached = max((day for day in known if day <= today), default=None)
    if reached is not None:
        readings = [known.get(day) for day in {*owed_days(horizon, watermark, reached), reached}]
        oldest = min(reading.at for reading in readings if reading is not None)
        covered = None not in readings and min(horizon.zone.day(oldest), horizon.last_day) <= reached
        # A wrong clock has set a watermark in the future.
        future = last is not None and (last > at or (watermark.last_partition or today) > today)
        if covered and (last is None or oldest > last or future):
            return Settlement(replace(watermark, last_extracted_at=oldest, last_partition=reached), moved=True)
    overdue = [day for day in owed_days(horizon, watermark, today) if (read := known.get(day)) is None or read.at < at]
    return Settlement(watermark, False, tuple(contiguous(overdue)))
