"""Change capture by GoogleSQL: its statements, run over histories as BigQuery documents them, lead to what a whole read gives.

The history stands beside the table, and CHANGES and APPENDS are queries of it. Nothing is translated: the statement is the one that
BigQuery gets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pulso_etl.bigquery.analysis import HISTORY
from pulso_etl.bigquery.capture import captured_sql
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.spec import TableSpec, fill
from pulso_etl_tests.bigquery.evaluation import Row, evaluate
from pulso_etl_tests.change_history import CALLS, Key, Source
from pulso_etl_tests.declarations import altered

OUTSIDE, *DAYS = (date(2026, 7, day) for day in (12, 13, 14, 15))
WINDOW = DayRange(DAYS[0], DAYS[-1])
START = datetime(2026, 7, 15, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
COLUMNS = {"fecha": "DATE", "agente": "STRING", "monto": "INT64"}
CATALOGUE = {"p.d.calls": COLUMNS, "history": COLUMNS | HISTORY}
BETWEEN = "SELECT * FROM history WHERE _CHANGE_TIMESTAMP >= since AND _CHANGE_TIMESTAMP < until"
FUNCTIONS = {"CHANGES": BETWEEN, "APPENDS": f"{BETWEEN} AND _CHANGE_TYPE = 'INSERT'"}
FILTERED = altered(CALLS, query=f"{CALLS.source.query} AND monto > 4")
"""A change of the amount takes a row into the table, or out of it."""
APPENDED = altered(CALLS, change_capture="appends")
LOG = altered(APPENDED, strategy="append")
Commit = tuple[Mapping[Key, int], Iterable[Key]]
Rows = Counter[tuple[Any, ...]]

keys = st.tuples(st.sampled_from((OUTSIDE, *DAYS)), st.sampled_from("ab"))
commits = st.tuples(st.dictionaries(keys, st.integers(0, 9), max_size=3), st.sets(keys, max_size=2))
histories = st.lists(commits, min_size=1, max_size=6)


def happened(commits: Iterable[Commit]) -> Source:
    """A table with these commits. There is one commit a minute."""
    source = Source(None, "p.d.calls")  # type: ignore[arg-type]
    for n, (put, delete) in enumerate(commits):
        source.commit(START + n * MINUTE, put, [key for key in delete if key not in put])
    return source


def whole(spec: TableSpec, source: Source, at: datetime) -> Rows:
    """The rows of the table's query at an instant."""
    rows = [{"fecha": day, "agente": agent, "monto": amount} for (day, agent), amount in source.as_of(at).items()]
    return Counter(tuple(row.values()) for row in run(spec, spec.source.query, rows, [], {}))


def captured(spec: TableSpec, source: Source, since: datetime, until: datetime) -> list[Row]:
    """The rows of the statement that reads the changes between two instants."""
    history = [
        {"fecha": day, "agente": agent, "monto": amount, "_CHANGE_TYPE": kind, "_CHANGE_TIMESTAMP": at}
        for at, kind, (day, agent), amount in source.log
    ]
    instants = {"since": ("TIMESTAMP", since), "until": ("TIMESTAMP", until)}
    return run(spec, captured_sql(spec), [], history, instants)


def run(spec: TableSpec, statement: str, rows: list[Row], history: list[Row], instants: Mapping[str, tuple[str, Any]]) -> list[Row]:
    days = {"start": ("DATE", WINDOW.start), "end": ("DATE", WINDOW.end)}
    statement = fill(statement, {"calls": "p.d.calls"}, spec.timezone)
    return evaluate(statement, days | dict(instants), {"p.d.calls": rows, "history": history}, CATALOGUE, FUNCTIONS)


def applied(rows: Rows, changes: list[Row]) -> Rows:
    """The rows after a load of the changes. The table holds each key once."""
    held = {row[:2]: row for row in rows}
    for change in changes:
        key = (change["day"], change["agent"])
        held.pop(key, None)
        if not change["pulso_deleted"]:
            held[key] = (*key, change["amount"])
    return Counter(held.values())


@given(spec=st.sampled_from((CALLS, FILTERED)), commits=histories, loaded=st.integers(0, 5), margin=st.integers(0, 3))
@settings(max_examples=9, phases=[Phase.generate])
def test_after_changes_the_table_holds_what_a_whole_read_gives(
    spec: TableSpec, commits: list[Commit], loaded: int, margin: int
) -> None:
    source = happened(commits)
    at, until = START + min(loaded, len(commits)) * MINUTE, START + len(commits) * MINUTE
    changes = captured(spec, source, at - margin * MINUTE, until)
    assert len({(row["day"], row["agent"]) for row in changes}) == len(changes)
    assert applied(whole(spec, source, at), changes) == whole(spec, source, until)


@given(commits=st.lists(st.dictionaries(keys, st.integers(0, 9), max_size=3), min_size=1, max_size=5), loaded=st.integers(0, 4))
@settings(max_examples=4, phases=[Phase.generate])
def test_after_appends_alone_the_table_holds_what_a_whole_read_gives(commits: list[dict[Key, int]], loaded: int) -> None:
    seen: set[Key] = set()
    appended: list[Commit] = []
    for put in commits:
        appended.append(({key: amount for key, amount in put.items() if key not in seen}, ()))
        seen |= put.keys()
    source = happened(appended)
    at, until = START + min(loaded, len(commits)) * MINUTE, START + len(commits) * MINUTE
    changes = captured(APPENDED, source, at, until)
    assert applied(whole(APPENDED, source, at), changes) == whole(APPENDED, source, until)
    # A table of log lines gets each added row, as often as it was added.
    lines = Counter((row["day"], row["agent"], row["amount"]) for row in captured(LOG, source, at, until))
    assert lines == whole(LOG, source, until) - whole(LOG, source, at)


@pytest.mark.parametrize("change", [({(DAYS[0], "a"): 7}, ()), ({}, [(DAYS[0], "a")])], ids=["update", "deletion"])
def test_appends_do_not_tell_of_rows_that_change_or_disappear(change: Commit) -> None:
    source = happened([({(DAYS[0], "a"): 1}, ()), change])
    until = START + 2 * MINUTE
    assert captured(APPENDED, source, START + MINUTE, until) == []
    assert captured(CALLS, source, START + MINUTE, until) != []
