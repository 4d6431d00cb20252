"""Makes the table in PostgreSQL as declared: creates it, migrates it if that is safe and cheap, and refuses it if it is not."""

from __future__ import annotations

from dataclasses import replace

from psycopg import sql

from pulso_etl.sync.postgres.catalog import Table, read_table
from pulso_etl.sync.schema.migration import create_table, needed_changes
from pulso_etl.sync.schema.told import schema_refusal
from pulso_etl.sync.target import Target


def is_as_declared(target: Target) -> bool:
    """Whether the table exists and needs no change."""
    table = read_table(target.conn, target.schema, target.spec.name)
    return table is not None and not needed_changes(target.spec, target.schema, table)


def ensure_table(target: Target) -> Table:
    """The table as PostgreSQL has it. Creates a missing table. Needs one catalog query if there is nothing to do.

    It migrates nothing yet (see `migrate_table`). Raises SchemaRefused, with the statements, if a person has to act.
    """
    conn, spec, schema = target.conn, target.spec, target.schema
    table = read_table(conn, schema, spec.name)
    if table is None:
        for statement in create_table(spec, schema):
            conn.execute(statement)
        table = read_table(conn, schema, spec.name)
        assert table is not None
    if any(spec.required(column) and column.name not in table.columns for column in spec.columns):
        found = conn.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(target.identifier)).fetchone()
        table = replace(table, holds_rows=found is not None)
    if any(change.refusal for change in needed_changes(spec, schema, table)):
        raise schema_refusal(target, table)
    return table


def needed_statements(target: Target) -> list[str]:
    """The statements that create or migrate the table. Reads only. Raises SchemaRefused if a person has to act first."""
    spec, schema = target.spec, target.schema
    table = read_table(target.conn, schema, spec.name)
    if table is None:
        return [statement.as_string(target.conn) for statement in create_table(spec, schema)]
    if any(change.refusal for change in needed_changes(spec, schema, table)):
        raise schema_refusal(target, table)
    return [change.statement.as_string(target.conn) for change in needed_changes(spec, schema, table)]


def migrate_table(target: Target, table: Table) -> list[str]:
    """Runs the statements that `needed_changes` finds, in the caller's transaction, and returns them.

    An ALTER TABLE keeps readers out until that transaction ends, so call this late. Raises SchemaRefused.
    """
    changes = needed_changes(target.spec, target.schema, table)
    if any(change.refusal for change in changes):
        raise schema_refusal(target, table)
    for change in changes:
        target.conn.execute(change.statement)
    return [change.statement.as_string() for change in changes]
