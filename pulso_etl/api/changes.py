"""What loads changed, and the keys of the rows that they changed, from the change log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from pulso_etl.api.models import ChangedRowShown, DayChanged, FigureMovement, LoadChanges, TableChanges, Undoing
from pulso_etl.sync.figures import decimal_of
from pulso_etl.sync.ledger.changes import Change, Changes, DayChange, Kept
from pulso_etl.sync.ledger.undoings import is_undoing
from pulso_etl.sync.movements import movements
from pulso_etl.sync.spec import TableSpec

if TYPE_CHECKING:
    from pulso_etl.sync.undoing import Report

MOST_KEYS = 200
"""An event names at most so many changed keys."""
Keys = list[dict[str, str]]


@dataclass(frozen=True)
class Asked:
    """Which loads of a table are asked for: `limit` of them before the one of the number `before`, or only the load `load_id` with
    `limit` of its rows, from the place `offset` on."""

    limit: int
    before: int | None = None
    load_id: int | None = None
    day: date | None = None
    offset: int = 0


def read_changes(conn: psycopg.Connection, log: Changes, spec: TableSpec, asked: Asked, ui_url: str) -> TableChanges | None:
    """What loads of the table changed; None if the load that is asked for is not there."""
    rows = None
    if asked.load_id is None:
        found = log.latest(conn, spec.name, asked.limit + 1, asked.before)
    else:
        one = log.of(conn, asked.load_id)
        if one is None or one.table != spec.name:
            return None
        found = [one]
        rows = [
            ChangedRowShown(day=row.day, key=dict(row.key), old=_plain(row.old), new=_plain(row.new))
            for row in log.rows_of(conn, one, asked.limit, day=asked.day, offset=asked.offset)
        ]
    shown, column = found[: asked.limit] if asked.load_id is None else found, spec.change_log.changes_counted_by
    counted = log.counted(conn, [one.load_id for one in shown], column) if column else {}
    return TableChanges(
        table=spec.name,
        counted_by=column,
        loads=[load_changes(spec, one, counted, ui_url) for one in shown],
        older=shown[-1].load_id if len(found) > len(shown) else None,
        rows=rows,
    )


def load_changes(spec: TableSpec, change: Change, counted: Mapping[tuple[int, date], int], ui_url: str) -> LoadChanges:
    """An entry of the log."""
    return LoadChanges(
        load_id=change.load_id,
        run_id=change.run_id,
        run_url=None if is_undoing(change.run_id) else f"{ui_url}/runs/{change.run_id}",
        committed_at=change.at,
        undoes=change.undoes,
        undone_by=change.undone_by,
        undoable=change.undoes is None and change.undone_by is None and change.kept is not Kept.NONE,
        reason=change.reason,
        movements=_moved(spec, change),
        days=[_day(day, counted.get((change.load_id, day.day))) for day in reversed(change.days)],
    )


def undoing(spec: TableSpec, report: Report) -> Undoing:
    """What an undoing did."""
    done, number = report.undone, report.change.load_id
    told = "would be undone; nothing was changed" if report.load_id is None else "is undone; its days are owed again"
    return Undoing(
        table=spec.name,
        undoes=number,
        load_id=report.load_id,
        dry_run=report.load_id is None,
        held_until=report.held_until,
        movements=_moved(spec, done.as_change()),
        days=[_day(day) for day in reversed(done.days)],
        message=f"load {number} {told}",
    )


def _plain(values: Mapping[str, str | None] | None) -> dict[str, str | None] | None:
    return None if values is None else dict(values)


def _day(day: DayChange, counted: int | None = None) -> DayChanged:
    return DayChanged(day=day.day, new=day.new, changed=day.changed, gone=day.gone, counted=counted)


def _moved(spec: TableSpec, change: Change) -> list[FigureMovement]:
    return [
        FigureMovement(
            day=one.day,
            figure=one.figure.name,
            title=one.figure.title,
            unit=one.figure.unit,
            before=decimal_of(one.before),
            after=decimal_of(one.after),
            change=decimal_of(one.change),
        )
        for one in movements(spec, change)
    ]


@dataclass
class ChangedKeys:
    """The keys of the rows that the last loads changed. Each load is read once."""

    log: Changes
    known: dict[int, Keys | None] = field(default_factory=dict)

    async def read(self, conn: psycopg.AsyncConnection, load_ids: Iterable[int]) -> Mapping[int, Keys | None]:
        """The keys by load; None for a load that changed too many rows, or whose rows are not kept."""
        wanted = set(load_ids)
        new = sorted(wanted - self.known.keys())
        self.known = {number: keys for number, keys in self.known.items() if number in wanted} | dict.fromkeys(new)
        if new:
            query = sql.SQL(
                "SELECT c.load_id, e.key_columns, r.keys "
                "FROM {loads} c JOIN {loads} e ON e.load_id = coalesce(c.undoes, c.load_id) CROSS JOIN LATERAL ("
                "SELECT json_agg(key) AS keys FROM (SELECT DISTINCT key FROM {rows} WHERE load_id = e.load_id LIMIT %s) k) r "
                "WHERE c.load_id = ANY (%s) AND e.kept = 'rows'"
            ).format(loads=self.log.loads, rows=self.log.rows)
            for number, columns, keys in await (await conn.execute(query, (MOST_KEYS + 1, new))).fetchall():
                self.known[number] = keys_of(columns, keys or ())
        return self.known


def keys_of(columns: Sequence[str], keys: Sequence[Sequence[str]]) -> Keys | None:
    """The keys by column; None if there are none, or too many."""
    if not 0 < len(keys) <= MOST_KEYS:
        return None
    return [dict(zip(columns, key, strict=True)) for key in keys]
