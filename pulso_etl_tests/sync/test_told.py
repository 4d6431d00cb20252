"""What a refusal tells people to run: it runs as it stands, loses no row and no history, and the next load goes on from it."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from pulso_etl.sync.errors import SchemaRefused
from pulso_etl.sync.loading.arrow_types import WIRE_TYPES
from pulso_etl.sync.spec import Column, ColumnType, Strategy, TableSpec
from pulso_etl_tests.declarations import declare
from pulso_etl_tests.sync.samples import D1, D2, D3, Loads

COLUMNS = (
    Column(name="day", type=ColumnType.DATE),
    Column(name="name", type=ColumnType.TEXT),
    Column(name="hour", type=ColumnType.INTEGER),
    Column(name="money", type=ColumnType.NUMERIC),
    Column(name="seen", type=ColumnType.TIMESTAMP),
)
SEEN = datetime(2026, 3, 1, 17, 30, tzinfo=UTC)
ROWS = [
    {"day": day, "name": name, "hour": hour, "money": money, "seen": SEEN}
    for day, name, hour, money in (
        (D1, "a", 8, 1),
        (D1, "b", 8, 2),
        (D2, "a", 9, 3),
        (D2, "b", 10, None),
        (D2, "c", 10, 5),
        (D3, "a", 8, 6),
    )
]


def declared(*, partition_by: str | None = None, **changes: Any) -> TableSpec:
    """A declaration that differs from the plainest one in these fields. Columns are given by name, with a type or with fields."""
    given = {column.name: column for column in COLUMNS}
    for name in [name for name in changes if name in given]:
        other = changes.pop(name)
        fields = {"type": other} if isinstance(other, ColumnType) else other
        given[name] = given[name].model_copy(update=fields)
    for name in changes.pop("without", ()):
        del given[name]
    fields = {
        "name": "things",
        "description": "For tests.",
        "primary_key": ("day", "name"),
        "partition_column": "day",
        "columns": tuple(given.values()),
    }
    return declare(**fields | {"partition_by": partition_by} | changes)


KEYS: dict[str, dict[str, Any]] = {
    "": {},
    "wide": {"primary_key": ("day", "name", "hour")},
    "narrow": {"primary_key": ("day",)},
    "swapped": {"primary_key": ("hour", "day")},
}
STRATEGIES = (Strategy.UPSERT, Strategy.APPEND, Strategy.SCD2)
DECLARED: dict[str, dict[str, Any]] = {
    **{
        " ".join(filter(None, [strategy, key])): {"strategy": strategy, **fields}
        for strategy in STRATEGIES
        for key, fields in KEYS.items()
    },
    "replaced": {"strategy": Strategy.REPLACE_PARTITION},
    "months": {"partition_by": "month"},
    "scd2 months": {"partition_by": "month", "strategy": Strategy.SCD2},
    "append months": {"partition_by": "month", "strategy": Strategy.APPEND},
    "newest": {"primary_key": ("name",), "version_column": "day"},
    "newest scd2": {"primary_key": ("name",), "version_column": "day", "strategy": Strategy.SCD2},
    "snapshots": {"primary_key": ("name",), "snapshot_of": ("name",)},
    "version": {"version_column": "seen"},
    "required": {"money": {"required": True}},
    "limits": {"hour": {"minimum": 0, "maximum": 12}, "money": {"minimum": -1}},
    "other limits": {"hour": {"type": ColumnType.NUMERIC, "maximum": 11}},
    "hour as text": {"hour": ColumnType.TEXT},
    "hour as text in the key": {"hour": ColumnType.TEXT, "primary_key": ("day", "name", "hour")},
    "without money": {"without": ["money"]},
    "evolves": {"without": ["money"], "contract": "evolve"},
}


def neighbours() -> list[tuple[str, str]]:
    """Pairs of declarations. Most differ in one thing: the strategy, the key, or another field. Some differ in two things."""
    pairs = [
        (f"{one} {key}".strip(), f"{other} {other_key}".strip())
        for (one, key), (other, other_key) in itertools.permutations(itertools.product(STRATEGIES, KEYS), 2)
        if one == other or key == other_key
    ]
    plain = [("upsert", name) for name in DECLARED if name.partition(" ")[0] not in STRATEGIES or "months" in name]
    two = [
        ("scd2", "append narrow"),
        ("scd2 wide", "append"),
        ("scd2", "months"),
        ("scd2", "scd2 months"),
        ("append", "append months"),
        ("scd2", "newest"),
        ("scd2", "newest scd2"),
        ("scd2", "required"),
        ("scd2", "evolves"),
        ("scd2 months", "append months"),
        ("append", "newest"),
        ("months", "newest"),
        ("months", "hour as text"),
        ("months", "evolves"),
        ("newest", "newest scd2"),
        ("newest", "snapshots"),
        ("scd2", "snapshots"),
        ("months", "snapshots"),
        ("upsert wide", "hour as text in the key"),
        ("limits", "hour as text"),
        ("limits", "other limits"),
        ("limits", "scd2 months"),
    ]
    return [*pairs, *plain, *((other, one) for one, other in plain), *two, *((other, one) for one, other in two)]


def source(spec: TableSpec, rows: list[dict[str, Any]]) -> pa.Table:
    """The rows of the source for that declaration. Each key occurs once, and each required column has a value."""
    required = [column.name for column in spec.columns if spec.required(column)]
    identity = {*spec.primary_key, *filter(None, [spec.version_column]), *(["day"] if spec.snapshot_of else [])}
    kept = {tuple(row[name] for name in identity): row for row in rows if all(row[name] is not None for name in required)}
    return pa.table({column.name: arrow(column, [row[column.name] for row in kept.values()]) for column in spec.columns})


def arrow(column: Column, given: list[Any]) -> pa.Array:
    kind = pa.decimal128(38, 9) if column.type is ColumnType.NUMERIC else WIRE_TYPES[column.type]
    if column.type is ColumnType.TEXT and not column.repeated:
        given = [None if value is None else str(value) for value in given]
    return pa.array(given).cast(pa.list_(kind) if column.repeated else kind)


def held(loads: Loads, table: str = "things") -> list[dict[str, Any]]:
    cursor = loads.conn.execute(f"SELECT * FROM {table}".encode())
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def bag(rows: list[dict[str, Any]], *names: str) -> Counter[Any]:
    """The number of times that each row occurs, in these columns."""
    return Counter(tuple(plain(row[name]) for name in sorted(names or rows[0])) for row in rows)


def plain(value: Any) -> Any:
    """A value that can be counted."""
    return tuple(value) if isinstance(value, list) else repr(value) if isinstance(value, dict) else value


@pytest.fixture(autouse=True)
def quick(conn: psycopg.Connection) -> None:
    """Turns durability off, because no test here needs rows after a crash of the server."""
    conn.execute("SET synchronous_commit = off")


def refusal(loads: Loads, given: pa.Table, spec: TableSpec) -> str | None:
    try:
        loads(given, spec, allow_shrink=True)
    except SchemaRefused as error:
        return str(error)
    return None


def run_as_told(server_url: str, message: str) -> None:
    """Runs the statements as a person does: in a session of their own, with settings that are not ours."""
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute("SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'SQL, DMY'; SET synchronous_commit = off")
        conn.execute(message.partition("in this order:")[2].encode())


@pytest.mark.parametrize(("before", "after"), neighbours(), ids=lambda name: name.replace(" ", "_"))
def test_every_neighbour_of_a_declaration_is_reached_by_what_is_told(
    before: str, after: str, loads: Loads, server_url: str
) -> None:
    first, second = declared(**DECLARED[before]), declared(**DECLARED[after])
    loads(source(first, [*ROWS[:1], ROWS[1] | {"money": 9}, *ROWS[2:]]), first)
    # A value changes, so that there is history to lose.
    loads(source(first, ROWS), first)
    given = source(second, ROWS)
    message = refusal(loads, given, second)
    if message is not None:
        check_told(loads, server_url, message, first, second)
        assert refusal(loads, given, second) is None
    now = [row for row in held(loads) if row.get("valid_to") is None]
    if second.loading.strategy is Strategy.APPEND:
        assert bag(given.to_pylist(), *second.primary_key) <= bag(now, *second.primary_key)
    else:
        assert bag(now, *second.column_names) == bag(expected(second, given), *second.column_names)
    again = loads(given, second)
    assert again.migration == []
    assert second.loading.strategy is Strategy.REPLACE_PARTITION or again.total.written == 0


def check_told(loads: Loads, server_url: str, message: str, first: TableSpec, second: TableSpec) -> None:
    """Runs the statements of the error. Checks that every row and every version still exists as it was."""
    was = held(loads)
    run_as_told(server_url, message)
    if loads.rows("SELECT to_regclass('things_before')::text") != [(None,)]:
        assert bag(held(loads, "things_before")) == bag(was)
        return
    same = [column.name for column in second.columns if column.name in first.column_names]
    kinds = {name: {(spec.column(name).type, spec.column(name).repeated) for spec in (first, second)} for name in same}
    same = [name for name in same if len(kinds[name]) == 1]
    history = ["valid_from", "valid_to"] if first.loading.strategy is Strategy.SCD2 else []
    assert bag(held(loads), *same, *history) == bag(was, *same, *history)


def expected(spec: TableSpec, given: pa.Table) -> list[dict[str, Any]]:
    """The rows that the table holds after a load of these. With a version column, it holds the newest row of each key."""
    rows = given.to_pylist()
    if newest := "day" if spec.snapshot_of else spec.version_column:
        rows.sort(key=lambda row: row[newest])
    return [*{tuple(row[name] for name in spec.primary_key): row for row in rows}.values()]


VALUES: dict[str, tuple[dict[str, Any], Any]] = {
    "text": ({"type": ColumnType.TEXT}, "12"),
    "date": ({"type": ColumnType.DATE}, D1),
    "integer": ({"type": ColumnType.INTEGER}, 12),
    "numeric": ({"type": ColumnType.NUMERIC}, Decimal(12)),
    "double": ({"type": ColumnType.DOUBLE}, 12.5),
    "timestamp": ({"type": ColumnType.TIMESTAMP}, SEEN),
    "boolean": ({"type": ColumnType.BOOLEAN}, True),
    "datetime": ({"type": ColumnType.DATETIME}, datetime(2026, 3, 1, 17, 30, 1, 5)),
    "time": ({"type": ColumnType.TIME}, time(17, 30, 1, 5)),
    "bytes": ({"type": ColumnType.BYTES}, b"\0\xff"),
    "json": ({"type": ColumnType.JSON}, '{"a": [1, null]}'),
    "scaled": ({"type": ColumnType.NUMERIC, "precision": 10, "scale": 2}, Decimal("12.25")),
    "scaled to whole": ({"type": ColumnType.NUMERIC, "precision": 5, "scale": 0}, Decimal(12)),
    "texts": ({"type": ColumnType.TEXT, "repeated": True}, ["12", ""]),
    "integers": ({"type": ColumnType.INTEGER, "repeated": True}, [12, 7]),
    "scaled numbers": ({"type": ColumnType.NUMERIC, "precision": 10, "scale": 2, "repeated": True}, [Decimal("12.25")]),
}
"""A column, and a value of it that other types may take or not."""


@pytest.mark.parametrize("before", VALUES)
def test_a_column_comes_to_every_other_type_by_what_is_told(before: str, loads: Loads, server_url: str) -> None:
    for after in VALUES.keys() - {before}:
        (fields, value), (others, other) = VALUES[before], VALUES[after]
        first, second = declared(money=fields), declared(money=others)
        loads.conn.execute("DROP TABLE IF EXISTS things, things_before")
        loads(source(first, [row | {"money": value} for row in ROWS]), first)
        given = source(second, [row | {"money": other} for row in ROWS])
        message = refusal(loads, given, second)
        # The load widens a length or a precision by itself.
        assert (message is None) == ((before, after) in FREE), (before, after)
        if message is not None:
            check_told(loads, server_url, message, first, second)
            assert refusal(loads, given, second) is None
        read = "json" if after == "json" else None
        now = [row | ({"money": json.dumps(row["money"])} if read else {}) for row in held(loads)]
        assert bag(now, *second.column_names) == bag(given.to_pylist(), *second.column_names), (before, after)


FREE = {("scaled", "numeric"), ("scaled to whole", "numeric")}


@pytest.mark.parametrize(
    ("before", "after"),
    [([12], ["x"]), ([12], [1.5]), (["x"], [12]), ([True], [D1]), (["x"], [[1, 2]]), ([[1, 2]], ["x"]), (["x"], [{"a": 1}])],
)
def test_a_column_that_the_source_brought_and_now_gives_in_another_type_has_a_way_out(
    before: list[Any], after: list[Any], loads: Loads, server_url: str
) -> None:
    spec = declared(contract="evolve")
    plain = source(spec, ROWS)
    loads(plain.append_column("colour", pa.array(before * plain.num_rows)), spec)
    was = held(loads)
    given = plain.append_column("colour", pa.array(after * plain.num_rows))
    message = refusal(loads, given, spec)
    if isinstance(after[0], dict):
        # No column can hold it. The load leaves it out, as it does with a new column.
        assert message is None
        assert bag(held(loads), "colour") == bag(was, "colour")
        return
    assert message is not None
    assert "colour: declared" in message
    check_told(loads, server_url, message, spec, spec)
    assert loads(given, spec).drift.warnings() == []
    assert loads.rows("SELECT DISTINCT colour FROM things") == [tuple(after)]


def test_statements_start_from_nothing_that_the_table_has_been_told_before(loads: Loads, server_url: str) -> None:
    """A copy from an earlier change does not disturb the statements. An index with a name of ours does not disturb them either."""
    loads(source(declared(strategy="scd2"), ROWS), declared(strategy="scd2"))
    loads.conn.execute("CREATE TABLE things_before (); CREATE INDEX things_key_idx ON things (money)")
    message = refusal(loads, source(declared(strategy="append"), ROWS), declared(strategy="append"))
    assert message is not None
    run_as_told(server_url, message)
    assert loads.rows("SELECT count(*) FROM things_before2") == [(len(ROWS),)]
    assert loads(source(declared(strategy="append"), ROWS), declared(strategy="append")).total.written == 0


def test_an_index_that_was_made_for_a_narrower_key_is_replaced(loads: Loads) -> None:
    """The old unique index would refuse the wider key for ever."""
    wide = declared(strategy="scd2", primary_key=("day", "name", "hour"))
    loads(source(wide, ROWS), wide)
    loads.conn.execute("DROP INDEX things_day_name_hour_idx")
    loads.conn.execute("CREATE UNIQUE INDEX things_current_idx ON things (day, name) WHERE valid_to IS NULL")
    more = [*ROWS, ROWS[0] | {"hour": 20}]
    assert loads(source(wide, more), wide).total.inserted == 1


def test_a_refusal_names_the_views_that_read_the_table(loads: Loads) -> None:
    loads(source(declared(), ROWS), declared())
    loads.conn.execute("CREATE VIEW sums AS SELECT day, sum(money) FROM things GROUP BY day")
    message = refusal(loads, source(declared(money=ColumnType.TEXT), ROWS), declared(money=ColumnType.TEXT))
    assert message is not None
    assert "Views read the table: sums. " in message
