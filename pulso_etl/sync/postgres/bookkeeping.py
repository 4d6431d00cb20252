"""The tables of our own (watermarks, quarantine, alerts), beside those that are loaded."""

from __future__ import annotations

import psycopg


def exists(conn: psycopg.Connection, schema: str, table: str) -> bool:
    """Whether the table is there, whoever may read it."""
    found = conn.execute("SELECT FROM pg_tables WHERE schemaname = %s AND tablename = %s", (schema, table))
    return found.fetchone() is not None
