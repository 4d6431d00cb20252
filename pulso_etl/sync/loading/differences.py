"""The differences between the stage and the table: found and counted, then written by the table's strategy."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from functools import cached_property

from psycopg import errors as pg

from pulso_etl.sync.loading.change_log import NOT_LOGGED, Entered, Log, log_of
from pulso_etl.sync.loading.duplicates import are_counted, refuse_duplicates
from pulso_etl.sync.loading.meanwhile import changed_meanwhile, refuse_rows_of_others
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.loading.result import Counts, LoadResult, every_day
from pulso_etl.sync.loading.snapshots import rows_by_value
from pulso_etl.sync.loading.staging import Staged
from pulso_etl.sync.loading.strategies import STRATEGIES, Write, WriteStrategy
from pulso_etl.sync.loading.under_way import Load
from pulso_etl.sync.loading.vanished import days_to_look_at, find_vanished
from pulso_etl.sync.schema.schema import migrate_table


@dataclass(frozen=True)
class Differences:
    """What a load is about to do to the table: the counts of each day, and the differences themselves in PostgreSQL.

    `logged`: what the change log has of the load, once the differences are written.
    """

    load: Load
    staged: Staged
    by_day: dict[date, Counts]
    migration: list[str]
    logged: Entered = NOT_LOGGED

    @property
    def strategy(self) -> WriteStrategy:
        return STRATEGIES[self.staged.spec.loading.strategy]

    @cached_property
    def total(self) -> Counts:
        return sum(self.by_day.values(), Counts())

    @property
    def left_by_day(self) -> dict[date, int]:
        """How many rows the table will hold of each day."""
        return {day: self.load.held.left(day, counts) for day, counts in self.by_day.items()}

    def held_and_left(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """How many rows each part of the table holds, and how many it will hold.

        A part is a partition, or a value whose snapshot is loaded; its name is a text for people.
        """
        if self.staged.spec.snapshot_of:
            return rows_by_value(self.load.conn, self.staged.statements)
        held = {f"partition {day}": rows for day, rows in self.load.held.rows.items()}
        return held, {f"partition {day}": rows for day, rows in self.left_by_day.items()}

    def rows_of(self, write: Write) -> int:
        """How many rows the statement has to write."""
        return sum(getattr(self.total, count) for count in write.counts)

    def result(self, plan: PlanName, expected: dict[date, int] | None) -> LoadResult:
        quarantine = self.staged.quarantine
        reasons = dict(quarantine.by_reason) if quarantine else {}
        return LoadResult(
            plan,
            self.by_day,
            self.load.held,
            self.load.clock.seconds,
            self.staged.drift,
            self.migration,
            reasons,
            expected,
            self.staged.digested,
            load_id=self.logged.load_id,
            left=self.logged.left,
        )


def compare(load: Load, staged: Staged, read: Mapping[date, Counts]) -> Differences:
    """Finds and counts the differences between table and stage. `read` counts the rows of each day that were read."""
    conn, statements, by_day = load.conn, staged.statements, every_day(load.window, read)
    with load.clock("diff"):
        migration = migrate_table(load.target.declared_as(staged.spec), load.table)
        conn.execute(STRATEGIES[staged.spec.loading.strategy].create_diff(statements), load.bounds)
        if staged.quarantine:
            staged.quarantine.spare(conn, statements)
        _count(load, staged, by_day)
        if days := days_to_look_at(load, staged, by_day):
            find_vanished(load, staged, days)
            _count(load, staged, by_day)
    return Differences(load, staged, by_day, migration)


def _count(load: Load, staged: Staged, by_day: dict[date, Counts]) -> None:
    """Puts the counts of the differences into those of each day."""
    for day, inserted, updated, deleted in load.conn.execute(staged.statements.count_diff()):
        counts = by_day.setdefault(day, Counts())
        counts.inserted, counts.updated, counts.deleted = inserted, updated, deleted


def unchanged(load: Load, staged: Staged, read: Mapping[date, Counts]) -> Differences:
    """No differences, for rows that did not come to the stage. The table's columns and indexes are still made as declared."""
    migration = migrate_table(load.target.declared_as(staged.spec), load.table)
    return Differences(load, staged, every_day(load.window, read), migration)


def write(differences: Differences) -> Entered:
    """Makes the table equal to the stage, by the statements of its strategy that have rows to write.

    Returns what the change log has of it. Raises DuplicateKeyError, and TableBusy if another program
    changed these rows during the load.
    """
    with differences.load.clock("write"):
        # The statements reach rows by their addresses, and the comparison has just read the pages of these rows into memory.
        differences.load.conn.execute("SELECT set_config('random_page_cost', '1.1', true)")
        log = log_of(differences.load, differences.staged.statements, differences.total)
        for statement in differences.strategy.writes:
            if differences.rows_of(statement):
                _run(differences, statement, log)
        return log.end(differences.by_day, differences.staged.digested)


def _run(differences: Differences, statement: Write, log: Log) -> None:
    load, staged, sole = differences.load, differences.staged, differences.load.request.writer.sole
    may_clash = "inserted" in statement.counts and (are_counted(load, staged) or not sole)
    try:
        with load.conn.transaction() if may_clash else nullcontext():
            written = log.run(statement)
    except pg.UniqueViolation:
        if may_clash:
            _explain_clash(load, staged)
        raise
    # The differences have addresses of rows, and other programs can still change these rows.
    if not sole and statement.by_address and written != differences.rows_of(statement):
        raise changed_meanwhile(str(load))


def _explain_clash(load: Load, staged: Staged) -> None:
    """Raises DuplicateKeyError if the source gives a key twice, and TableBusy if another program has inserted a key of the load."""
    if are_counted(load, staged):
        refuse_duplicates(load, staged)
    refuse_rows_of_others(load, staged.statements.taken_keys())
