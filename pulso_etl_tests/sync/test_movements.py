"""Which movements of a figure are told first, and which are plausible."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from statistics import median
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.sync.ledger.changes import Change, DayChange, Kept
from pulso_etl.sync.movements import FEWEST, implausible, movements, usual
from pulso_etl.tables import TABLES

SPEC = TABLES["dashboard_data"]
D1, D2 = date(2026, 11, 25), date(2026, 11, 26)
AMOUNTS = st.decimals(-(10**12), 10**12, places=2)


def parts(money: int, managed: int, accounts: int) -> dict[str, Decimal]:
    return {"sum:recupero": Decimal(money), "sum:cuentas_gestionadas": Decimal(managed), "sum:cuentas": Decimal(accounts)}


def change(*days: DayChange, **more: Any) -> Change:
    now = datetime.now(UTC)
    given: dict[str, Any] = {
        "table": SPEC.name,
        "run_id": "r",
        "kept": Kept.ROWS,
        "load_id": 1,
        "at": now,
        "stamp": now,
        "days": days,
    }
    return Change(**(given | more))


def test_money_comes_first_then_the_biggest_movement_and_what_did_not_move_is_left_out() -> None:
    told = movements(
        SPEC,
        change(
            DayChange(D1, 0, 1, 0, parts(100, 5, 10), parts(90, 6, 10)),
            DayChange(D2, 1, 0, 0, parts(0, 0, 0), parts(500, 0, 0)),
        ),
    )
    assert [(one.day, one.figure.name, one.before, one.after) for one in told] == [
        (D2, "recupero", 0, 500),
        (D1, "recupero", 100, 90),
        (D1, "cobertura", 50, 60),
    ]
    assert [one.change for one in told] == [500, -10, 10]


def test_a_ratio_to_nothing_has_no_change_and_an_old_entry_without_a_part_is_left_out() -> None:
    [told] = movements(SPEC, change(DayChange(D1, 1, 0, 0, parts(0, 0, 0), parts(0, 5, 10))))
    assert (told.figure.name, told.before, told.after, told.change) == ("cobertura", None, 50, None)
    assert movements(SPEC, change(DayChange(D1, 1, 0, 0, {}, {}))) == []


@given(st.lists(AMOUNTS, max_size=FEWEST - 1), st.floats(0.5, 20))
def test_a_few_earlier_movements_say_nothing(earlier: list[Decimal], factor: float) -> None:
    assert usual(earlier, factor) is None


@given(st.lists(AMOUNTS, min_size=FEWEST, max_size=60), st.floats(1, 20), st.randoms())
def test_what_is_usual_has_the_median_moves_with_the_amounts_and_does_not_depend_on_their_order(
    earlier: list[Decimal], factor: float, random: Any
) -> None:
    found = usual(earlier, factor)
    assert found is not None
    assert median(earlier) in found
    random.shuffle(earlier)
    assert usual(earlier, factor) == found
    wider = usual(earlier, factor * 2)
    assert wider is not None
    assert wider.least <= found.least <= found.most <= wider.most
    turned = usual([-one for one in earlier], factor)
    assert turned is not None
    assert (turned.least, turned.most) == (-found.most, -found.least)


def test_one_extreme_movement_among_usual_ones_stays_implausible() -> None:
    ordinary = [Decimal(one) for one in (90, 95, 100, 102, 105, 110, 98, 101)]
    found = usual([*ordinary, Decimal(1_000_000)], 6)
    assert found is not None
    assert all(one in found for one in ordinary)
    assert Decimal(1_000_000) not in found
    assert Decimal(-40) not in found
    same = usual([Decimal(100)] * 9, 6)
    assert same is not None
    assert Decimal(105) in same
    assert Decimal(120) not in same


def watched(*amounts: tuple[date, int, int], number: int, **more: Any) -> Change:
    """A load on the day after the last of those days, with the recovered amount of each day before and after."""
    last = amounts[-1][0]
    days = [DayChange(day, 0, 1, 0, parts(before, 1, 2), parts(after, 1, 2)) for day, before, after in amounts]
    at = datetime(last.year, last.month, last.day, 20, tzinfo=UTC)
    return replace(change(*days, **more), load_id=number, at=at)


def test_a_movement_is_compared_with_those_of_days_that_were_as_old_and_undone_loads_do_not_count() -> None:
    recupero, *others = SPEC.figures
    spec = SPEC.model_copy(update={"figures": (recupero.model_copy(update={"alert_factor": 6}), *others)})
    today = date(2026, 11, 26)
    weeks = [today - timedelta(days=back) for back in range(1, 15)]
    # Each load: the day appears with some 1,000, and the day before it rises by some 10.
    earlier = [watched((day - timedelta(days=1), 1000, 1010 + n), (day, 0, 990 + n), number=n) for n, day in enumerate(weeks, 1)]

    def told(*amounts: tuple[date, int, int], **more: Any) -> list[tuple[date, int]]:
        return [
            (one.movement.day, int(one.movement.change or 0))
            for one in implausible(spec, watched(*amounts, number=99, **more), earlier)
        ]

    yesterday = today - timedelta(days=1)
    assert told((yesterday, 1000, 1015), (today, 0, 1000)) == []
    assert told((yesterday, 1000, 2000), (today, 0, 1000)) == [(yesterday, 1000)]
    assert told((yesterday, 1000, 1015), (today, 0, 9000)) == [(today, 9000)]
    assert told((yesterday, 1000, 2000), (today, 0, 9000), undoes=3) == []
    # A refresh on change reads a new day alone, so it is a load into an empty day.
    assert told((today, 0, 9000), kept=Kept.STAMP) == [(today, 9000)]
    alone = [watched((day, 0, 990 + n), number=n, kept=Kept.STAMP) for n, day in enumerate(weeks, 1)]
    assert [one.movement.day for one in implausible(spec, watched((today, 0, 9000), number=99), alone)] == [today]
    assert implausible(spec, watched((yesterday, 0, 9000), (today, 0, 9000), number=1, kept=Kept.STAMP), []) == []
    assert implausible(SPEC, watched((today, 0, 9000), number=99), earlier) == []
    assert implausible(spec, watched((today, 0, 9000), number=99), [replace(one, undone_by=98) for one in earlier]) == []
    [found] = implausible(spec, watched((today, 0, 9000), number=99), earlier)
    assert found.as_metadata() | {"least": "", "most": ""} == {
        **{"day": "2026-11-26", "figure": "Recupero", "before": "0.00", "after": "9,000.00"},
        **{"least": "", "most": ""},
    }
