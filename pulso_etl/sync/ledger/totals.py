"""The totals of all time: of the attempts in the history, and of those that the retention has deleted (`etl_totals`)."""

from __future__ import annotations

from psycopg import sql

SUMMED = (
    *("bytes_billed", "bytes_avoided", "estimated_cost_usd", "changes_missed"),
    *(f"rows_{kind}" for kind in ("read", "inserted", "updated", "unchanged", "deleted", "quarantined")),
)
"""Numbers in an attempt's metadata that can be added up."""
ALL = """
SELECT table_name, status, error_cause, 1 AS attempts, extraction_duration_seconds AS seconds, metadata FROM {history}
UNION ALL SELECT table_name, status, nullif(error_cause, ''), attempts, seconds, metadata FROM {totals}
"""


def totals(schema: str) -> sql.Composed:
    """The query of the totals by table and status: attempts, seconds, and each of SUMMED."""
    sums = sql.SQL(", ").join(sql.SQL("coalesce(sum((metadata->>{})::numeric), 0)").format(sql.Literal(name)) for name in SUMMED)
    return sql.SQL(
        "SELECT table_name, status, sum(attempts)::bigint, coalesce(sum(seconds), 0), {} FROM ({}) AS a "
        "GROUP BY table_name, status ORDER BY table_name, status"
    ).format(sums, _all(schema))


def failures(schema: str) -> sql.Composed:
    """The query of the number of failed attempts by table and cause."""
    return sql.SQL(
        "SELECT table_name, error_cause, sum(attempts)::bigint FROM ({}) AS a WHERE status = 'failed' "
        "GROUP BY table_name, error_cause"
    ).format(_all(schema))


def _all(schema: str) -> sql.Composed:
    return sql.SQL(ALL).format(history=sql.Identifier(schema, "etl_extractions"), totals=sql.Identifier(schema, "etl_totals"))
