"""Each write strategy on a real PostgreSQL: what a second load of a range does, and what it leaves alone."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from decimal import Decimal
from itertools import permutations
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import DuplicateKeyError, ShrinkRefused
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.loading.strategies import statements_in_order
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import Column, ColumnType, Strategy
from pulso_etl_tests.sync.samples import D1, D2, D3, NOON, Loads, monthly, row, things

REPLACED, APPENDED, HISTORY = (things(strategy=s) for s in (Strategy.REPLACE_PARTITION, Strategy.APPEND, Strategy.SCD2))
MONTHLY_HISTORY = monthly(strategy="scd2")
ONLY_D2 = DayRange(D2, D2)
LATER = NOON + timedelta(hours=1)


@pytest.fixture(params=[None, "month"], ids=["one table", "by month"])
def loads(conn: psycopg.Connection, schema: str, request: pytest.FixtureRequest) -> Loads:
    return Loads(conn, schema, request.param)


def current(loads: Loads) -> list[tuple[Any, ...]]:
    return loads.rows("SELECT day, name, money::int FROM things WHERE valid_to IS NULL ORDER BY 1, 2")


def history(loads: Loads, name: str) -> list[tuple[Any, ...]]:
    """The versions of a key in order: value, whether it begins at the end of the one before it, whether it is closed."""
    return loads.rows(
        "SELECT money::int, valid_from = lag(valid_to) OVER (ORDER BY valid_from), valid_to IS NOT NULL "
        f"FROM things WHERE name = '{name}' ORDER BY valid_from"
    )


@pytest.mark.parametrize("strategy", [Strategy.UPSERT, Strategy.REPLACE_PARTITION, Strategy.SCD2])
def test_duplicate_keys_fail_the_load(loads: Loads, plan: PlanName, strategy: Strategy) -> None:
    with pytest.raises(DuplicateKeyError, match="holds 2 rows with the primary key"):
        loads([row(D1, "a"), row(D1, "a")], things(strategy=strategy), plan=plan)


@pytest.mark.parametrize("strategy", [Strategy.UPSERT, Strategy.REPLACE_PARTITION, Strategy.SCD2])
def test_the_guard_refuses_an_emptied_range(loads: Loads, strategy: Strategy) -> None:
    spec = things(strategy=strategy)
    rows = [row(D1, f"n{i}") for i in range(10)]
    loads(rows, spec)
    before = loads.addresses()
    for left in (0, 4):
        with pytest.raises(ShrinkRefused, match=f"holds 10 rows and the source has {left}"):
            loads(rows[:left], spec)
    assert loads.addresses() == before
    assert loads(rows[:4], spec, allow_shrink=True).total.read == 4
    held = "SELECT count(*) FROM things" + (" WHERE valid_to IS NULL" if strategy is Strategy.SCD2 else "")
    assert loads.rows(held) == [(4,)]


@pytest.mark.parametrize("strategy", list(Strategy))
def test_rows_outside_of_the_range_survive_untouched(loads: Loads, strategy: Strategy) -> None:
    spec = things(strategy=strategy)
    loads([row(D1, "x"), row(D1, "a"), row(D2, "a"), row(D2, "b"), row(D3, "y")], spec)
    outside = "SELECT ctid::text, xmin::text FROM things WHERE day <> '2026-02-28' ORDER BY 1"
    before = loads.rows(outside)
    loads([row(D2, "a", "9"), row(D2, "c")], spec, ONLY_D2)
    assert loads.rows(outside) == before
    assert len(before) == 3


@pytest.mark.parametrize("strategy", list(Strategy))
def test_the_statements_that_people_read_are_those_of_the_strategy(strategy: Strategy) -> None:
    text = " ".join(statement.as_string() for statement in statements_in_order(Statements(things(strategy=strategy), "s")))
    assert ("DELETE FROM" in text) is (strategy in (Strategy.UPSERT, Strategy.REPLACE_PARTITION))
    assert ("SET valid_to" in text) is (strategy is Strategy.SCD2)
    assert ("PRIMARY KEY" in text) is (strategy is not Strategy.APPEND)


@pytest.mark.parametrize("strategy", ["replace_partition", "append"])
def test_strategies_by_partition_need_it_in_the_key_and_know_no_versions(strategy: str) -> None:
    with pytest.raises(ValidationError, match="needs the partition column day in the primary key"):
        monthly(strategy=strategy)
    with pytest.raises(ValidationError, match="and no version_column"):
        things(strategy=strategy, version_column="stamp")


def test_the_columns_that_keep_history_cannot_be_declared() -> None:
    validity = Column(name="valid_from", type=ColumnType.TIMESTAMP)
    assert things(validity).column("valid_from") == validity
    with pytest.raises(ValidationError, match=r"\['valid_from'\] are kept by the destination"):
        things(validity, strategy="scd2")


# replace_partition


def test_replacing_a_range_deletes_and_inserts_all_of_it(loads: Loads) -> None:
    first = loads([row(D1, "a"), row(D2, "b"), row(D2, "gone")], REPLACED)
    assert (first.plan, first.total.inserted) == ("direct", 3)
    before = loads.addresses()
    result = loads([row(D1, "a"), row(D2, "b"), row(D3, "c")], REPLACED)
    counts = {day: (c.read, c.inserted, c.updated, c.deleted, c.unchanged) for day, c in result.by_day.items()}
    assert (result.plan, counts) == ("merge", {D1: (1, 1, 0, 1, 0), D2: (1, 1, 0, 2, 0), D3: (1, 1, 0, 0, 0)})
    assert loads.rows("SELECT day, name FROM things ORDER BY 1") == [(D1, "a"), (D2, "b"), (D3, "c")]
    assert not loads.addresses() & before


def test_a_replacement_that_fails_leaves_the_range(loads: Loads) -> None:
    loads([row(D1, "a")], REPLACED)
    before = loads.addresses()
    with pytest.raises(DuplicateKeyError):
        loads([row(D1, "b"), row(D1, "b")], REPLACED)
    assert loads.addresses() == before


# append


def test_appending_a_range_again_adds_only_what_it_lacks(loads: Loads) -> None:
    assert loads([row(D1, "a"), row(D2, "b")], APPENDED).plan == "direct"
    before = loads.addresses()
    again = loads([row(D1, "a"), row(D2, "b")], APPENDED)
    assert (again.plan, again.total.inserted, again.total.unchanged, loads.addresses()) == ("merge", 0, 2, before)
    more = loads([row(D1, "a"), row(D2, "b"), row(D2, "c")], APPENDED)
    assert (more.total.inserted, more.total.unchanged) == (1, 2)
    assert loads.addresses() > before


def test_appended_rows_may_repeat_and_each_copy_is_added_once(loads: Loads, plan: PlanName) -> None:
    loads([row(D1, "a"), row(D1, "a")], APPENDED, plan=plan)
    assert loads([row(D1, "a")] * 3, APPENDED).total.inserted == 1
    assert loads([row(D1, "a")] * 3, APPENDED).total.inserted == 0
    assert loads.rows("SELECT name FROM things") == [("a",)] * 3


def test_of_the_copies_of_a_key_those_with_equal_values_are_matched_first_whatever_their_order(loads: Loads) -> None:
    """Two copies are new to the table. The table holds the key of one of them, and does not hold the key of the other."""
    for number, copies in enumerate(permutations([row(D1, "ana", "100"), row(D1, "ana", "250"), row(D1, "bob", None)])):
        spec = things(strategy="append", name=f"things_{number}")
        loads([row(D1, "ana", "100", stamp=LATER)], spec)
        assert loads(list(copies), spec).total.inserted == 2
        assert loads(list(reversed(copies)), spec).total.inserted == 0
        held = loads.rows(f"SELECT name, money::int FROM {spec.name} ORDER BY 1, 2")
        assert held == [("ana", 100), ("ana", 250), ("bob", None)]


def test_of_several_copies_that_may_be_the_new_one_the_greatest_is_added(loads: Loads) -> None:
    """The table holds 100. The source has 150 and 250: one is the changed row, and the other is new. Nobody can know which."""
    for number, copies in enumerate(permutations([row(D1, "ana", "150"), row(D1, "ana", "250"), row(D1, "ana", None)])):
        spec = things(strategy="append", name=f"things_{number}")
        loads([row(D1, "ana", "100"), row(D1, "ana", "250")], spec)
        assert loads(list(copies), spec).total.inserted == 1
        held = loads.rows(f"SELECT money::int FROM {spec.name} ORDER BY 1")
        assert held == [(100,), (250,), (None,)]


def test_appended_rows_stay_as_they_were_when_the_source_changes_or_loses_them(loads: Loads) -> None:
    loads([row(D1, f"n{i}", "1") for i in range(30)], APPENDED)
    before = loads.addresses()
    result = loads([row(D1, "n0", "2")], APPENDED)
    assert (result.total.unchanged, result.total.deleted, loads.addresses()) == (1, 0, before)
    assert loads([], APPENDED).total.read == 0


# scd2


def test_history_opens_closes_and_leaves_versions(loads: Loads) -> None:
    first = loads([row(D1, "same", "1"), row(D1, "moved", "1"), row(D1, "gone", "1")], HISTORY)
    assert first.plan == "direct"
    same = loads.rows("SELECT ctid::text, xmin::text FROM things WHERE name = 'same'")
    result = loads([row(D1, "same", "1", stamp=LATER), row(D1, "moved", "2"), row(D1, "new", "1")], HISTORY)
    total = result.total
    assert (result.plan, total.inserted, total.updated, total.deleted, total.unchanged) == ("merge", 1, 1, 1, 1)
    assert current(loads) == [(D1, "moved", 2), (D1, "new", 1), (D1, "same", 1)]
    assert history(loads, "moved") == [(1, None, True), (2, True, False)]
    assert history(loads, "gone") == [(1, None, True)]
    assert loads.rows("SELECT ctid::text, xmin::text FROM things WHERE name = 'same'") == same


def test_a_load_opens_and_closes_its_versions_at_one_instant(loads: Loads) -> None:
    loads([row(D1, "a", "1"), row(D1, "b", "1"), row(D1, "c", "1")], HISTORY)
    ((before,),) = loads.rows("SELECT clock_timestamp()")
    loads([row(D1, "a", "2"), row(D1, "b", "2"), row(D1, "d", "1")], HISTORY)
    ((after,),) = loads.rows("SELECT clock_timestamp()")
    instants = loads.rows(
        f"SELECT valid_to FROM things WHERE valid_to IS NOT NULL UNION SELECT valid_from FROM things WHERE valid_from > '{before}'"
    )
    assert len(instants) == 1
    assert before < instants[0][0] < after


def test_loading_a_range_of_history_again_writes_nothing(loads: Loads) -> None:
    for money in ("1", "2"):
        loads([row(D1, "a", money), row(D2, "b", "1")], HISTORY)
    before = loads.addresses()
    result = loads([row(D1, "a", "2", stamp=LATER), row(D2, "b", "1")], HISTORY)
    assert (result.total.unchanged, loads.addresses()) == (2, before)


def test_a_key_that_comes_back_opens_a_version_after_a_gap(loads: Loads) -> None:
    rows = [row(D1, f"n{i}") for i in range(10)]
    for source in (rows, rows[1:], rows):
        loads(source, HISTORY)
    assert history(loads, "n0") == [(2, None, True), (2, False, False)]


def test_a_range_whose_versions_are_all_closed_keeps_its_history(loads: Loads) -> None:
    loads([row(D1, "a", "1")], HISTORY)
    loads([], HISTORY, allow_shrink=True)
    result = loads([row(D1, "a", "3")], HISTORY)
    assert (result.plan, result.total.inserted) == ("merge", 1)
    assert history(loads, "a") == [(1, None, True), (3, False, False)]


@pytest.mark.parametrize(("name", "column"), [("moved", "valid_from"), ("back", "valid_to")])
def test_versions_stay_in_order_when_the_clock_went_back(loads: Loads, conn: psycopg.Connection, name: str, column: str) -> None:
    loads([row(D1, "moved", "1"), row(D1, "back", "1"), row(D1, "x")], HISTORY)
    loads([row(D1, "moved", "1"), row(D1, "x")], HISTORY)
    conn.execute(f"UPDATE things SET {column} = '2099-01-01' WHERE name = '{name}'".encode())
    loads([row(D1, "moved", "2"), row(D1, "back", "2"), row(D1, "x")], HISTORY)
    for versions in (history(loads, "moved"), history(loads, "back")):
        assert [(money, closed) for money, _, closed in versions] == [(1, True), (2, False)]
    disorder = "SELECT name FROM things a JOIN things b USING (day, name) WHERE a.money < b.money AND a.valid_to > b.valid_from"
    assert loads.rows(f"{disorder} UNION SELECT name FROM things WHERE valid_to <= valid_from") == []


def test_history_of_a_key_in_several_partitions_takes_the_newest_version(loads: Loads) -> None:
    loads([row(D1, "a", "1"), row(D2, "a", "2"), row(D1, "b", "1")], MONTHLY_HISTORY)
    assert current(loads) == [(D1, "b", 1), (D2, "a", 2)]
    older = loads([row(D1, "a", "9")], MONTHLY_HISTORY, DayRange(D1, D1))
    assert older.total.unchanged == 1
    loads([row(D3, "a", "3")], MONTHLY_HISTORY, DayRange(D3, D3))
    assert history(loads, "a") == [(2, None, True), (3, True, False)]
    assert current(loads) == [(D1, "b", 1), (D3, "a", 3)]


@pytest.mark.parametrize(
    ("column", "value"), [("valid_to", "NULL"), ("valid_from", "(SELECT valid_from FROM things WHERE valid_to IS NULL)")]
)
def test_the_server_itself_keeps_one_current_version_and_one_version_an_instant(
    loads: Loads, conn: psycopg.Connection, column: str, value: str
) -> None:
    for money in ("1", "2"):
        loads([row(D1, "a", money)], HISTORY)
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.execute(f"UPDATE things SET {column} = {value} WHERE valid_to IS NOT NULL".encode())


days = st.sampled_from([D1, D2, D3])
amounts = st.sampled_from(["1", "2"])
batches = st.lists(st.tuples(days, st.sampled_from("abc"), amounts), unique_by=lambda r: (r[0], r[1]), max_size=8)
windows = st.tuples(days, days).map(lambda pair: DayRange(min(pair), max(pair)))
plans = st.sampled_from([None, "merge"])
Key = tuple[date, str]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(windows, batches, plans), max_size=5))
def test_any_sequence_of_replacements_equals_the_model(
    loads: Loads, steps: list[tuple[DayRange, list[Any], PlanName | None]]
) -> None:
    loads.conn.execute("DROP TABLE IF EXISTS things")
    model: dict[Key, Decimal] = {}
    for window, batch, plan in steps:
        rows = [row(*values) for values in batch if values[0] in window]
        total = loads(rows, REPLACED, window, plan=plan, allow_shrink=True).total
        old = {key for key in model if key[0] in window}
        assert (total.read, total.inserted, total.deleted, total.updated) == (len(rows), len(rows), len(old), 0)
        model = {key: money for key, money in model.items() if key not in old} | {(r["day"], r["name"]): r["money"] for r in rows}
        assert {(day, name): money for day, name, money in loads.rows("SELECT day, name, money FROM things")} == model


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(windows, st.lists(st.tuples(days, st.sampled_from("ab"), amounts), max_size=8), plans), max_size=5))
def test_any_sequence_of_appends_equals_the_model(loads: Loads, steps: list[tuple[DayRange, list[Any], PlanName | None]]) -> None:
    loads.conn.execute("DROP TABLE IF EXISTS things")
    model: dict[Key, Counter[Decimal]] = {}
    for window, batch, plan in steps:
        rows = [row(*values) for values in batch if values[0] in window]
        added = 0
        for key in {(r["day"], r["name"]) for r in rows}:
            held = model.setdefault(key, Counter())
            given = Counter(r["money"] for r in rows if (r["day"], r["name"]) == key)
            more = max(0, given.total() - held.total())
            held.update(sorted((given - held).elements())[-more:] if more else [])
            added += more
        total = loads(rows, APPENDED, window, plan=plan).total
        assert (total.read, total.inserted, total.deleted, total.updated) == (len(rows), added, 0, 0)
        found = loads.rows("SELECT day, name, money FROM things")
        assert Counter(found) == Counter((*key, money) for key, held in model.items() for money in held.elements())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(windows, batches, plans), max_size=5))
def test_any_sequence_of_histories_equals_the_model(loads: Loads, steps: list[tuple[DayRange, list[Any], PlanName | None]]) -> None:
    loads.conn.execute("DROP TABLE IF EXISTS things")
    # Versions of each key: value, number of the load that opened it, number of the load that closed it.
    model: dict[Key, list[list[Any]]] = {}
    for load, (window, batch, plan) in enumerate(steps):
        rows = [row(*values) for values in batch if values[0] in window]
        new = {(r["day"], r["name"]): r["money"] for r in rows}
        open_ = {key: versions[-1] for key, versions in model.items() if key[0] in window and versions[-1][2] is None}
        changed = {key for key in new.keys() & open_.keys() if new[key] != open_[key][0]}
        vanished, opened = open_.keys() - new.keys(), new.keys() - open_.keys()
        total = loads(rows, HISTORY, window, plan=plan, allow_shrink=True).total
        assert (total.inserted, total.updated, total.deleted) == (len(opened), len(changed), len(vanished))
        for key in changed | vanished:
            open_[key][2] = load
        for key in changed | opened:
            model.setdefault(key, []).append([new[key], load, None])
        found = loads.rows("SELECT day, name, money, valid_from, valid_to FROM things ORDER BY valid_from")
        instants = sorted({at for *_, start, end in found for at in (start, end) if at})
        wrote = sorted({at for versions in model.values() for version in versions for at in version[1:] if at is not None})
        number = dict(zip(instants, wrote, strict=True)) | {None: None}
        got: dict[Key, list[list[Any]]] = {}
        for day, name, money, start, end in found:
            got.setdefault((day, name), []).append([money, number[start], number[end]])
        assert got == model
