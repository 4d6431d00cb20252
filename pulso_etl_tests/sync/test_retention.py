"""The ledger's past ends, and what is counted from it, or says how things stand now, stays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pulso_etl.sync.ledger.migrations import TABLES, migrate
from pulso_etl.sync.ledger.retention import KINDS, delete_old, old_rows
from pulso_etl.sync.ledger.totals import failures, totals

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
KEPT = {
    "attempts": timedelta(days=90),
    "queries": timedelta(days=90),
    "alerts": timedelta(days=30),
    "refreshes": timedelta(days=60),
}
A_DAY = 8
LIVE = """
INSERT INTO etl_extractions (table_name, extraction_id, attempt, partition_start, partition_end, status, records_extracted,
    extraction_duration_seconds, error_message, error_cause, metadata, started_at, finished_at)
SELECT name, 'r' || n, 1, at::date, at::date, CASE WHEN n %% 10 = 0 THEN 'failed' ELSE 'success' END, 5, 1.5, NULL,
    CASE WHEN n %% 10 = 0 THEN 'source_unavailable' END, '{"bytes_billed": 7, "rows_read": 3, "estimated_cost_usd": 0.25}', at, at
FROM unnest(ARRAY['busy', 'other']) AS name,
    generate_series(%(start)s::timestamptz, %(end)s::timestamptz, '3 hours') WITH ORDINALITY AS s (at, n);
INSERT INTO etl_queries (table_name, purpose, run_id, bytes_billed, slot_millis, bytes_avoided, finished_at)
SELECT name, purpose, 'r', 11, 2, 5, at FROM unnest(ARRAY['busy', 'other']) AS name, unnest(ARRAY['reconciliation', 'skipped']) AS
    purpose, generate_series(%(start)s::timestamptz, %(end)s::timestamptz, '3 hours') AS at;
WITH incidents AS (
    INSERT INTO etl_alerts (cause, state, first_seen, last_seen, count, tables, subjects, closed_at)
    SELECT 'internal', 'closed', at, at, 1, '{busy}', '[]', at
    FROM generate_series(%(start)s::timestamptz, %(end)s::timestamptz, '3 hours') AS at RETURNING id, closed_at
)
INSERT INTO etl_alert_messages (alert_id, stage, severity, title, body, created_at, pending, retry_at)
SELECT id, stage, 'warning', 't', 'b', closed_at, '{}', closed_at FROM incidents, unnest(ARRAY['opened', 'closed']) AS stage;
INSERT INTO etl_refreshes (pipeline_id, fingerprint, request, runs, requested_by, requested_at)
SELECT gen_random_uuid()::text, 'f', '{}', '{}', 'ana', at
FROM generate_series(%(start)s::timestamptz, %(end)s::timestamptz, '3 hours') AS at;
"""
ONCE = """
INSERT INTO etl_extractions (table_name, extraction_id, attempt, partition_start, partition_end, status, metadata, started_at,
    finished_at) SELECT 'quiet', status, 1, '2026-01-01', '2026-01-01', status, '{}', at, at
FROM (VALUES ('success', %(at)s::timestamptz), ('failed', %(at)s::timestamptz)) AS v (status, at);
INSERT INTO etl_alerts (cause, state, first_seen, last_seen, count, tables, subjects) VALUES ('internal', 'open', %(at)s, %(at)s, 1,
    '{quiet}', '[]');
WITH waiting AS (
    INSERT INTO etl_alerts (cause, state, first_seen, last_seen, count, tables, subjects, closed_at)
    VALUES ('internal', 'closed', %(at)s, %(at)s, 1, '{quiet}', '[]', %(at)s) RETURNING id
)
INSERT INTO etl_alert_messages (alert_id, stage, severity, title, body, created_at, pending, retry_at)
SELECT id, 'opened', 'warning', 't', 'b', %(at)s, '{mail}', %(at)s FROM waiting;
"""


@pytest.fixture
def ledger(conn: psycopg.Connection, schema: str) -> psycopg.Connection:
    """A ledger whose tables are found by their names."""
    migrate(conn, schema)
    conn.commit()
    conn.autocommit = True
    return conn


def run(conn: psycopg.Connection, script: str, **values: Any) -> None:
    for statement in script.split(";\n")[:-1]:
        conn.execute(statement, values)


def rows(conn: psycopg.Connection, table: str) -> int:
    return conn.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone()[0]  # type: ignore[index]


def counted(conn: psycopg.Connection, schema: str) -> list[Any]:
    """What the counters of the metrics say."""
    used = "SELECT table_name, purpose, sum(bytes_billed), sum(bytes_avoided) FROM etl_queries GROUP BY 1, 2 ORDER BY 1, 2"
    by_cause = sorted(conn.execute(failures(schema)).fetchall(), key=str)
    return [conn.execute(totals(schema)).fetchall(), by_cause, conn.execute(used).fetchall()]


def before(now: datetime) -> dict[str, datetime]:
    return {kind: now - age for kind, age in KEPT.items()}


def test_a_year_leaves_bounded_rows_and_no_counter_falls(ledger: psycopg.Connection, schema: str) -> None:
    run(ledger, ONCE, at=FIRST)
    for part in range(4):
        start, end = FIRST + timedelta(days=90 * part), FIRST + timedelta(days=90 * (part + 1))
        run(ledger, LIVE, start=start, end=end - timedelta(hours=3))
        told = counted(ledger, schema)
        expected = old_rows(ledger, schema, before(end))
        assert delete_old(ledger, schema, before(end)) == expected
        assert old_rows(ledger, schema, before(end)) == dict.fromkeys(KEPT, 0)
        assert counted(ledger, schema) == told
        # Beside the days that are kept: the last success and the last failure of the quiet table, and the sums of queries.
        assert rows(ledger, "etl_extractions") <= 90 * A_DAY * 2 + 2
        assert rows(ledger, "etl_queries") <= 90 * A_DAY * 4 + 4
        assert rows(ledger, "etl_alerts") <= 30 * A_DAY + 2
        assert rows(ledger, "etl_alert_messages") <= 30 * A_DAY * 2 + 1
        assert rows(ledger, "etl_refreshes") <= 60 * A_DAY
    assert rows(ledger, "etl_totals") == 4
    [(_, _, attempts, seconds, size, *_), *_] = told[0]
    assert (attempts, seconds, size) == (36 * A_DAY, 36 * A_DAY * 1.5, 36 * A_DAY * 7)


def test_what_stands_for_the_present_stays_however_old(ledger: psycopg.Connection, schema: str) -> None:
    run(ledger, ONCE, at=FIRST)
    assert delete_old(ledger, schema, before(FIRST + timedelta(days=3_000))) == dict.fromkeys(KEPT, 0)
    left = {table: rows(ledger, table) for table in ("etl_extractions", "etl_alerts", "etl_alert_messages")}
    assert left == {"etl_extractions": 2, "etl_alerts": 2, "etl_alert_messages": 1}


def test_it_ends_when_it_is_told_to_and_goes_on_the_next_time(ledger: psycopg.Connection, schema: str) -> None:
    run(ledger, LIVE, start=FIRST, end=FIRST + timedelta(days=100))
    late = before(FIRST + timedelta(days=400))
    turns = iter([True, *[False] * 9])
    part = delete_old(ledger, schema, late, lambda: next(turns))
    assert (part["attempts"], part["queries"], part["alerts"]) == (1_000, 0, 0)
    rest = delete_old(ledger, schema, late)
    assert part["attempts"] + rest["attempts"] == 2 * (100 * A_DAY + 1) - 4


def test_nothing_is_deleted_where_there_is_no_ledger(conn: psycopg.Connection, schema: str) -> None:
    assert delete_old(conn, schema, before(FIRST)) == old_rows(conn, schema, before(FIRST)) == dict.fromkeys(KEPT, 0)


def test_every_table_of_the_past_is_a_kind_or_says_how_things_stand_now() -> None:
    present = {"etl_watermarks", "etl_running", "etl_days", "etl_digests", "etl_totals", "etl_migrations"}
    # The quarantine has the rows of the last load of each day. The change log ends by itself, in the loads.
    by_loads = {"etl_quarantine", "etl_changes", "etl_changed_days", "etl_changed_rows"}
    assert {kind.table for kind in KINDS} | {"etl_alert_messages"} | present | by_loads == set(TABLES)
