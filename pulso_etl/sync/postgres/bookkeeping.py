"""How the tables of our own (watermarks, quarantine, alerts) come to be, beside those that are loaded."""

from __future__ import annotations

import psycopg
from psycopg import sql


def exists(conn: psycopg.Connection, schema: str, table: str) -> bool:
    """Whether the table is there, whoever may read it."""
    found = conn.execute("SELECT FROM pg_tables WHERE schemaname = %s AND tablename = %s", (schema, table))
    return found.fetchone() is not None


def create_missing(conn: psycopg.Connection, schema: str, table: str, statements: sql.Composed) -> None:
    """Runs the statements, which create `table`, unless it is there; creates the schema too. One process at a time does so in a
    schema.

    The caller owns the transaction.
    """
    if exists(conn, schema, table):
        return
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"pulso_etl:ddl:{schema}",))
    # Not CREATE SCHEMA IF NOT EXISTS: that asks for the right to create one even where it exists.
    if conn.execute("SELECT FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone() is None:
        conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    conn.execute(statements)
