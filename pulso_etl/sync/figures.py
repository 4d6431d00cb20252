"""The figures of a table (see `spec.Figure`) in SQL, and their values from what the SQL gives.

A figure is read as its parts. Parts that are sums or numbers of rows add up over hours, files and loads. Whoever keeps or compares
figures keeps their parts, and asks for the value last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal

from psycopg import sql

from pulso_etl.sync.spec import Adds, Figure, Unit

Number = int | Decimal
"""A value of a figure or of a part: exact, never a float."""
RATIO_DIGITS = Decimal("0.0001")
"""The digits of a ratio. In percent, this is more than a reader sees."""
EXACT = Context(prec=120, traps=[])
"""Enough digits for every sum of numerics of 38 digits, and for a ratio of two of them. NaN and infinity, which only another
program can have written, raise nothing."""


def decimal_of(number: Number | None) -> Decimal | None:
    """The number as a decimal."""
    return None if number is None else Decimal(number)


@dataclass(frozen=True, order=True)
class Part:
    """What is read of the rows: the `sum` or the number of `distinct` values of a column, or the number (`count`) of rows."""

    adds: Adds
    column: str = ""

    @property
    def name(self) -> str:
        """A name that no other part of the table has: `sum:recupero`, `count`."""
        return f"{self.adds}:{self.column}" if self.column else self.adds

    @property
    def additive(self) -> bool:
        """Whether the parts of two sets of rows make the part of both by addition."""
        return self.adds is not Adds.DISTINCT

    @property
    def aggregate(self) -> sql.Composable:
        """The part in SQL, an aggregate over the rows of the table: a bigint or a numeric, 0 where there is no row."""
        return self.aggregate_where(sql.SQL("true"))

    def aggregate_where(self, condition: sql.Composable) -> sql.Composable:
        """The same over those rows for which the condition holds."""
        column = sql.Identifier(self.column)
        match self.adds:
            case Adds.SUM:
                return sql.SQL("coalesce(sum({}) FILTER (WHERE {}), 0)").format(column, condition)
            case Adds.DISTINCT:
                return sql.SQL("count(DISTINCT {}) FILTER (WHERE {})").format(column, condition)
            case _:
                return sql.SQL("count(*) FILTER (WHERE {})").format(condition)


def parts_of(figure: Figure) -> tuple[Part, ...]:
    """What the figure is made of, in the order of its columns."""
    if figure.adds is Adds.COUNT:
        return (Part(Adds.COUNT),)
    return tuple(Part(Adds.SUM if figure.adds is Adds.RATIO else figure.adds, column) for column in figure.of)


def parts(figures: Iterable[Figure]) -> tuple[Part, ...]:
    """What the figures are made of, each part once."""
    return tuple(dict.fromkeys(part for figure in figures for part in parts_of(figure)))


def value(figure: Figure, given: Mapping[Part, Number]) -> Number | None:
    """The figure, from its parts. None for a ratio to 0, and if a part is NaN or infinite."""
    first, *second = found = [given[part] for part in parts_of(figure)]
    if not all(Decimal(one).is_finite() for one in found):
        return None
    if not second:
        return first
    if not second[0]:
        return None
    hundredfold = 100 if figure.unit is Unit.PERCENT else 1
    return EXACT.quantize(EXACT.divide(EXACT.multiply(Decimal(first), hundredfold), Decimal(second[0])), RATIO_DIGITS)
