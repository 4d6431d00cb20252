"""The decision: which messages, and when, from what happened."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulso_etl.alerts.incidents import (
    FOLLOWS_FROM,
    OUTAGES,
    PROVES_WELL,
    UNCLEAR,
    Event,
    Failed,
    Incident,
    Notice,
    Policy,
    Recovered,
    Stage,
    State,
    absorb,
    announce,
    review,
    short_detail,
    succeeded,
)
from pulso_etl.alerts.messages import render
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause

START = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
TABLES = ("dashboard_data", "evolution_data", "assignment_data", "operation_data", "productivity_data")
POLICY = Policy()


class Book:
    """Plays the store: keeps the incidents between decisions and gives them ids."""

    def __init__(self) -> None:
        self.incidents: list[Incident] = []
        self.sent: list[tuple[datetime, Notice]] = []

    def flush(self, now: datetime, *events: Event) -> list[str]:
        """Decides, and returns the messages as "stage cause tables"."""
        after, notices = review(self.incidents, events, now, POLICY)
        self.incidents = [replace(incident, id=position) for position, incident in enumerate(after)]
        self.sent += [(now, notice) for notice in notices]
        return [f"{notice.stage} {notice.incident.cause} {' '.join(notice.incident.tables)}" for notice in notices]


def outage(at: datetime, table: str) -> Failed:
    return Failed(Cause.SOURCE_UNAVAILABLE, table, at, window=DayRange(date(2026, 3, 1), date(2026, 3, 2)), run_id=f"run-{table}")


def test_five_tables_failing_again_and_again_are_one_message_and_one_when_the_first_is_loaded() -> None:
    book, told = Book(), []
    for tick in range(0, 350):
        now = START + tick * MINUTE
        told += book.flush(now, *([outage(now, TABLES[tick % 5])] if tick % 3 == 0 else []))
    assert told == [f"opened source_unavailable {TABLES[0]}"]
    assert {s.table for s in book.incidents[0].failing} == set(TABLES)
    end = START + 350 * MINUTE
    by_table = [book.flush(end + n * MINUTE, succeeded(table, end + n * MINUTE)) for n, table in enumerate(TABLES)]
    assert [line.split()[:2] for lines in by_table for line in lines] == [["recovered", "source_unavailable"]]
    assert by_table[1] != []
    assert book.incidents[0].closed_at == end


def test_a_second_outage_is_told_by_itself_although_a_table_of_the_first_is_not_loaded_yet() -> None:
    book = Book()
    book.flush(START, outage(START, "a"), outage(START, "b"))
    told = book.flush(START + MINUTE)
    end = START + 10 * MINUTE
    book.flush(end, succeeded("a", end))
    told += book.flush(end + MINUTE)
    again = end + 20 * MINUTE
    book.flush(again, outage(again, "b"))
    told += book.flush(again + MINUTE)
    last = again + 5 * MINUTE
    book.flush(last, succeeded("b", last))
    told += book.flush(last + MINUTE)
    assert [line.split()[0] for line in told] == ["opened", "recovered", "opened", "recovered"]
    lasted = [incident.over_at - incident.first_seen for incident in book.incidents if incident.over_at]
    assert lasted == [10 * MINUTE, 5 * MINUTE]


def test_a_run_that_began_before_the_source_failed_does_not_show_that_it_is_back() -> None:
    book = Book()
    book.flush(START, outage(START, "a"))
    told = book.flush(START + MINUTE, succeeded("b", START + MINUTE, began=START - MINUTE))
    told += [line for tick in range(2, 9) for line in book.flush(START + tick * MINUTE)]
    assert told == ["opened source_unavailable a"]


def test_a_run_that_an_outage_ended_although_it_says_so_after_it_is_no_second_outage() -> None:
    book = Book()
    book.flush(START, outage(START, "a"), outage(START, "b"))
    book.flush(START + MINUTE)
    end = START + 10 * MINUTE
    book.flush(end, succeeded("a", end))
    late = replace(outage(end + 2 * MINUTE, "c"), began=end - MINUTE)
    told = [book.flush(end + MINUTE), book.flush(end + 2 * MINUTE, late), book.flush(end + 5 * MINUTE)]
    assert [line.split()[:2] for lines in told for line in lines] == [["recovered", "source_unavailable"]]


def test_a_table_that_fails_alone_again_and_again_is_no_outage() -> None:
    book, told = Book(), []
    for hour in range(5):
        at = START + hour * HOUR
        told += book.flush(at, outage(at, "a"))
        told += book.flush(at + MINUTE)
        told += book.flush(at + 20 * MINUTE, succeeded("b", at + 20 * MINUTE))
        told += book.flush(at + 22 * MINUTE)
    assert told == ["opened source_unavailable a", "recovered source_unavailable a", "opened internal a"]
    end = START + 5 * HOUR
    book.flush(end, succeeded("a", end))
    assert book.flush(end + MINUTE) == ["recovered internal a"]
    # The table was well in between, so its outage is like any other.
    book.flush(end + HOUR, outage(end + HOUR, "a"))
    assert book.flush(end + HOUR + MINUTE) == ["opened source_unavailable a"]


def test_failures_gather_for_a_minute_before_they_are_told() -> None:
    book = Book()
    for n, table in enumerate(TABLES):
        now = START + n * timedelta(seconds=11)
        assert book.flush(now, outage(now, table)) == []
    assert book.flush(START + timedelta(seconds=59)) == []
    assert book.flush(START + timedelta(seconds=60)) == ["opened source_unavailable " + " ".join(TABLES)]


def test_a_problem_of_each_table_is_told_alone_unless_they_come_together() -> None:
    book = Book()
    book.flush(START, Failed(Cause.CONTRACT, "a", START), Failed(Cause.CONTRACT, "b", START))
    assert book.flush(START + MINUTE) == ["opened contract a b"]
    later = START + HOUR
    book.flush(later, Failed(Cause.CONTRACT, "c", later))
    assert book.flush(later + MINUTE) == ["opened contract c"]


def test_what_is_over_within_the_minute_is_not_told() -> None:
    book = Book()
    book.flush(START, Failed(Cause.INTERNAL, "a", START))
    assert book.flush(START + MINUTE, succeeded("a", START + MINUTE / 2)) == []
    assert book.flush(START + HOUR) == []
    assert not book.incidents[0].open


def test_a_problem_that_stays_is_told_again_every_six_hours_only() -> None:
    book = Book()
    book.flush(START, Failed(State.STALE, "a", START))
    told = [(tick, line) for tick in range(1, 18 * 60) for line in book.flush(START + tick * MINUTE)]
    assert told == [(1, "opened stale a"), (361, "reminder stale a"), (721, "reminder stale a")]


def test_staleness_that_an_outage_brings_about_is_not_told_beside_it() -> None:
    book = Book()
    book.flush(START, outage(START, "a"), outage(START, "b"))
    book.flush(START + MINUTE)
    stale = START + 2 * HOUR
    limit = Failed(State.RECOVERY_LIMIT, "a", stale)
    told = book.flush(stale, Failed(State.STALE, "a", stale), Failed(State.STALE, "b", stale), limit)
    told += [line for tick in range(1, 300) for line in book.flush(stale + tick * MINUTE)]
    assert told == ["reminder source_unavailable a b"]
    assert {incident.cause for incident in book.sent[-1][1].held} == {State.STALE, State.RECOVERY_LIMIT}
    end = stale + 300 * MINUTE
    told = book.flush(end, succeeded("a", end), succeeded("b", end))
    fresh = end + MINUTE / 2
    told += book.flush(fresh, Recovered({State.STALE}, "a", fresh), Recovered({State.STALE}, "b", fresh))
    told += [line for tick in range(1, 60) for line in book.flush(fresh + tick * MINUTE)]
    assert told == ["recovered source_unavailable a b"]


def test_staleness_that_outlives_the_outage_is_told() -> None:
    book = Book()
    book.flush(START, outage(START, "a"), Failed(State.STALE, "a", START))
    book.flush(START + MINUTE)
    book.flush(START + HOUR, succeeded("a", START + HOUR))
    told = [line for tick in range(1, 10) for line in book.flush(START + HOUR + tick * MINUTE)]
    assert told == ["recovered source_unavailable a", "opened stale a"]


def test_staleness_of_a_table_that_no_outage_holds_is_told() -> None:
    book = Book()
    book.flush(START, outage(START, "a"), Failed(State.STALE, "b", START))
    assert book.flush(START + MINUTE) == ["opened source_unavailable a", "opened stale b"]


def test_an_unclear_failure_during_an_outage_is_part_of_it_and_a_clear_one_is_not() -> None:
    book = Book()
    book.flush(START, outage(START, "a"), outage(START, "b"))
    later = START + 2 * MINUTE
    book.flush(later, Failed(Cause.TIMEOUT, "a", later), Failed(Cause.CONTRACT, "b", later))
    assert [incident.cause for incident in book.incidents] == [Cause.SOURCE_UNAVAILABLE, Cause.CONTRACT]
    assert [s.table for s in book.incidents[0].failing] == ["a"]


def test_checks_of_one_table_are_told_apart() -> None:
    book = Book()
    book.flush(START, Failed(State.CHECK, "a", START, "nulls"), Failed(State.CHECK, "a", START, "volume"))
    assert book.flush(START + MINUTE) == ["opened check a"]
    one, two = START + 2 * MINUTE, START + 3 * MINUTE
    assert book.flush(two, Recovered({State.CHECK}, "a", one, "nulls")) == []
    assert book.flush(two + HOUR) == []
    book.flush(two + HOUR, Recovered({State.CHECK}, "a", two + HOUR, "volume"))
    assert book.flush(two + 2 * HOUR) == ["recovered check a"]


def test_a_failure_from_before_the_recovery_is_not_news() -> None:
    book = Book()
    book.flush(START, outage(START, "a"))
    book.flush(START + MINUTE)
    book.flush(START + HOUR, succeeded("a", START + HOUR))
    assert book.flush(START + HOUR + MINUTE) == ["recovered source_unavailable a"]
    late = outage(START + 59 * MINUTE, "a")
    assert book.flush(START + 2 * HOUR, late) == []
    assert len(book.incidents) == 1


def test_a_success_from_before_the_failure_ends_nothing() -> None:
    book = Book()
    book.flush(START, outage(START, "a"))
    book.flush(START + MINUTE, succeeded("a", START - MINUTE))
    assert book.incidents[0].failing


def test_the_range_of_days_covers_all_that_failed() -> None:
    first, second = DayRange(date(2026, 2, 1), date(2026, 2, 3)), DayRange(date(2026, 3, 1), date(2026, 3, 2))
    (incident,) = absorb(
        [], [Failed(Cause.CONTRACT, "a", START, window=second), Failed(Cause.CONTRACT, "a", START + MINUTE, window=first)]
    )
    assert incident.subjects[0].window == DayRange(date(2026, 2, 1), date(2026, 3, 2))
    assert incident.count == 2


tables = st.sampled_from(TABLES[:3])
causes = st.sampled_from(
    [
        Cause.SOURCE_UNAVAILABLE,
        Cause.DESTINATION_UNAVAILABLE,
        Cause.CONTRACT,
        Cause.INTERNAL,
        State.STALE,
        State.RECOVERY_LIMIT,
    ]
)
happenings = st.tuples(st.sampled_from(["fail", "fail", "well", "fresh"]), causes, tables)
steps = st.lists(st.tuples(st.integers(1, 300), st.lists(happenings, max_size=4)), max_size=25)
History = list[tuple[datetime, list[Event]]]


def history(given: list[tuple[int, list[tuple[str, Cause, str]]]]) -> History:
    """The flush times and their events. No two events have the same instant."""
    now, result = START, []
    for minutes_tenths, happened in given:
        now += minutes_tenths * timedelta(seconds=6 * 7)
        events: list[Event] = []
        for n, (kind, cause, table) in enumerate(happened):
            at = now - timedelta(seconds=20 - n)
            if kind == "fail":
                events.append(Failed(cause, table, at))
            else:
                events.append(succeeded(table, at) if kind == "well" else Recovered({State.STALE}, table, at))
        result.append((now, events))
    return result


def played(past: History) -> Book:
    """The book after the history and some quiet flushes."""
    book = Book()
    for now, events in past:
        book.flush(now, *events)
    end = past[-1][0] if past else START
    for tick in range(1, 8):
        book.flush(end + tick * MINUTE)
    return book


@given(steps)
@settings(max_examples=200)
def test_no_incident_is_told_twice_within_the_reminder_interval(
    given_steps: list[tuple[int, list[tuple[str, Cause, str]]]],
) -> None:
    told = defaultdict(list)
    for now, notice in played(history(given_steps)).sent:
        if notice.stage is not Stage.RECOVERED:
            told[notice.position].append(now)
    for times in told.values():
        assert all(after - before >= POLICY.remind_every for before, after in pairwise(times))


@given(steps)
@settings(max_examples=200)
def test_every_told_incident_that_recovers_is_told_so_exactly_once_and_last(
    given_steps: list[tuple[int, list[tuple[str, Cause, str]]]],
) -> None:
    book = played(history(given_steps))
    stages = defaultdict(list)
    for _, notice in book.sent:
        stages[notice.position].append(notice.stage)
    for position, incident in enumerate(book.incidents):
        seen = stages[position]
        assert (incident.notified_at is not None) == bool(seen)
        assert seen[:1] in ([], [Stage.OPENED])
        assert seen.count(Stage.OPENED) == bool(seen)
        assert seen.count(Stage.RECOVERED) == (bool(seen) and not incident.open)
        assert incident.open or not seen or seen[-1] is Stage.RECOVERED


@given(steps)
@settings(max_examples=200)
def test_nothing_that_still_fails_is_untold(given_steps: list[tuple[int, list[tuple[str, Cause, str]]]]) -> None:
    past = history(given_steps)
    book = played(past)
    failing: set[tuple[Cause | State, str]] = set()
    for _, events in past:
        for event in events:
            if isinstance(event, Recovered):
                over = OUTAGES if event.began else frozenset()
                failing -= {(cause, event.table) for cause in event.causes}
            else:
                over = PROVES_WELL.get(event.cause, frozenset())
                failing.add((event.cause, event.table))
            # What one table shows about an outside system holds for every table of that outage.
            held = {table for cause, table in failing if cause in over}
            failing -= {(cause, table) for cause in over | UNCLEAR for table in held}
    told = {(i.cause, s.table) for i in book.incidents if i.open and i.notified_at for s in i.failing}
    for cause, table in failing:
        stand_ins = {cause} | (OUTAGES if cause in UNCLEAR else set()) | FOLLOWS_FROM.get(cause, frozenset())
        # An outage of which an unclear failure was part may since be known to be over.
        stand_ins |= set(PROVES_WELL) if cause in UNCLEAR else set()
        # A table that failed alone while others were loaded has a fault of its own, or belongs to the outage that it is in.
        stand_ins |= OUTAGES | {Cause.INTERNAL} if cause in OUTAGES else set()
        assert told & {(other, table) for other in stand_ins}


@given(steps)
def test_events_given_twice_change_nothing(given_steps: list[tuple[int, list[tuple[str, Cause, str]]]]) -> None:
    events = [event for _, events in history(given_steps) for event in events]
    once = absorb([], events)
    assert absorb(once, events) == once


def test_passwords_in_an_error_are_blanked() -> None:
    text = short_detail(
        "connect postgresql://etl:s3cr3t@db.example.com/x?sslpassword=abc failed\n password=hunter2 token: xyz" + "!" * 500
    )
    assert not any(secret in text for secret in ("s3cr3t", "abc", "hunter2", "xyz"))
    assert "db.example.com/x" in text
    assert "\n" not in text
    assert len(text) <= 400


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="zone"):
        Failed(State.STALE, "a", datetime(2026, 3, 2))


def away(at: datetime) -> Failed:
    return Failed(Cause.DESTINATION_UNAVAILABLE, "", at, "base de datos")


def killed(began: datetime, at: datetime, table: str = "a") -> Failed:
    return Failed(Cause.INTERNAL, table, at, began=began)


def test_a_run_that_an_outage_of_the_database_ended_is_told_with_it() -> None:
    book = Book()
    book.flush(START, away(START))
    assert book.flush(START + MINUTE) == ["opened destination_unavailable "]
    back = START + 10 * MINUTE
    over = Recovered({Cause.DESTINATION_UNAVAILABLE}, "", back, "base de datos")
    # Dagster notices it during the outage and after it.
    assert book.flush(back, over, killed(START - HOUR, START + MINUTE)) == []
    (line,) = book.flush(back + MINUTE, succeeded("a", back + MINUTE))
    assert line.startswith("recovered destination_unavailable")
    assert book.flush(back + 4 * MINUTE, killed(START, back + 3 * MINUTE, "b"), killed(back, back + 3 * MINUTE, "c")) == []
    assert book.flush(back + HOUR) == []


def test_an_outage_of_the_database_lasted_until_it_was_back_although_a_table_was_loaded_later() -> None:
    policy, at = Policy(gather=MINUTE), START + timedelta(seconds=85)
    lost = Failed(Cause.DESTINATION_UNAVAILABLE, "a", START + timedelta(seconds=20))
    over = Recovered({Cause.DESTINATION_UNAVAILABLE}, "", at, "base de datos")
    book = absorb([], [away(START), lost])
    book, _ = announce(book, START + MINUTE, policy)
    book, (notice,) = announce(absorb(book, [over]), at + MINUTE, policy)
    body = render(notice, "").body
    assert "Duró: 1 min 25 s" in body
    assert "Qué hacer: nada; Pulso vuelve a cargar lo que falta: a." in body
    assert announce(absorb(book, [succeeded("a", at + 4 * MINUTE)]), at + 5 * MINUTE, policy)[1] == []


def test_a_run_that_began_long_after_the_outage_is_told_as_its_own() -> None:
    book = Book()
    book.flush(START, away(START))
    back = START + 10 * MINUTE
    book.flush(back, Recovered({Cause.DESTINATION_UNAVAILABLE}, "", back, "base de datos"))
    book.flush(back + MINUTE)
    began = back + 3 * MINUTE
    book.flush(began + MINUTE, killed(began, began + MINUTE))
    assert book.flush(began + 2 * MINUTE) == ["opened internal a"]


def test_tables_that_turned_stale_while_the_database_was_away_are_told_only_if_they_stay_so() -> None:
    book = Book()
    book.flush(START, away(START))
    book.flush(START + MINUTE)
    back = START + 20 * HOUR
    stale = Failed(State.STALE, "a", back)
    assert book.flush(back, Recovered({Cause.DESTINATION_UNAVAILABLE}, "", back, "base de datos"), stale) == []
    told = [line for tick in range(1, 10) for line in book.flush(back + tick * MINUTE)]
    assert [line.split()[:2] for line in told] == [["recovered", "destination_unavailable"], ["opened", "stale"]]
