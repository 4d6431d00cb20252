"""When a table that is not due is looked at, and when what a look shows is read."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.refreshing.due import Decision, Standing
from pulso_etl.refreshing.on_change import Foreseen, Verdict, decide_change, foresee, is_unheeded, unseen_days, why_no_look
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.ledger.watermarks import Attempt
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.source_state import SourceState
from pulso_etl.tables import TABLES
from pulso_etl_tests.declarations import altered

MINUTE = timedelta(minutes=1)
NOW = datetime(2026, 7, 15, 15, 0, tzinfo=UTC)
TODAY = date(2026, 7, 15)
WINDOW = DayRange(TODAY - timedelta(days=1), TODAY)
OLDER = DayRange(date(2026, 1, 1), date(2026, 1, 2))
SPEC = TABLES["operation_data"]
LOADED = Attempt("run", WINDOW, succeeded=True, started_at=NOW - 20 * MINUTE, finished_at=NOW - 19 * MINUTE)
FRESH = Decision(SPEC.name, None, "fresh", WINDOW)


def state(version: int, changed_at: datetime | None = None) -> SourceState:
    return SourceState({"version": version}, changed_at=changed_at)


def known(at: datetime, seen: SourceState | None) -> dict[date, Day]:
    return {day: Day(at, day, at, 10, False, seen.digest if seen else None) for day in WINDOW}


@pytest.mark.parametrize(
    ("standing", "announced", "look_at", "looked"),
    [
        (Standing(attempts=[LOADED]), False, None, True),
        (Standing(attempts=[LOADED]), False, NOW + MINUTE, False),
        (Standing(attempts=[LOADED]), True, None, True),
        (Standing(attempts=[replace(LOADED, started_at=NOW - 9 * MINUTE)]), False, None, False),
        (Standing(attempts=[replace(LOADED, started_at=NOW - 9 * MINUTE)]), True, None, False),
        (Standing(attempts=[replace(LOADED, started_at=NOW - 10 * MINUTE)]), False, None, True),
        (Standing(attempts=[replace(LOADED, started_at=NOW + MINUTE)]), False, None, True),
        (Standing(attempts=[replace(LOADED, started_at=NOW - MINUTE, window=OLDER)]), False, None, True),
    ],
    ids=["at once", "looked", "announced", "loaded", "announced, loaded", "interval over", "wrong clock", "back-fill"],
)
def test_a_source_is_looked_at_after_the_least_interval_and_the_time_between_looks(
    standing: Standing, announced: bool, look_at: datetime | None, looked: bool
) -> None:
    told = why_no_look(SPEC, standing, FRESH, NOW, announced=announced, look_at=look_at)
    assert (told is None) is looked


def test_neither_a_run_under_way_nor_a_failure_nor_a_hold_nor_a_table_of_its_rhythm_is_looked_at() -> None:
    standing, last = Standing(attempts=[LOADED]), replace(LOADED, succeeded=False)
    for decision in (replace(FRESH, run_under_way="run"), replace(FRESH, failures=[last])):
        assert why_no_look(SPEC, standing, decision, NOW, announced=True, look_at=None) == ""
    undone = replace(standing, watermark=Watermark(NOW, TODAY, held_until=NOW + MINUTE))
    assert why_no_look(SPEC, undone, FRESH, NOW, announced=True, look_at=None) == "", "a load was undone"
    calm = altered(SPEC, refresh_on_change=False)
    assert why_no_look(calm, standing, FRESH, NOW, announced=True, look_at=None) == "it is refreshed by its rhythm only"


def test_a_day_without_a_signal_at_its_reading_counts_as_unseen_if_the_change_may_be_later() -> None:
    read = known(NOW, None)
    assert unseen_days(read, state(1, NOW - 11 * MINUTE), 10 * MINUTE) == []
    assert unseen_days(read, state(1, NOW - 9 * MINUTE), 10 * MINUTE) == list(WINDOW)
    assert unseen_days(read, state(1), 10 * MINUTE) == list(WINDOW)
    assert unseen_days(known(NOW, state(1)), state(1, NOW + MINUTE), 10 * MINUTE) == []


def test_without_a_signal_only_an_announcement_reads() -> None:
    days = known(NOW, state(1))
    quiet = decide_change(SPEC.schedule, days, "it reads no table", NOW, MINUTE, announced=False)
    assert quiet == Verdict(False, "its source gives no signal of changes: it reads no table")
    assert decide_change(SPEC.schedule, days, "it reads no table", NOW, MINUTE, announced=True).read


def test_an_announcement_is_heeded_by_a_later_comparison_with_the_source() -> None:
    standing = Standing(Watermark(NOW, TODAY))
    assert is_unheeded(NOW + MINUTE, standing)
    assert is_unheeded(NOW, Standing())
    assert not is_unheeded(NOW, standing)
    assert not is_unheeded(None, Standing())


STEPS = st.lists(st.tuples(st.sampled_from(["change", "announce", "tick"]), st.integers(0, 240)), min_size=1, max_size=60)


class Table:
    """A table, its source, and a sensor that follows the two decisions. A read takes no time and brings the source's state."""

    def __init__(self) -> None:
        self.now = NOW
        self.version, self.changed_at = 0, NOW - 60 * MINUTE
        self.loaded_at, self.days = NOW - 30 * MINUTE, known(NOW - 30 * MINUTE, state(0))
        self.compared_at = self.loaded_at
        self.heard_at: datetime | None = None
        self.look_at: datetime | None = None
        self.waits_since: datetime | None = None
        self.reads: list[datetime] = []

    @property
    def source(self) -> SourceState:
        return state(self.version, self.changed_at)

    def change(self) -> None:
        self.version, self.changed_at = self.version + 1, self.now

    def announce(self) -> None:
        self.heard_at, self.look_at = self.now, None

    def tick(self) -> None:
        attempt = replace(LOADED, started_at=self.loaded_at, finished_at=self.loaded_at)
        standing = Standing(Watermark(self.compared_at, TODAY), [attempt])
        announced = is_unheeded(self.heard_at, standing)
        if why_no_look(SPEC, standing, FRESH, self.now, announced=announced, look_at=self.look_at) is not None:
            return
        verdict = decide_change(SPEC.schedule, self.days, self.source, self.now, MINUTE, announced=announced)
        self.look_at = verdict.again_at or self.now + 2 * MINUTE
        if not verdict.read:
            return
        self.compared_at = self.now
        if unseen_days(self.days, self.source, MINUTE):
            assert self.now - self.loaded_at >= SPEC.schedule.least_interval
            assert announced or self.now - self.changed_at >= SPEC.schedule.settling_time
            self.loaded_at, self.days = self.now, known(self.now, self.source)
            self.reads.append(self.now)
        else:
            assert announced, "nothing has changed, so nothing asks for a read"


@given(STEPS)
def test_every_change_is_read_once_it_is_quiet_and_never_more_often_than_allowed(steps: list[tuple[str, int]]) -> None:
    table = Table()
    for act, seconds in steps:
        table.now += timedelta(seconds=seconds)
        getattr(table, act)()
    changes = table.version
    assert len(table.reads) <= changes
    # Whatever happened: when the source is quiet, a tick a minute reads its last change within interval, settling and looks.
    until = table.now + SPEC.schedule.least_interval + SPEC.schedule.settling_time + 3 * MINUTE
    while table.now < until:
        table.now += MINUTE
        table.tick()
    assert unseen_days(table.days, table.source, MINUTE) == []
    before = list(table.reads)
    for _ in range(30):
        table.now += MINUTE
        table.tick()
    assert table.reads == before


AGO = st.integers(0, 40 * 60).map(lambda seconds: timedelta(seconds=seconds))


@given(loaded=AGO, changed=AGO, seen=st.booleans())
def test_a_refresh_on_change_comes_when_it_is_foreseen(loaded: timedelta, changed: timedelta, seen: bool) -> None:
    table = Table()
    table.loaded_at, table.changed_at, table.version = NOW - loaded, NOW - changed, 1
    table.days = known(table.loaded_at, state(int(seen)))
    attempt = replace(LOADED, started_at=table.loaded_at, finished_at=table.loaded_at)
    found = foresee(SPEC, Standing(attempts=[attempt], days=table.days), FRESH, table.source, NOW, MINUTE)

    def reads_at(at: datetime) -> bool:
        table.now, table.look_at, table.reads = at, None, []
        table.tick()
        return bool(table.reads)

    if seen:
        assert found == "its source has not changed"
        assert not any(reads_at(NOW + minutes * MINUTE) for minutes in range(20))
        return
    assert isinstance(found, Foreseen)
    assert found.changed_at == table.changed_at
    assert found.at == NOW or not reads_at(found.at - timedelta(seconds=1))
    assert reads_at(found.at)
    waits = [one for one in (found.settles_at, found.rests_until) if one is not None]
    assert found.at == max(waits, default=NOW)


def test_no_refresh_on_change_is_foreseen_where_something_else_comes_first() -> None:
    standing, changed = Standing(attempts=[LOADED], days=known(NOW - 20 * MINUTE, state(0))), state(1, NOW - MINUTE)
    found = foresee(SPEC, standing, FRESH, changed, NOW, MINUTE)
    assert found == Foreseen(NOW + MINUTE, NOW - MINUTE, NOW + MINUTE)
    assert foresee(SPEC, standing, replace(FRESH, run_under_way="run"), changed, NOW, MINUTE) == ""
    calm = altered(SPEC, refresh_on_change=False)
    assert foresee(calm, standing, FRESH, changed, NOW, MINUTE) == "it is refreshed by its rhythm only"
    assert (
        foresee(SPEC, standing, FRESH, "it reads no table", NOW, MINUTE)
        == "its source gives no signal of changes: it reads no table"
    )
    loaded = replace(standing, attempts=[replace(LOADED, started_at=NOW - 5 * MINUTE)])
    assert foresee(SPEC, loaded, FRESH, changed, NOW, MINUTE) == Foreseen(
        NOW + 5 * MINUTE, NOW - MINUTE, NOW + MINUTE, NOW + 5 * MINUTE
    )
