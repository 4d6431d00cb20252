"""A table that holds the newest snapshot of each month, on a real PostgreSQL, loaded day by day in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import DuplicateKeyError, RejectedRows, ShrinkRefused, SnapshotWithdrawn, VerificationFailed
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.loading.load import load, translated
from pulso_etl.sync.loading.request import Past
from pulso_etl.sync.loading.result import LoadResult
from pulso_etl.sync.loading.verify import verify
from pulso_etl.sync.owed import Horizon
from pulso_etl.sync.spec import Strategy, TableSpec
from pulso_etl.sync.target import Target
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.sync.samples import Loads, monthly, request, row, table, things
from pulso_etl_tests.sync.test_verify import swallow

FIRST = date(2026, 2, 24)
"""The first partition: a day of this test is so many days after it. The 5th is the first of March."""
JAN, FEB, MAR = "2026-01", "2026-02", "2026-03"
SPEC = things(primary_key=("name", "hour"), snapshot_of=("name",), minimum_kept_share=0.5)
Entry = tuple[str, int, int]
"""A month, a key in it, a value."""
Held = set[tuple[int, str, int, int]]


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


def days(first: int, last: int | None = None) -> DayRange:
    return DayRange(day(first), day(first if last is None else last))


@dataclass
class Source:
    """The rows of the source by day. `reads` are the ranges that loads have read."""

    conn: psycopg.Connection
    schema: str
    snapshots: dict[int, list[Entry]] = field(default_factory=dict)
    reads: list[DayRange] = field(default_factory=list)

    def rows(self, window: DayRange) -> list[dict[str, Any]]:
        return [
            row(day(number), month, str(value), hour=key)
            for number, entries in self.snapshots.items()
            for month, key, value in entries
            if day(number) in window
        ]

    def read(self, window: DayRange) -> nullcontext[pa.RecordBatchReader]:
        self.reads.append(window)
        return nullcontext(table(self.rows(window)).to_reader(max_chunksize=3))

    def load(self, window: DayRange, spec: TableSpec = SPEC, *, past: bool = True, **options: Any) -> LoadResult:
        """Loads and verifies the window, in a transaction."""
        given = Past(FIRST, self.read if past else None)
        target = Target(self.conn, spec, self.schema)
        asked = request(window, lambda: self.read(window), run_id="r", past=given, **options)
        with translated(spec, window), self.conn.transaction():
            result = load(target, asked)
            verify(target, asked, result)
        assert set(result.by_day) == set(window)
        assert all(min(counts.as_dict().values()) >= 0 for counts in result.by_day.values())
        return result

    def held(self, current: str = "true") -> Held:
        """The rows in PostgreSQL, with days as numbers."""
        rows = self.conn.execute(f"SELECT day, name, hour, money::int FROM things WHERE {current}".encode()).fetchall()
        found = {((d - FIRST).days, name, hour, money) for d, name, hour, money in rows}
        assert len(found) == len(rows)
        return found


@pytest.fixture
def source(conn: psycopg.Connection, schema: str) -> Source:
    return Source(conn, schema)


def month(name: str, *keys: int, value: int = 1) -> list[Entry]:
    return [(name, key, value) for key in keys]


def at(number: int, entries: Iterable[Entry]) -> Held:
    return {(number, *entry) for entry in entries}


def test_of_many_snapshots_only_the_newest_of_each_month_is_loaded(source: Source) -> None:
    source.snapshots = {n: month(FEB, 1, 2, value=n) for n in range(5)} | {5: month(MAR, 1)}
    result = source.load(days(0, 6))
    assert result.plan == "merge"
    assert source.held() == at(4, month(FEB, 1, 2, value=4)) | at(5, month(MAR, 1))
    assert {d: (c.read, c.inserted, c.unchanged) for d, c in result.by_day.items() if c.read} == {
        **{day(n): (2, 0, 2) for n in range(4)},
        day(4): (2, 2, 0),
        day(5): (1, 1, 0),
    }
    again = source.load(days(0, 6))
    assert (again.total.written, again.total.unchanged) == (0, 11)


def test_a_key_that_is_gone_from_the_newest_snapshot_is_gone(source: Source) -> None:
    source.snapshots = {0: month(FEB, 1, 2, 3)}
    source.load(days(0))
    source.snapshots[1] = month(FEB, 1, 2)
    result = source.load(days(0, 1))
    assert source.held() == at(1, month(FEB, 1, 2))
    assert (result.by_day[day(1)].updated, result.by_day[day(1)].deleted) == (2, 1)
    source.snapshots[1] = month(FEB, 2)
    source.load(days(1))
    assert source.held() == at(1, month(FEB, 2))


@pytest.mark.parametrize("order", [[days(0, 4), days(5)], [days(5), days(0, 4)], [days(0, 5)]])
def test_a_period_that_is_corrected_to_the_month_before_moves(source: Source, order: list[DayRange]) -> None:
    source.snapshots = {4: month(FEB, 1, 2), 5: [*month(FEB, 1, 2), *month(MAR, 3, 4)]}
    for window in order:
        source.load(window)
    source.snapshots[5] = [*month(FEB, 1, 2, 4), *month(MAR, 3)]
    for window in order:
        source.load(window)
    assert source.held() == at(5, [*month(FEB, 1, 2, 4), *month(MAR, 3)])


@pytest.mark.parametrize("window", [days(2), days(0, 2), days(1, 3), days(2, 6)])
def test_when_the_newest_snapshot_is_withdrawn_the_one_before_it_is_the_newest(source: Source, window: DayRange) -> None:
    source.snapshots = {n: month(FEB, 1, 2, 10 + n, value=n) for n in range(3)}
    source.load(days(0, 3))
    del source.snapshots[2]
    result = source.load(window)
    assert source.held() == at(1, month(FEB, 1, 2, 11, value=1))
    assert (result.total.inserted, result.total.updated, result.total.deleted) == (1, 2, 1)


def test_the_snapshot_before_a_withdrawn_one_is_looked_for_as_far_back_as_it_lies(source: Source) -> None:
    spec = altered(SPEC, lookback_days=2)
    source.snapshots = {0: [*month(FEB, 1), *month(JAN, 7)], 8: month(FEB, 1, 2), 9: month(FEB, 1, 2)}
    source.load(days(8, 9), spec)
    source.snapshots = {0: source.snapshots[0]}
    source.reads.clear()
    result = source.load(days(8, 9), spec)
    assert source.reads == [days(8, 9), days(6, 7), days(2, 5), days(0, 1)]
    # The range does not cover these months.
    assert source.held() == at(0, month(FEB, 1))
    assert (result.by_day[day(8)].read, result.by_day[day(8)].updated, result.by_day[day(8)].deleted) == (1, 1, 1)


def test_a_month_that_the_source_has_withdrawn_altogether_goes_if_it_is_small_or_the_launch_says_so(source: Source) -> None:
    source.snapshots = {1: [*month(FEB, *range(20)), *month(MAR, 1)], 2: month(FEB, *range(20))}
    source.load(days(1, 2))
    source.snapshots[1] = month(FEB, *range(20))
    source.load(days(1, 2))
    assert source.held() == at(2, month(FEB, *range(20)))
    source.snapshots.clear()
    with pytest.raises(ShrinkRefused, match=r"name=2026-02 holds 20 rows and the source has 0.*--allow-shrink"):
        source.load(days(2))
    source.load(days(2), allow_shrink=True)
    assert source.held() == set()


def test_a_withdrawn_snapshot_is_refused_where_the_days_before_it_cannot_be_read(source: Source) -> None:
    source.snapshots = {n: month(FEB, 1, 2, value=n) for n in range(3)}
    source.load(days(0, 2))
    del source.snapshots[2]
    with pytest.raises(SnapshotWithdrawn, match=r"things 2026-02-26: .*name=2026-02 .*--from 2026-02-24 --to 2026-02-26") as told:
        source.load(days(2), past=False)
    assert not told.value.retryable
    assert source.held() == at(2, month(FEB, 1, 2, value=2))
    source.load(days(0, 2), past=False)
    assert source.held() == at(1, month(FEB, 1, 2, value=1))


def test_the_first_days_of_a_month_leave_the_old_month_its_own_snapshots(source: Source) -> None:
    source.snapshots = {n: [*month(FEB, 1, 2, value=n), *(month(MAR, 1, value=n) if n >= 5 else [])] for n in range(8)}
    source.load(days(0, 5))
    assert source.held() == at(5, [*month(FEB, 1, 2, value=5), *month(MAR, 1, value=5)])
    source.snapshots[7] = month(MAR, 1, 2)
    source.load(days(6, 7))
    assert source.held() == at(6, month(FEB, 1, 2, value=6)) | at(7, month(MAR, 1, 2))


def test_a_range_that_begins_in_the_middle_of_a_month_replaces_all_of_it(source: Source) -> None:
    source.snapshots = {0: month(FEB, 1, 2, 3)}
    source.load(days(0))
    source.snapshots[3] = month(FEB, 2, 3, 4, value=3)
    source.load(days(2, 4))
    assert source.held() == at(3, month(FEB, 2, 3, 4, value=3))


def test_older_days_loaded_after_newer_ones_change_nothing_of_a_newer_snapshot(source: Source) -> None:
    source.snapshots = {n: [*month(FEB, 1, 2, value=n), *(month(JAN, 5) if n < 2 else [])] for n in range(5)}
    source.load(days(3, 4))
    before = source.conn.execute("SELECT ctid::text, xmin::text FROM things ORDER BY 1").fetchall()
    source.snapshots[1] = [*month(FEB, 1, 2, 9, value=7), *month(JAN, 5)]
    result = source.load(days(0, 2))
    assert source.held() == at(4, month(FEB, 1, 2, value=4)) | at(1, month(JAN, 5))
    assert source.conn.execute("SELECT ctid::text, xmin::text FROM things WHERE name = '2026-02' ORDER BY 1").fetchall() == before
    assert (result.total.inserted, result.total.updated, result.total.deleted) == (1, 0, 0)
    source.snapshots[2].clear()
    source.load(days(2))
    assert source.held() == at(4, month(FEB, 1, 2, value=4)) | at(1, month(JAN, 5))


def test_the_guard_names_the_month_that_would_lose_too_much_beside_larger_ones(source: Source) -> None:
    source.snapshots = {0: [*month(FEB, *range(20)), *month(JAN, *range(24)), *month(MAR, *range(24))]}
    source.load(days(0))
    source.snapshots[1] = [*month(FEB, *range(9)), *month(JAN, *range(24)), *month(MAR, *range(24))]
    with pytest.raises(ShrinkRefused, match=r"refused to delete: name=2026-02 holds 20 rows and the source has 9; .*allow-shrink"):
        source.load(days(0, 1))
    assert source.held() == at(0, source.snapshots[0])
    source.load(days(0, 1), allow_shrink=True)
    assert source.held() == at(1, source.snapshots[1])
    source.snapshots[2] = month(FEB, *range(5))
    source.load(days(2))
    assert at(2, month(FEB, *range(5))) <= source.held()


def test_a_key_that_a_snapshot_has_twice_is_an_error_in_the_newest_and_none_elsewhere(source: Source) -> None:
    source.snapshots = {0: month(FEB, 1, 1, 2), 1: month(FEB, 1, 2)}
    source.load(days(0, 1))
    assert source.held() == at(1, month(FEB, 1, 2))
    source.snapshots[1] = [*month(FEB, 1, 2), *month(FEB, 2, value=9)]
    with pytest.raises(DuplicateKeyError, match=r"holds 2 rows with the primary key \(name=2026-02, hour=2\); 1 key"):
        source.load(days(0, 1))


def test_a_bad_row_fails_the_load(source: Source) -> None:
    source.snapshots = {1: month(FEB, 1, 99)}
    with pytest.raises(RejectedRows, match="column hour, partition 2026-02-25: a value beyond the limit"):
        source.load(days(0, 1))


QUARANTINING = altered(SPEC, on_reject=things(on_reject="quarantine").loading.on_reject, maximum_quarantined_share=1.0)
BAD = -1
"""Stands for the value of a row that can't be loaded."""


class Quarantined(Source):
    def rows(self, window: DayRange) -> list[dict[str, Any]]:
        return [r | ({"rate": float("nan")} if r["money"] == BAD else {}) for r in super().rows(window)]


@pytest.fixture
def faulty(conn: psycopg.Connection, schema: str) -> Quarantined:
    return Quarantined(conn, schema)


def test_a_key_that_is_quarantined_in_the_newest_snapshot_keeps_its_last_good_row(faulty: Quarantined) -> None:
    faulty.snapshots = {0: month(FEB, 1, 2, 3)}
    faulty.load(days(0), QUARANTINING)
    faulty.snapshots[1] = [*month(FEB, 1, value=2), *month(FEB, 2, value=BAD)]
    result = faulty.load(days(0, 1), QUARANTINING)
    assert faulty.held() == at(1, month(FEB, 1, value=2)) | at(0, month(FEB, 2))
    assert (result.by_day[day(1)].quarantined, result.by_day[day(1)].deleted) == (1, 1)
    # It protects nothing when a newer snapshot has no such row.
    faulty.snapshots[2] = month(FEB, 1, value=3)
    faulty.load(days(0, 2), QUARANTINING)
    assert faulty.held() == at(2, month(FEB, 1, value=3))


def test_a_snapshot_whose_rows_are_all_quarantined_is_the_newest_all_the_same(faulty: Quarantined) -> None:
    faulty.snapshots = {0: month(FEB, 1, 2), 1: month(FEB, 1, value=BAD)}
    faulty.load(days(0), QUARANTINING)
    faulty.load(days(0, 1), QUARANTINING, allow_shrink=True)
    assert faulty.held() == at(0, month(FEB, 1))


def test_an_older_day_alone_is_not_the_month_while_a_newer_one_is_in_quarantine(faulty: Quarantined) -> None:
    faulty.snapshots = {0: month(FEB, 1, 2), 1: month(FEB, 1, value=BAD)}
    faulty.load(days(0), QUARANTINING)
    faulty.load(days(1), QUARANTINING, allow_shrink=True)
    faulty.load(days(0), QUARANTINING)
    assert faulty.held() == at(0, month(FEB, 1))
    # No other day of the month was ever loaded. All rows of its newest day are in quarantine.
    faulty.snapshots = {0: month(JAN, 1, 2), 1: [*month(FEB, 1, value=BAD), *month(JAN, 1, value=BAD)]}
    faulty.load(days(1), QUARANTINING)
    result = faulty.load(days(0), QUARANTINING, allow_shrink=True)
    assert faulty.held() == at(0, month(FEB, 1))
    assert result.total.read == result.total.unchanged == 2
    faulty.snapshots[1] = month(JAN, 1, value=2)
    faulty.load(days(0, 1), QUARANTINING, allow_shrink=True)
    assert faulty.held() == at(1, month(JAN, 1, value=2))


def test_a_quarantine_that_the_last_load_of_its_day_has_not_seen_keeps_no_older_day_out(faulty: Quarantined) -> None:
    faulty.snapshots = {0: month(FEB, 1, 2), 1: month(FEB, 1, value=BAD)}
    faulty.load(days(1), QUARANTINING)
    marks = Watermarks(faulty.schema)
    with faulty.conn.transaction():
        marks.create(faulty.conn)
        marks.ledger.record(faulty.conn, "things", "r", Loaded(datetime.now(UTC), {day(1): 0}, 0, 1.0, True, Horizon(1)))
    faulty.load(days(0), QUARANTINING)
    assert faulty.held() == set()
    # The source has withdrawn the day, and a load has read it since.
    marks.ledger.record(faulty.conn, "things", "another run", Loaded(datetime.now(UTC), {day(1): 0}, 0, 1.0, True, Horizon(1)))
    faulty.load(days(0), QUARANTINING)
    assert faulty.held() == at(0, month(FEB, 1, 2))


def test_a_snapshot_of_which_no_key_can_be_read_is_the_newest_all_the_same(faulty: Quarantined) -> None:
    faulty.snapshots = {0: month(FEB, 1, 2), 1: [(FEB, 99, 1)]}
    faulty.load(days(0), QUARANTINING)
    with pytest.raises(ShrinkRefused):
        faulty.load(days(0, 1), QUARANTINING)
    faulty.load(days(0, 1), QUARANTINING, allow_shrink=True)
    assert faulty.held() == set()


def test_copies_in_the_newest_snapshot_are_quarantined_and_others_are_not(faulty: Quarantined) -> None:
    faulty.snapshots = {0: month(FEB, 1, 1, 2), 1: [*month(FEB, 1, 2), *month(FEB, 2, value=9)]}
    result = faulty.load(days(0, 1), QUARANTINING)
    assert faulty.held() == at(1, month(FEB, 1))
    assert result.quarantine_reasons == {"name, hour: duplicate key": 2}


def test_bad_rows_of_the_days_before_a_withdrawn_snapshot_are_quarantined_if_they_are_of_its_month(faulty: Quarantined) -> None:
    faulty.snapshots = {1: [*month(FEB, 1), *month(FEB, 2, value=BAD), *month(JAN, 1, value=BAD)], 2: month(FEB, 1, 2, value=2)}
    faulty.load(days(2), QUARANTINING)
    del faulty.snapshots[2]
    result = faulty.load(days(2), QUARANTINING)
    assert faulty.held() == at(1, month(FEB, 1)) | at(2, month(FEB, 2, value=2))
    assert (result.total.read, result.total.quarantined, result.total.updated) == (2, 1, 1)
    assert faulty.conn.execute("SELECT partition FROM etl_quarantine").fetchall() == [(day(1),)]


def test_a_row_that_did_not_arrive_is_missed(source: Source) -> None:
    source.load(days(0))
    swallow(source.conn, "things")
    source.snapshots = {0: month("lost", 1)}
    with pytest.raises(VerificationFailed, match=r"partition 2026-02-24: 1 rows expected, 0 in PostgreSQL"):
        source.load(days(0))


def test_a_row_that_did_not_go_is_noticed(source: Source) -> None:
    source.snapshots = {0: month(FEB, 1, 2), 1: month(FEB, 1)}
    source.load(days(0))
    source.conn.execute("CREATE RULE kept AS ON DELETE TO things DO INSTEAD NOTHING")
    with pytest.raises(VerificationFailed, match=r"partition 2026-02-24: 0 rows expected, 1 in PostgreSQL"):
        source.load(days(0, 1))


def test_a_table_of_newest_rows_by_key_becomes_one_of_whole_snapshots_with_its_first_load(source: Source, loads: Loads) -> None:
    by_key = things(primary_key=("name", "hour"), version_column="day")
    source.snapshots = {0: month(JAN, 1, 2), 1: month(JAN, 1), 3: month(FEB, 1, 2, 3), 4: month(FEB, 1, 2)}
    loads(source.rows(days(0, 4)), by_key, days(0, 4))
    assert len(source.held()) == 5
    source.load(days(3, 4))
    # The older month waits for a load of the days of its newest snapshot.
    assert source.held() == at(4, month(FEB, 1, 2)) | at(1, month(JAN, 1)) | at(0, month(JAN, 2))
    source.load(days(1))
    assert source.held() == at(4, month(FEB, 1, 2)) | at(1, month(JAN, 1))


def test_history_closes_what_the_newest_snapshot_no_longer_has(source: Source) -> None:
    history = altered(SPEC, strategy=Strategy.SCD2, stamp_columns=("stamp",))
    source.snapshots = {0: month(FEB, 1, 2, 3)}
    source.load(days(0), history)
    source.snapshots[1] = month(FEB, 1, 2, value=2)
    source.load(days(0, 1), history)
    assert source.held("valid_to IS NULL") == at(1, month(FEB, 1, 2, value=2))
    del source.snapshots[1]
    source.load(days(1), history)
    assert source.held("valid_to IS NULL") == at(0, month(FEB, 1, 2, 3))
    assert len(source.conn.execute("SELECT FROM things").fetchall()) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"snapshot_of": ("hour",)}, "needs columns of the primary key"),
        ({"snapshot_of": ("nothing",)}, r"\['nothing'\] are named but not declared"),
        ({"snapshot_of": ("name", "name")}, "needs each column once"),
        ({"primary_key": ("name", "rate"), "snapshot_of": ("rate",)}, "needs columns whose values are exact"),
        ({"version_column": "day"}, "needs no version_column"),
        ({"primary_key": ("day", "name")}, "needs a primary key without the partition column day"),
        ({"stamp_columns": ("day",)}, "needs a partition column that is no stamp column"),
        ({"strategy": "append"}, "append needs the partition column day in the primary key"),
        ({"strategy": "replace_partition"}, "replace_partition needs the partition column day in the primary key"),
        ({"partition_by": "month"}, "partition_by needs the partition column day in the primary key"),
        ({"change_capture": "changes"}, "change_capture changes needs the partition column in the primary key"),
        ({"snapshot_of": ()}, "needs a version_column, or snapshot_of"),
    ],
)
def test_a_declaration_that_cannot_keep_snapshots_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        things(**{"primary_key": ("name",), "snapshot_of": ("name",)} | changes)


def test_the_declaration_travels_with_the_asset() -> None:
    assert TableSpec.from_metadata(SPEC.as_metadata()).snapshot_of == ("name",)
    assert monthly().snapshot_of == ()


numbers = st.integers(0, 6)
entries = st.lists(
    st.tuples(st.sampled_from([JAN, FEB, MAR]), st.integers(1, 3), st.integers(1, 3)), unique_by=lambda e: e[:2], max_size=4
)
changes_of_source = st.dictionaries(numbers, entries, min_size=1, max_size=4)
windows = st.tuples(numbers, numbers).map(lambda pair: (min(pair), max(pair)))


def newest(snapshots: dict[int, list[Entry]], name: str, until: int) -> Held:
    """The newest snapshot of a month, of days up to one; empty where there is none."""
    of_days = {n: {e for e in found if e[0] == name} for n, found in snapshots.items() if n <= until}
    last = max((n for n, found in of_days.items() if found), default=None)
    return set() if last is None else at(last, of_days[last])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(changes_of_source, windows), min_size=1, max_size=6), st.booleans())
def test_any_sequence_of_corrections_withdrawals_and_loads_ends_with_the_newest_snapshots(
    source: Source, steps: list[tuple[dict[int, list[Entry]], tuple[int, int]]], quarantines: bool
) -> None:
    source.conn.execute("DROP TABLE IF EXISTS things")
    source.snapshots = {}
    spec, before = (QUARANTINING if quarantines else SPEC), set[Any]()
    for changes, (first, last) in [*steps, ({}, (0, 6))]:
        source.snapshots |= changes
        given = source.rows(days(first, last))
        result = source.load(days(first, last), spec, allow_shrink=True)
        read = Counter(r["day"] for r in given)
        assert all(result.by_day[d].read >= n for d, n in read.items())
        after = source.held()
        for name in (JAN, FEB, MAR):
            was, now = ({r for r in rows if r[1] == name} for rows in (before, after))
            at_days = {n for n, *_ in was}
            told = at_days & set(range(first, last + 1)) or any(e["name"] == name for e in given)
            if told and max(at_days, default=0) <= last:
                assert now == newest(source.snapshots, name, last)
            else:
                assert now == was
        total = result.total
        assert len(after) - len(before) == total.inserted - total.deleted
        before = after
    assert before == {r for name in (JAN, FEB, MAR) for r in newest(source.snapshots, name, 6)}
