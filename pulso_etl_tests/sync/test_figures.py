"""Figures are what Python computes from the rows."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import psycopg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from pulso_etl.sync.figures import Part, parts, value
from pulso_etl.sync.spec import Adds, Figure, Unit

FIGURES = (
    Figure(name="paid", title="Pagado", unit=Unit.MONEY, of=("money",), over_days=False),
    Figure(name="rows", title="Filas", unit=Unit.COUNT, adds=Adds.COUNT),
    Figure(name="names", title="Nombres", unit=Unit.COUNT, adds=Adds.DISTINCT, of=("name",)),
    Figure(name="share", title="Parte", unit=Unit.PERCENT, adds=Adds.RATIO, of=("part", "whole")),
    Figure(name="ticket", title="Ticket", unit=Unit.MONEY, adds=Adds.RATIO, of=("money", "whole")),
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from("abc") | st.none(),
            "money": st.none() | st.decimals(-(10**25), 10**25, places=9),
            "part": st.none() | st.integers(-(2**62), 2**62),
            "whole": st.none() | st.integers(0, 2**62),
        }
    ),
    max_size=6,
)


def computed(rows: list[dict[str, Any]]) -> dict[str, Decimal | int | Fraction | None]:
    """The figures of the rows, by exact arithmetic."""

    def total(name: str) -> Fraction:
        return sum((Fraction(row[name]) for row in rows if row[name] is not None), Fraction(0))

    def ratio(numerator: Fraction) -> Fraction | None:
        return numerator / total("whole") if total("whole") else None

    return {
        "paid": total("money"),
        "rows": len(rows),
        "names": len({row["name"] for row in rows} - {None}),
        "share": ratio(100 * total("part")),
        "ticket": ratio(total("money")),
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
def test_figures_are_what_python_computes_from_the_rows(conn: psycopg.Connection, rows: list[dict[str, Any]]) -> None:
    names = ("name", "money", "part", "whole")
    values = [row[name] for row in rows for name in names]
    given_rows = sql.SQL(
        "SELECT NULL::text AS name, NULL::numeric AS money, NULL::bigint AS part, NULL::bigint AS whole WHERE false"
    )
    line = sql.SQL(" UNION ALL SELECT %s::text, %s::numeric, %s::bigint, %s::bigint")
    read = parts(FIGURES)
    row = conn.execute(
        sql.SQL("SELECT {} FROM ({}) AS r").format(
            sql.SQL(", ").join(part.aggregate for part in read), sql.SQL("").join([given_rows, *[line] * len(rows)])
        ),
        values,
    ).fetchone()
    assert row is not None
    found = dict(zip(read, row, strict=True))
    for figure in FIGURES:
        want, got = computed(rows)[figure.name], value(figure, found)
        if figure.adds is Adds.RATIO and want is not None:
            assert got is not None
            assert abs(Fraction(got) - Fraction(want)) <= Fraction(1, 20_000)
        else:
            assert got == want


def test_each_part_is_read_once_and_has_a_name_of_its_own() -> None:
    read = parts(FIGURES)
    assert len({part.name for part in read}) == len(read) == 5
    assert [part for part in read if not part.additive] == [Part(Adds.DISTINCT, "name")]
