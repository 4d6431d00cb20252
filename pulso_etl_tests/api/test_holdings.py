"""What the tables hold, as PostgreSQL says it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg

from pulso_etl.api.holdings import Holding, Holdings
from pulso_etl.api.status import EXTRACTION_COLUMNS
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.tables import TABLES
from pulso_etl_tests.lima import lima_day

AT = datetime(2026, 11, 25, 20, tzinfo=UTC)
TODAY = lima_day(AT)
YESTERDAY = TODAY - timedelta(days=1)


def test_an_hourly_table_reaches_its_greatest_hour_and_rows_and_last_load_outlive_a_failure(
    conn: psycopg.Connection, server_url: str, schema: str
) -> None:
    marks = Watermarks(schema)
    marks.create(conn)
    conn.execute("CREATE TABLE operation_data (fecha_foto date, hora int)")
    conn.execute("INSERT INTO operation_data VALUES (%s, 20), (%s, 9), (%s, 11)", (YESTERDAY, TODAY, TODAY))
    holdings = Holdings(marks, TABLES, EXTRACTION_COLUMNS)

    def read() -> Holding:
        async def ask() -> dict[str, Holding]:
            async with await psycopg.AsyncConnection.connect(server_url, autocommit=True) as own:
                return await holdings.read(own, marks.read(conn))

        return asyncio.run(ask())["operation_data"]

    def attempt(run_id: str) -> RunningAttempt:
        began = RunningAttempt("operation_data", DayRange(YESTERDAY, TODAY), run_id, 1, AT)
        marks.start(conn, began)
        return began

    marks.succeed(conn, attempt("r1"), Loaded(AT, {YESTERDAY: 1, TODAY: 2}, 3, 1.0, changed=True))
    found = read()
    assert (found.rows, found.last_load and found.last_load[1]) == (3, "r1")
    assert found.reaches == datetime(2026, 11, 25, 16, tzinfo=UTC)
    marks.fail(conn, attempt("r2"), error="why", cause=Cause.INTERNAL, seconds=1, metadata={})
    assert read() == found
    conn.execute("INSERT INTO operation_data VALUES (%s, 14)", (TODAY,))
    marks.succeed(conn, attempt("r3"), Loaded(AT, {TODAY: 3}, 4, 1.0, changed=True))
    assert (read().rows, read().reaches) == (4, datetime(2026, 11, 25, 19, tzinfo=UTC))
    conn.execute("DROP TABLE operation_data")
    marks.succeed(conn, attempt("r4"), Loaded(AT, {TODAY: 0}, 0, 1.0, changed=True))
    assert read().reaches is None
