"""What the queries of BigQuery used and avoided today and this month, and what they will have used when the month ends."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from pulso_etl.sync.ledger.queries import Queries, Usage
from pulso_etl.sync.zone import Zone

USUAL_DAYS = 7
"""The complete days before today whose mean is a usual day."""


@dataclass(frozen=True)
class Spending:
    """What was used today and in this calendar month so far, and the forecast for the whole month."""

    today: Usage
    month: Usage
    month_end: Usage

    @classmethod
    def of(cls, today: Usage, month: Usage, usual: Usage, days_left: int) -> Spending:
        """`usual`: of a usual day. `days_left`: the month's days after today. Today will at least be a usual day. Pure."""
        rest = Usage(*(max(0, most - done) for done, most in zip(_numbers(today), _numbers(usual), strict=True)))
        return cls(today, month, month + rest + usual * days_left)


def _numbers(used: Usage) -> tuple[int, int, int]:
    return used.bytes_billed, used.slot_millis, used.bytes_avoided


@dataclass(frozen=True)
class Instants:
    """The instants since which is counted: the month's first, today's first, and the first of the usual days."""

    zone: Zone
    today: date

    @classmethod
    def at(cls, now: datetime, zone: Zone) -> Instants:
        return cls(zone, zone.day(now))

    @property
    def since(self) -> list[datetime]:
        """For `Queries.query`: month, today, usual days."""
        days = (self.today.replace(day=1), self.today, self.today - timedelta(days=USUAL_DAYS))
        return [self.zone.begin(day) for day in days]

    @property
    def days_left(self) -> int:
        """The month's days after today."""
        return monthrange(self.today.year, self.today.month)[1] - self.today.day

    def spendings(self, rows: Iterable[Sequence[Any]], tables: Iterable[str]) -> dict[str, Spending]:
        """The spending of each table, and under the empty name that of all, from the rows of `Queries.query`. Pure."""
        month, today, week = Queries.split(rows, 3)
        complete = USUAL_DAYS if week.first is None else min(USUAL_DAYS, (self.today - self.zone.day(week.first)).days)

        def spending(so_far: Usage, of_month: Usage, of_week: Usage) -> Spending:
            # Before the first complete day, the day so far is all that is known.
            usual = so_far if complete < 1 else (of_week + so_far * -1) * (1 / complete)
            return Spending.of(so_far, of_month, usual, self.days_left)

        every = {name: spending(today.of(name), month.of(name), week.of(name)) for name in tables}
        return {"": spending(today.total, month.total, week.total)} | every
