"""The load: a stream of Arrow batches makes a range of days of one table equal to the source, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

import psycopg

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.locks import table_lock
from pulso_etl.sync.ledger.traces import Trace
from pulso_etl.sync.loading import guards
from pulso_etl.sync.loading.imprints import NO_ROWS, imprints, oldest_transaction
from pulso_etl.sync.loading.months import create_months
from pulso_etl.sync.loading.plans.plan import plans_for
from pulso_etl.sync.loading.request import LoadRequest
from pulso_etl.sync.loading.result import Clock, LoadResult
from pulso_etl.sync.loading.under_way import Load
from pulso_etl.sync.postgres.catalog import Table
from pulso_etl.sync.postgres.server_errors import meaning
from pulso_etl.sync.schema.schema import ensure_table
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.target import Target


def load(target: Target, request: LoadRequest) -> LoadResult:
    """Makes the window's rows equal to the source's, inside the transaction of the target's connection; the caller commits.

    The plan follows from what the window holds. If it holds nothing, the rows are copied straight into the table. If it holds
    rows, the source's rows are staged and compared in one join, and the table's strategy writes the differences only.
    Raises ContractError (with RejectedRows, QuarantineExceeded and SchemaRefused under it), ShrinkRefused, NewerReading and
    VerificationFailed; the caller rolls back. Errors of the server are raised as psycopg raises them.
    """
    for stops_request in guards.ON_REQUEST:
        stops_request(target, request)
    under_way = _begin(target, request)
    for stops_load in guards.BEFORE_STAGING:
        stops_load(under_way)
    staged, plan = next((staged, plan) for plan in plans_for(under_way) if (staged := plan.stage(under_way)) is not None)
    return plan.write(under_way, staged)


def _begin(target: Target, request: LoadRequest) -> Load:
    """Locks the table, creates it if it is missing, and counts its rows."""
    conn, clock = target.conn, Clock()
    statements = Statements(target.spec, target.schema)
    with clock("lock"):
        table = _lock(target, request, statements)
        for stops in guards.UNDER_LOCK:
            stops(target, request)
        conn.execute("SELECT set_config('work_mem', %s, true)", (f"{request.writer.work_mem_mb}MB",))
        # The joins need the size of the stage. A small sample is enough to estimate it.
        conn.execute("SELECT set_config('default_statistics_target', '10', true)")
        since = oldest_transaction(target)
        held, intact = _held(target, request, statements, since)
        is_empty = not held and conn.execute(statements.holds_rows(), request.bounds).fetchone() is None
    return Load(target, request, table, held, is_empty, clock, intact, since)


def _held(target: Target, request: LoadRequest, statements: Statements, since: str) -> tuple[dict[date, int], dict[date, Trace]]:
    """How many rows the table holds of each day, and the traces of the days whose rows are as their last load left them."""
    if not request.last:
        return dict(target.conn.execute(statements.rows_by_day(), request.bounds).fetchall()), {}
    found = imprints(target, request.window, since)
    intact = {day: trace for day, trace in request.last.items() if trace.imprint == str(found.get(day, NO_ROWS))}
    return {day: imprint.rows for day, imprint in found.items()}, intact


def _lock(target: Target, request: LoadRequest, statements: Statements) -> Table:
    """The table as PostgreSQL has it, with the months that the load needs, locked until the transaction ends."""
    if request.writer.sole:
        # The table may not exist yet. The lock on its name makes first loads, which create the table, wait for each other.
        target.conn.execute("SELECT pg_advisory_xact_lock(%s)", (table_lock(target.schema, target.spec.name),))
    table = ensure_table(target)
    create_months(target, request.window)
    target.conn.execute(statements.lock_target(request.writer.sole))
    return table


@contextmanager
def translated(spec: TableSpec, window: DayRange) -> Iterator[None]:
    """Turns the server's errors into the project's errors, which name the table and the range: see `server_errors`."""
    try:
        yield
    except psycopg.Error as error:
        raise meaning(error).tell(error, f"{spec.name} {window}") from error
