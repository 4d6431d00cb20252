"""What is owed is loaded by the next incremental refresh, whatever happened before: on the ledger in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import count
from random import Random
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.refreshing.plan import Calendar, plan_refresh
from pulso_etl.refreshing.request import Grants, Mode, RefreshRequest
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger.ledger import Loaded, Unchanged
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.owed import Horizon, Settlement, Watermark
from pulso_etl.sync.source_state import SourceState
from pulso_etl.sync.spec import TableSpec
from pulso_etl.tables import TABLES
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.lima import LIMA, lima_day

FIRST = date(2026, 1, 1)
BEGIN = datetime(2026, 3, 2, 8, tzinfo=LIMA)
D0 = date(2026, 3, 2)
CHUNK_DAYS = 7
names = count()


def spec_of(lookback_days: int) -> TableSpec:
    """A declaration with a new name, so that many tables can share the ledger's schema."""
    changes = {"name": f"calls_{next(names)}", "lookback_days": lookback_days, "chunk_days": CHUNK_DAYS}
    return altered(TABLES["operation_data"], **changes)


@dataclass
class World:
    """A source that changes, and the loads of one table. Each day is a number, and each change adds one to it.

    `clock` is the server's clock. The table holds for each day the number that was read last. The ledger is the real one.
    """

    conn: psycopg.Connection
    spec: TableSpec
    marks: Watermarks
    clock: datetime = BEGIN
    source: dict[date, int] = field(default_factory=dict)
    changed: dict[date, datetime] = field(default_factory=dict)
    table: dict[date, int] = field(default_factory=dict)
    runs: Iterator[int] = field(default_factory=count)
    settled: bool = False
    """Whether the watermark has moved under the declaration of now."""

    @property
    def today(self) -> date:
        return lima_day(self.clock)

    @property
    def watermark(self) -> Watermark | None:
        state = self.marks.read(self.conn).get(self.spec.name)
        return state.watermark if state else None

    def first_of(self, mark: Watermark) -> date:
        """The first day that the watermark covers."""
        assert mark.last_partition is not None
        return mark.last_partition - timedelta(days=self.spec.schedule.lookback_days - 1)

    def declare(self, lookback_days: int) -> None:
        """Gives the declaration this lookback. From now on the source keeps to it."""
        self.spec = altered(self.spec, lookback_days=lookback_days)
        self.settled = False

    def change(self, back: int) -> None:
        """Adds or corrects rows of a day at the source, if the day may still change."""
        day = self.today - timedelta(days=min(back, self.spec.schedule.lookback_days - 1))
        self.source[day] = self.source.get(day, 0) + 1
        self.changed[day] = self.clock

    def plan(self, mode: Mode = Mode.INCREMENTAL, skew: timedelta = timedelta(0), **options: Any) -> DayRange:
        """The days that a launch takes on a machine whose clock differs from the server's by `skew`."""
        request = RefreshRequest((), mode, grants=Grants(force=True), **options)
        planned = plan_refresh(self.spec, self.watermark, request, self.clock + skew, Calendar(FIRST, 5))
        assert planned.window is not None
        return planned.window

    def read(self, window: DayRange) -> dict[date, int]:
        return {day: self.source.get(day, 0) for day in window}

    def commit(self, window: DayRange, found: dict[date, int], read_at: datetime) -> Settlement:
        """Commits a load of what was read: the rows and the ledger in one transaction."""
        extraction = RunningAttempt(self.spec.name, window, f"run-{next(self.runs)}", 1, read_at)
        with self.conn.transaction():
            self.marks.start(self.conn, extraction)
            horizon = Horizon.of(self.spec, FIRST, self.today)
            settlement = self.marks.succeed(self.conn, extraction, Loaded(read_at, found, 1, 1.0, True, horizon))
        self.table |= found
        self.settled = self.settled or settlement.moved
        return settlement

    def load(self, window: DayRange) -> Settlement:
        return self.commit(window, self.read(window), self.clock)

    def fail(self, window: DayRange) -> None:
        extraction = RunningAttempt(self.spec.name, window, f"run-{next(self.runs)}", 1, self.clock)
        with self.conn.transaction():
            self.marks.start(self.conn, extraction)
            self.marks.fail(self.conn, extraction, error="no luck", cause=Cause.INTERNAL, seconds=1.0, metadata={})

    def verify(self) -> None:
        """Does what the sensor does: it marks unchanged days as verified, and loads the others."""
        state = self.marks.read(self.conn).get(self.spec.name)
        if state is None or state.last_partition is None:
            return
        window = self.plan()
        same = [day for day in window if day in state.days and self.changed.get(day, FIRST_CHANGE) < state.days[day].loaded_at]
        seen = Unchanged(self.clock, SourceState({}), Horizon.of(self.spec, FIRST, self.today))
        self.marks.unchanged(self.conn, self.spec.name, same, seen)
        for day in window:
            if day not in same:
                self.load(DayRange(day, day))

    def wrong(self) -> list[date]:
        """The days that a load has read and that differ from the source."""
        return [day for day, held in sorted(self.table.items()) if held != self.source.get(day, 0)]


FIRST_CHANGE = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def owed_marks(server_url: str) -> Iterator[tuple[psycopg.Connection, Watermarks]]:
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA owed")
        conn.execute("SET TIME ZONE 'UTC'")
        marks = Watermarks("owed")
        with conn.transaction():
            marks.create(conn)
        yield conn, marks
        conn.execute("DROP SCHEMA owed CASCADE")


@pytest.fixture
def world(owed_marks: tuple[psycopg.Connection, Watermarks]) -> World:
    return World(owed_marks[0], spec_of(2), owed_marks[1])


def at(day: date, hour: int = 10, minute: int = 0) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=LIMA)


def test_a_day_that_was_loaded_while_it_ran_is_read_again_after_an_outage(world: World) -> None:
    """The day was loaded at 10:00. The next run is the nightly re-check two days later."""
    d1, d2 = D0 + timedelta(days=1), D0 + timedelta(days=2)
    world.clock = at(D0)
    world.change(0)
    assert world.load(world.plan()).moved
    world.clock = at(D0, 20)
    world.change(0)
    world.clock = at(d1, 9)
    world.change(1)
    world.clock = at(d2, 2, 30)
    assert world.wrong() == [D0]
    nightly = world.plan(Mode.SLIDING_WINDOW)
    assert nightly == DayRange(D0 - timedelta(days=1), d2)
    assert world.load(nightly).moved
    assert world.wrong() == []
    assert world.watermark is not None
    assert (world.watermark.last_partition, world.watermark.last_extracted_at) == (d2, at(d2, 2, 30))
    assert world.plan() == DayRange(d1, d2)


def test_a_sliding_window_by_hand_that_leaves_out_what_was_owed_says_so_and_the_next_refresh_reads_it(world: World) -> None:
    d2 = D0 + timedelta(days=2)
    world.clock = at(D0)
    world.load(world.plan())
    world.clock = at(D0, 20)
    world.change(0)
    world.clock = at(d2)
    by_hand = world.load(world.plan(Mode.SLIDING_WINDOW, days=2))
    assert not by_hand.moved
    assert by_hand.owed == (DayRange(D0 - timedelta(days=1), D0),)
    assert by_hand.watermark.last_partition == D0
    assert world.wrong() == [D0]
    assert world.plan() == DayRange(D0 - timedelta(days=1), d2)
    assert world.load(world.plan()).moved
    assert world.wrong() == []


def test_a_gap_shorter_than_the_lookback_leaves_no_late_correction_behind(
    owed_marks: tuple[psycopg.Connection, Watermarks],
) -> None:
    world = World(owed_marks[0], spec_of(7), owed_marks[1])
    world.clock = at(D0)
    world.load(world.plan())
    # The last day on which the source may correct a day is the one before it leaves the lookback.
    for away in range(1, 4):
        world.clock = at(D0 + timedelta(days=away), 23, 50)
        world.change(6)
    corrected = [D0 - timedelta(days=away) for away in (5, 4, 3)]
    world.clock = at(D0 + timedelta(days=4), 3)
    assert world.wrong() == corrected
    assert world.load(world.plan(Mode.SLIDING_WINDOW)).moved
    assert world.wrong() == []


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
@pytest.mark.parametrize("begins", ["in the morning", "before midnight"])
def test_chunks_of_a_long_outage_move_the_watermark_in_whatever_order_they_end(
    world: World, order: tuple[int, ...], begins: str
) -> None:
    world.load(world.plan())
    began = world.clock = at(D0 + timedelta(days=18), *((8, 0) if begins == "in the morning" else (23, 55)))
    chunks = world.plan().chunks(CHUNK_DAYS)
    assert len(chunks) == 3
    moved, newest = [], began
    for place in order:
        if place == 0:
            newest = world.clock
        moved.append(world.load(chunks[place]).moved)
        world.clock += timedelta(minutes=6)
    # But not if today's chunk was read on the next day.
    reached = lima_day(newest) == chunks[0].end
    assert moved == [False, False, reached]
    assert world.watermark is not None
    assert world.watermark.last_extracted_at == (newest if reached else BEGIN)
    assert world.plan() == DayRange(world.today - timedelta(days=1 if lima_day(newest) == world.today else 2), world.today)


def test_a_chunk_that_failed_is_owed_and_those_that_are_over_are_not_read_again(world: World) -> None:
    world.load(world.plan())
    world.clock = at(D0 + timedelta(days=18))
    newest, middle, oldest = world.plan().chunks(CHUNK_DAYS)
    for chunk in (newest, oldest):
        assert not world.load(chunk).moved
    world.fail(middle)
    assert world.plan() == DayRange(middle.start, newest.end)
    assert world.load(middle).moved


def test_old_days_that_were_loaded_long_after_are_closed_at_once(world: World) -> None:
    world.load(world.plan())
    world.load(DayRange(FIRST, FIRST + timedelta(days=9)))
    assert world.plan() == DayRange(D0 - timedelta(days=1), D0)


def test_a_lowered_lookback_loses_no_correction_that_was_still_due(owed_marks: tuple[psycopg.Connection, Watermarks]) -> None:
    world = World(owed_marks[0], spec_of(7), owed_marks[1])
    world.clock = at(D0)
    world.load(world.plan())
    for away in (1, 2):
        world.clock = at(D0 + timedelta(days=away), 20)
        world.change(6)
    world.declare(2)
    world.clock = at(D0 + timedelta(days=3))
    corrected = [D0 - timedelta(days=5), D0 - timedelta(days=4)]
    assert world.wrong() == corrected
    assert world.plan().start <= corrected[0]
    settlement = world.load(world.plan())
    assert settlement.moved
    assert world.wrong() == []
    # They were read once more. By the present declaration that was the last time.
    world.clock = at(D0 + timedelta(days=3), 20)
    assert world.plan() == DayRange(D0 + timedelta(days=2), D0 + timedelta(days=3))


def test_a_raised_lookback_owes_its_own_days_and_none_that_were_final(world: World) -> None:
    """Forty days of refreshes, each day read until its lookback of two days was over."""
    for day in DayRange(D0 - timedelta(days=40), D0):
        world.clock = at(day)
        world.load(world.plan())
    world.declare(7)
    assert world.plan() == DayRange(D0 - timedelta(days=6), D0)
    world.clock = at(D0 + timedelta(days=1))
    world.change(5)
    assert world.load(world.plan()).moved
    assert world.wrong() == []
    assert world.plan() == DayRange(D0 - timedelta(days=5), D0 + timedelta(days=1))


def test_a_raised_lookback_counts_from_the_watermark_over_an_outage(world: World) -> None:
    """The days entered the raised lookback, were corrected, and left it again before a load read them."""
    for day in DayRange(D0 - timedelta(days=10), D0):
        world.clock = at(day)
        world.load(world.plan())
    world.declare(7)
    world.clock = at(D0 + timedelta(days=1))
    world.change(6)
    world.clock = at(D0 + timedelta(days=20))
    assert world.wrong() == [D0 - timedelta(days=5)]
    window = world.plan()
    assert window.start == D0 - timedelta(days=6)
    for chunk in window.chunks(CHUNK_DAYS):
        moved = world.load(chunk).moved
    assert moved
    assert world.wrong() == []


def test_a_look_that_finds_a_day_unchanged_counts_by_the_lookback_of_that_look(world: World) -> None:
    world.clock = at(D0)
    world.load(world.plan())
    world.declare(7)
    world.clock = at(D0 + timedelta(days=4))
    yesterday = DayRange(D0 - timedelta(days=1), D0)
    horizon = Horizon.of(world.spec, FIRST, world.today)
    world.marks.unchanged(world.conn, world.spec.name, list(yesterday), Unchanged(world.clock, SourceState({}), horizon))
    world.declare(2)
    # The lookback was seven days at the time of the look, so both days may still be corrected.
    assert world.plan().start == yesterday.start


def test_what_is_final_was_decided_when_it_was_read(owed_marks: tuple[psycopg.Connection, Watermarks]) -> None:
    """The ledger says for each day when it becomes final. That follows from the lookback of its last reading."""
    world = World(owed_marks[0], spec_of(3), owed_marks[1])
    world.load(DayRange(D0, D0))
    world.declare(5)
    world.load(DayRange(D0 - timedelta(days=1), D0 - timedelta(days=1)))
    query = "SELECT day, open_until FROM owed.etl_days WHERE table_name = %s ORDER BY day"
    found = world.conn.execute(query, (world.spec.name,)).fetchall()
    assert found == [(D0 - timedelta(days=1), D0 + timedelta(days=4)), (D0, D0 + timedelta(days=3))]


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["change"] * 4
            + ["wait", "outage", "incremental", "sliding", "days", "range", "failure", "chunks", "eager", "verify", "lookback"]
        ),
        st.integers(0, 2**31),
    ),
    min_size=5,
    max_size=40,
)


def happen(world: World, kind: str, random: Random) -> None:
    """Does one step: changes the source, lets time pass, or loads."""
    skew = timedelta(hours=random.choice([0, 0, 0, -30, -3, 3, 30]))
    if kind == "change":
        world.change(random.randrange(world.spec.schedule.lookback_days))
        world.clock += timedelta(minutes=random.randrange(1, 300))
    elif kind == "wait":
        world.clock += timedelta(minutes=random.randrange(1, 600))
    elif kind == "outage":
        world.clock += timedelta(hours=random.randrange(10, 500))
    elif kind == "incremental":
        world.load(world.plan())
    elif kind == "sliding":
        world.load(world.plan(Mode.SLIDING_WINDOW, skew))
    elif kind == "days":
        world.load(world.plan(Mode.SLIDING_WINDOW, skew, days=random.randrange(1, 9)))
    elif kind == "range":
        start = world.today - timedelta(days=random.randrange(30))
        world.load(DayRange(start, min(world.today, start + timedelta(days=random.randrange(10)))))
    elif kind == "failure":
        world.fail(world.plan())
    elif kind == "chunks":
        chunks = world.plan(random.choice(list(Mode))).chunks(CHUNK_DAYS)
        random.shuffle(chunks)
        for chunk in chunks[: random.randrange(1, len(chunks) + 1)]:
            world.load(chunk)
            world.clock += timedelta(minutes=random.randrange(60))
    elif kind == "lookback":
        # The lookback was raised and lowered again before a refresh used it. So it has no effect.
        if world.settled:
            world.declare(random.randrange(1, 8))
    elif kind == "eager":
        # The load reads first and commits later. No other load comes in between.
        window = world.plan()
        found, read_at = world.read(window), world.clock
        world.change(random.randrange(world.spec.schedule.lookback_days))
        world.clock += timedelta(minutes=random.randrange(1, 180))
        world.commit(window, found, read_at)
    else:
        world.verify()


@given(st.integers(1, 7), steps)
def test_after_one_incremental_refresh_every_day_that_was_read_is_as_the_source_has_it(
    owed_marks: tuple[psycopg.Connection, Watermarks], lookback_days: int, sequence: list[tuple[str, int]]
) -> None:
    world = World(owed_marks[0], spec_of(lookback_days), owed_marks[1])
    since = None
    for kind, seed in sequence:
        happen(world, kind, Random(seed))
        mark = world.watermark
        if mark is not None and mark.last_extracted_at is not None:
            assert mark.last_extracted_at <= world.clock
            since = since or world.first_of(mark)
            # The watermark says that the source had each day so at that instant, unless the day has changed since.
            missed = [day for day in world.wrong() if world.changed[day] < mark.last_extracted_at and day <= world.today]
            assert missed == []
    world.clock += timedelta(minutes=1)
    settlement = world.load(world.plan())
    assert settlement.moved
    assert settlement.watermark.last_extracted_at == world.clock
    assert world.wrong() == []
    # Gaps exist only before the days of the first watermark, because nobody has asked for those days.
    assert [day for day in world.source if day not in world.table and day >= (since or world.first_of(settlement.watermark))] == []
