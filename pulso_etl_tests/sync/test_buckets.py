"""Days of which a part has changed: only the rows of buckets that differ go to PostgreSQL, and nothing else differs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import DuplicateKeyError, ShrinkRefused
from pulso_etl.sync.ledger.changes import Changes
from pulso_etl.sync.ledger.traces import Digest
from pulso_etl.sync.loading import buckets, spool
from pulso_etl.sync.loading.buckets import Buckets, surely_more
from pulso_etl.sync.spec import Column, ColumnType
from pulso_etl_tests.sync.places import Place
from pulso_etl_tests.sync.samples import D1, D2, D3, NOON, WINDOW, by_month, row, table, things, wider

MANY = [row(day, f"n{number}") for number in range(400) for day in WINDOW]
"""400 rows of each day: 64 buckets of 6 rows."""


SPECS = {
    "upsert": things(),
    "by month": by_month(),
    "history": things(strategy="scd2"),
    "history by month": by_month(strategy="scd2"),
}


def changed(rows: list[dict[str, Any]], *names: str, days: tuple[date, ...] = (D1, D2, D3)) -> list[dict[str, Any]]:
    """The rows, those of these names and days with another amount."""
    return [one | {"money": Decimal(7)} if one["name"] in names and one["day"] in days else one for one in rows]


def without(rows: list[dict[str, Any]], *names: str, days: tuple[date, ...] = (D1, D2, D3)) -> list[dict[str, Any]]:
    return [one for one in rows if not (one["name"] in names and one["day"] in days)]


def money(place: Place) -> list[tuple[Any, ...]]:
    return place.run("SELECT day, name FROM things WHERE money = 7 ORDER BY day, name")


def test_only_rows_of_buckets_that_differ_are_sent(place: Place) -> None:
    place.load(MANY, things())
    assert place.sent == 0
    result = place.load(changed(MANY, "n7", days=(D1, D2)), things())
    assert result.digested is not None
    assert (result.digested.unchanged, result.digested.in_buckets) == ({D3}, {D1, D2})
    assert 2 <= place.sent <= 40
    assert (result.total.read, result.total.updated, result.total.written) == (1200, 2, 2)
    assert money(place) == [(D1, "n7"), (D2, "n7")]
    # What this load leaves tells the next one the same.
    assert place.staged(changed(MANY, "n7", days=(D1, D2)), things()) == set()
    place.load(changed(MANY, "n8"), things())
    assert money(place) == [(D1, "n8"), (D2, "n8"), (D3, "n8")]
    assert 5 <= place.sent <= 100


@pytest.mark.parametrize("name", SPECS)
def test_rows_that_come_go_and_change_in_one_load(place: Place, plain: Place, name: str) -> None:
    spec = SPECS[name]
    given = changed(without(MANY, "n3", "n9", days=(D1, D3)), "n5", days=(D1,))
    # D3 has as many rows as before.
    given += [row(D1, "new"), row(D2, "new"), row(D3, "new"), row(D3, "newer")]
    told = []
    for one in (place, plain):
        one.load(MANY, spec)
        told.append(one.outcome(given, spec, WINDOW, shrink=False))
    assert place.sent < 100 < plain.sent
    assert told[0] == told[1]
    assert place.contents() == plain.contents()
    assert place.staged(given, spec) == set()


KEYS: dict[str, tuple[dict[str, ColumnType], Any]] = {
    "ten columns": ({f"k{number}": ColumnType.TEXT for number in range(8)}, lambda number: f"n{number}"),
    "text": ({"k": ColumnType.TEXT}, lambda number: ["", " ", "a ", "\u00e1", "a\u0301", "ñ" * 300][number % 6] + str(number // 6)),
    "numeric": ({"k": ColumnType.NUMERIC}, lambda number: Decimal(number) / 1000),
    "timestamp": ({"k": ColumnType.TIMESTAMP}, lambda number: NOON + timedelta(microseconds=number)),
    "integer": ({"k": ColumnType.INTEGER}, lambda number: number - 200),
    "bytes": ({"k": ColumnType.BYTES}, lambda number: number.to_bytes(2, "little")),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_type(place: Place, plain: Place, kind: str) -> None:
    columns, value = KEYS[kind]
    types = {ColumnType.NUMERIC: pa.decimal128(38, 9), ColumnType.TIMESTAMP: pa.timestamp("us", "UTC")}
    key = [Column(name=name, type=column) for name, column in columns.items()]
    spec = things(*key, primary_key=("day", "name", *columns) if kind == "ten columns" else ("day", *columns))

    def given(rows: list[dict[str, Any]]) -> pa.Table:
        values = [value(int(one["name"][1:])) for one in rows]
        return wider(rows, **{one.name: pa.array(values, types.get(one.type)) for one in key})

    told = []
    for one in (place, plain):
        one.load(given(MANY), spec)
        told.append(one.outcome(given(changed(without(MANY, "n3", "n50", days=(D1,)), "n7", "n8")), spec, WINDOW, shrink=False))
    assert 0 < place.sent < 200
    assert told[0] == told[1]
    assert place.contents() == plain.contents()


@pytest.mark.parametrize("strategy", ["upsert", "scd2"])
def test_a_column_that_goes_and_comes_again_with_changes(place: Place, plain: Place, strategy: str) -> None:
    spec = things(contract="evolve", strategy=strategy)
    fewer = changed(without(MANY, "n3"), "n7")
    told = []
    for one in (place, plain):
        one.load(wider(MANY, extra=["x"] * len(MANY)), spec)
        one.load(wider(MANY, extra=["x"] * len(MANY)), spec)
        sources = [fewer, *(wider(rows, extra=["y"] * len(fewer)) for rows in (fewer, changed(fewer, "n9")))]
        told.append([one.outcome(rows, spec, WINDOW, shrink=False) for rows in sources])
    assert 0 < place.sent < 100
    assert told[0] == told[1]
    assert place.contents() == plain.contents()


def test_the_change_log_has_the_same_rows(place: Place, plain: Place) -> None:
    given = [*changed(without(MANY, "n3"), "n5", "n6"), row(D2, "new")]
    for one in (place, plain):
        for rows in (MANY, given):
            one.load(rows, things(), changes=Changes(one.schema))
    assert place.sent < 100
    logged, of_days = (
        [one.run(f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3") for one in (place, plain)]
        for columns, table in (
            ("day, key, old[1:4], new[1:4]", "etl_changed_rows"),
            ("load_id, day, rows_new, rows_changed, rows_gone", "etl_changed_days"),
        )
    )
    assert logged[0] == logged[1]
    assert of_days[0] == of_days[1]
    assert len(logged[0]) == 10


def test_a_load_whose_source_breaks_leaves_everything_as_it_was(place: Place) -> None:
    place.load(MANY, things())
    before, given = place.contents(), changed(without(MANY, "n3"), "n7")
    batches = table(given).to_batches(max_chunksize=100)

    def broken() -> Iterator[pa.RecordBatch]:
        yield from batches[:5]
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="gone"):
        place.load(lambda: pa.RecordBatchReader.from_batches(batches[0].schema, broken()), things())
    assert place.contents() == before
    place.load(given, things())
    assert 0 < place.sent < 100
    assert money(place) == [(day, "n7") for day in WINDOW]


def test_a_day_that_only_loses_rows(place: Place) -> None:
    """All rows of a bucket may vanish, so that no row of the day is sent."""
    place.load(MANY, things())
    result = place.load(without(MANY, "n11", days=(D2,)), things())
    assert result.digested is not None
    assert result.digested.in_buckets == {D2}
    assert (result.total.deleted, result.total.written) == (1, 1)
    assert place.run("SELECT day FROM things WHERE name = 'n11' ORDER BY day") == [(D1,), (D3,)]


def test_a_day_that_loses_many_rows_is_compared_as_a_whole(place: Place) -> None:
    """The sample does not show it, because no row is new."""
    place.load(MANY, things())
    assert place.load(without(MANY, *(f"n{number}" for number in range(100)), days=(D2,)), things()).total.deleted == 100
    assert place.sent == 300


def test_a_repeated_key_is_refused_also_if_as_many_rows_vanish(place: Place) -> None:
    place.load(MANY, things())
    before = place.contents()
    twice = [*without(MANY, "n11"), *(row(day, "n5") for day in WINDOW)]
    with pytest.raises(DuplicateKeyError, match="3 key"):
        place.load(twice, things())
    assert place.contents() == before


@pytest.mark.parametrize("again", ["n5", "new"])
def test_a_repeated_key_and_rows_that_vanish_are_refused_in_the_same_order(place: Place, plain: Place, again: str) -> None:
    """Of D2 too many rows vanish, and D1 has a key twice: one that the table knows, or a new one."""
    given = [*without(MANY, *(f"n{number}" for number in range(31, 400)), days=(D2,)), row(D1, again)]
    given += [row(D1, again)] if again == "new" else []
    for shrink, error in ((False, ShrinkRefused), (True, DuplicateKeyError)):
        told = []
        for one in (place, plain):
            one.load(MANY, things())
            told.append(one.outcome(given, things(), WINDOW, shrink))
        assert told[0] == told[1]
        assert told[0][0] is error


def test_rows_that_vanish_beside_a_repeated_key_are_seen(place: Place, plain: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that comes as often again as rows vanish does not hide that too many vanish."""
    monkeypatch.setattr(buckets, "MOST_DIFFERING", 1)
    given = without(MANY, *(f"n{number}" for number in range(250)), days=(D2,))
    given += [row(D2, "n399")] * 250
    told = []
    for one in (place, plain):
        one.load(MANY, things())
        told.append(one.outcome(given, things(), WINDOW, shrink=False))
    assert told[0] == told[1]
    assert told[0][0] is ShrinkRefused


def test_the_guard_sees_rows_that_vanish_from_a_part_of_a_day(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "MOST_DIFFERING", 1)
    place.load(MANY, things())
    with pytest.raises(ShrinkRefused, match="holds 400 rows and the source has 150"):
        place.load(without(MANY, *(f"n{number}" for number in range(250)), days=(D2,)), things())


def test_a_day_of_which_much_has_changed_is_compared_as_a_whole(place: Place) -> None:
    place.load(MANY, things())
    given = changed(changed(MANY, *(f"n{number}" for number in range(100)), days=(D1,)), "n9", days=(D2,))
    result = place.load(given, things())
    assert result.digested is not None
    assert (result.digested.unchanged, result.digested.in_buckets) == ({D3}, {D2})
    assert 400 < place.sent < 440
    assert len(money(place)) == 101
    assert place.staged(given, things()) == set()


def test_if_much_of_many_days_has_changed_no_row_waits(place: Place) -> None:
    window = DayRange(D1, D1 + timedelta(days=39))
    rows = [row(day, f"n{number}") for number in range(20) for day in window]
    place.load(rows, things(), window)
    rows = [one | {"money": Decimal(7)} if one["day"] < D1 + timedelta(days=11) else one for one in rows]
    assert len(place.staged(rows, things(), window)) == 40
    assert place.run("SELECT count(*) FROM things WHERE money = 7") == [(220,)]


def test_rows_go_to_the_server_when_the_file_is_full(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MOST_BYTES", 20_000)
    place.load(MANY, things())
    given = changed(without(MANY, "n3", days=(D2,)), "n399", "n1")
    place.load(given, things())
    assert place.sent == 1199
    assert money(place) == [(day, name) for day in WINDOW for name in ("n1", "n399")]
    assert len(place.contents()) == 1199


def test_buckets_of_another_load_are_not_believed(place: Place) -> None:
    """A version of Pulso ETL that knows no buckets leaves those of an earlier load in the row."""
    place.load(MANY, things())
    place.run("CREATE TABLE earlier AS SELECT day, buckets FROM etl_digests")
    place.load(changed(MANY, "n7"), things())
    place.run("UPDATE etl_digests d SET buckets = e.buckets FROM earlier e WHERE e.day = d.day")
    place.load(changed(MANY, "n8"), things())
    assert place.sent == 1200
    assert money(place) == [(day, "n8") for day in WINDOW]


def test_buckets_of_a_day_that_is_empty_now_are_not_believed(place: Place) -> None:
    """The same, and the day has lost its rows since."""
    fewer = [one for one in MANY if one["day"] != D2]
    place.load(MANY, things())
    place.run("CREATE TABLE earlier AS SELECT day, buckets FROM etl_digests")
    place.load(fewer, things(), allow_shrink=True)
    place.run("UPDATE etl_digests d SET buckets = e.buckets FROM earlier e WHERE e.day = d.day")
    assert place.staged(fewer, things()) == set()
    place.load(changed(MANY, "n8"), things())
    assert money(place) == [(day, "n8") for day in WINDOW]


def test_a_trace_without_buckets_is_compared_as_a_whole(place: Place) -> None:
    place.load(MANY, things())
    place.run("UPDATE etl_digests SET buckets = ''")
    assert place.staged(MANY, things()) == set()
    place.load(changed(MANY, "n7"), things())
    assert (place.sent, len(money(place))) == (1200, 3)


@pytest.mark.parametrize("meddle", ["UPDATE things SET money = 9 WHERE name = 'n1'", "DELETE FROM things WHERE name = 'n1'"])
def test_rows_that_another_program_changed_are_mended_in_any_bucket(place: Place, meddle: str) -> None:
    place.load(MANY, things())
    place.run(meddle)
    place.load(changed(MANY, "n7"), things())
    assert place.sent == 1200
    assert place.run("SELECT count(*) FROM things WHERE money = 1.5") == [(1197,)]


TWO_ZEROS = things(Column(name="share", type=ColumnType.DOUBLE), primary_key=("day", "name", "share"))


@pytest.mark.parametrize(
    ("spec", "whole"),
    [
        (things(), False),
        (things(strategy="scd2"), False),
        (things(strategy="append"), True),
        (things(version_column="hour"), True),
        (things(on_reject="quarantine", maximum_quarantined_share=1), True),
        (TWO_ZEROS, True),
    ],
)
def test_which_tables_have_buckets(place: Place, spec: Any, whole: bool) -> None:
    place.load(wider(MANY, share=[0.5] * len(MANY)) if spec is TWO_ZEROS else MANY, spec)
    assert place.run("SELECT DISTINCT length(buckets) FROM etl_digests") == [(0 if whole else 8 * 64,)]


def test_a_load_of_many_days_has_fewer_buckets_and_reads_those_of_shorter_loads(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.load(MANY, things())
    monkeypatch.setattr(buckets, "MOST_OF_LOAD", 3 * 16)
    place.load(changed(MANY, "n7"), things())
    assert (place.sent < 200, len(money(place))) == (True, 3)
    assert place.run("SELECT DISTINCT length(buckets) FROM etl_digests") == [(8 * 16,)]
    monkeypatch.undo()
    place.load(changed(MANY, "n8"), things())
    assert (place.sent < 300, len(money(place))) == (True, 3)


@pytest.mark.parametrize(
    ("rows", "of_day", "share"), [(10_000, 2048, 0.13), (100_000, 2048, 0.014), (1_000_000, 2048, 0.0014), (10_000, 1, 0)]
)
def test_the_more_rows_a_bucket_has_the_fewer_of_them_may_be_new(rows: int, of_day: int, share: float) -> None:
    last = Digest(rows, b"", b"", bytes(8 * of_day))
    assert Buckets(1, of_day).bearable_share(last) == pytest.approx(share, rel=0.05)
    assert Buckets(1, of_day).bearable_share(None) == 0


def test_a_few_new_rows_may_be_chance_unless_none_may_be_new() -> None:
    found = np.array([0, 1, 5, 6, 130, 167])
    assert surely_more(found, np.array([0, 0, 1, 1, 130, 130.0])).tolist() == [False, True, False, True, False, True]


numbers = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40)


@given(numbers, numbers, st.integers(0, 3), st.integers(0, 3))
def test_a_bucket_differs_if_its_rows_do_whatever_the_number_of_buckets(
    then: list[int], now: list[int], few: int, more: int
) -> None:
    """A row is a number here, and its key the number's lowest digit."""

    def of(rows: list[int], of_day: int) -> Buckets:
        found = Buckets(1, of_day)
        given = np.array(rows, np.uint64)
        found.add(found.places(np.zeros(len(rows), np.int32), given % np.uint64(10)), given)
        return found

    total = np.array([np.array(then, np.uint64).sum(), 0], "<u8").tobytes()
    told = of(then, 2**more).told(0, 1000)
    differing = of(now, 2**few).differing(0, Digest(len(then), total, b"", told))
    compared = 2 ** min(few, more)
    sides = [
        [sum(one for one in rows if one % 10 % compared == place % compared) % 2**64 for place in range(2**few)]
        for rows in (then, now)
    ]
    wanted = [before != after for before, after in zip(*sides, strict=True)]
    known = more > 0 and 0 < sum(wanted) <= len(wanted) / 2
    assert (differing is not None) == known
    assert differing is None or differing.tolist() == wanted


days, names = st.sampled_from([D1, D2, D3]), st.sampled_from("abcdefgh")
puts = st.tuples(st.just("put"), days, names, st.sampled_from("12"))
drops = st.tuples(st.just("drop"), days, names)
doubles = st.tuples(st.just("double"), days, names)
meddles = st.tuples(
    st.just("meddle"),
    st.sampled_from(["UPDATE things SET money = 7 WHERE day = '{}'", "DELETE FROM things WHERE day = '{}' AND name = 'a'"]),
    days,
)
windows = st.one_of(st.just(WINDOW), st.tuples(days, days).map(lambda pair: DayRange(min(pair), max(pair))))
loads = st.tuples(st.just("load"), windows, st.booleans())


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets also for days of few rows, and whatever share of a day has changed."""
    monkeypatch.setattr(buckets, "BUCKET_ROWS", 1)
    monkeypatch.setattr(buckets, "MOST_DIFFERING", 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@example("upsert", [("drop", D1, "a"), ("put", D1, "b", "2"), ("load", WINDOW, True)])
@example("history by month", [("drop", D2, "a"), ("drop", D2, "b"), ("put", D2, "c", "2"), ("load", WINDOW, False)])
@given(
    st.sampled_from(sorted(SPECS)), st.lists(st.one_of(puts, puts, puts, drops, drops, doubles, meddles, loads, loads), max_size=16)
)
def test_loads_of_buckets_equal_loads_that_compare_all_rows(
    eager: None, place: Place, plain: Place, name: str, steps: list[Any]
) -> None:
    spec, source = SPECS[name], [row(day, name) for day in WINDOW for name in "abcdefgh"]
    for one in (place, plain):
        one.empty()
    for number, (kind, *step) in enumerate([("load", WINDOW, True), *steps, ("load", WINDOW, True)]):
        if kind in ("put", "drop"):
            source = without(source, step[1], days=(step[0],))
            source += [row(*step)] if kind == "put" else []
        elif kind == "double":
            source.append(row(step[0], step[1], "2"))
        elif kind == "meddle":
            for one in (place, plain):
                one.run(step[0].format(step[1]) if one.contents() else "SELECT")
        else:
            window, shrink = step
            rows = [one | {"stamp": NOON + timedelta(hours=number)} for one in source if one["day"] in window]
            told = [one.outcome(rows, spec, window, shrink) for one in (place, plain)]
            assert _without_example(told[0]) == _without_example(told[1])
            assert place.contents() == plain.contents()


def _without_example(told: Any) -> Any:
    """What a load tells. An error about repeated keys names one of them, and either load may name another one."""
    return (told[0], re.sub(r"holds.*?\);", "", told[1])) if told[0] is DuplicateKeyError else told
