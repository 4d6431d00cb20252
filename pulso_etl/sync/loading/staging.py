"""The stage: the temporary table that holds the rows of the source before they are compared with the table's."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

import pyarrow as pa

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.loading.contract import Drift, Fitted, fit
from pulso_etl.sync.loading.copying import Copy
from pulso_etl.sync.loading.quarantine import Quarantine
from pulso_etl.sync.loading.request import Source
from pulso_etl.sync.loading.result import Clock
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
    it. `read`: how many rows the source gave of each day. `quarantine` holds those of them that were set aside. `migration` lists
    the statements that changed the table's columns before the rows came.
    """

    spec: TableSpec
    statements: Statements
    read: dict[date, int]
    drift: Drift
    quarantine: Quarantine | None = None
    migration: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Stage:
    """The stage of one load; the target's declaration has the columns that are staged."""

    target: Target
    fitted: Fitted
    quarantine: Quarantine | None

    def create(self) -> None:
        statements = Statements(self.target.spec, self.target.schema)
        self.target.conn.execute(statements.create_stage(self.fitted.text_columns))

    def fill(self, reader: pa.RecordBatchReader, days: DayRange) -> dict[date, int]:
        """Stages the reader's rows over those days. Returns the number of rows per day."""
        copy = Copy(self.target, self.fitted.wire, STAGE)
        return copy.send_what_fits(reader, days, self.quarantine) if self.quarantine else copy.send(reader, days)


def stage_rows(target: Target, table: Table, window: DayRange, source: Source, clock: Clock) -> Staged:
    """Brings the source's rows to the stage, without quarantined rows and without rows of older snapshots.

    `table` is the target as PostgreSQL has it. Inside the caller's transaction. Raises ContractError.
    """
    declared, conn = target.spec, target.conn
    with source.open() as reader:
        fitted = fit(declared.with_columns((DELETED,)) if source.captured else declared, reader.schema, table, window)
        spec = fitted.spec.without(DELETED) if source.captured else fitted.spec
        statements = Statements(spec, target.schema, captured=source.captured, carried=tuple(fitted.drift.vanished))
        quarantine = Quarantine(spec, window, Encoding.of(conn)) if spec.loading.on_reject is OnReject.QUARANTINE else None
        stage = _Stage(target.declared_as(fitted.spec), fitted, quarantine)
        with clock("copy"):
            stage.create()
            rows = stage.fill(reader, window)
    if spec.snapshot_of:
        with clock("snapshots"):
            earlier = settle_snapshots(conn, statements, window, source.past, stage.fill, quarantine)
        # Rows of earlier days count with the first day.
        rows[window.start] = rows.get(window.start, 0) + earlier
    if fitted.text_columns:
        with clock("analyze"):
            conn.execute(statements.read_text(fitted.text_columns))
    if quarantine:
        with clock("quarantine"):
            quarantine.settle(conn, rows)
        rows = dict(quarantine.source_rows(rows))
    return Staged(spec, statements, rows, fitted.drift, quarantine)
