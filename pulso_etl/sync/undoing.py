"""Undoes loads: the rows, the history and the ledger in one transaction, under the locks of a load."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime

import psycopg

from pulso_etl.sync.errors import UndoRefused
from pulso_etl.sync.ledger import locks
from pulso_etl.sync.ledger.changes import Change, Changes, Entry, Kept
from pulso_etl.sync.ledger.ledger import server_clock
from pulso_etl.sync.ledger.undoings import PREFIX, Wish
from pulso_etl.sync.ledger.watermarks import Reverted, RunningAttempt, Watermarks
from pulso_etl.sync.loading.undo import Undone, chosen, undo
from pulso_etl.sync.postgres.server_errors import meaning
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.target import Target


@dataclass(frozen=True)
class Report:
    """An undoing. `load_id` is its own number in the change log; None for a dry run. `held_until`: when the hold ends."""

    undone: Undone
    run_id: str
    load_id: int | None
    held_until: datetime

    @property
    def change(self) -> Change:
        """The load that was undone."""
        return self.undone.change


def undo_load(target: Target, wish: Wish, *, dry_run: bool = False) -> Report:
    """Undoes a load in one transaction, with the connection of the target, which is in autocommit mode.

    The session has no other advisory locks. A dry run does the same and rolls it back. Raises UndoRefused, TableBusy and other
    errors of `pulso_etl.sync.errors`.
    """
    conn, schema = target.conn, target.schema
    Watermarks(schema).create(conn)
    # Which days it is about says which locks it needs. Under them it is looked at again.
    change = chosen(target, wish.load_id)
    with _refusing(target.spec, change):
        sole = locks.hold(target, change.window)
        try:
            with conn.transaction():
                found = _undo(target, wish, change.load_id, sole)
                if dry_run:
                    raise psycopg.Rollback
        finally:
            if not conn.broken:
                conn.execute("SELECT pg_advisory_unlock_all()")
    return replace(found, load_id=None) if dry_run else found


@contextmanager
def _refusing(spec: TableSpec, change: Change) -> Iterator[None]:
    """Turns the server's errors into the project's errors. That the table does not take the old rows is a refusal."""
    try:
        yield
    except psycopg.Error as error:
        found = meaning(error)
        if not found.by_row:
            raise found.tell(error, f"{spec.name} {change.window}") from error
        raise UndoRefused(
            f"{spec.name}: {change} cannot be undone: {replace(found, advice='').tell(error)}; drop what refuses the row, or "
            f"refresh the days: pulso-etl refresh {spec.as_argument} --from {change.window.start} --to {change.window.end}. "
            "Nothing was undone"
        ) from error


def _undo(target: Target, wish: Wish, load_id: int, sole: bool) -> Report:
    conn, spec, changes, began = target.conn, target.spec, Changes(target.schema), time.monotonic()
    now, run_id, marks = server_clock(conn), f"{PREFIX}{uuid.uuid4()}", Watermarks(target.schema)
    held_until = now + (spec.schedule.refresh_every if wish.hold is None else wish.hold)
    change = chosen(target, load_id)
    with marks.taking_over(conn, spec, {day.day for day in change.days}):
        done = undo(target, change, sole_writer=sole)
    reason = f"it undid load {load_id}"
    (writer,) = conn.execute("SELECT pg_current_xact_id()::xid::text::bigint").fetchone() or (None,)
    entry = Entry(table=spec.name, run_id=run_id, kept=Kept.NONE, reason=reason, undoes=load_id, written_by=writer)
    number = changes.begin(conn, entry)
    changes.end(conn, number, done.days)
    changes.undone(conn, load_id, number)
    metadata = {**done.total.as_dict(), "load_id": number, "undoes": load_id, "asked_by": wish.by}
    attempt = RunningAttempt(spec.name, done.change.window, run_id, 1, now)
    marks.undo(conn, attempt, Reverted(_rows(target, done), held_until, time.monotonic() - began, metadata))
    return Report(done, run_id, number, held_until)


def _rows(target: Target, done: Undone) -> dict[date, int]:
    """How many rows each day of the load has now."""
    window = done.change.window
    query = Statements(target.spec, target.schema).rows_by_day()
    held: dict[date, int] = dict(target.conn.execute(query, {"start": window.start, "end": window.end}).fetchall())
    return {day.day: held.get(day.day, 0) for day in done.days}
