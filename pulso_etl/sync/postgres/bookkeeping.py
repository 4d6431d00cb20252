"""Looks for Pulso ETL's own tables (watermarks, quarantine, alerts)."""

from __future__ import annotations

import psycopg


def exists(conn: psycopg.Connection, schema: str, table: str) -> bool:
    """Whether the table exists, also if this role may not read it."""
    found = conn.execute("SELECT FROM pg_tables WHERE schemaname = %s AND tablename = %s", (schema, table))
    return found.fetchone() is not None
