"""How loads move the figures of a table, and whether a movement is plausible. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from statistics import median

from pulso_etl.sync.figures import EXACT, Number, Part, parts_of, value
from pulso_etl.sync.ledger.changes import Change, DayChange
from pulso_etl.sync.spec import Figure, TableSpec, Unit

WEEKS = timedelta(weeks=8)
"""How far back earlier movements are looked at."""
FEWEST = 5
"""With fewer earlier movements than these, none is implausible."""
SPREAD_OF_MAD = Decimal("1.4826")
"""The median absolute deviation of normal values, times this, is their standard deviation."""
LEAST_SPREAD = Decimal("0.01")
"""A spread of less than this share of the usual size does not count: values that never differ say little of the next one."""
UNITS = (Unit.MONEY, Unit.COUNT, Unit.PERCENT)
"""The order in which movements of different units are told."""


@dataclass(frozen=True)
class Movement:
    """A figure of a day before and after a load; None if it has no value, as a ratio to 0."""

    day: date
    figure: Figure
    before: Number | None
    after: Number | None

    @property
    def change(self) -> Number | None:
        """By how much the figure rose."""
        return None if self.before is None or self.after is None else EXACT.subtract(Decimal(self.after), Decimal(self.before))

    @property
    def moves(self) -> bool:
        """Whether the figure is another one now."""
        return self.before != self.after

    @property
    def appears(self) -> bool:
        """Whether the day had nothing before."""
        return not self.before


def movements(spec: TableSpec, change: Change) -> list[Movement]:
    """How the load moved the figures, the biggest movements first: money, then counts, then percentages."""
    found = [one for day in change.days for one in _of_day(spec.figures, day) if one.moves]
    return sorted(found, key=lambda one: (UNITS.index(one.figure.unit), -abs(Decimal(one.change or 0)), one.day))


def _of_day(figures: Iterable[Figure], day: DayChange) -> Iterable[Movement]:
    for figure in figures:
        wanted = parts_of(figure)
        # An entry of an earlier declaration may not have a part.
        if all(part.name in day.before and part.name in day.after for part in wanted):
            yield Movement(day.day, figure, *(value(figure, _given(wanted, sums)) for sums in (day.before, day.after)))


def _given(wanted: Sequence[Part], sums: Mapping[str, Decimal]) -> dict[Part, Number]:
    return {part: sums[part.name] for part in wanted}


@dataclass(frozen=True)
class Usual:
    """What earlier movements make plausible: from `least` to `most`."""

    least: Decimal
    most: Decimal

    def __contains__(self, change: Number) -> bool:
        return self.least <= change <= self.most


def usual(earlier: Sequence[Number], factor: float) -> Usual | None:
    """The plausible movements, by the earlier ones: their median, and `factor` times their spread around it.

    The spread follows from the median absolute deviation, so a few extreme movements do not widen it. None if there are too few.
    """
    if len(earlier) < FEWEST:
        return None
    changes = [Decimal(one) for one in earlier]
    middle = median(changes)
    spread = median(abs(one - middle) for one in changes) * SPREAD_OF_MAD
    size = median(abs(one) for one in changes)
    reach = Decimal(str(factor)) * max(spread, size * LEAST_SPREAD)
    return Usual(middle - reach, middle + reach)


@dataclass(frozen=True)
class Implausible:
    """A movement that earlier ones do not make plausible."""

    movement: Movement
    usual: Usual

    def as_metadata(self) -> dict[str, str]:
        """Day, title and numbers as texts, for the metadata of the load."""
        moved = self.movement
        numbers = {"before": moved.before, "after": moved.after, "least": self.usual.least, "most": self.usual.most}
        texts = {name: "" if number is None else f"{number:,.2f}" for name, number in numbers.items()}
        return {"day": str(moved.day), "figure": moved.figure.title, **texts}


def implausible(spec: TableSpec, change: Change, earlier: Iterable[Change]) -> list[Implausible]:
    """The movements of the load that those of earlier loads do not make plausible, of figures that declare an `alert_factor`.

    Movements are compared with those of days that were as old at their load, and that appeared with it if this one does. Of these,
    those of the same weekday count if there are enough, and all of them otherwise. Undoings and undone loads do not count.
    """
    watched = {figure.name: figure.alert_factor for figure in spec.figures if figure.alert_factor is not None}
    if not watched or not _counts(change):
        return []
    known = [(_age(spec, one, moved), moved) for one in earlier if _counts(one) for moved in movements(spec, one)]
    found = []
    for moved in movements(spec, change):
        factor, age = watched.get(moved.figure.name), _age(spec, change, moved)
        if factor is None or moved.change is None:
            continue
        alike = [
            one for at, one in known if (at, one.figure.name, one.appears) == (age, moved.figure.name, moved.appears) and one.moves
        ]
        weekday = [one for one in alike if one.day.weekday() == moved.day.weekday()]
        chosen = weekday if len(weekday) >= FEWEST else alike
        expected = usual([one.change for one in chosen if one.change is not None], factor)
        if expected is not None and moved.change not in expected:
            found.append(Implausible(moved, expected))
    return found


def _counts(change: Change) -> bool:
    return change.undoes is None and change.undone_by is None


def _age(spec: TableSpec, change: Change, moved: Movement) -> timedelta:
    """How old the day was at the load."""
    return spec.zone.day(change.at) - moved.day
