"""The source's columns against the declaration: what warns, what fails, what is added."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import ContractError, SchemaRefused
from pulso_etl.sync.loading.contract import column_type
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.spec import Column, ColumnType, Strategy
from pulso_etl_tests.sync.samples import D1, D2, D3, NOON, Loads, monthly, row, table, things, wider

EVOLVING = things(contract="evolve")


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (pa.string(), ColumnType.TEXT),
        (pa.large_string(), ColumnType.TEXT),
        (pa.dictionary(pa.int32(), pa.string()), ColumnType.TEXT),
        (pa.date32(), ColumnType.DATE),
        (pa.bool_(), ColumnType.BOOLEAN),
        (pa.int64(), ColumnType.INTEGER),
        (pa.int8(), ColumnType.INTEGER),
        (pa.decimal128(38, 9), ColumnType.NUMERIC),
        (pa.decimal256(76, 38), ColumnType.NUMERIC),
        (pa.float64(), ColumnType.DOUBLE),
        (pa.timestamp("us", "UTC"), ColumnType.TIMESTAMP),
        (pa.timestamp("us"), ColumnType.DATETIME),
        (pa.time64("us"), ColumnType.TIME),
        (pa.binary(), ColumnType.BYTES),
        (pa.json_(), ColumnType.JSON),
        (pa.uuid(), None),
        (pa.month_day_nano_interval(), None),
        (pa.list_(pa.int64()), None),
        (pa.struct([("a", pa.int64())]), None),
        (pa.null(), None),
    ],
    ids=str,
)
def test_each_type_of_the_source_has_one_type_in_the_table_or_none(given: pa.DataType, kind: ColumnType | None) -> None:
    assert column_type(given) == kind


def test_missing_retyped_and_new_columns_are_told_a_line_each(loads: Loads, plan: PlanName) -> None:
    loads([row(D1, "a")], things())
    before = loads.addresses()
    source = wider([row(D1, "b")], hora=[1]).drop_columns(["hour"]).set_column(2, "money", pa.array([1.5]))
    with pytest.raises(ContractError) as caught:
        loads(source, things(), plan=plan)
    assert str(caught.value).splitlines()[1:] == [
        "  hour: expected bigint, got nothing",
        "  money: expected numeric, got double",
        "  hora: expected nothing, got int64",
    ]
    assert loads.addresses() == before


def test_frozen_tables_leave_new_columns_out_and_say_so(loads: Loads, plan: PlanName) -> None:
    result = loads(wider([row(D1, "a")], colour=["red"]), things(), plan=plan)
    assert result.drift.not_loaded == ["colour"]
    assert result.drift.warnings() == ["new columns in the source, not loaded: colour"]
    assert "colour" not in loads.columns()


def test_evolving_tables_gain_the_columns_of_the_source(loads: Loads, plan: PlanName) -> None:
    loads([row(D1, "a")], EVOLVING)
    big = Decimal("123456789012345678901234567890.123456789012345678901234567890")
    more: dict[str, Any] = {
        "colour": ["red"],
        "weight": [3],
        "exact": pa.array([Decimal("0.100000000")], pa.decimal128(38, 9)),
        "seen": pa.array([NOON], pa.timestamp("us", "UTC")),
        "born": [D3],
        "good": [True],
        "share": [0.5],
    }
    if plan == "merge":
        more["big"] = pa.array([big], pa.decimal256(76, 38))
    window = {"direct": DayRange(D2, D2), "merge": DayRange(D1, D1)}[plan]
    result = loads(wider([row(window.start, "a")], **more), EVOLVING, window)
    assert result.plan == plan
    assert result.drift.added == list(more)
    assert loads.columns().items() >= {
        ("colour", "text"),
        ("weight", "bigint"),
        ("exact", "numeric"),
        ("seen", "timestamp with time zone"),
        ("born", "date"),
        ("good", "boolean"),
        ("share", "double precision"),
    }
    found = loads.rows(f"SELECT colour, weight, exact, seen, born, good, share FROM things WHERE day = '{window.start}'")
    assert found == [("red", 3, Decimal("0.1"), NOON, D3, True, 0.5)]
    if plan == "merge":
        assert loads.rows("SELECT big FROM things") == [(big,)]


def test_a_bignumeric_column_is_gained_by_a_table_without_rows(loads: Loads) -> None:
    big = Decimal("0.00000000000000000000000000000000000001")
    assert loads(wider([row(D1, "a")], big=pa.array([big], pa.decimal256(76, 38))), EVOLVING).drift.added == ["big"]
    assert loads.rows("SELECT big FROM things") == [(big,)]


def test_a_gained_column_is_compared_like_any_other_and_loaded_again_without_a_write(loads: Loads) -> None:
    loads(wider([row(D1, "a"), row(D1, "b")], colour=["red", "blue"]), EVOLVING)
    before = loads.addresses()
    again = loads(wider([row(D1, "a"), row(D1, "b")], colour=["red", "blue"]), EVOLVING)
    assert (again.total.unchanged, again.drift.added, again.migration) == (2, [], [])
    assert loads.addresses() == before
    assert loads(wider([row(D1, "a"), row(D1, "b")], colour=["red", "green"]), EVOLVING).total.updated == 1


def test_columns_that_no_table_can_hold_are_left_out_with_a_warning(loads: Loads, plan: PlanName) -> None:
    source = wider(
        [row(D1, "a")],
        parts=[[{"a": 1}]],
        nested=[{"a": 1}],
        gap=pa.array([None], pa.month_day_nano_interval()),
        nothing=[None],
        **{"Total": [1], "created_at": [NOON], "pulso_sid": [1], "ctid": [1], "ok": [1]},
    )
    result = loads(source, EVOLVING, plan=plan)
    assert result.drift.added == ["ok"]
    assert result.drift.not_loaded == ["parts", "nested", "gap", "nothing", "Total", "created_at", "pulso_sid", "ctid"]
    assert loads.rows("SELECT ok FROM things") == [(1,)]
    # The error says what to write in the SQL, as for a declared column.
    assert result.drift.warnings()[2:] == [
        "parts, not loaded: STRUCT: write TO_JSON(`parts`) and declare JSON, or select its fields",
        "nested, not loaded: STRUCT: write TO_JSON(`nested`) and declare JSON, or select its fields",
        "gap, not loaded: INTERVAL: write CAST(`gap` AS STRING), or EXTRACT its parts",
    ]


@pytest.mark.parametrize("strategy", [Strategy.UPSERT, Strategy.SCD2])
def test_a_gained_column_that_vanishes_stays_and_is_null_in_new_rows(loads: Loads, plan: PlanName, strategy: Strategy) -> None:
    spec = things(contract="evolve", strategy=strategy)
    loads(wider([row(D1, "old"), row(D1, "moved")], colour=["red", "blue"]), spec)
    window = {"direct": DayRange(D2, D2), "merge": DayRange(D1, D1)}[plan]
    source = [row(D2, "new")] if plan == "direct" else [row(D1, "old"), row(D1, "moved"), row(D1, "new")]
    result = loads(source, spec, window)
    assert result.plan == plan
    assert result.drift.vanished == ["colour"]
    assert "no longer gives, null in new rows: colour" in result.drift.warnings()[0]
    assert loads.rows("SELECT name, colour FROM things ORDER BY 1") == [("moved", "blue"), ("new", None), ("old", "red")]


def test_a_gained_column_that_changes_its_type_fails_with_the_difference(loads: Loads, plan: PlanName) -> None:
    loads(wider([row(D1, "a")], weight=[1]), EVOLVING)
    with pytest.raises(ContractError, match="weight: declared text, the table has bigint"):
        loads(wider([row(D1, "a")], weight=["heavy"]), EVOLVING, plan=plan)
    assert loads.rows("SELECT weight FROM things") == [(1,)]


def test_a_gained_column_keeps_the_type_of_the_table_where_that_takes_the_values(loads: Loads) -> None:
    loads(wider([row(D1, "a")], weight=[1.5]), EVOLVING)
    loads(wider([row(D1, "a")], weight=[2]), EVOLVING)
    assert loads.rows("SELECT weight FROM things") == [(2.0,)]


def test_a_gained_column_of_a_foreign_type_is_refused_with_the_statement(loads: Loads) -> None:
    loads([row(D1, "a")], EVOLVING)
    loads.conn.execute("ALTER TABLE things ADD weight smallint")
    with pytest.raises(
        SchemaRefused, match=r'weight: declared bigint, the table has smallint(.|\n)*ALTER COLUMN "weight" TYPE bigint'
    ):
        loads(wider([row(D1, "a")], weight=[2]), EVOLVING)


def test_a_declared_column_that_is_missing_stops_an_evolving_table_too(loads: Loads, plan: PlanName) -> None:
    with pytest.raises(ContractError, match="rate: expected double precision, got nothing"):
        loads(table([row(D1, "a")]).drop_columns(["rate"]), EVOLVING, plan=plan)


def test_a_column_that_was_gained_can_be_declared_later(loads: Loads) -> None:
    source = wider([row(D1, "a")], colour=["red"])
    loads(source, EVOLVING)
    assert loads(source, things(Column(name="colour", type=ColumnType.TEXT))).total.unchanged == 1
    with pytest.raises(SchemaRefused, match="colour: in the table but not declared"):
        loads(source, things())


@pytest.mark.parametrize("strategy", list(Strategy))
def test_every_strategy_evolves(loads: Loads, strategy: Strategy) -> None:
    spec = things(contract="evolve", strategy=strategy)
    loads([row(D1, "a")], spec)
    source = wider([row(D1, "a"), row(D1, "b")], colour=["red", "blue"])
    loads(source, spec)
    loads(source, spec)
    current = " WHERE valid_to IS NULL" if strategy is Strategy.SCD2 else ""
    first = None if strategy is Strategy.APPEND else "red"
    assert loads.rows(f"SELECT name, colour FROM things{current} ORDER BY 1") == [("a", first), ("b", "blue")]


def test_versioned_tables_evolve(loads: Loads) -> None:
    spec = monthly(contract="evolve")
    loads([row(D2, "a")], spec)
    loads(wider([row(D1, "a"), row(D3, "b")], colour=["red", "blue"]), spec)
    assert loads.rows("SELECT day, name, colour FROM things ORDER BY 1") == [(D2, "a", None), (D3, "b", "blue")]


def test_drift_is_metadata_that_jsonb_takes(loads: Loads) -> None:
    result = loads(wider([row(D1, "a")], colour=["red"], raw=[{"a": 1}]), EVOLVING)
    assert json.loads(json.dumps(result.drift.as_dict())) == {"columns_added": ["colour"], "columns_not_loaded": ["raw"]}
