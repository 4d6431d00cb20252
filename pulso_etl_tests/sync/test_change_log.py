"""What loads record of their changes, and how a load is undone by it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PulsoError, UndoRefused
from pulso_etl.sync.ledger.changes import Change, Changes, DayChange, Kept
from pulso_etl.sync.ledger.migrations import migrate
from pulso_etl.sync.ledger.traces import Traces
from pulso_etl.sync.ledger.undoings import Wish
from pulso_etl.sync.loading.imprints import imprints
from pulso_etl.sync.loading.load import load, translated
from pulso_etl.sync.loading.result import LoadResult
from pulso_etl.sync.loading.undo import Undone
from pulso_etl.sync.loading.verify import verify
from pulso_etl.sync.movements import movements
from pulso_etl.sync.spec import Adds, Column, ColumnType, Contract, Figure, TableSpec, Unit
from pulso_etl.sync.target import Target
from pulso_etl.sync.undoing import undo_load
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.sync.samples import D1, D2, D3, NOON, WINDOW, by_month, monthly, request, row, table, things, wider

MONEY = Figure(name="recupero", title="Recupero", unit=Unit.MONEY, of=("money",))
SHARE = Figure(name="share", title="Share", unit=Unit.PERCENT, adds=Adds.RATIO, of=("money", "hour"))
ROWS = Figure(name="rows", title="Rows", unit=Unit.COUNT, adds=Adds.COUNT)
NAMES = Figure(name="names", title="Names", unit=Unit.COUNT, adds=Adds.DISTINCT, of=("name",))
FIGURES = (MONEY, SHARE, ROWS, NAMES)


@dataclass
class Place:
    """A schema with the ledger and the table `things`, whose loads record their changes."""

    conn: psycopg.Connection
    schema: str

    def load(
        self, source: Sequence[dict[str, Any]] | pa.Table, spec: TableSpec, window: DayRange = WINDOW, **options: Any
    ) -> LoadResult:
        """Loads as the IO manager does, in one transaction."""
        given, target = source if isinstance(source, pa.Table) else table(source), Target(self.conn, spec, self.schema)
        traces = Traces(self.schema)
        asked = request(
            window,
            lambda: nullcontext(given.to_reader(max_chunksize=2)),
            last=traces.read(self.conn, spec.name, window),
            **{"run_id": "r", "changes": Changes(self.schema)} | options,
        )
        with translated(spec, window), self.conn.transaction():
            result = load(target, asked)
            traces.write(self.conn, spec.name, verify(target, asked, result).traces)
        return result

    def undo(self, spec: TableSpec, load_id: int | None = None) -> Undone:
        return undo_load(Target(self.conn, spec, self.schema), Wish(load_id)).undone

    def log(self) -> list[Change]:
        return Changes(self.schema).latest(self.conn, "things", 100)

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        with self.conn.transaction():
            self.conn.execute(f"SET LOCAL search_path = {self.schema}")
            cursor = self.conn.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def rows(self) -> list[tuple[Any, ...]]:
        """All rows of the table with all columns, but the time of the last write."""
        if self.run(f"SELECT to_regclass('{self.schema}.things')") == [(None,)]:
            return []
        return self.run("SELECT (to_jsonb(t) - 'updated_at')::text FROM things t ORDER BY 1")

    def empty(self) -> None:
        self.run("DROP TABLE IF EXISTS things")
        self.run("TRUNCATE etl_digests, etl_changes, etl_changed_days, etl_changed_rows")


@pytest.fixture
def place(conn: psycopg.Connection, schema: str) -> Place:
    migrate(conn, schema)
    return Place(conn, schema)


SOURCE = [row(D1, "a"), row(D1, "b", "2"), row(D2, "a", None), row(D3, "ñ", "3")]
CHANGED = [row(D1, "a", "10"), row(D2, "a", None), row(D2, "new", "4"), row(D3, "ñ", "3")]


def test_a_load_records_the_counts_and_the_figures_of_each_day_and_the_rows_before_and_after(place: Place) -> None:
    spec = things(figures=FIGURES)
    place.load(SOURCE, spec)
    result = place.load(CHANGED, spec)
    change, first = place.log()
    assert (change.load_id, change.run_id, change.kept, first.kept) == (result.load_id, "r", Kept.ROWS, Kept.STAMP)

    def parts(money: str, hours: int, rows: int) -> dict[str, Decimal]:
        return {"sum:money": Decimal(money), "sum:hour": Decimal(hours), "count": Decimal(rows)}

    assert first.days[0] == DayChange(D1, 2, 0, 0, parts("0", 0, 0), parts("3.5", 18, 2))
    assert change.days == (
        DayChange(D1, 0, 1, 1, parts("3.5", 18, 2), parts("10", 9, 1)),
        DayChange(D2, 1, 0, 0, parts("0", 9, 1), parts("4", 18, 2)),
    )
    found = Changes(place.schema).rows_of(place.conn, change, 10)
    values = [(dict(one.key), one.old and one.old["money"], one.new and one.new["money"]) for one in found]
    assert values == [
        ({"day": "2026-02-27", "name": "a"}, "1.500000000", "10.000000000"),
        ({"day": "2026-02-27", "name": "b"}, "2.000000000", None),
        ({"day": "2026-02-28", "name": "new"}, None, "4.000000000"),
    ]


def test_a_load_that_changes_nothing_leaves_no_entry(place: Place) -> None:
    place.load(SOURCE, things())
    again = place.load([one | {"stamp": NOON + timedelta(hours=1)} for one in SOURCE], things())
    assert again.load_id is None
    assert len(place.log()) == 1


def test_beyond_the_bound_only_counts_and_figures_are_kept_and_the_undoing_is_refused(place: Place) -> None:
    for kept, why in ((2, "the load changed 3 rows, and the values of at most 2 are kept"), (0, "keeps no values of changed rows")):
        spec = things(figures=FIGURES, changed_rows_kept=kept)
        place.load(SOURCE, spec)
        place.load(CHANGED, spec)
        change = place.log()[0]
        assert (change.kept, change.days[0].before["sum:money"], change.days[0].after["sum:money"]) == (
            *(Kept.NONE, Decimal("3.5")),
            Decimal(10),
        )
        assert place.run("SELECT count(*) FROM etl_changed_rows") == [(0,)]
        with pytest.raises(UndoRefused, match=why):
            place.undo(spec)


def test_old_values_and_old_entries_go(place: Place) -> None:
    changes, spec = Changes(place.schema), things()
    for source in (SOURCE, CHANGED):
        place.load(source, spec)
    place.run("UPDATE etl_changes SET committed_at = committed_at - interval '40 days'")
    changes.prune(place.conn, "others", timedelta(days=30))
    changes.prune(place.conn, "things", timedelta(days=41))
    assert place.run("SELECT count(*) FROM etl_changed_rows") == [(3,)]
    changes.prune(place.conn, "things", timedelta(days=30))
    assert place.run("SELECT count(*) FROM etl_changed_rows") == [(0,)]
    assert len(place.log()) == 2
    with pytest.raises(UndoRefused, match=r"stay for 30 days \(changes_kept_days\), and are gone"):
        place.undo(spec)
    place.run("UPDATE etl_changes SET committed_at = committed_at - interval '400 days'")
    changes.prune(place.conn, "things", timedelta(days=30))
    assert (place.log(), place.run("SELECT * FROM etl_changed_days")) == ([], [])


def test_an_undoing_is_refused_if_a_later_load_changed_the_same_rows_and_loads_are_undone_one_after_the_other(place: Place) -> None:
    spec = things()
    states = []
    for source in (SOURCE, CHANGED, [*CHANGED[1:], row(D1, "a", "11")]):
        place.load(source, spec)
        states.append(place.rows())
    third, second, first = (one.load_id for one in place.log())
    with pytest.raises(UndoRefused, match=rf"1 of its rows .* since, by load {third} of .* \(run r\); undo the last of them first"):
        place.undo(spec, second)
    with pytest.raises(UndoRefused, match=f"by load {second} of .*; load {third} of"):
        place.undo(spec, first)
    assert place.rows() == states[2]
    for load_id, state in ((third, states[1]), (second, states[0]), (first, [])):
        done = place.undo(spec)
        assert done.change.load_id == load_id
        assert place.rows() == state
    with pytest.raises(UndoRefused, match="no load that changed rows"):
        place.undo(spec)
    with pytest.raises(UndoRefused, match="is undone already"):
        place.undo(spec, third)
    with pytest.raises(UndoRefused, match=f"itself undid load {first}; .*pulso-etl refresh things --from 2026-02-27"):
        place.undo(spec, place.log()[0].load_id)
    with pytest.raises(UndoRefused, match="no load 999"):
        place.undo(spec, 999)


def test_a_load_whose_rows_no_later_load_changed_is_undone_below_later_loads(place: Place) -> None:
    spec = things()
    place.load(SOURCE, spec)
    place.load(CHANGED, spec)
    second = place.log()[0].load_id
    place.load([*CHANGED, row(D3, "late", "5")], spec)
    place.undo(spec, second)
    assert place.run("SELECT day, name, money::int FROM things ORDER BY 1, 2") == [
        *((D1, "a", 2), (D1, "b", 2), (D2, "a", None), (D3, "late", 5)),
        (D3, "ñ", 3),
    ]


def test_what_belongs_with_rows_of_a_later_load_is_not_undone_below_it(place: Place) -> None:
    """A key has one current version, and a value one snapshot: both are told by more than the row."""
    versions = things(strategy="scd2")
    snapshots = things(primary_key=("name", "hour"), snapshot_of=("name",))
    both, one = [row(D1, "a", hour=1), row(D1, "b", hour=2)], [row(D1, "a", hour=1)]
    month, less = [row(D1, "a", hour=1), row(D1, "a", hour=2)], [row(D1, "a", hour=1)]
    for spec, sources in (
        (versions, (both, one, [row(D1, "a", hour=1), row(D1, "b", "7", hour=2)])),
        (snapshots, (month, less, [row(D2, "a", hour=1)])),
    ):
        for kept in (10, 1):
            place.empty()
            for number, source in enumerate(sources):
                # The values of the last load may be beyond the bound.
                bound = altered(spec, changed_rows_kept=kept - 1 if number == 2 else 10)
                place.load(source, bound, DayRange(source[0]["day"], source[0]["day"]), allow_shrink=True)
            before, (third, second, _) = place.rows(), place.log()
            with pytest.raises(UndoRefused, match=f"later loads changed the same rows, by load {third.load_id} "):
                place.undo(spec, second.load_id)
            assert place.rows() == before


def test_a_key_that_was_written_with_other_digits_comes_back(place: Place) -> None:
    spec, source = things(primary_key=("day", "money"), strategy="replace_partition"), [row(D1, "a", "1.5"), row(D1, "b", "2")]
    place.load(source, spec)
    place.run("UPDATE things SET money = 1.50000 WHERE name = 'a'")
    before = place.rows()
    place.load(source, spec)
    place.undo(spec)
    assert place.rows() == before


def test_types_and_keys_that_changed_since(place: Place) -> None:
    spec = things()
    place.load(SOURCE, spec)
    before = place.run("SELECT day, name, money, hour, rate FROM things ORDER BY 1, 2")
    place.load(CHANGED, spec)
    place.run("ALTER TABLE things ALTER COLUMN money TYPE numeric(20, 12), ALTER COLUMN hour TYPE numeric(6, 1)")
    place.undo(spec)
    assert place.run("SELECT day, name, money, hour, rate FROM things ORDER BY 1, 2") == before
    place.run("ALTER TABLE things ALTER COLUMN hour TYPE bigint")
    place.load(CHANGED, spec)
    place.run("ALTER TABLE things DROP CONSTRAINT things_pkey, ADD PRIMARY KEY (day, name, hour)")
    with pytest.raises(UndoRefused, match="its rows are told by day, name, and the table has another key since"):
        place.undo(things(primary_key=("day", "name", "hour")))


def test_columns_that_the_server_writes_come_back(place: Place) -> None:
    spec = things(contract=Contract.EVOLVE)
    place.load(SOURCE, spec)
    place.run("ALTER TABLE things ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY")
    place.run("ALTER TABLE things ADD COLUMN twice numeric GENERATED ALWAYS AS (money * 2) STORED")
    before = place.rows()
    place.load(CHANGED, spec)
    place.undo(spec)
    assert place.rows() == before


@pytest.mark.parametrize(
    ("obstacle", "told"),
    [
        ("ALTER TABLE things ADD CHECK (money <> 2) NOT VALID", "violates check constraint .things_money_check."),
        (
            "CREATE TABLE others (day date, name text, FOREIGN KEY (day, name) REFERENCES things);"
            "INSERT INTO others VALUES ('2026-02-28', 'new')",
            "violates foreign key constraint .others_day_name_fkey. on table .others.",
        ),
    ],
)
def test_what_the_table_does_not_take_back_is_a_refusal(place: Place, obstacle: str, told: str) -> None:
    spec = things()
    place.load(SOURCE, spec)
    place.load(CHANGED, spec)
    for statement in obstacle.split(";"):
        place.run(statement)
    before, log = place.rows(), place.log()
    with pytest.raises(UndoRefused, match=rf"{told}.*; drop what .* pulso-etl refresh things --from 2026-02-27 --to 2026-02-28\."):
        place.undo(spec)
    assert (place.rows(), place.log()) == (before, log)


@pytest.mark.parametrize(
    "meddle",
    [
        "UPDATE things SET money = 99 WHERE name = 'new'",
        "DELETE FROM things WHERE name = 'new'",
        "INSERT INTO things (day, name) VALUES ('2026-02-27', 'b')",
    ],
)
def test_rows_that_another_program_changed_are_not_overwritten(place: Place, meddle: str) -> None:
    spec = things()
    place.load(SOURCE, spec)
    place.load(CHANGED, spec)
    place.run(meddle)
    before = place.rows()
    with pytest.raises(UndoRefused, match="1 of its rows have changed since, by another program"):
        place.undo(spec)
    assert place.rows() == before


@pytest.mark.parametrize("first", [SOURCE, []])
def test_a_refusal_blames_only_loads_that_may_have_changed_the_rows(place: Place, first: list[dict[str, Any]]) -> None:
    """Whoever undoes a load that is named and is innocent loses its rows, and is refused again."""
    spec, unlogged, one = things(), things(changed_rows_kept=0), row(D1, "a", "10")
    if first:
        place.load(first, spec)
    place.load([one], spec, DayRange(D1, D1), allow_shrink=True)
    load_id = place.log()[0].load_id
    place.load([one, row(D1, "later")], spec, DayRange(D1, D1))
    place.run("UPDATE things SET money = 99 WHERE name = 'a'")
    with pytest.raises(UndoRefused, match="1 of its rows have changed since, by another program"):
        place.undo(spec, load_id)
    place.load([row(D1, "a", "12"), row(D1, "later")], unlogged, DayRange(D1, D1))
    last = place.log()[0].load_id
    with pytest.raises(UndoRefused, match=rf"changed since, by load {last} of [^;]*; the values of load {last} are not kept"):
        place.undo(spec, load_id)


@pytest.mark.parametrize("stamp", ["updated_at", "updated_at + interval '1 second'"])
def test_a_first_load_is_undone_only_while_nobody_has_changed_its_rows(place: Place, stamp: str) -> None:
    place.load(SOURCE, things())
    place.run(f"UPDATE things SET money = 99, updated_at = {stamp} WHERE name = 'b'")
    with pytest.raises(UndoRefused, match="1 of its rows have changed since, by another program"):
        place.undo(things())
    # Whoever changes a row that an undoing restored is seen too.
    place.load(SOURCE, things())
    place.undo(things())
    place.run(f"UPDATE things SET money = 2, updated_at = {stamp} WHERE name = 'b'")
    with pytest.raises(UndoRefused, match="1 of its rows have changed since"):
        place.undo(things())


def test_a_first_load_is_undone_after_the_server_has_moved_its_rows(place: Place) -> None:
    place.load(SOURCE, things())
    place.conn.execute(f"VACUUM (FULL, FREEZE) {place.schema}.things".encode())
    place.undo(things())
    assert place.rows() == []


def test_a_lost_column_refuses_and_a_new_column_stays(place: Place) -> None:
    evolving = things(contract=Contract.EVOLVE)
    place.load(SOURCE, evolving)
    place.load(CHANGED, evolving)
    before = place.log()[0]
    place.load(wider([*CHANGED, row(D3, "x")], extra=[None, None, None, None, "e"]), evolving)
    place.undo(evolving)
    place.undo(evolving)
    assert place.log()[1].undoes is not None
    assert place.log()[0].undoes == before.load_id
    assert place.run("SELECT count(*), count(extra) FROM things") == [(4, 0)]
    place.load(CHANGED, evolving)
    place.run("ALTER TABLE things DROP COLUMN rate")
    with pytest.raises(UndoRefused, match="the table has lost the columns rate since"):
        place.undo(evolving)


def test_the_day_that_was_undone_is_read_again_by_the_next_load(place: Place) -> None:
    spec = things()
    place.load(SOURCE, spec)
    place.load(CHANGED, spec)
    place.undo(spec)
    again = place.load(CHANGED, spec)
    assert again.digested is not None
    assert (again.digested.unchanged, again.total.written) == ({D3}, 3)


def test_figures_are_exact_and_stand_what_other_programs_write(place: Place) -> None:
    number = Figure(name="number", title="Number", unit=Unit.COUNT, of=("number",))
    spec = things(Column(name="number", type=ColumnType.INTEGER), figures=(MONEY, SHARE, number))
    money, most = "12345678901234567890123456789.123456789", 2**63 - 1
    for sign, with_sign in ((1, money), (-1, f"-{money}")):
        place.load(wider([row(D1, "a", with_sign)], number=pa.array([most * sign])), spec)
    day = place.log()[0].days[0]
    assert (day.before["sum:money"], day.after["sum:money"]) == (Decimal(money), Decimal(f"-{money}"))
    assert (day.before["sum:number"], day.after["sum:number"]) == (most, -most)
    moved = {one.figure.name: one.change for one in movements(spec, place.log()[0])}
    assert (moved["recupero"], moved["number"]) == (Decimal("-24691357802469135780246913578.246913578"), -2 * most)
    for strange in ("NaN", "Infinity"):
        place.run(f"UPDATE things SET money = '{strange}' WHERE name = 'a'")
        place.load(wider([row(D1, "a")], number=pa.array([most])), spec)
        strangely = movements(spec, place.log()[0])
        assert [one.before for one in strangely if one.figure is not number] == [None, None]
        place.undo(spec)
        assert place.run("SELECT money::text FROM things WHERE name = 'a'") == [(strange,)]
        assert [one.after for one in movements(spec, place.log()[0]) if one.figure is not number] == [None, None]


@pytest.mark.parametrize("before", [[], SOURCE])
def test_the_rows_that_a_load_left_are_read_once_for_figures_and_verification(before: list[dict[str, Any]], place: Place) -> None:
    spec, target = things(figures=FIGURES), Target(place.conn, things(figures=FIGURES), place.schema)
    place.load(before or CHANGED, spec)
    if not before:
        place.run("DELETE FROM things")
    scans = "SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables WHERE relid = to_regclass(%s)"
    asked = request(WINDOW, lambda: nullcontext(table(CHANGED).to_reader()), run_id="r", changes=Changes(place.schema))
    with place.conn.transaction():
        result = load(target, asked)
        loaded = place.conn.execute(scans, (target.quoted_name,)).fetchone()
        verified = verify(target, asked, result)
        assert place.conn.execute(scans, (target.quoted_name,)).fetchone() == loaded
        assert result.digested is not None
        known = imprints(target, WINDOW, result.held.since)
    assert verified.rows == {D1: 1, D2: 2, D3: 1}
    assert {day: trace.imprint for day, trace in verified.traces.items() if day in known} == {
        day: str(imprint) for day, imprint in known.items()
    }


def test_values_of_all_types_come_back(place: Place) -> None:
    more = (
        Column(name="flag", type=ColumnType.BOOLEAN),
        Column(name="raw", type=ColumnType.BYTES),
        Column(name="texts", type=ColumnType.TEXT, repeated=True),
        Column(name="doc", type=ColumnType.JSON),
        Column(name="at", type=ColumnType.TIME),
        Column(name="exact", type=ColumnType.NUMERIC, precision=10, scale=2),
    )
    at, exact = pa.array([3], pa.time64("us")), pa.array([Decimal("0.10")], pa.decimal128(10, 2))
    values: dict[str, Any] = {"flag": [True], "raw": [b"\0\\x"], "texts": [['a"b', "{c,d}", ""]], "doc": ["null"]}
    first = wider([row(D1, "a'\"\\,", rate=1e-300)], **values, at=at, exact=exact)
    place.load(first, things(*more))
    before = place.run("SELECT t::text FROM (SELECT day, name, rate, flag, raw, texts, doc, at, exact FROM things) t")
    place.load(wider([row(D1, "a'\"\\,")], **{name: [None] for name in values}, at=at, exact=exact), things(*more))
    place.undo(things(*more))
    assert place.run("SELECT t::text FROM (SELECT day, name, rate, flag, raw, texts, doc, at, exact FROM things) t") == before


SPECS = {
    "upsert": things(figures=FIGURES),
    "by month": by_month(figures=FIGURES),
    "version": things(version_column="hour", figures=FIGURES),
    "append": things(strategy="append", figures=FIGURES),
    "history": things(strategy="scd2", figures=FIGURES),
    "history by month": by_month(strategy="scd2", figures=FIGURES),
    "replace": things(strategy="replace_partition", figures=FIGURES),
    "newest": monthly(),
    "snapshots": things(primary_key=("name", "hour"), snapshot_of=("name",)),
}
days = st.sampled_from([D1, D2, D3])
puts = st.tuples(st.just("put"), days, st.sampled_from("ab"), st.sampled_from("12"), st.integers(1, 2))
drops = st.tuples(st.just("drop"), days)
loads = st.tuples(st.just("load"), st.one_of(st.just(WINDOW), days.map(lambda day: DayRange(day, day))))
undoings = st.tuples(st.just("undo"))


def prove(place: Place, name: str, steps: list[Any]) -> None:
    """Loads and undoes. After each undoing the table is as it was before the load, and the figures agree with the table."""
    spec, source, states = SPECS[name], [row(D1, "a"), row(D2, "b"), row(D3, "a", hour=3)], []
    place.empty()
    for kind, *step in [("load", WINDOW), *steps, ("undo",), ("undo",)]:
        if kind == "put":
            day, key, money, hour = step
            source = [one for one in source if (one["day"], one["name"], one["hour"]) != (day, key, hour)]
            source.append(row(day, key, money, hour=hour))
        elif kind == "drop":
            source = [one for one in source if one["day"] != step[0]]
        elif kind == "load":
            before = place.rows()
            try:
                result = place.load([one for one in source if one["day"] in step[0]], spec, step[0], allow_shrink=True)
            except PulsoError:
                continue
            states += [before] if result.load_id is not None else []
        elif states:
            place.undo(spec)
            assert place.rows() == states.pop()
        agree(place, spec)


def agree(place: Place, spec: TableSpec) -> None:
    """What the last entry says of the figures is what the table holds."""
    if not spec.figures or not place.log():
        return
    current = " WHERE valid_to IS NULL" if spec.keeps_versions else ""
    held = dict(
        (day, (money, hours, rows))
        for day, money, hours, rows in place.run(
            f"SELECT day, coalesce(sum(money), 0), coalesce(sum(hour), 0), count(*) FROM things{current} GROUP BY 1"
        )
    )
    told: dict[date, Any] = {}
    for change in reversed(place.log()):
        for one in change.days:
            assert dict(one.before) == told.get(one.day, dict.fromkeys(one.before, 0)), change
            told[one.day] = dict(one.after)
    for day, sums in told.items():
        assert tuple(sums[part] for part in ("sum:money", "sum:hour", "count")) == held.get(day, (0, 0, 0))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(st.sampled_from(sorted(SPECS)), st.lists(st.one_of(puts, puts, drops, loads, loads, undoings), max_size=12))
def test_loads_and_undoings_in_any_order_give_back_the_rows_exactly(place: Place, name: str, steps: list[Any]) -> None:
    prove(place, name, steps)


STEPS: list[Any] = [
    *[("put", D1, "a", "2", 9), ("put", D2, "b", "1", 1), ("load", WINDOW), ("drop", D3), ("put", D2, "a", "1", 2)],
    *[("load", WINDOW), ("undo",), ("undo",), ("load", DayRange(D2, D2)), ("load", WINDOW)],
]


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_strategy_is_undone(place: Place, name: str) -> None:
    prove(place, name, STEPS)
