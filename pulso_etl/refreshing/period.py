"""The periods that a limit of the budget is for."""

from __future__ import annotations

from datetime import date
from enum import StrEnum


class Period(StrEnum):
    """What a limit is for."""

    DAY = "day"
    MONTH = "month"

    def first_day(self, today: date) -> date:
        """The first day of the period that `today` is in."""
        return today if self is Period.DAY else today.replace(day=1)

    @property
    def until(self) -> str:
        """When the next period begins."""
        return "midnight" if self is Period.DAY else "the end of the month"
