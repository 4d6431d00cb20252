"""Rows that can't be loaded: the load fails, or they go to `etl_quarantine` and the others are loaded."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from datetime import date
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import ContractError, DuplicateKeyError, QuarantineExceeded, ShrinkRefused
from pulso_etl.sync.loading import quarantine
from pulso_etl.sync.loading.conform import conform, wire_schema
from pulso_etl.sync.loading.load import load
from pulso_etl.sync.loading.quarantine import as_json
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.loading.result import LoadResult
from pulso_etl.sync.postgres.bookkeeping import exists
from pulso_etl.sync.spec import Column, ColumnType, Strategy
from pulso_etl_tests.sync.samples import (
    COLUMNS,
    D1,
    D2,
    D3,
    NOON,
    SCHEMA,
    WINDOW,
    Loads,
    monthly,
    request,
    row,
    table,
    things,
    wider,
)

QUARANTINING = things(on_reject="quarantine", maximum_quarantined_share=1)
NAN = float("nan")


@pytest.fixture(params=[None, "month"], ids=["one table", "by month"])
def loads(conn: psycopg.Connection, schema: str, request: pytest.FixtureRequest) -> Loads:
    return Loads(conn, schema, request.param)


def quarantined(loads: Loads) -> list[tuple[Any, ...]]:
    return loads.rows("SELECT partition, column_name, reason, source_row->>'name' FROM etl_quarantine ORDER BY id")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"name": None}, (D2, "name", "null", None)),
        ({"day": None}, (None, "day", "null", "bad")),
        ({"rate": NAN}, (D2, "rate", "NaN or Infinity", "bad")),
        ({"rate": -float("inf")}, (D2, "rate", "NaN or Infinity", "bad")),
        ({"name": "a\0b"}, (D2, "name", "NUL character", r"a\u0000b")),
        ({"hour": 24}, (D2, "hour", "beyond a limit", "bad")),
        ({"hour": -1}, (D2, "hour", "beyond a limit", "bad")),
        ({"name": None, "rate": NAN}, (D2, "name", "null", None)),
    ],
)
def test_a_bad_row_is_quarantined_with_its_reason_and_the_others_are_loaded(
    loads: Loads, plan: PlanName, bad: dict[str, Any], reason: tuple[Any, ...]
) -> None:
    source = [row(D1, "a"), row(D1, "b"), {**row(D2, "bad"), **bad}, row(D3, "c")]
    result = loads(source, QUARANTINING, plan=plan)
    assert loads.rows("SELECT day, name FROM things ORDER BY 1, 2") == [(D1, "a"), (D1, "b"), (D3, "c")]
    assert quarantined(loads) == [reason]
    assert loads.rows("SELECT table_name, extraction_id, first_seen = last_seen FROM etl_quarantine") == [("things", "r", True)]
    assert result.quarantine_reasons == {f"{reason[1]}: {reason[2]}": 1}
    # A row without a day counts with the first.
    assert {day: counts.quarantined for day, counts in result.by_day.items() if counts.quarantined} == {reason[0] or D1: 1}
    assert result.total.as_dict() == {
        "rows_read": 4,
        "rows_inserted": 3,
        "rows_updated": 0,
        "rows_unchanged": 0,
        "rows_deleted": 0,
        "rows_quarantined": 1,
    }
    assert result.quarantined_share == 0.25


def test_values_that_no_cast_takes_are_found_row_by_row(loads: Loads, plan: PlanName) -> None:
    source = table([row(D1, "a"), row(D1, "b"), row(D2, "c"), row(D2, "d"), row(D3, "e")])
    source = source.set_column(2, "hour", pa.array([1, 2**63, 2, 2**64 - 1, None], pa.uint64()))
    result = loads(source, QUARANTINING, plan=plan)
    assert loads.rows("SELECT name, hour FROM things ORDER BY 1") == [("a", 1), ("c", 2), ("e", None)]
    assert result.quarantine_reasons == {"hour: does not fit the type": 2}
    assert loads.rows("SELECT source_row->>'hour' FROM etl_quarantine") == [("9223372036854775808",), ("18446744073709551615",)]


def test_a_load_fails_at_a_value_that_no_cast_takes_and_names_its_partition(loads: Loads, plan: PlanName) -> None:
    source = table([row(D1, "a"), row(D1, "b"), row(D2, "c"), row(D2, "d")])
    source = source.set_column(2, "hour", pa.array([1, 2, 3, 2**63], pa.uint64()))
    with pytest.raises(ContractError, match=r"column hour, partition 2026-02-28: a value does not fit bigint .* in 1 row"):
        loads(source, things(), plan=plan)


def test_the_limits_of_a_bignumeric_column_hold(loads: Loads, plan: PlanName) -> None:
    columns = (*COLUMNS[:3], Column(name="money", type=ColumnType.NUMERIC, minimum=0), *COLUMNS[4:])
    source = table([row(D1, "a"), row(D1, "b")])
    source = source.set_column(3, "money", pa.array([Decimal("0"), Decimal("-0.00000000000000000001")], pa.decimal256(76, 38)))
    with pytest.raises(ContractError, match="column money, partition 2026-02-27: a value beyond the limit 0 in 1 row"):
        loads(source, things(columns=columns), plan=plan)
    loads(source, things(columns=columns, on_reject="quarantine", maximum_quarantined_share=1), plan=plan)
    assert loads.rows("SELECT name FROM things") == [("a",)]


@pytest.mark.parametrize(
    ("minimum", "maximum", "loaded"),
    [(0, 100, ["a", "c"]), (-100, 100, ["a", "b", "c"]), (5, 100, ["c"]), (100, 200, ["c"]), (-200, -100, ["c"])],
)
@pytest.mark.parametrize("kind", [pa.decimal128(38, 37), pa.decimal128(3, 2), pa.decimal256(76, 75)], ids=str)
def test_limits_hold_that_the_source_s_decimal_can_not_hold(
    loads: Loads, kind: pa.DataType, minimum: int, maximum: int, loaded: list[str]
) -> None:
    columns = (*COLUMNS[:3], Column(name="money", type=ColumnType.NUMERIC, minimum=minimum, maximum=maximum), *COLUMNS[4:])
    source = table([row(D1, "a"), row(D1, "b"), row(D1, "c")])
    source = source.set_column(3, "money", pa.array([Decimal("4.5"), Decimal("-1.25"), None], kind))
    loads(source, things(columns=columns, on_reject="quarantine", maximum_quarantined_share=1))
    assert [name for (name,) in loads.rows("SELECT name FROM things ORDER BY 1")] == loaded


def test_all_rows_of_a_duplicated_key_are_quarantined(loads: Loads, plan: PlanName) -> None:
    source = [row(D1, "a"), row(D1, "twice", "1"), row(D2, "twice", "2"), row(D1, "twice", "3"), row(D2, "b")]
    result = loads(source, QUARANTINING, plan=plan)
    assert loads.rows("SELECT day, name FROM things ORDER BY 1, 2") == [(D1, "a"), (D2, "b"), (D2, "twice")]
    assert loads.rows("SELECT column_name, reason, source_row->>'money' FROM etl_quarantine ORDER BY 3") == [
        ("day, name", "duplicate key", "1.000000000"),
        ("day, name", "duplicate key", "3.000000000"),
    ]
    assert (result.total.read, result.total.inserted, result.total.quarantined) == (5, 3, 2)


def test_a_good_row_whose_key_a_bad_row_also_has_is_no_less_a_duplicate(loads: Loads, plan: PlanName) -> None:
    loads([row(D1, "a", "7"), row(D1, "b")], QUARANTINING)
    result = loads([row(D1, "a", "8"), row(D1, "b"), row(D1, "a", rate=NAN), row(D1, "a", hour=99)], QUARANTINING, plan=plan)
    assert loads.rows("SELECT money::int FROM things WHERE name = 'a'") == [(7,)]
    assert Counter(reason for _, _, reason, _ in quarantined(loads)) == {
        "NaN or Infinity": 1,
        "beyond a limit": 1,
        "duplicate key": 1,
    }
    assert (result.total.unchanged, result.total.deleted) == (1, 0)


def test_versions_of_a_key_are_no_duplicates_but_two_of_one_version_are(loads: Loads) -> None:
    spec = monthly(on_reject="quarantine", maximum_quarantined_share=1)
    source = [row(D1, "a", "1"), row(D2, "a", "2"), row(D1, "b", "1"), row(D2, "b", "2"), row(D2, "b", "3"), row(D3, "a", rate=NAN)]
    loads(source, spec)
    assert loads.rows("SELECT name, day, money::int FROM things ORDER BY 1") == [("a", D2, 2), ("b", D1, 1)]
    assert quarantined(loads) == [
        (D3, "rate", "NaN or Infinity", "a"),
        (D2, "name", "duplicate key", "b"),
        (D2, "name", "duplicate key", "b"),
    ]


@pytest.mark.parametrize("strategy", [Strategy.UPSERT, Strategy.REPLACE_PARTITION, Strategy.SCD2])
def test_a_quarantined_key_keeps_its_last_good_row_and_a_vanished_one_goes(loads: Loads, strategy: Strategy) -> None:
    spec = things(on_reject="quarantine", maximum_quarantined_share=1, strategy=strategy, minimum_kept_share=0)
    loads([row(D1, "nan", "1"), row(D1, "twice", "2"), row(D1, "gone"), row(D1, "good", "3")], spec)
    before = set(loads.rows("SELECT ctid::text, xmin::text FROM things WHERE name IN ('nan', 'twice')"))
    result = loads([row(D1, "nan", rate=NAN), row(D1, "twice"), row(D1, "twice"), row(D1, "good", "4")], spec)
    current = " WHERE valid_to IS NULL" if strategy is Strategy.SCD2 else ""
    assert loads.rows(f"SELECT name, money::int FROM things{current} ORDER BY 1") == [("good", 4), ("nan", 1), ("twice", 2)]
    assert set(loads.rows("SELECT ctid::text, xmin::text FROM things WHERE name IN ('nan', 'twice')")) == before
    assert result.total.deleted == (2 if strategy is Strategy.REPLACE_PARTITION else 1)


def test_a_row_without_a_usable_key_protects_nothing(loads: Loads) -> None:
    loads([row(D1, "a"), row(D1, "b")], QUARANTINING)
    result = loads([row(D1, "a"), row(D1, None)], QUARANTINING)
    assert (result.total.deleted, result.total.quarantined) == (1, 1)
    assert loads.rows("SELECT name FROM things") == [("a",)]


def test_the_guard_counts_keys_that_stay_not_rows_that_came(loads: Loads) -> None:
    loads([row(D1, f"n{i}") for i in range(10)], QUARANTINING)
    with pytest.raises(ShrinkRefused, match="holds 10 rows and the source has 1"):
        loads([row(D1, "n0", rate=NAN)] * 10, QUARANTINING)
    with pytest.raises(ShrinkRefused, match="holds 10 rows and the source has 1"):
        loads([row(D1, "n0")] * 10, QUARANTINING)
    loads([row(D1, f"n{i}", rate=NAN) for i in range(10)], QUARANTINING)
    assert loads.rows("SELECT count(*) FROM things") == [(10,)]


def test_append_takes_repeated_keys_and_quarantines_bad_rows(loads: Loads, plan: PlanName) -> None:
    spec = things(on_reject="quarantine", maximum_quarantined_share=1, strategy="append")
    result = loads([row(D1, "a"), row(D1, "a"), row(D1, "a", rate=NAN)], spec, plan=plan)
    assert loads.rows("SELECT name FROM things") == [("a",), ("a",)]
    assert (result.total.inserted, result.total.quarantined) == (2, 1)


def test_past_the_share_of_the_declaration_the_load_fails_and_nothing_is_written(loads: Loads, plan: PlanName) -> None:
    spec = things(on_reject="quarantine", maximum_quarantined_share=0.5)
    source = [row(D1, "a"), row(D1, "b", rate=NAN), row(D2, None), row(D3, "c")]
    loads(source, spec, plan=plan)
    before = loads.addresses()
    message = r"things 2026-02-27..2026-03-01: 3 of 5 rows can't be loaded, more than the share 0.5 .*rate: NaN or Infinity \(2\)"
    with pytest.raises(QuarantineExceeded, match=message):
        loads([*source, row(D3, "d", rate=NAN)], spec)
    with pytest.raises(QuarantineExceeded, match=r"2 of 3 rows .* day, name: duplicate key \(2\)"):
        loads([row(D1, "a"), row(D1, "b"), row(D1, "b")], spec)
    assert loads.addresses() == before
    assert loads.rows("SELECT count(*) FROM etl_quarantine") == [(2,)]


def test_the_share_of_the_rows_that_may_be_quarantined_is_small_by_default(loads: Loads) -> None:
    rows = [row(D1, f"n{i}") for i in range(20)]
    spec = things(on_reject="quarantine")
    loads([*rows[:-1], row(D1, "bad", rate=NAN)], spec)
    with pytest.raises(QuarantineExceeded):
        loads([*rows[:-2], row(D1, "bad", rate=NAN), row(D1, "worse", rate=NAN)], spec)


def test_no_more_rows_wait_in_memory_than_the_bound(loads: Loads, plan: PlanName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MAXIMUM_ROWS", 3)
    with pytest.raises(QuarantineExceeded, match="more than 3 rows can't be loaded"):
        loads([row(D1, f"n{i}", rate=NAN) for i in range(4)], QUARANTINING, plan=plan)
    with pytest.raises(QuarantineExceeded, match="more than 3 rows can't be loaded"):
        loads([row(D1, "n")] * 4, QUARANTINING, plan=plan)


def test_a_clean_first_load_is_copied_straight_into_the_table(loads: Loads) -> None:
    assert loads([row(D1, "a")], QUARANTINING).plan == "direct"
    assert loads([row(D2, "a"), row(D2, "b", rate=NAN)], QUARANTINING, DayRange(D2, D2)).plan == "merge"
    assert loads.rows("SELECT to_regclass('etl_quarantine') IS NULL") == [(False,)]


def test_a_stream_that_opens_once_is_staged_so_that_its_bad_rows_can_be_told(
    loads: Loads, conn: psycopg.Connection, schema: str
) -> None:
    reader = table([row(D1, "a"), row(D1, "b"), row(D1, "b")]).to_reader(max_chunksize=1)
    with conn.transaction():
        result = load(loads.target(QUARANTINING), request(WINDOW, lambda: nullcontext(reader), repeatable=False))
    assert (result.plan, result.total.inserted, result.total.quarantined) == ("merge", 1, 2)


def test_days_outside_of_the_window_fail_the_load_whatever_the_policy(loads: Loads, plan: PlanName) -> None:
    with pytest.raises(ContractError, match="a day that was not asked for"):
        loads([row(D1, "a", rate=NAN), row(D3, "b", rate=NAN)], QUARANTINING, DayRange(D1, D2), plan=plan)


def test_duplicates_fail_the_load_where_the_policy_is_fail(loads: Loads, plan: PlanName) -> None:
    with pytest.raises(DuplicateKeyError):
        loads([row(D1, "a"), row(D1, "a")], things(), plan=plan)


def test_a_quarantined_row_stands_there_as_the_source_gave_it(loads: Loads) -> None:
    bad = row(D1, "ñandú \0", "-0.000000001", rate=float("inf"), hour=2**62)
    loads(wider([bad, row(D1, "b")], extra=[1, 2]), QUARANTINING)
    ((stored,),) = loads.rows("SELECT source_row FROM etl_quarantine")
    assert stored == {
        "day": "2026-02-27",
        "name": "ñandú \\u0000",
        "hour": 2**62,
        "money": "-0.000000001",
        "rate": "Infinity",
        "stamp": "2026-03-01T17:00:00+00:00",
    }


def test_decimals_are_strings_in_json_without_an_exponent() -> None:
    values = {"zero": Decimal("0E-9"), "large": Decimal("1E+30"), "nan": NAN, "none": None, "yes": True, "half": 0.5}
    assert json.loads(as_json(values)) == {
        "zero": "0.000000000",
        "large": "1" + "0" * 30,
        "nan": "NaN",
        "none": None,
        "yes": True,
        "half": 0.5,
    }


def test_loads_of_several_tables_and_runs_share_the_quarantine(loads: Loads) -> None:
    for name in ("things", "others"):
        for _ in range(2):
            loads([row(D1, "a"), row(D1, "b", rate=NAN)], QUARANTINING.model_copy(update={"name": name}))
    assert loads.rows("SELECT table_name, count(*) FROM etl_quarantine GROUP BY 1 ORDER BY 1") == [("others", 1), ("things", 1)]


days = st.sampled_from([D1, D2, D3])
names = st.sampled_from(["a", "b", "c", "d", None, "x\0"])
rates, hours = st.sampled_from([0.5, 0.5, 0.5, NAN]), st.sampled_from([9, 9, 9, 24])
source_rows = st.lists(st.builds(row, days, names, st.sampled_from(["1", "2"]), rate=rates, hour=hours), max_size=12)
strategies = st.sampled_from([Strategy.UPSERT, Strategy.REPLACE_PARTITION, Strategy.SCD2])


def bad(r: dict[str, Any]) -> bool:
    return key(r) is None or r["hour"] > 23 or r["rate"] != r["rate"]


def key(r: dict[str, Any]) -> tuple[date, str] | None:
    return None if r["name"] is None or "\0" in r["name"] else (r["day"], r["name"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(strategies, st.lists(st.tuples(source_rows, st.sampled_from([None, "merge"])), max_size=4))
def test_loaded_and_quarantined_rows_are_the_rows_of_the_source(
    loads: Loads, strategy: Strategy, steps: list[tuple[list[dict[str, Any]], PlanName | None]]
) -> None:
    loads.conn.execute("DROP TABLE IF EXISTS things")
    if exists(loads.conn, loads.schema, "etl_quarantine"):
        loads.conn.execute("TRUNCATE etl_quarantine")
    spec = things(on_reject="quarantine", maximum_quarantined_share=1, strategy=strategy)
    current = "WHERE valid_to IS NULL" if strategy is Strategy.SCD2 else ""
    held: dict[tuple[date, str], Decimal] = {}
    seen: Counter[str] = Counter()
    for source, plan in steps:
        copies = Counter(key(r) for r in source)
        good = {key(r): r["money"] for r in source if not bad(r) and copies[key(r)] == 1}
        result: LoadResult = loads(source, spec, plan=plan, allow_shrink=True)
        counted = len(source) - len(good)
        assert result.total.quarantined == counted == sum(result.quarantine_reasons.values())
        assert result.total.read == len(source)
        if loads.rows("SELECT to_regclass('etl_quarantine') IS NOT NULL") == [(True,)]:
            latest = "last_seen = (SELECT max(last_seen) FROM etl_quarantine)"
            written = loads.rows(
                f"SELECT concat_ws('|', partition, column_name, reason, source_row) FROM etl_quarantine WHERE {latest}"
            )
            assert not counted or len(written) == counted
            # All rows come from one load. No kind has more rows than that load had.
            seen |= Counter(text for (text,) in written) if counted else Counter()
            assert loads.rows("SELECT count(*) FROM etl_quarantine") == [(seen.total(),)]
        known = {key(r) for r in source} - {None}
        held = {k: money for k, money in held.items() if k in known} | good  # type: ignore[assignment]
        assert {(day, name): money for day, name, money in loads.rows(f"SELECT day, name, money FROM things {current}")} == held


def test_a_row_that_loads_meet_again_is_stored_once_with_when_it_was_seen(loads: Loads, plan: PlanName) -> None:
    query = "SELECT source_row->>'name', copy, extraction_id, first_seen, last_seen FROM etl_quarantine ORDER BY id"
    loads([row(D1, "a"), row(D1, "bad", rate=NAN), row(D1, None), row(D1, None)], QUARANTINING, plan=plan)
    first = loads.rows(query)
    assert [(name, copy) for name, copy, *_ in first] == [("bad", 1), (None, 1), (None, 2)]
    loads([row(D1, "a"), row(D1, "bad", rate=NAN), row(D1, None), row(D2, "new", rate=NAN)], QUARANTINING, run_id="later")
    again = loads.rows(query)
    assert [(name, copy, run) for name, copy, run, *_ in again] == [
        ("bad", 1, "later"),
        (None, 1, "later"),
        (None, 2, "r"),
        ("new", 1, "later"),
    ]
    assert [seen for *_, seen, _ in again[:3]] == [seen for *_, seen, _ in first]
    assert [last > seen for *_, seen, last in again] == [True, True, False, False]


def test_the_quarantine_of_an_earlier_release_is_taken_over(loads: Loads) -> None:
    loads.conn.execute(
        "CREATE TABLE etl_quarantine (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, table_name text NOT NULL, "
        "extraction_id text NOT NULL, partition date, reason text NOT NULL, column_name text NOT NULL, source_row jsonb NOT NULL, "
        "created_at timestamptz NOT NULL DEFAULT now()); "
        "INSERT INTO etl_quarantine (table_name, extraction_id, partition, reason, column_name, source_row, created_at) "
        "SELECT 'things', run, NULL, 'null', 'day', source::jsonb, '2026-01-01Z'::timestamptz + n * interval '1 day' FROM (VALUES "
        "(1, 'one', '{\"x\": 1}'), (1, 'one', '{\"x\": 1}'), (1, 'one', '{\"x\": 2}'), (2, 'two', '{\"x\": 1}')) v (n, run, source)"
    )
    loads([row(D1, "a"), row(D1, "bad", rate=NAN)], QUARANTINING)
    told = loads.rows(
        "SELECT source_row->>'x', copy, extraction_id, first_seen::date::text, last_seen::date::text "
        "FROM etl_quarantine ORDER BY id"
    )
    assert told[:3] == [
        ("1", 1, "two", "2026-01-02", "2026-01-03"),
        ("1", 2, "one", "2026-01-02", "2026-01-02"),
        ("2", 1, "one", "2026-01-02", "2026-01-02"),
    ]
    assert len(told) == 4
    loads([row(D1, "a"), row(D1, "bad", rate=NAN)], QUARANTINING)
    assert loads.rows("SELECT count(*) FROM etl_quarantine") == [(4,)]


@given(source_rows)
def test_every_row_of_a_batch_is_taken_once(source: list[dict[str, Any]]) -> None:
    aside = quarantine.Quarantine(QUARANTINING, WINDOW)
    batch = pa.RecordBatch.from_pylist(source, schema=SCHEMA)
    kept = conform(QUARANTINING, batch, wire_schema(QUARANTINING, SCHEMA, WINDOW), WINDOW, aside.take)
    assert kept.num_rows + aside.by_day.total() == len(source)
    assert kept.num_rows == sum(not bad(r) for r in source)


def test_times_of_quarantined_rows_keep_their_zone() -> None:
    assert json.loads(as_json({"stamp": NOON})) == {"stamp": "2026-03-01T17:00:00+00:00"}
