"""What a first load, or a migration, would do to PostgreSQL, as statements that an administrator can read and run beforehand.

A role that may not create anything can then load.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import psycopg
from psycopg import sql

from pulso_etl.sync.ledger import migrations
from pulso_etl.sync.schema.schema import needed_statements
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.target import Target


def needed(conn: psycopg.Connection, schema: str, specs: Iterable[TableSpec]) -> list[str]:
    """The statements that the schema still needs: of the ledger, and of the tables. Empty if nothing is to be done. Reads only.

    Raises SchemaRefused, with statements, for a table that a person has to repair first, and if a newer release has changed the
    ledger.
    """
    found = migrations.state(conn, schema)
    if found.unknown:
        raise found.too_new()
    ledger = migrations.statements(schema, found.pending) if found.pending else []
    tables = [statement for spec in specs for statement in needed_statements(Target(conn, spec, schema))]
    return [*(statement.as_string(conn).strip().rstrip(";") for statement in ledger), *tables]


def grants(conn: psycopg.Connection, schema: str, specs: Iterable[TableSpec], role: str) -> Iterator[str]:
    """The statements that give the role what a load needs beside existing tables. They run after `needed`."""
    to, where = sql.Identifier(role), sql.Identifier(schema)
    (database,) = conn.execute("SELECT current_database()").fetchone() or ("",)
    yield sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(where, to).as_string(conn)
    yield sql.SQL("GRANT TEMPORARY ON DATABASE {} TO {}").format(sql.Identifier(database), to).as_string(conn)
    for name in (*(spec.name for spec in specs), *migrations.TABLES):
        table = sql.Identifier(schema, name)
        yield sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {}").format(table, to).as_string(conn)
