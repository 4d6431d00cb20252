"""Writes the error for a table that only a person may change: the reasons, and the statements, which the person checks first.

The statements are one transaction and run as they are written. Some rows cannot stay in the table: a value has no cast, a required
value is null, or several rows have the same key. Then the statements move the rows to a separate table, and the days are loaded
again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import count

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pulso_etl.sync.errors import SchemaRefused
from pulso_etl.sync.postgres.catalog import CURRENT, Table
from pulso_etl.sync.postgres.identifiers import listed, quoted_name
from pulso_etl.sync.schema.migration import (
    Change,
    aside_name,
    cast,
    copy_aside,
    key_differs,
    loses_history,
    needed_changes,
    without_history,
)
from pulso_etl.sync.spec import Strategy, TableSpec
from pulso_etl.sync.target import Target

SESSION = ("SET LOCAL TimeZone = 'UTC'", "SET LOCAL DateStyle = 'ISO, YMD'")
"""The settings on which casts between times and texts depend, so that PostgreSQL casts as BigQuery does."""
VIEWS = """
SELECT DISTINCT r.ev_class::regclass::text FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
WHERE d.classid = 'pg_rewrite'::regclass AND d.refobjid = to_regclass(%(table)s) AND r.ev_class <> d.refobjid ORDER BY 1
"""


@dataclass(frozen=True)
class Rows:
    """What the rows say: the table, corrected by them, the obstacles to the change (if any), and the first and last day."""

    table: Table
    obstacles: tuple[str, ...] = ()
    first: date | None = None
    last: date | None = None


def schema_refusal(target: Target, table: Table) -> SchemaRefused:
    """The error for a table that only a person may change, with the statements that change it. Reads the table once or more."""
    conn, spec, schema = target.conn, target.spec, target.schema
    rows = look(target, table)
    aside = next(name for number in count(1) if _free(conn, schema, name := aside_name(spec, number)))
    changes = needed_changes(spec, schema, rows.table, aside=aside)
    reasons = dict.fromkeys(change.refusal for change in needed_changes(spec, schema, table, aside=aside) if change.refusal)
    parts = [
        f"{spec.name}: the table in schema {schema} is not as declared, and changing it may lose data or rewrite all of it:",
        *(f"  {reason}" for reason in reasons),
    ]
    if rows.obstacles:
        parts += ["The existing rows do not fit the declaration:", *(f"  {obstacle}" for obstacle in rows.obstacles)]
        parts.append(
            f"So the statements keep them in {schema}.{aside} and leave the table empty. "
            f"Then load it again: pulso-etl refresh {spec.as_argument} --from {rows.first} --to {rows.last}"
        )
    elif rows.table.holds_rows and (key_differs(spec, table) or loses_history(spec, table)):
        parts.append(
            "Old days that no refresh reads again keep their rows. To load these days again too, run this after the statements: "
            f"pulso-etl refresh {spec.as_argument} --from {rows.first} --to {rows.last} --allow-shrink"
        )
    if views := [name for (name,) in conn.execute(VIEWS, {"table": target.quoted_name})]:
        parts.append(
            f"Views read the table: {', '.join(views)}. If a statement fails because of a view, drop the view first, and create it "
            "again afterwards."
        )
    parts.append("Nothing was loaded. Correct the declaration, or run these statements by hand, as one transaction, in this order:")
    parts += [f"  {statement};" for statement in script(spec, schema, changes, aside if rows.obstacles else None)]
    return SchemaRefused("\n".join(parts))


def script(spec: TableSpec, schema: str, changes: Sequence[Change], emptied_into: str | None) -> list[str]:
    """The changes as a transaction in which nobody else writes.

    If `emptied_into` names a table, the rows move to it before the changes.
    """
    target = sql.Identifier(schema, spec.name)
    statements = [sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(target)]
    if emptied_into:
        statements += [copy_aside(spec, schema, emptied_into), sql.SQL("TRUNCATE {}").format(target)]
    statements += [change.statement for change in changes]
    return ["BEGIN", *SESSION, *(statement.as_string() for statement in statements), "COMMIT"]


def look(target: Target, table: Table) -> Rows:
    """Reads the rows to find obstacles to the change. An empty table has none."""
    conn, spec = target.conn, target.spec
    if conn.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(target.identifier)).fetchone() is None:
        return Rows(replace(table, holds_rows=False))
    with conn.transaction(force_rollback=True):
        for setting in SESSION:
            conn.execute(setting)
        rows = _Rows(target, table)
        obstacles = (*rows.without_value(), *rows.without_cast())
        repeated = False
        if not obstacles and spec.table_key and key_differs(spec, table):
            obstacles = tuple(rows.ambiguous())
            repeated = not obstacles and rows.repeat(spec.primary_key)
        first, last = rows.days()
    if obstacles:
        return Rows(replace(table, holds_rows=False), obstacles, first, last)
    return Rows(replace(table, holds_rows=True, repeated=repeated), (), first, last)


@dataclass(frozen=True)
class _Rows:
    """Questions to the rows that should stay: all rows, or the current versions."""

    target: Target
    table: Table

    @property
    def conn(self) -> psycopg.Connection:
        return self.target.conn

    @property
    def spec(self) -> TableSpec:
        return self.target.spec

    @property
    def held(self) -> Table:
        return without_history(self.table) if loses_history(self.spec, self.table) else self.table

    def without_value(self) -> Iterator[str]:
        for column in self.spec.columns:
            found = self.held.columns.get(column.name)
            if not self.spec.required(column) or (found and found.not_null):
                continue
            if found is None:
                yield f"{column.name}: required, and no row has a value for it"
            elif self._any(sql.SQL("{} IS NULL").format(sql.Identifier(column.name))):
                yield f"{column.name}: required, and null in some rows; to keep these, run UPDATE … SET {column.name} = … first"  # noqa: S608 - a sentence, no statement

    def without_cast(self) -> Iterator[str]:
        for column in (*self.spec.columns, *self.spec.kept_columns):
            found = self.held.columns.get(column.name)
            if found is None or found.type == column.sql_type:
                continue
            change = f"{column.name}: from {found.type} to {column.sql_type}"
            name, there, back = sql.Identifier(column.name), cast(column, self.table), sql.SQL(found.type)
            try:
                with self.conn.transaction():
                    if self._any(sql.SQL("({})::{} IS DISTINCT FROM {}").format(there, back, name)):
                        yield f"{change}, the type can't hold all values"
            except pg.CannotCoerce:
                yield f"{change}, PostgreSQL has no cast"
            except psycopg.DatabaseError:
                yield f"{change}, PostgreSQL can't cast some values"

    def ambiguous(self) -> Iterator[str]:
        """Obstacles to a new key: rows that neither the key nor another column distinguishes."""
        spec, named = self.spec, ", ".join(self.spec.primary_key)
        before = [name for name in self.table.primary_key if name != "valid_from"]
        if spec.loading.strategy is Strategy.SCD2 and self.table.keeps_history:
            if before and self._grouped(spec.primary_key, sql.SQL("count(DISTINCT ({}))").format(listed(before))):
                yield f"versions of several ({', '.join(before)}) would become one history of the same ({named})"
        elif spec.loading.strategy is Strategy.SCD2 or spec.version_column is None:
            if self.repeat(spec.primary_key):
                yield f"several rows have the same ({named}), and only the source knows which of them is right"
        elif self.repeat((*spec.primary_key, spec.version_column)):
            yield f"several rows have the same ({named}) and the same {spec.version_column}; only the source knows which is right"

    def repeat(self, names: Sequence[str]) -> bool:
        """Whether several rows have the same values in these columns."""
        return self._grouped(names, sql.SQL("count(*)"))

    def days(self) -> tuple[date | None, date | None]:
        name = self.spec.partition_column
        found = self.table.columns.get(name)
        if found is None or found.type != "date":
            return None, None
        query = sql.SQL("SELECT min({0}), max({0}) FROM {1}").format(sql.Identifier(name), self.target.identifier)
        return self.conn.execute(query).fetchone() or (None, None)

    def _grouped(self, names: Sequence[str], counted: sql.Composable) -> bool:
        by = sql.SQL(", ").join(cast(self.spec.column(name), self.table) for name in names)
        query = sql.SQL("SELECT FROM {} WHERE {} GROUP BY {} HAVING {} > 1 LIMIT 1")
        return self.conn.execute(query.format(self.target.identifier, self._staying, by, counted)).fetchone() is not None

    def _any(self, condition: sql.Composable) -> bool:
        query = sql.SQL("SELECT FROM {} WHERE {} AND {} LIMIT 1").format(self.target.identifier, self._staying, condition)
        return self.conn.execute(query).fetchone() is not None

    @property
    def _staying(self) -> sql.SQL:
        return sql.SQL(CURRENT if loses_history(self.spec, self.table) else "true")


def _free(conn: psycopg.Connection, schema: str, name: str) -> bool:
    return conn.execute("SELECT to_regclass(%s)", (quoted_name(schema, name),)).fetchone() == (None,)
