"""Every Arrow type by every type of column: what is loaded exactly, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulso_etl.sync.errors import ContractError
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.reading import read
from pulso_etl.sync.spec import Column, ColumnType, Strategy
from pulso_etl_tests.sync.samples import D1, WINDOW, Loads, row, things, wider

T = ColumnType
AT = datetime(2026, 3, 1, 17, 30, 0, 123456)
INSTANT = AT.replace(tzinfo=UTC)
CLOCK = time(23, 59, 59, 999999)
REPEATABLE = [kind for kind in T if kind is not T.JSON]
QUARANTINING: dict[str, Any] = {"on_reject": "quarantine", "maximum_quarantined_share": 1}

MATRIX: list[tuple[pa.DataType, Any, set[ColumnType]]] = [
    (pa.string(), "añil", {T.TEXT}),
    (pa.large_string(), "añil", {T.TEXT}),
    (pa.string_view(), "añil", {T.TEXT}),
    (pa.json_(), '{"a": null}', {T.TEXT, T.JSON}),
    (pa.bool_(), True, {T.BOOLEAN}),
    *((kind, 7, {T.INTEGER, T.NUMERIC, T.DOUBLE}) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())),
    *((kind, 7, {T.INTEGER, T.NUMERIC, T.DOUBLE}) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())),
    *((kind, 0.5, {T.DOUBLE}) for kind in (pa.float16(), pa.float32(), pa.float64())),
    *((kind, Decimal("1.25"), {T.NUMERIC}) for kind in (pa.decimal32(9, 2), pa.decimal64(18, 9), pa.decimal128(38, 9))),
    (pa.decimal128(38, 37), Decimal("1.25"), {T.NUMERIC}),
    (pa.decimal256(76, 38), Decimal("1.25"), {T.NUMERIC}),
    (pa.decimal128(5, -2), Decimal("700"), {T.NUMERIC}),
    (pa.date32(), D1, {T.DATE}),
    (pa.date64(), D1, {T.DATE}),
    *((pa.timestamp(unit), AT.replace(microsecond=0), {T.DATETIME}) for unit in ("s", "ms", "us", "ns")),
    *((pa.timestamp(unit, "UTC"), INSTANT.replace(microsecond=0), {T.TIMESTAMP}) for unit in ("s", "ms", "us", "ns")),
    (pa.timestamp("us", "America/Lima"), INSTANT, {T.TIMESTAMP}),
    (pa.time32("s"), time(12, 30), {T.TIME}),
    (pa.time32("ms"), time(12, 30), {T.TIME}),
    (pa.time64("us"), CLOCK, {T.TIME}),
    (pa.time64("ns"), CLOCK, {T.TIME}),
    *((kind, b"\0\xff", {T.BYTES}) for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2))),
    (pa.null(), None, set(T)),
    (pa.struct([("a", pa.int64())]), {"a": 1}, set()),
    (pa.map_(pa.string(), pa.int64()), [("a", 1)], set()),
    (pa.month_day_nano_interval(), None, set()),
    (pa.duration("us"), None, set()),
    (pa.uuid(), None, set()),
    (pa.list_(pa.struct([("a", pa.int64())])), [{"a": 1}], set()),
    (pa.list_(pa.int64()), [1], set()),
]
WRAPPED = [
    (pa.dictionary(pa.int32(), pa.string()), "añil", T.TEXT),
    (pa.dictionary(pa.int8(), pa.float64()), 0.5, T.DOUBLE),
    (pa.dictionary(pa.int8(), pa.decimal128(38, 9)), Decimal("1.25"), T.NUMERIC),
    (pa.run_end_encoded(pa.int32(), pa.float64()), 0.5, T.DOUBLE),
    (pa.run_end_encoded(pa.int16(), pa.string()), "añil", T.TEXT),
]


def expected(kind: ColumnType, value: Any) -> Any:
    if value is None:
        return None
    if kind is T.JSON:
        return {"a": None}
    return Decimal(value) if kind is T.NUMERIC else value


def with_x(column: Column, array: pa.Array, name: str = "a") -> pa.Table:
    return wider([row(D1, f"{name}{number}") for number in range(len(array))], x=array)


def encoded(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    if pa.types.is_run_end_encoded(kind):
        return pa.compute.run_end_encode(pa.array(values, kind.value_type), kind.run_end_type)
    return pa.array(values, kind)


@pytest.mark.parametrize(
    ("arrow", "value", "kinds"), MATRIX, ids=lambda found: str(found) if isinstance(found, pa.DataType) else ""
)
def test_each_type_of_the_source_is_loaded_exactly_or_refused(
    loads: Loads, arrow: pa.DataType, value: Any, kinds: set[ColumnType]
) -> None:
    # The tables have the same name one after the other. Their columns have different types.
    loads.conn.prepare_threshold = None
    array = pa.nulls(2, arrow) if value is None else encoded([value, None], arrow)
    for kind in ColumnType:
        column = Column(name="x", type=kind)
        # Text counts as JSON if the declaration says so, because BigQuery returns JSON as text.
        if kind in kinds:
            loads(with_x(column, array), things(column))
            assert loads.rows("SELECT x FROM things ORDER BY name") == [(expected(kind, value),), (None,)]
            loads.conn.execute("DROP TABLE things")
        elif not (kind is T.JSON and T.TEXT in kinds):
            with pytest.raises(ContractError, match=r"x: declared .*, the source gives"):
                loads(with_x(column, array), things(column))


@pytest.mark.parametrize(("arrow", "value", "kind"), WRAPPED, ids=str)
def test_values_are_checked_however_they_are_encoded(loads: Loads, plan: PlanName, arrow: pa.DataType, value: Any, kind: T) -> None:
    column = Column(name="x", type=kind)
    loads(with_x(column, encoded([value, value, None], arrow)), things(column), plan=plan)
    assert loads.rows("SELECT x FROM things ORDER BY name") == [(value,), (value,), (None,)]
    bad = {T.TEXT: "a\0b", T.DOUBLE: float("nan")}.get(kind)
    if bad is not None:
        with pytest.raises(ContractError, match=r"column x, partition 2026-02-27: .*in 1 row"):
            loads(with_x(column, encoded([value, bad, None], arrow)), things(column), plan="merge")
    required = Column(name="x", type=kind, required=True)
    with pytest.raises(ContractError, match="column x, partition 2026-02-27: null in 1 row"):
        loads(with_x(column, encoded([value, None], arrow)), things(required, name="strict"))


VALUES: dict[ColumnType, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    T.TEXT: (pa.string(), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)),
    T.DATE: (pa.date32(), st.dates()),
    T.INTEGER: (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    T.NUMERIC: (pa.decimal256(76, 38), st.decimals(-(10**37), 10**37, allow_nan=False, places=38)),
    T.DOUBLE: (pa.float64(), st.floats(allow_nan=False, allow_infinity=False)),
    T.TIMESTAMP: (pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(UTC))),
    T.BOOLEAN: (pa.bool_(), st.booleans()),
    T.DATETIME: (pa.timestamp("us"), st.datetimes()),
    T.TIME: (pa.time64("us"), st.times()),
    T.BYTES: (pa.binary(), st.binary(max_size=9)),
}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("repeated", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("kind", REPEATABLE)
def test_what_is_loaded_is_what_is_read_back(loads: Loads, kind: ColumnType, repeated: bool, data: st.DataObject) -> None:
    arrow, values = VALUES[kind]
    column = Column(name="x", type=kind, repeated=repeated)
    one = st.lists(values, max_size=3) if repeated else st.none() | values
    found = data.draw(st.lists(one, min_size=1, max_size=6))
    array = pa.array(found, pa.list_(arrow) if repeated else arrow)
    loads.conn.execute("DROP TABLE IF EXISTS things")
    spec = things(column)
    loads(with_x(column, array), spec)
    with loads.conn.transaction():
        assert read(loads.target(spec), [WINDOW], ["name", "x"])["x"].to_pylist() == array.to_pylist()
    again = loads(with_x(column, array), spec)
    assert (again.total.written, again.total.unchanged) == (0, len(found))


def test_json_is_compared_by_its_value_and_its_null_is_no_missing_value(loads: Loads, plan: PlanName) -> None:
    column = Column(name="x", type=T.JSON)
    loads(with_x(column, pa.array(['{"a": 1, "b": [1.10]}', "null", None, '"9007199254740993.10"'])), things(column), plan=plan)
    assert loads.rows("SELECT x IS NULL, x::text FROM things ORDER BY name") == [
        (False, '{"a": 1, "b": [1.10]}'),
        (False, "null"),
        (True, None),
        (False, '"9007199254740993.10"'),
    ]
    result = loads(with_x(column, pa.array(['{"b":[1.1],"a":1}', None, "null", '"9007199254740993.10"'])), things(column))
    assert (result.total.updated, result.total.unchanged) == (2, 2)
    with loads.conn.transaction():
        found = read(loads.target(things(column)), [WINDOW], ["x"])["x"].to_pylist()
    assert found == ['{"a": 1, "b": [1.10]}', None, "null", '"9007199254740993.10"']
    with pytest.raises(ContractError, match="PostgreSQL refuses a row: invalid input syntax for type json"):
        loads(with_x(column, pa.array(["{"])), things(column), plan="merge")


def test_broken_json_is_quarantined(loads: Loads, plan: PlanName) -> None:
    column = Column(name="x", type=T.JSON)
    loads(with_x(column, pa.array(["{", '{"a": 1}', '{"a"'])), things(column, **QUARANTINING), plan=plan)
    assert loads.rows("SELECT name, x FROM things") == [("a1", {"a": 1})]
    assert loads.rows("SELECT reason, source_row->>'x' FROM etl_quarantine ORDER BY id") == [
        ("refused by PostgreSQL", "{"),
        ("refused by PostgreSQL", '{"a"'),
    ]


def test_more_digits_than_declared_are_refused_or_quarantined_and_never_rounded(loads: Loads, plan: PlanName) -> None:
    column = Column(name="x", type=T.NUMERIC, precision=6, scale=2)
    good, fine, coarse = Decimal("1234.50"), Decimal("0.005"), Decimal("12345.00")
    for kind in (pa.decimal128(38, 9), pa.decimal256(76, 38)):
        with pytest.raises(ContractError, match=r"column x, partition 2026-02-27: a value does not fit numeric\(6,2\)"):
            loads(with_x(column, pa.array([good, fine], kind)), things(column), plan=plan)
        loads(with_x(column, pa.array([good, fine, coarse, None], kind)), things(column, **QUARANTINING), plan=plan)
        assert loads.rows("SELECT name, x::text FROM things ORDER BY 1") == [("a0", "1234.50"), ("a3", None)]
        assert loads.rows("SELECT (source_row->>'x')::numeric(9,3) FROM etl_quarantine ORDER BY id") == [(fine,), (coarse,)]
        loads.conn.execute("DROP TABLE things; TRUNCATE etl_quarantine")
    assert loads(with_x(column, pa.array([7], pa.int64())), things(column)).total.inserted == 1
    assert loads.columns()["x"] == "numeric(6,2)"


@pytest.mark.parametrize(
    ("kind", "arrow", "bad", "reason"),
    [
        (T.DOUBLE, pa.float64(), float("inf"), "NaN or Infinity"),
        (T.TEXT, pa.string(), "a\0", "NUL character"),
        (T.INTEGER, pa.uint64(), 2**63, "does not fit the type"),
    ],
)
def test_one_bad_element_is_a_bad_row(
    loads: Loads, plan: PlanName, kind: ColumnType, arrow: pa.DataType, bad: Any, reason: str
) -> None:
    column = Column(name="x", type=kind, repeated=True)
    good = "b" if kind is T.TEXT else 1
    array = pa.array([[good, bad], [], None, [good]], pa.list_(arrow))
    loads(with_x(column, array), things(column, **QUARANTINING), plan=plan)
    assert loads.rows("SELECT name, x FROM things ORDER BY 1") == [("a1", []), ("a2", None), ("a3", [good])]
    assert loads.rows("SELECT column_name, reason FROM etl_quarantine") == [("x", reason)]


def test_invalid_utf_8_is_refused_or_quarantined(loads: Loads, plan: PlanName) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"abc", b"\xff\xfe"], pa.binary()).buffers())
    column = Column(name="x", type=T.TEXT)
    with pytest.raises(ContractError, match="column x, partition 2026-02-27: a text that is not UTF-8 in 1 row"):
        loads(with_x(column, broken), things(column), plan=plan)
    loads(with_x(column, broken), things(column, **QUARANTINING), plan=plan)
    assert loads.rows("SELECT x FROM things") == [("abc",)]
    assert loads.rows("SELECT reason, source_row->>'x' FROM etl_quarantine") == [("invalid UTF-8", "\\xff\\xfe")]


@pytest.mark.parametrize(
    ("arrow", "advice"),
    [
        (pa.struct([("a", pa.int64())]), "STRUCT: write TO_JSON"),
        (pa.list_(pa.struct([("a", pa.int64())])), "STRUCT: write TO_JSON"),
        (pa.struct([("start", pa.date32()), ("end", pa.date32())]), "RANGE: write RANGE_START"),
        (pa.month_day_nano_interval(), r"INTERVAL: write CAST\(`x` AS STRING\)"),
    ],
)
def test_what_no_column_takes_is_refused_with_what_to_write(loads: Loads, arrow: pa.DataType, advice: str) -> None:
    column = Column(name="x", type=T.TEXT)
    with pytest.raises(ContractError, match=advice):
        loads(with_x(column, pa.nulls(1, arrow)), things(column))
    geography = with_x(column, pa.array(["POINT(1 2)"]))
    field = pa.field("x", pa.string(), metadata={"ARROW:extension:name": "google:sqlType:geography"})
    with pytest.raises(ContractError, match="GEOGRAPHY: write ST_ASTEXT"):
        loads(geography.cast(geography.schema.set(geography.schema.get_field_index("x"), field)), things(column))


def test_new_columns_of_every_type_are_gained_and_loaded_again_without_a_write(loads: Loads) -> None:
    more = {
        "at": pa.array([AT]),
        "clock": pa.array([CLOCK]),
        "raw": pa.array([b"\0"]),
        "doc": pa.array(['{"a": 1}'], pa.json_()),
        "tags": pa.array([["a", "b"]]),
        "whens": pa.array([[INSTANT]], pa.list_(pa.timestamp("us", "UTC"))),
    }
    spec = things(contract="evolve")
    loads([row(D1, "a")], spec)
    assert loads(wider([row(D1, "a")], **more), spec).drift.added == list(more)
    assert loads.rows(f"SELECT {', '.join(more)} FROM things") == [(AT, CLOCK, b"\0", {"a": 1}, ["a", "b"], [INSTANT])]
    assert loads(wider([row(D1, "a")], **more), spec).total.written == 0


def test_a_changed_version_keeps_what_the_source_gives_no_longer(loads: Loads) -> None:
    spec = things(contract="evolve", strategy=Strategy.SCD2)
    loads(wider([row(D1, "a"), row(D1, "b")], colour=["red", "blue"]), spec)
    loads([row(D1, "a", "9"), row(D1, "b"), row(D1, "c")], spec)
    current = loads.rows("SELECT name, money::int, colour FROM things WHERE valid_to IS NULL ORDER BY 1")
    assert current == [("a", 9, "red"), ("b", 2, "blue"), ("c", 2, None)]


def test_an_integer_of_76_digits_is_read_back(loads: Loads) -> None:
    spec = things()
    big = Decimal(10**75 + 7)
    columns = [row(D1, "a"), row(D1, "b")]
    source = wider(columns).set_column(3, "money", pa.array([big, Decimal(1)], pa.decimal256(76, 0)))
    loads(source, spec)
    with loads.conn.transaction():
        assert read(loads.target(spec), [WINDOW], ["money"])["money"].to_pylist() == [big, 1]
    loads([row(D1, "c", "0.5")], spec, allow_shrink=True)
    loads.conn.execute("INSERT INTO things (day, name, money) VALUES (%s, 'd', %s)", (D1, big))
    with loads.conn.transaction(), pytest.raises(ContractError, match="the numbers of money need more than 76 digits"):
        read(loads.target(spec), [WINDOW], ["money"])
