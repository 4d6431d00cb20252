"""The end of what the ledger keeps of the past: attempts, queries, incidents and requested refreshes.

What says how things stand now stays, however old it is: watermarks, days, digests, the last attempts of each table, open incidents.
The totals that are counted from deleted rows stay too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import sql

from pulso_etl.sync.ledger.migrations import state
from pulso_etl.sync.ledger.totals import SUMMED
from pulso_etl.sync.postgres.strangers import refuse_strangers

BATCH = 1_000
"""Rows of one transaction."""


@dataclass(frozen=True)
class Kind:
    """Rows of the past in `table`. `old` are the ids of those that nobody needs, `remove` deletes them and returns how many.

    Both are statements with the parameters `before` (an instant) and `most` (a number of rows).
    """

    name: str
    table: str
    old: str
    remove: str


LAST = """
SELECT id FROM {schema}.etl_extractions WHERE finished_at < %(before)s AND id NOT IN (
    SELECT DISTINCT ON (table_name, status) id FROM {schema}.etl_extractions ORDER BY table_name, status, finished_at DESC, id DESC
) ORDER BY id LIMIT %(most)s
"""
"""The last success and the last failure of each table stay."""
KEEP_TOTALS = """
WITH gone AS (DELETE FROM {schema}.etl_extractions WHERE id IN ({old}) RETURNING *),
kept AS (
    INSERT INTO {schema}.etl_totals AS t (table_name, status, error_cause, attempts, seconds, metadata)
    SELECT table_name, status, coalesce(error_cause, ''), count(*), coalesce(sum(extraction_duration_seconds), 0), {sums}
    FROM gone GROUP BY 1, 2, 3
    ON CONFLICT (table_name, status, error_cause) DO UPDATE SET attempts = t.attempts + excluded.attempts,
        seconds = t.seconds + excluded.seconds, metadata = {added}
)
SELECT count(*) FROM gone
"""
ADD_UP = """
WITH gone AS (DELETE FROM {schema}.etl_queries WHERE id IN ({old}) RETURNING *),
kept AS (
    INSERT INTO {schema}.etl_queries (table_name, purpose, run_id, bytes_billed, slot_millis, bytes_avoided, finished_at)
    SELECT table_name, purpose, '', sum(bytes_billed), sum(slot_millis), sum(bytes_avoided), max(finished_at)
    FROM gone GROUP BY 1, 2
)
SELECT count(*) FROM gone
"""
KINDS = (
    Kind("attempts", "etl_extractions", LAST, KEEP_TOTALS),
    Kind(
        "queries",
        "etl_queries",
        # The sums of deleted rows are rows without a run. New sums take them in, so that there is one of each table and purpose.
        "SELECT q.id FROM {schema}.etl_queries q JOIN (SELECT table_name, purpose FROM {schema}.etl_queries "
        "WHERE finished_at < %(before)s AND run_id <> '' LIMIT %(most)s) o USING (table_name, purpose) "
        "WHERE q.finished_at < %(before)s GROUP BY q.id",
        ADD_UP,
    ),
    Kind(
        "alerts",
        "etl_alerts",
        "SELECT id FROM {schema}.etl_alerts a WHERE state = 'closed' AND closed_at < %(before)s AND NOT EXISTS "
        "(SELECT FROM {schema}.etl_alert_messages m WHERE m.alert_id = a.id AND m.pending <> '{{}}') LIMIT %(most)s",
        "WITH chosen AS MATERIALIZED ({old}), messages AS (DELETE FROM {schema}.etl_alert_messages WHERE alert_id IN "
        "(SELECT id FROM chosen)), gone AS (DELETE FROM {schema}.etl_alerts WHERE id IN (SELECT id FROM chosen) RETURNING id) "
        "SELECT count(*) FROM gone",
    ),
    Kind(
        "refreshes",
        "etl_refreshes",
        "SELECT id FROM {schema}.etl_refreshes WHERE requested_at < %(before)s LIMIT %(most)s",
        "WITH gone AS (DELETE FROM {schema}.etl_refreshes WHERE id IN ({old}) RETURNING id) SELECT count(*) FROM gone",
    ),
)
"""Every kind. A new table of the past gets its line here, and its days in the setting."""


def old_rows(conn: psycopg.Connection, schema: str, before: Mapping[str, datetime]) -> dict[str, int]:
    """How many rows of each kind `delete_old` would delete; `before` has an instant for each kind to delete. Reads only.

    None of a ledger that does not exist. Raises LedgerMismatch for one of an earlier release.
    """
    counted = {kind.name: 0 for kind in _chosen(before)}
    if not _is_there(conn, schema):
        return counted
    for kind in _chosen(before):
        query = sql.SQL("SELECT count(*) FROM ({}) AS o").format(_filled(kind.old, schema))
        (counted[kind.name],) = conn.execute(query, {"before": before[kind.name], "most": None}).fetchone() or (0,)
    return counted


def delete_old(
    conn: psycopg.Connection, schema: str, before: Mapping[str, datetime], go_on: Callable[[], bool] = lambda: True
) -> dict[str, int]:
    """Deletes the rows of each kind that are older than its instant, in small transactions, while `go_on` says so.

    Returns how many it deleted. The connection is in autocommit mode. Raises SchemaRefused (see `strangers`), and LedgerMismatch
    for a ledger of an earlier release.
    """
    deleted = {kind.name: 0 for kind in _chosen(before)}
    if not _is_there(conn, schema):
        return deleted
    for kind in _chosen(before):
        statement = _filled(kind.remove, schema, old=_filled(kind.old, schema))
        while go_on():
            with conn.transaction():
                refuse_strangers(conn, schema, kind.table)
                (rows,) = conn.execute(statement, {"before": before[kind.name], "most": BATCH}).fetchone() or (0,)
            deleted[kind.name] += rows
            if rows < BATCH:
                break
    return deleted


def _chosen(before: Mapping[str, datetime]) -> list[Kind]:
    return [kind for kind in KINDS if kind.name in before]


def _is_there(conn: psycopg.Connection, schema: str) -> bool:
    found = state(conn, schema)
    if found.is_older:
        raise found.too_old()
    return not found.empty


def _filled(text: str, schema: str, **more: sql.Composed) -> sql.Composed:
    def numbers(expression: str) -> sql.Composed:
        return sql.SQL(", ").join(sql.SQL("{0}, " + expression).format(sql.Literal(name)) for name in SUMMED)

    both = "coalesce((t.metadata->>{0})::numeric, 0) + coalesce((excluded.metadata->>{0})::numeric, 0)"
    return sql.SQL(text).format(
        schema=sql.Identifier(schema),
        sums=sql.SQL("jsonb_build_object({})").format(numbers("coalesce(sum((metadata->>{0})::numeric), 0)")),
        added=sql.SQL("jsonb_build_object({})").format(numbers(both)),
        **more,
    )
