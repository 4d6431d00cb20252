"""Why each day of a refresh is read: pure functions of what is known of the table and its source."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cached_property
from itertools import groupby

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.owed import Horizon, Watermark, owed_days
from pulso_etl.sync.reasons import Ground, Reason
from pulso_etl.sync.spec import TableSpec

CLOCK = "%Y-%m-%d %H:%M"


@dataclass(frozen=True)
class Known:
    """What the reasons of a table's days follow from, on the day `today`.

    `watermark`: how far it is loaded, with the ledger's days. `first_day`: the first partition. `changed`: the base tables, each
    with its last change, as a look at the source showed them. Instants have a zone.
    """

    spec: TableSpec
    watermark: Watermark
    first_day: date
    today: date
    changed: Mapping[str, datetime] = field(default_factory=dict)

    @cached_property
    def owed(self) -> Collection[date]:
        return set(owed_days(self._horizon, self.watermark, self.today))

    @cached_property
    def trailing(self) -> date:
        """The first day of the lookback."""
        return self._horizon.trailing(self.today)

    @property
    def _horizon(self) -> Horizon:
        return Horizon.of(self.spec, self.first_day, self.today)

    def ground(self, day: date) -> tuple[Ground, str]:
        """Why the day is read, for programs and for people."""
        zone, reading = self.spec.zone, self.watermark.readings.get(day)
        known = reading if isinstance(reading, Day) else None
        first_load = self.watermark.last_partition is None
        if known is None and (first_load or day >= self.trailing):
            return Ground.NEVER_LOADED, "never loaded"
        if known is not None and known.is_short:
            return Ground.ROWS_LOST, "rows have disappeared since its last load"
        later = {name: at for name, at in self.changed.items() if known is not None and at >= known.loaded_at}
        if later:
            name, at = max(later.items(), key=lambda one: one[1])
            return Ground.CHANGED, f"{name.rpartition('.')[2]} changed at {zone.local(at):{CLOCK}}"
        if day in self.owed and day < self.trailing:
            read = f", last read at {zone.local(known.at):{CLOCK}}" if known is not None else ""
            return Ground.OWED, f"owed: it could still change after its last reading{read}"
        if day >= self.trailing:
            return Ground.LOOKBACK, f"within the lookback of {self.spec.schedule.lookback_days} days"
        return Ground.ASKED, "asked for"


def reasons_of(known: Known, days: Iterable[date]) -> list[Reason]:
    """The days, oldest first, each range with its reason."""

    def ranges() -> Iterator[Reason]:
        told = [(day, *known.ground(day)) for day in sorted(days)]
        numbered = enumerate(told)
        for (ground, why, _), group in groupby(numbered, key=lambda one: (one[1][1], one[1][2], one[1][0].toordinal() - one[0])):
            inside = [day for _, (day, _, _) in group]
            yield Reason(DayRange(inside[0], inside[-1]), ground, why)

    return list(ranges())
