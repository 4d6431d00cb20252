"""Undoes a load: the table's rows become what they were before it, by the change log, in the caller's transaction.

Every declared column gets its old value back, and so does `created_at`. `updated_at` says when the load was undone, so that whoever
copies changed rows sees these too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

from psycopg import sql

from pulso_etl.sync.errors import UndoRefused
from pulso_etl.sync.ledger.changes import Change, Changes, DayChange, Kept
from pulso_etl.sync.loading.change_log import day_changes, summed_parts, sums_by_day
from pulso_etl.sync.loading.months import refuse_expired
from pulso_etl.sync.loading.result import Counts
from pulso_etl.sync.postgres.catalog import Table, read_table
from pulso_etl.sync.postgres.strangers import refuse_strangers
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.target import Target

UNDO = sql.Identifier("pulso_undo")
MOST_NAMED = 5
WRITTEN_BY_SERVER = """
SELECT attname, attgenerated <> '' FROM pg_attribute
WHERE attrelid = to_regclass(%s) AND (attgenerated <> '' OR attidentity = 'a')
"""
"""The columns that no UPDATE may set, and whether no INSERT may either."""


@dataclass(frozen=True)
class Undone:
    """What an undoing does to the days of the load, with the parts of figures before and after it."""

    change: Change
    days: tuple[DayChange, ...]

    def as_change(self) -> Change:
        """The load with what its undoing does, instead of what it did."""
        return replace(self.change, days=self.days)

    @property
    def total(self) -> Counts:
        return Counts(
            inserted=sum(day.new for day in self.days),
            updated=sum(day.changed for day in self.days),
            deleted=sum(day.gone for day in self.days),
        )


def chosen(target: Target, load_id: int | None) -> Change:
    """The load to undo: the one of that number, or the last load that is not undone. Raises UndoRefused."""
    changes, name = Changes(target.schema), target.spec.name
    change = changes.to_undo(target.conn, name) if load_id is None else changes.of(target.conn, load_id)
    if change is None or change.table != name:
        which = "no load that changed rows" if load_id is None else f"no load {load_id}"
        raise UndoRefused(f"{name}: the change log has {which} of this table; nothing was undone")
    if change.undoes is not None:
        raise UndoRefused(
            f"{name}: load {change.load_id} itself undid load {change.undoes}; to take that back, refresh its days: "
            f"pulso-etl refresh {target.spec.as_argument} --from {change.window.start} --to {change.window.end}"
        )
    if change.undone_by is not None:
        raise UndoRefused(f"{name}: load {change.load_id} is undone already, by load {change.undone_by}")
    if change.kept is Kept.NONE:
        raise UndoRefused(f"{name}: {change} cannot be undone: {change.reason}; nothing was undone")
    return change


def undo(target: Target, change: Change, *, sole_writer: bool = True) -> Undone:
    """Undoes the load, inside the transaction of the target's connection; the caller records it and commits.

    `sole_writer`: see `Statements.lock_target`. Raises UndoRefused if rows of the load have changed since, with the loads that
    changed them, or if they are not kept any more.
    """
    conn, spec = target.conn, target.spec
    refuse_strangers(conn, target.schema, spec.name)
    refuse_expired(spec, change.window, spec.zone.day(datetime.now(UTC)))
    table = read_table(conn, target.schema, spec.name)
    if table is None:
        raise UndoRefused(f"{spec.name}: the table is gone; nothing was undone")
    conn.execute(Statements(spec, target.schema).lock_target(sole_writer))
    days, wanted = [day.day for day in change.days], summed_parts(spec)
    before = sums_by_day(target, wanted, days)
    if change.kept is Kept.STAMP:
        _delete_stamped(target, change, days)
    else:
        _Rows(target, change, table).restore()
    # What the load did, the other way round.
    by_day = {day.day: Counts(inserted=day.gone, updated=day.changed, deleted=day.new) for day in change.days}
    return Undone(change, tuple(day_changes(spec, by_day, (before, sums_by_day(target, wanted, days)))))


@dataclass(frozen=True)
class _Rows:
    """The kept rows of a load beside those of the table."""

    target: Target
    change: Change
    table: Table

    def restore(self) -> None:
        conn = self.target.conn
        self._refuse_other_columns()
        conn.execute(self._create(), {"load": self.change.load_id})
        (kept,) = conn.execute(sql.SQL("SELECT coalesce(sum(pulso_copies), 0) FROM {}").format(UNDO)).fetchone() or (0,)
        if kept != self._due():
            days = self.target.spec.change_log.changes_kept_days
            raise UndoRefused(
                f"{self._name}: the values of the rows that it changed stay for {days} days (changes_kept_days), and are gone; "
                "nothing was undone"
            )
        conn.execute(sql.SQL("ANALYZE {}").format(UNDO))
        later = self._changes.later(conn, self.change, self._touches())
        (differing,) = conn.execute(self._differing()).fetchone() or (0,)
        if later or differing:
            raise _changed(self._name, differing, later or self._changes.later(conn, self.change, self._changes.unknown))
        for statement in (self._delete(), self._update(), self._insert()):
            conn.execute(statement)

    @property
    def _changes(self) -> Changes:
        return Changes(self.target.schema)

    @property
    def _name(self) -> str:
        return f"{self.target.spec.name}: {self.change}"

    @property
    def _unique(self) -> bool:
        """Whether the key tells one row."""
        return bool(self.target.spec.table_key)

    @property
    def _compared(self) -> tuple[str, ...]:
        """The columns that say whether a row is still as the load left it."""
        return tuple(name for name in self.change.value_columns if name != "updated_at")

    def _due(self) -> int:
        """How many rows the log has of the load. A version that changed is one that was closed and one that was opened."""
        return sum(day.rows + (day.changed if self.target.spec.keeps_versions else 0) for day in self.change.days)

    def _refuse_other_columns(self) -> None:
        spec, change = self.target.spec, self.change
        if lost := [name for name in (*change.key_columns, *change.value_columns) if name not in self.table.columns]:
            raise UndoRefused(f"{self._name}: the table has lost the columns {', '.join(lost)} since; nothing was undone")
        if set(change.key_columns) != set(spec.table_key or spec.primary_key):
            raise UndoRefused(
                f"{self._name}: its rows are told by {', '.join(change.key_columns)}, and the table has another key since; "
                "nothing was undone"
            )

    def _create(self) -> sql.Composed:
        """The rows to restore, with their keys in the columns of the key: a row that the load deleted and inserted again counts as
        one. Without a key, equal rows do."""
        typed = [self._typed(name, sql.SQL("key"), self.change.key_columns) for name in self.change.key_columns]
        rows = (
            sql.SQL("max(old) AS pulso_old, max(new) AS pulso_new, coalesce(max(key) FILTER (WHERE old IS NOT NULL), max(key))")
            if self._unique
            else sql.SQL("old AS pulso_old, new AS pulso_new, max(key)")
        )
        return sql.SQL(
            "CREATE TEMP TABLE {undo} ON COMMIT DROP AS SELECT {keys}, {rows} AS pulso_key, count(*) AS pulso_copies FROM {log} "
            "WHERE load_id = %(load)s GROUP BY {same}"
        ).format(
            undo=UNDO,
            keys=sql.SQL(", ").join(
                sql.SQL("{} AS {}").format(one, sql.Identifier(name))
                for one, name in zip(typed, self.change.key_columns, strict=True)
            ),
            rows=rows,
            log=self._changes.rows,
            same=sql.SQL(", ").join(typed if self._unique else [*typed, sql.SQL("old"), sql.SQL("new")]),
        )

    def _touches(self) -> sql.Composed:
        """The condition that the load `c` changed one of the rows, or one that belongs with them: another version of the same key,
        or another row of the same snapshot. Of a load whose rows are not kept nobody can tell."""
        spec, keys = self.target.spec, self.change.key_columns
        together = spec.snapshot_of or (spec.primary_key if spec.keeps_versions else ())
        same = [
            sql.SQL("(l.key[array_position(c.key_columns, {})])::{} = u.{}").format(
                sql.Literal(name), self._type(name), sql.Identifier(name)
            )
            for name in together or keys
        ]
        touched = sql.SQL("EXISTS (SELECT FROM {} l JOIN {} u ON {} WHERE l.load_id = c.load_id)").format(
            self._changes.rows, UNDO, sql.SQL(" AND ").join(same)
        )
        return sql.SQL("({} OR c.kept = {})").format(touched, sql.Literal(Kept.NONE)) if together else touched

    def _differing(self) -> sql.Composed:
        """How many rows are not as the load left them."""
        if self._unique:
            return sql.SQL(
                "SELECT count(*) FROM {} u LEFT JOIN {} t ON {} WHERE CASE WHEN u.pulso_new IS NULL THEN t.tableoid IS NOT NULL "
                "ELSE t.tableoid IS NULL OR NOT ({}) END"
            ).format(UNDO, self.target.identifier, self._same_key(), self._as_left())
        return sql.SQL("SELECT count(*) FROM {} u WHERE pulso_copies <> (SELECT count(*) FROM {} t WHERE {} AND {})").format(
            UNDO, self.target.identifier, self._same_key(), self._as_left()
        )

    def _delete(self) -> sql.Composed:
        as_left = sql.SQL("true") if self._unique else self._as_left()
        return sql.SQL("DELETE FROM {} t USING {} u WHERE u.pulso_old IS NULL AND {} AND {}").format(
            self.target.identifier, UNDO, self._same_key(), as_left
        )

    def _update(self) -> sql.Composed:
        pairs = [sql.SQL("{} = {}").format(sql.Identifier(name), self._old(name)) for name in self._written()]
        return sql.SQL("UPDATE {} t SET {} FROM {} u WHERE u.pulso_old IS NOT NULL AND u.pulso_new IS NOT NULL AND {}").format(
            self.target.identifier, sql.SQL(", ").join(pairs), UNDO, self._same_key()
        )

    def _insert(self) -> sql.Composed:
        written = self._written(new=True)
        return sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} u WHERE u.pulso_new IS NULL").format(
            self.target.identifier,
            sql.SQL(", ").join(map(sql.Identifier, written)),
            sql.SQL(", ").join(map(self._old, written)),
            UNDO,
        )

    def _written(self, *, new: bool = False) -> list[str]:
        """The columns that a statement may set; more of them in a new row."""
        found = self.target.conn.execute(WRITTEN_BY_SERVER, (self.target.quoted_name,))
        by_server = {name for name, generated in found if generated or not new}
        return [name for name in (*self.change.key_columns, *self.change.value_columns) if name not in by_server]

    def _same_key(self) -> sql.Composed:
        return sql.SQL(" AND ").join(sql.SQL("t.{0} = u.{0}").format(sql.Identifier(name)) for name in self.change.key_columns)

    def _as_left(self) -> sql.Composed:
        """The condition that the row has the values that the load left, as texts of the types that the columns have now."""
        values = self.change.value_columns
        return sql.SQL(" AND ").join(
            [
                sql.SQL("t.tableoid IS NOT NULL").format(),
                *(
                    sql.SQL("t.{}::text IS NOT DISTINCT FROM ({})::text").format(
                        sql.Identifier(name), self._typed(name, sql.SQL("u.pulso_new"), values)
                    )
                    for name in self._compared
                ),
            ]
        )

    def _old(self, name: str) -> sql.Composable:
        if name == "updated_at":
            return sql.SQL("now()")
        if name in self.change.key_columns:
            return self._typed(name, sql.SQL("u.pulso_key"), self.change.key_columns)
        return self._typed(name, sql.SQL("u.pulso_old"), self.change.value_columns)

    def _typed(self, name: str, texts: sql.SQL, names: Sequence[str]) -> sql.Composed:
        return sql.SQL("({}[{}])::{}").format(texts, sql.Literal(names.index(name) + 1), self._type(name))

    def _type(self, name: str) -> sql.SQL:
        return sql.SQL(self.table.columns[name].type)


def _delete_stamped(target: Target, change: Change, days: list[date]) -> None:
    """Deletes the rows that the load wrote into days that were empty."""
    conn, changes, name = target.conn, Changes(target.schema), f"{target.spec.name}: {change}"
    due = sum(day.new for day in change.days)
    stamps, writers = zip(*[(change.stamp, change.written_by), *changes.undoings(conn, change)], strict=True)
    where = sql.SQL("{} = ANY (%(days)s) AND created_at = %(stamp)s").format(sql.Identifier(target.spec.partition_column))
    values = {"days": days, "stamp": change.stamp, "stamps": list(stamps), "writers": list(writers)}
    # Another program may leave the stamp as it is, but not the transaction. Entries of earlier releases have none.
    untouched = sql.SQL(
        "SELECT count(*) FROM {} t JOIN unnest(%(stamps)s::timestamptz[], %(writers)s::bigint[]) AS w (at, writer) "
        "ON w.at = updated_at AND coalesce(w.writer = t.xmin::text::bigint, true) WHERE {}"
    ).format(target.identifier, where)
    (left,) = conn.execute(untouched, values).fetchone() or (0,)
    if left != due:
        raise _changed(name, due - left, changes.later(conn, change, _rewrites(changes, days)))
    conn.execute(sql.SQL("DELETE FROM {} WHERE {}").format(target.identifier, where), values)


def _rewrites(changes: Changes, days: list[date]) -> sql.Composed:
    """The condition that the load `c` changed or deleted rows of days that were empty once, or may have."""
    return sql.SQL(
        "(EXISTS (SELECT FROM {} l WHERE l.load_id = c.load_id AND l.day = ANY ({}::date[]) AND l.old IS NOT NULL) OR {})"
    ).format(changes.rows, sql.Literal(days), changes.unknown)


def _changed(name: str, rows: int, later: Sequence[Change]) -> UndoRefused:
    by = "; ".join(map(str, reversed(later[-MOST_NAMED:]))) if later else "another program, or a load that the log does not have"
    how = "undo the last of them first" if later else "their old values could overwrite newer ones"
    if lost := [str(one.load_id) for one in later if one.kept is Kept.NONE]:
        how = f"the values of load {', '.join(lost)} are not kept, so only a refresh of the days helps"
    counted = f"{rows} of its rows have changed since" if rows else "later loads changed the same rows"
    return UndoRefused(f"{name} cannot be undone: {counted}, by {by}; {how}. Nothing was undone")
