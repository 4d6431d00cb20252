"""Time zones: which day an instant belongs to, and when a day begins."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from pulso_etl.sync.errors import PlanError

DEFAULT_ZONE = "America/Lima"


def known_zone(name: str) -> str:
    """The name, if the machine's list of time zones has it. Raises ValueError."""
    if name not in _known_zones():
        raise ValueError(f"unknown time zone {name!r}; give a name of the IANA list, such as {DEFAULT_ZONE}")
    return name


@cache
def _known_zones() -> frozenset[str]:
    """The IANA names. Machines have other files beside them, such as the machine's own zone, which PostgreSQL and BigQuery lack."""
    return frozenset(available_timezones() - {"localtime", "Factory"})


@dataclass(frozen=True)
class Zone:
    """The time zone of that name. A day has 24 hours, or 23 or 25 where the clocks change."""

    name: str = DEFAULT_ZONE

    @property
    def tzinfo(self) -> ZoneInfo:
        return ZoneInfo(self.name)

    def day(self, instant: datetime) -> date:
        """The day that the instant belongs to. Raises PlanError for a time without zone."""
        return self.local(instant).date()

    def local(self, instant: datetime) -> datetime:
        """The instant as the clocks of the zone show it. Raises PlanError for a time without zone."""
        if instant.tzinfo is None:
            raise PlanError("the time has no zone")
        return instant.astimezone(self.tzinfo)

    def begin(self, day: date) -> datetime:
        """The first instant of the day, in UTC. Python subtracts two times of one zone by what the clocks show, which is wrong on a
        day when the clocks change; times in UTC have no such fault."""
        # If the clocks skip midnight, the day begins an hour later. Python uses the offset before the change, which is right.
        return datetime.combine(day, time(), self.tzinfo).astimezone(UTC)


DEFAULT = Zone()
