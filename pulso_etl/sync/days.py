"""Days and ranges of days."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.spec import TableSpec


@dataclass(frozen=True)
class DayRange:
    """Days, both ends included."""

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
        """Whether the ranges have a day in common."""
        return self.start <= other.end and other.start <= self.end

    def covers(self, other: DayRange) -> bool:
        """Whether every day of the other range is in this one."""
        return self.start <= other.start and other.end <= self.end

    def chunks(self, days: int) -> list[DayRange]:
        """The range in pieces of at most so many days, the newest first."""
        ends = range(0, self.days, days)
        return [DayRange(max(self.start, self.end - timedelta(n + days - 1)), self.end - timedelta(n)) for n in ends]

    def __contains__(self, day: date) -> bool:
        return self.start <= day <= self.end

    def __iter__(self) -> Iterator[date]:
        return (self.start + timedelta(days=n) for n in range(self.days))

    def __str__(self) -> str:
        return str(self.start) if self.start == self.end else f"{self.start}..{self.end}"


def first_kept_day(spec: TableSpec, today: date) -> date:
    """The first day of the oldest month that the table keeps; `date.min` if it keeps all."""
    if spec.retention.retention_months is None:
        return date.min
    months = today.year * 12 + today.month - 1 - spec.retention.retention_months
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
