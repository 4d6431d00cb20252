"""The table in PostgreSQL against its declaration: created, migrated where that is safe and cheap, refused where it is not."""

from __future__ import annotations

from dataclasses import replace

import psycopg
from psycopg import sql

from pulso_etl.sync.postgres.catalog import Table, read_table
from pulso_etl.sync.schema.migration import create_table, migrate
from pulso_etl.sync.schema.told import refusal
from pulso_etl.sync.spec import TableSpec


def is_as_declared(conn: psycopg.Connection, spec: TableSpec, schema: str) -> bool:
    """Whether the table is there and needs no change."""
    table = read_table(conn, schema, spec.name)
    return table is not None and not migrate(spec, schema, table)


def ensure_table(conn: psycopg.Connection, spec: TableSpec, schema: str) -> Table:
    """The table as it is, created where it was missing: one catalog query where nothing is to be done.

    Migrates nothing yet (see `migrate_table`). Raises SchemaRefused, with the statements, where a person has to change the table.
    """
    table = read_table(conn, schema, spec.name)
    if table is None:
        for statement in create_table(spec, schema):
            conn.execute(statement)
        table = read_table(conn, schema, spec.name)
        assert table is not None
    if any(spec.required(column) and column.name not in table.columns for column in spec.columns):
        found = conn.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(sql.Identifier(schema, spec.name))).fetchone()
        table = replace(table, holds_rows=found is not None)
    if any(change.refusal for change in migrate(spec, schema, table)):
        raise refusal(conn, spec, schema, table)
    return table


def migrate_table(conn: psycopg.Connection, spec: TableSpec, schema: str, table: Table) -> list[str]:
    """Runs what `migrate` finds, in the caller's transaction, and returns the statements.

    An ALTER TABLE keeps readers out until that transaction ends: call this late. Raises SchemaRefused.
    """
    changes = migrate(spec, schema, table)
    if any(change.refusal for change in changes):
        raise refusal(conn, spec, schema, table)
    for change in changes:
        conn.execute(change.statement)
    return [change.statement.as_string() for change in changes]
