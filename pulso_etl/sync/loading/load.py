"""The load: a stream of Arrow batches makes a range of days of one table equal to the source, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.locks import table_lock
from pulso_etl.sync.loading import guards
from pulso_etl.sync.loading.before import Before, Days
from pulso_etl.sync.loading.imprints import NO_ROWS, imprints, oldest_transaction
from pulso_etl.sync.loading.months import create_months
from pulso_etl.sync.loading.plans.plan import plans_for
from pulso_etl.sync.loading.request import LoadRequest
from pulso_etl.sync.loading.result import Clock, LoadResult
from pulso_etl.sync.loading.spool import Spool
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
    with Spool(f"{target.spec.name} {request.window}") as aside:
        under_way = _begin(target, request, aside)
        for stops_load in guards.BEFORE_STAGING:
            stops_load(under_way)
        staged, plan = next((staged, plan) for plan in plans_for(under_way) if (staged := plan.stage(under_way)) is not None)
        # A merge that digests no rows has not asked yet, and now it changes the table. For empty days, nothing is asked.
        under_way.before.days()
        return plan.write(under_way, staged)


def _begin(target: Target, request: LoadRequest, aside: Spool) -> Load:
    """Locks the table, and creates it if it is missing."""
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
        is_empty = conn.execute(statements.holds_rows(), request.bounds).fetchone() is None
    return Load(target, request, table, Before(lambda: _days(target, request, since, is_empty)), is_empty, clock, since, aside)


def _days(target: Target, request: LoadRequest, since: str, is_empty: bool) -> Days:
    """What the table holds of the days. If no earlier load has left a trace of them, it only counts their rows."""
    if not (request.last or is_empty):
        query = Statements(target.spec, target.schema).rows_by_day()
        return Days(dict(target.conn.execute(query, request.bounds).fetchall()))
    found = {} if is_empty else imprints(target, request.window, since)
    intact = {day: trace for day, trace in request.last.items() if trace.imprint == str(found.get(day, NO_ROWS))}
    return Days({day: imprint.rows for day, imprint in found.items()}, intact)


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
