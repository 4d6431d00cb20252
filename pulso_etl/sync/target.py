"""The table that is loaded, looked at or changed: what travels together through the library."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from pulso_etl.sync.postgres.identifiers import quoted_name
from pulso_etl.sync.spec import TableSpec


@dataclass(frozen=True)
class Target:
    """A table: its declaration, the schema that holds it, and the connection that reaches it."""

    conn: psycopg.Connection
    spec: TableSpec
    schema: str

    @property
    def identifier(self) -> sql.Identifier:
        """The table's name in SQL, with its schema."""
        return sql.Identifier(self.schema, self.spec.name)

    @property
    def quoted_name(self) -> str:
        """The table's name with its schema, quoted, as the server's functions take it in a text."""
        return quoted_name(self.schema, self.spec.name)

    def declared_as(self, spec: TableSpec) -> Target:
        """The same table under another declaration."""
        return replace(self, spec=spec)
