"""The direct plan: it copies the rows straight into the table if no row of the table can conflict with them."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pyarrow as pa
from psycopg import errors as pg

from pulso_etl.sync.errors import DuplicateKeyError, RejectedRows
from pulso_etl.sync.loading.change_log import log_first
from pulso_etl.sync.loading.contract import fit
from pulso_etl.sync.loading.copying import Copy
from pulso_etl.sync.loading.meanwhile import refuse_rows_of_others
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.loading.result import Counts, LoadResult, every_day
from pulso_etl.sync.loading.sieve import Sieve
from pulso_etl.sync.loading.staging import Staged
from pulso_etl.sync.loading.under_way import Load
from pulso_etl.sync.postgres.server_errors import meaning
from pulso_etl.sync.schema.schema import migrate_table
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import OnReject


class Direct:
    """Uses the table itself as the stage."""

    name: PlanName = "direct"

    def applies(self, load: Load) -> bool:
        """Whether no row can conflict, every row is stored as it was read, and faulty rows can still be quarantined."""
        lands_as_read = load.spec.version_column is None and not load.spec.snapshot_of
        keeps_faults = load.source.repeatable or load.spec.loading.on_reject is not OnReject.QUARANTINE
        return load.is_empty and lands_as_read and keeps_faults

    def stage(self, load: Load) -> Staged | None:
        """Copies the rows. None if a merge has to quarantine faulty rows, report duplicate keys, or convert values from text."""
        repeatable = load.source.repeatable
        quarantines = repeatable and load.spec.loading.on_reject is OnReject.QUARANTINE
        try:
            with load.conn.transaction(), load.source.open() as reader:
                return _copied(load, reader)
        except RejectedRows:
            if not quarantines:
                raise
        except pg.UniqueViolation as error:
            if not repeatable:
                refuse_rows_of_others(load, Statements(load.spec, load.target.schema).holds_rows())
                raise DuplicateKeyError(
                    f"{load}: the source holds 2 or more rows with the same primary key: {error.diag.message_detail}"
                ) from error
        except psycopg.Error as error:
            if not (quarantines and meaning(error).by_row):
                raise
        return None

    def write(self, load: Load, staged: Staged) -> LoadResult:
        """Counts the rows; they are in the table already."""
        by_day = every_day(load.window, {day: Counts(read=n, inserted=n) for day, n in staged.read.items()})
        logged = log_first(load, by_day, staged.digested)
        return LoadResult(
            self.name,
            by_day,
            load.held,
            load.clock.seconds,
            staged.drift,
            staged.migration,
            digested=staged.digested,
            load_id=logged.load_id,
            left=logged.left,
        )


def _copied(load: Load, reader: pa.RecordBatchReader) -> Staged | None:
    fitted = fit(load.spec, reader.schema, load.table, load.window)
    if fitted.text_columns:
        return None
    target = load.target.declared_as(fitted.spec)
    migration = migrate_table(target, load.table)
    # No row is in the table, so none can be as it was: the sieve only digests the rows.
    sieve = Sieve(fitted, replace(load.known, last={})) if load.known else None
    with load.clock("copy"):
        rows = Copy(target, fitted.wire, target.identifier, sieve.rest if sieve else iter).send(reader, load.window)
    return Staged(
        fitted.spec,
        fitted.wire,
        Statements(fitted.spec, target.schema),
        rows,
        fitted.drift,
        migration=migration,
        digested=sieve.digested() if sieve else None,
    )
