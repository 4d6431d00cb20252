"""An undoing in the history and in the ledger of days: the days are owed again, and only people refresh the table for a while."""

from __future__ import annotations

from datetime import datetime, timedelta

import dagster as dg
import psycopg
import pytest

from pulso_etl.sync.errors import UndoRefused
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.ledger.changes import Changes
from pulso_etl.sync.ledger.ledger import Unchanged, server_clock
from pulso_etl.sync.ledger.undoings import Wish, is_undoing
from pulso_etl.sync.ledger.watermarks import TableState, Watermarks
from pulso_etl.sync.owed import Horizon, owed_days
from pulso_etl.sync.source_state import SourceState
from pulso_etl.sync.target import Target
from pulso_etl.sync.undoing import undo_load
from pulso_etl_tests.sync.samples import WINDOW, monthly, row
from pulso_etl_tests.sync.test_change_log import Place
from pulso_etl_tests.sync.test_io_manager import stored, wanted
from pulso_etl_tests.sync.visits import ALL, D1, D2, D3, SPEC, Rows, materialize, table, visits

BAD: Rows = [(D1, "a", "1.5"), (D2, "a", "7"), (D2, "z", "8"), (D3, "ñ", None)]
LONG_AGO = datetime.fromisoformat("2026-01-01T00:00:00Z")


@pytest.fixture
def target(manager: PostgresUpsertIOManager, instance: dg.DagsterInstance, conn: psycopg.Connection, schema: str) -> Target:
    """The table after a good load and a bad one."""
    for rows in (ALL, BAD):
        assert materialize(manager, instance, visits(lambda _, rows=rows: table(rows))).success
    return Target(conn, SPEC, schema)


def state(target: Target) -> TableState:
    return Watermarks(target.schema).read(target.conn, LONG_AGO)["visits"]


def test_an_undone_load_is_in_the_history_its_days_are_owed_and_the_watermark_stays(
    target: Target, manager: PostgresUpsertIOManager, instance: dg.DagsterInstance
) -> None:
    before, now = state(target), server_clock(target.conn)
    today = SPEC.zone.day(now)
    report = undo_load(target, Wish(by="ana", hold=timedelta(hours=3)))
    assert stored(target.conn) == wanted(ALL)
    after = state(target)
    last = after.attempts[-1]
    assert (last.succeeded, is_undoing(last.run_id), str(last.window)) == (True, True, "2026-02-27..2026-02-28")
    told = {name: last.metadata[name] for name in ("undoes", "asked_by", "rows_inserted", "rows_updated", "rows_deleted")}
    assert told == {"undoes": 2, "asked_by": "ana", "rows_inserted": 1, "rows_updated": 1, "rows_deleted": 1}
    assert (after.data_version, after.last_extracted_at) == (before.data_version + 1, before.last_extracted_at)
    assert after.held_until == report.held_until
    assert after.watermark.is_held(now + timedelta(hours=2))
    assert not after.watermark.is_held(now + timedelta(hours=4))
    days = Watermarks(target.schema).ledger.of_days(target.conn, "visits", last.window)
    assert {day: (one.rows, one.source) for day, one in days.items()} == {D1: (2, None), D2: (1, None)}
    owed = owed_days(Horizon.of(SPEC, D1, today), after.watermark, today)
    assert {D1, D2} <= set(owed)
    assert D3 not in owed

    # A load of one of the two days holds the table still, a load of both does not, and nothing is owed of them.
    for end, held in (("2026-02-27", True), ("2026-03-01", False)):
        assert materialize(manager, instance, visits(lambda rows: rows), end=end).success
        assert (state(target).held_until is not None) is held
    assert not {D1, D2} & set(owed_days(Horizon.of(SPEC, D1, today), state(target).watermark, today))


def test_a_dry_run_and_a_refusal_change_nothing(target: Target) -> None:
    before, log = state(target), Changes(target.schema).latest(target.conn, "visits", 9)
    report = undo_load(target, Wish(), dry_run=True)
    assert (report.load_id, report.change.load_id, report.undone.total.written) == (None, 2, 3)
    with pytest.raises(UndoRefused, match="2 of its rows have changed since"):
        undo_load(target, Wish(load_id=1))
    assert stored(target.conn) == wanted(BAD)
    assert state(target) == before
    assert Changes(target.schema).latest(target.conn, "visits", 9) == log


def test_the_loads_metadata_name_its_entry(target: Target, instance: dg.DagsterInstance) -> None:
    (record,) = instance.fetch_materializations(dg.AssetKey("visits"), limit=1).records
    assert record.asset_materialization is not None
    assert record.asset_materialization.metadata["load_id"].value == 2
    assert [one.metadata.get("load_id") for one in state(target).attempts] == [1, 2]


def test_the_ledger_knows_the_rows_that_go_back_to_days_between_those_that_changed(conn: psycopg.Connection, schema: str) -> None:
    spec, marks = monthly(), Watermarks(schema)
    place = Place(conn, schema)
    marks.create(conn)
    place.load([row(D1, "a"), row(D2, "b"), row(D2, "c")], spec)
    # The newest day of b is another one now, and D2 itself is not among the days that changed.
    place.load([row(D1, "a", "2"), row(D2, "c"), row(D3, "b")], spec)
    assert [day.day for day in place.log()[0].days] == [D1, D3]
    place.run(
        "INSERT INTO etl_days (table_name, day, read_at, loaded_at, rows, extraction_id, open_until) "
        "SELECT 'things', day, now(), now(), count(*), '', day FROM things GROUP BY day"
    )
    undo_load(Target(conn, spec, schema), Wish())
    held = place.run("SELECT day, count(*) FROM things GROUP BY 1 ORDER BY 1")
    assert held == [(D1, 1), (D2, 2)]
    days = marks.ledger.of_days(conn, "things", WINDOW)
    assert {day: (one.rows, one.is_undone) for day, one in days.items()} == {D1: (1, True), D2: (2, False), D3: (0, True)}


def test_a_look_that_began_before_an_undoing_does_not_make_its_days_verified(target: Target) -> None:
    """The sensor reads the ledger, looks at the source, and writes what it saw: a load may be undone meanwhile."""
    marks, now = Watermarks(target.schema), server_clock(target.conn)
    undo_load(target, Wish())
    seen = Unchanged(now, SourceState({"text": "same"}), Horizon.of(SPEC, D1, SPEC.zone.day(now)))
    marks.unchanged(target.conn, "visits", [D1, D2, D3], seen)
    found = marks.ledger.of_days(target.conn, "visits", WINDOW)
    told = {day: (one.is_undone, one.source is None) for day, one in found.items()}
    assert told == {D1: (True, True), D2: (True, True), D3: (False, False)}
