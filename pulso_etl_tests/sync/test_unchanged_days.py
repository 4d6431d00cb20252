"""Days that are as they were at their last load: their rows do not go to PostgreSQL, and nothing else differs."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.traces import Traces
from pulso_etl.sync.loading.load import load
from pulso_etl.sync.loading.verify import verify
from pulso_etl.sync.spec import Column, ColumnType, TableSpec
from pulso_etl.sync.target import Target
from pulso_etl_tests.sync.places import Place
from pulso_etl_tests.sync.samples import D1, D2, D3, NOON, WINDOW, by_month, monthly, request, row, table, things, wider

NAN = float("nan")


ROWS = [row(D1, "a"), row(D1, "b", "2"), row(D2, "a", None), row(D3, "ñ", "3")]


def test_a_day_that_is_as_it_was_is_not_staged(place: Place) -> None:
    assert place.staged(ROWS, things()) == {D1, D2, D3}
    assert place.staged(ROWS[::-1], things()) == set()
    moved = [one | {"stamp": NOON + timedelta(hours=1)} for one in ROWS]
    assert place.staged(moved, things()) == set()
    assert place.staged([*ROWS[:2], row(D2, "a", "7"), ROWS[3]], things()) == {D2}
    result = place.load([*ROWS[:2], row(D2, "a", "7"), ROWS[3]], things())
    assert result.by_day[D1].as_dict() == {**dict.fromkeys(result.by_day[D1].as_dict(), 0), "rows_read": 2, "rows_unchanged": 2}


def test_the_smallest_change_is_seen(place: Place) -> None:
    more = (
        Column(name="flag", type=ColumnType.BOOLEAN),
        Column(name="raw", type=ColumnType.BYTES),
        Column(name="texts", type=ColumnType.TEXT, repeated=True),
        Column(name="doc", type=ColumnType.JSON),
        Column(name="at", type=ColumnType.TIME),
    )
    base: dict[str, Any] = {"flag": [True], "raw": [b"\0\1"], "texts": [["a", "b"]], "doc": ['{"a": 1}'], "at": [None]}
    at = pa.array([3], pa.time64("us"))
    place.load(wider([row(D1, "a")], **base | {"at": at}), things(*more))
    assert place.staged(wider([row(D1, "a")], **base | {"at": at}), things(*more)) == set()
    changes: list[dict[str, Any]] = [
        {"flag": [None]},
        {"flag": [False]},
        {"raw": [b"\1\0"]},
        {"raw": [b"\0\1\0"]},
        {"texts": [["b", "a"]]},
        {"texts": [["ab", ""]]},
        {"texts": [[]]},
        {"texts": [None]},
        {"doc": ['{"a": 2}']},
        {"at": pa.array([4], pa.time64("us"))},
    ]
    for changed in changes:
        given = wider([row(D1, "a")], **base | {"at": at} | changed)
        assert place.staged(given, things(*more)) == {D1}, changed
        assert place.staged(given, things(*more)) == set(), changed


@pytest.mark.parametrize("contract", ["evolve", "freeze"])
def test_a_column_that_a_load_added_and_somebody_dropped_gets_its_values_again(place: Place, contract: str) -> None:
    """The load that added the column left a trace of a table without the column. Now the table is without it again."""
    rows = [row(day, "a") for day in WINDOW]
    place.load(rows, things(contract=contract))
    more = [Column(name="extra", type=ColumnType.TEXT)] if contract == "freeze" else []
    spec, given = things(*more, contract=contract), wider(rows, extra=["x"] * len(rows))
    place.load(given, spec)
    place.run("ALTER TABLE things DROP COLUMN extra")
    place.load(given, spec)
    assert place.run("SELECT extra, count(*) FROM things GROUP BY 1") == [("x", 3)]


@pytest.mark.parametrize(
    "meddle",
    [
        "UPDATE things SET money = 9 WHERE day = '2026-02-28'",
        "UPDATE things SET money = money WHERE day = '2026-02-28'",
        "DELETE FROM things WHERE day = '2026-02-28'",
        "UPDATE things SET day = '2026-02-28' WHERE day = '2026-03-01'",
        "INSERT INTO things (day, name) VALUES ('2026-02-28', 'z')",
        "CREATE TABLE kept AS TABLE things; DELETE FROM things; INSERT INTO things TABLE kept; DROP TABLE kept",
        "CREATE TABLE kept AS TABLE things; TRUNCATE things; INSERT INTO things TABLE kept; DROP TABLE kept",
        "ALTER TABLE things DROP COLUMN rate; ALTER TABLE things ADD COLUMN rate double precision",
    ],
)
def test_rows_that_another_program_changed_are_mended(place: Place, meddle: str) -> None:
    place.load(ROWS, things())
    before = place.contents()
    place.run(meddle)
    assert D2 in place.staged(ROWS, things(), allow_shrink=True)
    assert place.contents() == before
    assert place.staged(ROWS, things()) == set()


def test_a_vacuum_or_a_lock_is_no_change(place: Place) -> None:
    place.load(ROWS, things())
    place.conn.execute(f"VACUUM (FREEZE) {place.schema}.things".encode())
    place.run("SELECT FROM things FOR UPDATE")
    assert place.staged(ROWS, things()) == set()
    place.conn.execute(f"VACUUM FULL {place.schema}.things".encode())
    place.load(ROWS, things())
    assert place.staged(ROWS, things()) == set()


def test_rows_that_another_program_changes_during_a_load_are_mended_by_the_next(place: Place, server_url: str) -> None:
    place.load(ROWS, things())
    changed = [*ROWS[:2], row(D2, "a", "7"), row(D2, "b"), ROWS[3]]
    target = Target(place.conn, things(), place.schema)
    asked = request(WINDOW, lambda: nullcontext(table(changed).to_reader()), run_id="r", sole=False)
    with psycopg.connect(server_url, autocommit=True) as other, place.conn.transaction():
        result = load(target, asked)
        # The load has not touched this row: it was as the source has it.
        other.execute(f"UPDATE {place.schema}.things SET money = 9 WHERE day = '2026-02-27' AND name = 'a'".encode())
        left = verify(target, asked, result).traces
        Traces(place.schema).write(place.conn, "things", left)
    assert set(left) == {D2, D3}
    assert place.staged(changed, things()) == {D1}
    assert place.run("SELECT money FROM things WHERE day = '2026-02-27' ORDER BY name") == [(Decimal("1.5"),), (Decimal(2),)]


def test_another_declaration_or_other_types_of_the_source_are_compared(place: Place) -> None:
    place.load(ROWS, things())
    assert place.staged(ROWS, things(stamp_columns=())) == {D1, D2, D3}
    assert place.staged(table(ROWS).cast(table([]).schema.set(3, pa.field("money", pa.decimal128(38, 2)))), things()) == {
        D1,
        D2,
        D3,
    }


@pytest.mark.parametrize(("changed", "compared"), [(10, 10), (11, 40)])
def test_if_many_days_have_changed_all_are_compared(place: Place, changed: int, compared: int) -> None:
    """Days whose rows can't be compared in buckets."""
    window, spec = DayRange(D1, D1 + timedelta(days=39)), things(version_column="hour")
    rows = [row(day, name) for name in "ab" for day in window]
    place.load(rows, spec, window)
    rows = [one | {"money": Decimal(7)} if number < changed else one for number, one in enumerate(rows)]
    assert len(place.staged(rows, spec, window)) == compared
    assert place.run("SELECT count(*) FROM things WHERE money = 7") == [(changed,)]
    assert place.staged(rows, spec, window) == set()


def test_a_day_with_quarantined_rows_is_always_compared(place: Place) -> None:
    spec = things(on_reject="quarantine", maximum_quarantined_share=1)
    rows = [row(D1, "a"), row(D1, "b", rate=NAN), row(D2, "a"), row(D3, "a"), row(D3, "a")]
    place.load(rows, spec)
    result = place.load(rows, spec)
    assert result.digested is not None
    assert result.digested.unchanged == {D2}
    assert result.total.quarantined == 3
    # The share counts the rows of unchanged days as well.
    assert place.load(rows, replace_share(spec, 0.6)).quarantined_share == 0.6


def replace_share(spec: TableSpec, share: float) -> TableSpec:
    return spec.model_copy(update={"loading": spec.loading.model_copy(update={"maximum_quarantined_share": share})})


SPECS = {
    "upsert": things(),
    "by month": by_month(),
    "version": things(version_column="hour"),
    "stamped version": things(version_column="hour", stamp_columns=("stamp", "hour")),
    "append": things(strategy="append"),
    "history": things(strategy="scd2"),
    "history by month": by_month(strategy="scd2"),
    "replace": things(strategy="replace_partition"),
    "quarantine": things(on_reject="quarantine", maximum_quarantined_share=0.5),
    "quarantine, append": things(on_reject="quarantine", maximum_quarantined_share=0.5, strategy="append"),
    "quarantine, history": things(on_reject="quarantine", maximum_quarantined_share=0.5, strategy="scd2"),
    "quarantine, version": things(on_reject="quarantine", maximum_quarantined_share=0.5, version_column="hour"),
    "quarantine, newest": monthly(on_reject="quarantine", maximum_quarantined_share=0.5),
    "newest": monthly(),
    "snapshots": things(primary_key=("name", "hour"), snapshot_of=("name",)),
}
days = st.sampled_from([D1, D2, D3])
windows = st.one_of(st.just(WINDOW), st.tuples(days, days).map(lambda pair: DayRange(min(pair), max(pair))))
names = st.sampled_from("ab")
puts = st.tuples(st.just("put"), days, names, st.sampled_from("12"), st.integers(1, 2))
faults = st.tuples(st.just("put"), days, names, st.just("NaN"), st.integers(1, 2))
drops = st.tuples(st.just("drop"), days)
meddles = st.tuples(
    st.just("meddle"),
    st.sampled_from(
        [
            "UPDATE things SET money = 7 WHERE day = '{}'",
            "DELETE FROM things WHERE day = '{}' AND name = 'a'",
            "UPDATE things SET rate = 0.5 WHERE day = '{}' AND name = 'b'",
        ]
    ),
    days,
)
loads = st.tuples(st.just("load"), windows, st.booleans())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(SPECS)), st.lists(st.one_of(puts, puts, faults, drops, meddles, loads, loads, loads), max_size=14))
def test_loads_that_skip_days_equal_loads_that_compare_them(place: Place, plain: Place, name: str, steps: list[Any]) -> None:
    spec, source, places = SPECS[name], [row(D1, "a"), row(D2, "b"), row(D3, "a", hour=3)], (place, plain)
    for one in places:
        one.empty()
    for number, (kind, *step) in enumerate([("load", WINDOW, True), *steps, ("load", WINDOW, True)]):
        if kind == "put":
            day, key, money, hour = step
            value = {"rate": NAN} if money == "NaN" else {}
            source = [one for one in source if (one["day"], one["name"], one["hour"]) != (day, key, hour)]
            source.append(row(day, key, "1" if value else money, hour=hour, **value))
        elif kind == "drop":
            source = [one for one in source if one["day"] != step[0]]
        elif kind == "meddle":
            for one in places:
                one.run(step[0].format(step[1]) if one.contents() else "SELECT")
        else:
            window, shrink = step
            rows = [one | {"stamp": NOON + timedelta(hours=number)} for one in source if one["day"] in window]
            told = [one.outcome(rows, spec, window, shrink) for one in places]
            assert told[0] == told[1]
            assert place.contents() == plain.contents()
