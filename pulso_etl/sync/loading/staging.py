"""The stage: the temporary table that holds the rows of the source before they are compared with the table's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date

import pyarrow as pa

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.loading.contract import Drift, Fitted, fit
from pulso_etl.sync.loading.copying import Copy
from pulso_etl.sync.loading.quarantine import Quarantine
from pulso_etl.sync.loading.request import Source
from pulso_etl.sync.loading.result import Clock, Digested
from pulso_etl.sync.loading.sieve import Known, Sieve
from pulso_etl.sync.loading.snapshots import settle_snapshots
from pulso_etl.sync.postgres.catalog import Table
from pulso_etl.sync.postgres.encoding import Encoding
from pulso_etl.sync.schema.statements import STAGE, Statements
from pulso_etl.sync.spec import DELETED, OnReject, TableSpec
from pulso_etl.sync.target import Target


@dataclass(frozen=True)
class Staged:
    """Rows that a plan has brought to PostgreSQL.

    `spec` is the declaration with the source's new columns, where the contract takes them; `statements` are the statements for
    it, and `wire` is the schema in which rows travel. `read`: how many rows the source gave of each day. `quarantine` holds those
    of them that were set aside. `migration` lists the statements that changed the table's columns before the rows came. `digested`
    is set if the rows were digested: rows of its unchanged days and of unchanged buckets did not come to PostgreSQL. If all days
    are unchanged, there is no stage.
    """

    spec: TableSpec
    wire: pa.Schema
    statements: Statements
    read: dict[date, int]
    drift: Drift
    quarantine: Quarantine | None = None
    migration: list[str] = field(default_factory=list)
    digested: Digested | None = None

    @property
    def nothing_differs(self) -> bool:
        """Whether every day is as its last load left it."""
        return self.digested is not None and self.digested.nothing_differs


@dataclass
class _Stage:
    """The stage of one load; the target's declaration has the columns that are staged. It is created when a row comes."""

    target: Target
    fitted: Fitted
    quarantine: Quarantine | None
    sieve: Sieve | None
    is_there: bool = False

    def ensure(self) -> None:
        """Creates the stage, unless it is there."""
        if not self.is_there:
            statements = Statements(self.target.spec, self.target.schema)
            self.target.conn.execute(statements.create_stage(self.fitted.text_columns))
            self.is_there = True

    def fill(self, reader: pa.RecordBatchReader, days: DayRange) -> dict[date, int]:
        """Stages the reader's rows over those days. Returns the number of rows per day."""
        copy = Copy(self.target, self.fitted.wire, STAGE, begin=self.ensure)
        if self.sieve:
            copy = replace(copy, through=self.sieve.rest, meanwhile=self.sieve.ask)
        return copy.send_what_fits(reader, days, self.quarantine) if self.quarantine else copy.send(reader, days)


def stage_rows(target: Target, table: Table, window: DayRange, source: Source, clock: Clock, known: Known | None = None) -> Staged:
    """Brings the source's rows to the stage, without quarantined rows and without rows of older snapshots.

    `table` is the target as PostgreSQL has it. With `known`, the rows of days that are as they were do not come either. Inside the
    caller's transaction. Raises ContractError.
    """
    declared, conn = target.spec, target.conn
    with source.open() as reader:
        fitted = fit(declared.with_columns((DELETED,)) if source.captured else declared, reader.schema, table, window)
        spec = fitted.spec.without(DELETED) if source.captured else fitted.spec
        quarantine = Quarantine(spec, window, Encoding.of(conn)) if spec.loading.on_reject is OnReject.QUARANTINE else None
        sieve = Sieve(fitted, known, (lambda: quarantine.by_day) if quarantine else tuple) if known else None
        stage = _Stage(target.declared_as(fitted.spec), fitted, quarantine, sieve)
        with clock("copy"):
            rows = stage.fill(reader, window)
    digested = sieve.digested() if sieve else None
    rows |= digested.rows_read() if digested else {}
    if not (digested and digested.nothing_differs):
        stage.ensure()
    statements = Statements(
        spec,
        target.schema,
        captured=source.captured,
        carried=tuple(fitted.drift.vanished),
        days=digested.compared() if digested else None,
        in_full=digested.in_full() if digested else None,
    )
    if spec.snapshot_of:
        with clock("snapshots"):
            earlier = settle_snapshots(conn, statements, window, source.past, stage.fill, quarantine)
        # Rows of earlier days count with the first day.
        rows[window.start] = rows.get(window.start, 0) + earlier
    if fitted.text_columns and stage.is_there:
        with clock("analyze"):
            conn.execute(statements.read_text(fitted.text_columns))
    if quarantine:
        with clock("quarantine"):
            if stage.is_there:
                quarantine.settle(conn, rows)
        rows = dict(quarantine.source_rows(rows))
    return Staged(spec, fitted.wire, statements, rows, fitted.drift, quarantine, digested=digested)
