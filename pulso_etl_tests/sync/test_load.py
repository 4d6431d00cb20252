"""The load on a real PostgreSQL, through both of its plans."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import ContractError, DuplicateKeyError, PulsoError, ShrinkRefused
from pulso_etl.sync.loading.load import load
from pulso_etl.sync.loading.read_ahead import read_ahead
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.loading.result import LoadResult
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import Column, ColumnType, TableSpec
from pulso_etl.sync.target import Target
from pulso_etl_tests.sync.samples import D1, D2, D3, NOON, SCHEMA, WINDOW, Loads, monthly, request, row, things, wider

SPEC = things()
MONTHLY = monthly(name="monthly")

Loader = Callable[..., LoadResult]


@pytest.fixture(params=[None, "month"], ids=["one table", "by month"])
def loads(conn: psycopg.Connection, schema: str, request: pytest.FixtureRequest) -> Loads:
    return Loads(conn, schema, request.param)


@pytest.fixture
def loader(loads: Loads) -> Loader:
    def run(rows: list[dict[str, Any]] | pa.Table, window: DayRange = WINDOW, spec: TableSpec = SPEC, **options: Any) -> LoadResult:
        # Created before the load, so that the test can read it after a refused load.
        for statement in Statements(loads.declared(spec), loads.schema).create_table():
            loads.conn.execute(statement)
        return loads(rows, spec, window, **options)

    return run


def rows_of(conn: psycopg.Connection, table: str = "things") -> list[tuple[Any, ...]]:
    return conn.execute(f"SELECT day, name, hour, money FROM {table} ORDER BY 1, 2").fetchall()


def addresses(conn: psycopg.Connection, table: str = "things") -> dict[str, tuple[Any, ...]]:
    query = f"SELECT name, xmin::text, tableoid, ctid::text, updated_at FROM {table}"
    return {name: rest for name, *rest in conn.execute(query)}


def test_both_plans_give_the_same_rows_and_counts(loader: Loader, conn: psycopg.Connection, plan: PlanName) -> None:
    result = loader([row(D1, "añil"), row(D2, "b", None), row(D2, "c", "-0.000000001")], plan=plan)
    assert result.plan == plan
    assert {day: counts.inserted for day, counts in result.by_day.items()} == {D1: 1, D2: 2, D3: 0}
    assert result.total.as_dict()["rows_unchanged"] == 0
    assert rows_of(conn) == [
        (D1, "añil", 9, Decimal("1.5")),
        (D2, "b", 9, None),
        (D2, "c", 9, Decimal("-0.000000001")),
    ]


def test_the_plan_follows_what_the_window_holds(loader: Loader) -> None:
    assert loader([row(D1, "a")]).plan == "direct"
    assert loader([row(D1, "a")]).plan == "merge"
    assert loader([row(D3, "a")], DayRange(D3, D3)).plan == "direct"


def test_only_changed_rows_are_written_and_moving_stamps_are_no_change(loader: Loader, conn: psycopg.Connection) -> None:
    loader([row(D1, "same"), row(D1, "changed"), row(D2, "null", None)])
    before = addresses(conn)
    later = NOON + timedelta(hours=1)
    result = loader([row(D1, "same", stamp=later), row(D1, "changed", "2", stamp=later), row(D2, "null", None, stamp=later)])
    total = result.total
    assert (total.read, total.inserted, total.updated, total.unchanged, total.deleted) == (3, 0, 1, 2, 0)
    after = addresses(conn)
    assert after["same"] == before["same"]
    assert after["null"] == before["null"]
    assert after["changed"][-1] > before["changed"][-1]
    assert conn.execute("SELECT stamp FROM things WHERE name = 'changed'").fetchone() == (later,)
    assert conn.execute("SELECT stamp FROM things WHERE name = 'same'").fetchone() == (NOON,)


def test_vanished_rows_go_and_rows_outside_the_window_stay(loader: Loader, conn: psycopg.Connection) -> None:
    loader([row(D1, "x"), row(D2, "a"), row(D2, "b"), row(D2, "c"), row(D3, "y")])
    result = loader([row(D2, "a"), row(D2, "c")], DayRange(D2, D2))
    assert result.by_day[D2].deleted == 1
    assert [name for _, name, *_ in rows_of(conn)] == ["x", "a", "c", "y"]


@pytest.mark.parametrize("left", [0, 4])
def test_the_guard_refuses_and_nothing_changes(loader: Loader, conn: psycopg.Connection, left: int) -> None:
    rows = [row(D1, f"n{i}") for i in range(10)]
    loader(rows)
    before = addresses(conn)
    with pytest.raises(ShrinkRefused, match=r"things.*holds 10 rows.*source has.*allow-shrink"):
        loader(rows[:left])
    assert addresses(conn) == before
    assert loader(rows[:left], allow_shrink=True).total.deleted == 10 - left
    assert len(rows_of(conn)) == left


def test_the_guard_sees_one_emptied_partition_in_a_large_range(loader: Loader) -> None:
    rows = [row(day, f"n{i}") for day in (D1, D2, D3) for i in range(30)]
    loader(rows)
    with pytest.raises(ShrinkRefused, match="partition 2026-02-28 holds 30 rows and the source has 0"):
        loader([r for r in rows if r["day"] != D2])


def test_an_older_day_never_overwrites_a_newer_one(loader: Loader, conn: psycopg.Connection) -> None:
    loader([row(D3, "2026-02", "30"), row(D2, "2026-02", "20"), row(D1, "2026-01", "1")], spec=MONTHLY)
    assert rows_of(conn, "monthly") == [(D1, "2026-01", 9, Decimal(1)), (D3, "2026-02", 9, Decimal(30))]
    result = loader([row(D2, "2026-02", "99")], DayRange(D2, D2), spec=MONTHLY)
    assert result.total.unchanged == 1
    assert rows_of(conn, "monthly")[1] == (D3, "2026-02", 9, Decimal(30))
    loader([row(D3, "2026-02", "31")], DayRange(D3, D3), spec=MONTHLY)
    assert rows_of(conn, "monthly")[1] == (D3, "2026-02", 9, Decimal(31))


def test_a_direct_first_load_also_meets_rows_of_other_partitions(loader: Loader, conn: psycopg.Connection) -> None:
    loader([row(D3, "2026-02", "30")], DayRange(D3, D3), spec=MONTHLY)
    assert loader([row(D1, "2026-02", "10")], DayRange(D1, D1), spec=MONTHLY).plan == "merge"
    assert rows_of(conn, "monthly") == [(D3, "2026-02", 9, Decimal(30))]


def test_duplicate_keys_name_table_key_and_how_many(loader: Loader, conn: psycopg.Connection, plan: PlanName) -> None:
    rows = [row(D1, "a"), row(D1, "a"), row(D1, "b"), row(D2, "b"), row(D1, "b"), row(D1, "b")]
    with pytest.raises(DuplicateKeyError, match=r"things .*holds [23] rows with the primary key \(day=2026-02-27.*2 key"):
        loader(rows, plan=plan)
    assert rows_of(conn) == []


@pytest.mark.parametrize(
    ("doubled", "others"),
    [
        ([row(D1, "a")], []),
        ([row(D1, "a", "2")], []),
        ([row(D1, "new")], []),
        ([row(D1, "a")], [row(D1, "new")]),
        ([row(D1, "new")], [row(D1, "a", "2"), row(D2, "c")]),
    ],
    ids=["unchanged", "changed", "new", "beside a new row", "new beside a changed row"],
)
def test_duplicate_keys_are_refused_whatever_the_table_holds(
    loader: Loader, conn: psycopg.Connection, doubled: list[dict[str, Any]], others: list[dict[str, Any]]
) -> None:
    loader([row(D1, "a"), row(D1, "b"), row(D2, "c")])
    before = addresses(conn)
    key = doubled[0]["name"]
    with pytest.raises(DuplicateKeyError, match=rf"holds 2 rows with the primary key \(day=2026-02-27, name={key}\); 1 key"):
        loader([*doubled, *others, *doubled], allow_shrink=True)
    assert addresses(conn) == before


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"name": None}, "column name, partition 2026-02-28: null"),
        ({"day": None}, "column day, partition unknown"),
        ({"rate": float("nan")}, "column rate, partition 2026-02-28: NaN"),
        ({"rate": float("inf")}, "column rate, partition 2026-02-28: NaN or Infinity"),
        ({"name": "a\0b"}, "column name, partition 2026-02-28: a NUL"),
        ({"hour": 24}, "column hour, partition 2026-02-28: a value beyond the limit 23"),
        ({"day": D3 + timedelta(days=1)}, "a day that was not asked for"),
    ],
)
def test_bad_values_name_table_column_and_partition(
    loader: Loader, conn: psycopg.Connection, plan: PlanName, bad: dict[str, Any], message: str
) -> None:
    rows = [row(D1, "a"), row(D1, "b"), row(D1, "c"), {**row(D2, "d"), **bad}]
    with pytest.raises(ContractError, match=message) as caught:
        loader(rows, plan=plan)
    assert "things" in str(caught.value)
    assert rows_of(conn) == []


def test_missing_and_mistyped_columns_are_all_told_at_once(loader: Loader, plan: PlanName) -> None:
    table = pa.Table.from_pylist([row(D1, "a")], schema=SCHEMA).drop_columns(["hour"])
    table = table.set_column(table.schema.get_field_index("money"), "money", pa.array([1.5]))
    with pytest.raises(ContractError, match="hour: missing; money: declared numeric, the source gives double"):
        loader(table, plan=plan)


def test_an_integer_too_large_is_refused(loader: Loader, conn: psycopg.Connection, plan: PlanName) -> None:
    table = pa.Table.from_pylist([row(D1, "a")], schema=SCHEMA)
    table = table.set_column(2, "hour", pa.array([2**63], pa.uint64()))
    with pytest.raises(ContractError, match="column hour"):
        loader(table, plan=plan)
    assert rows_of(conn) == []


def test_new_columns_of_the_source_are_reported_and_left_out(loader: Loader, plan: PlanName) -> None:
    table = pa.Table.from_pylist([row(D1, "a")], schema=SCHEMA).append_column("extra", pa.array([1]))
    assert loader(table, plan=plan).drift.not_loaded == ["extra"]


@pytest.mark.parametrize("value", ["12345678901234567890123456789.123456789", "-0.000000001", "0"])
def test_numeric_and_bignumeric_land_exactly(loader: Loader, conn: psycopg.Connection, plan: PlanName, value: str) -> None:
    for number, kind in enumerate((pa.decimal128(38, 9), pa.decimal256(76, 38))):
        table = pa.Table.from_pylist([row(D1, f"n{number}")], schema=SCHEMA)
        table = table.set_column(3, "money", pa.array([Decimal(value)], kind))
        loader(table, plan=plan, allow_shrink=True)
        assert conn.execute("SELECT money FROM things").fetchone() == (Decimal(value),)


def test_dictionaries_large_strings_and_small_integers_are_taken(loader: Loader, conn: psycopg.Connection, plan: PlanName) -> None:
    table = pa.Table.from_pylist([row(D1, "ñ")], schema=SCHEMA)
    table = table.set_column(1, "name", pa.array(["ñ"]).dictionary_encode())
    table = table.set_column(2, "hour", pa.array([3], pa.int16()))
    table = table.set_column(5, "stamp", pa.array([NOON], pa.timestamp("ns", "America/Lima")))
    loader(table, plan=plan)
    assert conn.execute("SELECT name, hour, stamp FROM things").fetchone() == ("ñ", 3, NOON)


def test_two_writers_queue_up(server_url: str, schema: str, loads: Loads, loader: Loader, conn: psycopg.Connection) -> None:
    loader([])
    spec = loads.declared(SPEC)
    failures: list[BaseException] = []

    def write(money: str) -> None:
        try:
            with psycopg.connect(server_url, autocommit=True) as other, other.transaction():
                table = pa.Table.from_pylist([row(D1, f"n{i}", money) for i in range(200)], schema=SCHEMA)
                load(Target(other, spec, schema), request(WINDOW, lambda: nullcontext(table.to_reader())))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert conn.execute("SELECT count(*), count(DISTINCT money) FROM things").fetchone() == (200, 1)


days = st.sampled_from([D1, D2, D3])
batches = st.lists(
    st.tuples(days, st.sampled_from("abcde"), st.sampled_from([None, "1", "2.5"])), unique_by=lambda r: (r[0], r[1]), max_size=12
)
windows = st.tuples(days, days).map(lambda pair: DayRange(min(pair), max(pair)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(windows, batches, st.sampled_from([None, "merge"])), max_size=5))
def test_any_sequence_of_loads_equals_the_model(
    loader: Loader, conn: psycopg.Connection, steps: list[tuple[DayRange, list[Any], PlanName | None]]
) -> None:
    conn.execute("DROP TABLE IF EXISTS things")
    model: dict[tuple[date, str], Decimal | None] = {}
    for window, batch, plan in steps:
        rows = [row(day, name, money) for day, name, money in batch if day in window]
        new = {(r["day"], r["name"]): r["money"] for r in rows}
        old = {key: value for key, value in model.items() if key[0] in window}
        total = loader(rows, window, plan=plan, allow_shrink=True).total
        assert total.inserted == len(new.keys() - old.keys())
        assert total.deleted == len(old.keys() - new.keys())
        assert total.updated == sum(old[key] != new[key] for key in old.keys() & new.keys())
        assert total.read == len(rows)
        model = {key: value for key, value in model.items() if key[0] not in window} | new
        assert {(day, name): money for day, name, _, money in rows_of(conn)} == model


monthly_batches = st.lists(
    st.tuples(days, st.sampled_from("ab"), st.sampled_from(["1", "2"])), unique_by=lambda r: (r[0], r[1]), max_size=6
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(windows, monthly_batches), max_size=5))
def test_versioned_loads_in_any_order_keep_the_newest(
    loader: Loader, conn: psycopg.Connection, steps: list[tuple[DayRange, list[Any]]]
) -> None:
    conn.execute("DROP TABLE IF EXISTS monthly")
    model: dict[str, tuple[date, Decimal]] = {}
    for window, batch in steps:
        rows = [row(day, name, money) for day, name, money in batch if day in window]
        loader(rows, window, MONTHLY)
        for r in sorted(rows, key=lambda r: r["day"]):
            if r["name"] not in model or model[r["name"]][0] <= r["day"]:
                model[r["name"]] = (r["day"], r["money"])
        assert {name: (day, money) for day, name, _, money in rows_of(conn, "monthly")} == model


def test_errors_of_ours_are_one_tree() -> None:
    assert issubclass(DuplicateKeyError, ContractError)
    assert issubclass(ShrinkRefused, PulsoError)


def test_what_is_read_ahead_has_an_end_where_its_reader_ends() -> None:
    makers, made = set(), []

    def chunks() -> Iterator[bytes]:
        for n in range(1_000):
            makers.add(threading.current_thread())
            made.append(n)
            yield b"chunk"

    with read_ahead(chunks(), 6) as given:
        assert next(given)
    (maker,) = makers
    assert maker is not threading.current_thread()
    maker.join(10)
    assert not maker.is_alive()
    assert len(made) <= 2 * (6 + 2)


def test_a_fault_of_what_is_read_ahead_comes_after_what_was_there() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"chunk"
        raise ConnectionError("the source is gone")

    with read_ahead(chunks(), 6) as given:
        assert next(given) == b"chunk"
        with pytest.raises(ConnectionError, match="gone"):
            next(given)


def test_a_few_changed_rows_are_reached_by_their_addresses(conn: psycopg.Connection, schema: str) -> None:
    spec = things(Column(name="note", type=ColumnType.TEXT))
    target, scans = Target(conn, spec, schema), "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relid = to_regclass(%s)"
    notes = pa.array(["x" * 1_500] * 12_000)

    def scanned(every: int) -> int:
        """Loads rows of which one in so many has another value. Returns how many rows the server read in scans of the table."""
        rows = wider([row(D1, f"n{n}", "1" if n % every else "2") for n in range(len(notes))], note=notes)
        with conn.transaction():
            conn.execute(
                "SELECT set_config('enable_' || one, 'off', true) FROM unnest('{indexscan,indexonlyscan,bitmapscan}'::text[]) one"
            )
            load(target, request(DayRange(D1, D1), lambda: nullcontext(rows.to_reader()), plan="merge"))
            (found,) = conn.execute(scans, (target.quoted_name,)).fetchone() or (0,)
        conn.execute(f"VACUUM (ANALYZE) {target.quoted_name}".encode())
        return int(found)

    scanned(every=len(notes))
    # To find one, to count them, and to compare them.
    assert scanned(every=100) == 1 + 2 * len(notes)
