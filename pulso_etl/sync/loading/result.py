"""The result of a load: counts of rows by day, and the seconds of its stages."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import date
from typing import TYPE_CHECKING

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.traces import Digest
from pulso_etl.sync.loading.contract import Drift
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.movements import Implausible

if TYPE_CHECKING:
    from pulso_etl.sync.loading.imprints import Imprint


@dataclass
class Counts:
    """Rows of one partition: how many the load read from the source, and what it did to the table's rows.

    In a table that keeps history, an updated row is a version that was closed and opened anew, and a deleted row is a version
    that was closed.
    """

    read: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    quarantined: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, count.name) + getattr(other, count.name) for count in fields(self)))

    @property
    def unchanged(self) -> int:
        """Rows that were read and that the table already held (or, with a version column, held in a newer version)."""
        return self.read - self.inserted - self.updated - self.quarantined

    @property
    def written(self) -> int:
        """Rows of the table that the load changed."""
        return self.inserted + self.updated + self.deleted

    def left(self, held: int) -> int:
        """How many rows the load leaves, if the table held so many before it."""
        return held + self.inserted - self.deleted

    def held(self, left: int) -> int:
        """How many rows the table held before the load, if it holds so many after it."""
        return left - self.inserted + self.deleted

    def as_dict(self) -> dict[str, int]:
        return {
            "rows_read": self.read,
            "rows_inserted": self.inserted,
            "rows_updated": self.updated,
            "rows_unchanged": self.unchanged,
            "rows_deleted": self.deleted,
            "rows_quarantined": self.quarantined,
        }


@dataclass(frozen=True)
class Held:
    """What the table held before the load: how many `rows` of each day, days without rows left out. `since`: the oldest transaction
    that went on then."""

    rows: Mapping[date, int]
    since: str

    def left(self, day: date, did: Counts) -> int:
        """How many rows of the day the load leaves."""
        return did.left(self.rows.get(day, 0))


@dataclass(frozen=True)
class Digested:
    """What a load learns about the days whose rows it digests.

    `digests`: of each day of the window; `made_by`: see `Trace`. `unchanged`: the days that it left as they are. `in_buckets`: the
    days of which it compares only the rows of buckets that differ.
    """

    made_by: str
    digests: Mapping[date, Digest]
    unchanged: frozenset[date]
    in_buckets: frozenset[date]

    def rows_read(self) -> dict[date, int]:
        """How many rows were read of each day that did not come as a whole; days without rows left out."""
        return {day: rows for day in self.unchanged | self.in_buckets if (rows := self.digests[day].rows)}

    def compared(self) -> list[date] | None:
        """The days that the load compared with the table; None if these are all."""
        return [day for day in self.digests if day not in self.unchanged] if self.unchanged else None

    def in_full(self) -> list[date] | None:
        """The days of which the load compares all rows; None if these are all the days that it compares."""
        return [day for day in self.digests if day not in self.unchanged | self.in_buckets] if self.in_buckets else None

    @property
    def nothing_differs(self) -> bool:
        """Whether the load left every day as it is."""
        return self.compared() == []


@dataclass
class LoadResult:
    """The result of a load: the counts of each day, the plan, and the seconds of each stage.

    `quarantine_reasons` counts rows by `column: reason`. `migration` lists the statements that changed the table's columns.
    `expected` says how many rows each day should hold now; None means as many as were read. In a table with `snapshot_of` it
    counts the rows of the values that the load settled, on all days. `digested` is set if the load digested its rows. `missed`:
    days in which the load changed rows although the source had reported no change. `load_id`: the number of the load in the change
    log; None if it is not there, because it changed nothing. `implausible`: movements of figures that raise an alert. `left`: the
    imprints of the days that the load compared, as it left them, if they have been read already.
    """

    plan: PlanName
    by_day: dict[date, Counts]
    held: Held
    seconds: dict[str, float] = field(default_factory=dict)
    drift: Drift = field(default_factory=Drift)
    migration: list[str] = field(default_factory=list)
    quarantine_reasons: dict[str, int] = field(default_factory=dict)
    expected: dict[date, int] | None = None
    digested: Digested | None = None
    missed: list[date] = field(default_factory=list)
    load_id: int | None = None
    implausible: Sequence[Implausible] = ()
    left: Mapping[date, Imprint] | None = None

    @property
    def quarantined_share(self) -> float:
        """The share of the rows read that was quarantined, 0..1."""
        total = self.total
        return total.quarantined / total.read if total.read else 0.0

    @property
    def total(self) -> Counts:
        return sum(self.by_day.values(), Counts())

    def of(self, days: DayRange) -> Counts:
        """The total counts of those days."""
        return sum((self.by_day[day] for day in days if day in self.by_day), Counts())


def every_day(window: DayRange, counts: Mapping[date, Counts]) -> dict[date, Counts]:
    """The counts of each day of the window, zeros where there are none."""
    return {day: counts.get(day, Counts()) for day in window}


class Clock:
    """Measures the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)
