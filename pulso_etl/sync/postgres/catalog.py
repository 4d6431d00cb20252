"""A table as PostgreSQL has it, read from the server's catalog by one query."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg

from pulso_etl.sync.errors import SchemaRefused

CATALOG = """
SELECT c.relkind, pg_get_partkeydef(c.oid),
    (SELECT coalesce(jsonb_agg(jsonb_build_object('name', attname, 'type', format_type(atttypid, atttypmod),
            'not_null', attnotnull, 'filled', atthasdef OR attidentity <> '', 'number', attnum) ORDER BY attnum), '[]')
        FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
    (SELECT coalesce(jsonb_agg(jsonb_build_object('name', conname, 'kind', contype, 'text', pg_get_constraintdef(k.oid),
            'columns', (SELECT jsonb_agg(attname ORDER BY place) FROM unnest(conkey) WITH ORDINALITY AS u (number, place)
                        JOIN pg_attribute ON attrelid = c.oid AND attnum = number))), '[]')
        FROM pg_constraint k WHERE conrelid = c.oid AND contype IN ('p', 'c')),
    (SELECT coalesce(jsonb_agg(jsonb_build_object(
            'name', i.relname, 'unique', indisunique, 'condition', pg_get_expr(indpred, c.oid),
            'columns', (SELECT jsonb_agg(attname ORDER BY place) FROM unnest(indkey) WITH ORDINALITY AS u (number, place)
                        LEFT JOIN pg_attribute ON attrelid = c.oid AND attnum = number WHERE place <= indnkeyatts))), '[]')
        FROM pg_index JOIN pg_class i ON i.oid = indexrelid JOIN pg_am a ON a.oid = i.relam
        WHERE indrelid = c.oid AND indisvalid AND NOT indisprimary AND amname = 'btree')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s
"""
LIMIT = re.compile(r"(>=|<=)[ (']*(-?\d+)(?![\d.])")
"""A limit in a constraint as PostgreSQL prints it: `CHECK ((x >= 0))`, `CHECK ((x >= ('-5'::integer)::numeric))`."""
CURRENT = "valid_to IS NULL"
"""The condition for the current versions in a table that keeps history."""


@dataclass(frozen=True)
class TableColumn:
    """A column in PostgreSQL. `filled`: it has a default, an identity or an expression.

    `number`: the server never gives a table's column the number of another one, even if that one is dropped.
    """

    name: str
    type: str
    not_null: bool = False
    filled: bool = False
    number: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Limit:
    """A CHECK constraint that limits one column, with its name."""

    constraint: str
    value: int


@dataclass(frozen=True)
class Index:
    """A B-tree index, by the columns that it sorts. `condition` says which rows it holds; empty means all rows.

    Two indexes are compared by these fields, never by their names.
    """

    columns: tuple[str, ...]
    unique: bool = False
    condition: str = ""


@dataclass(frozen=True)
class Table:
    """A table in PostgreSQL.

    The keys of `limits` are column and operator (`>=`, `<=`). The keys of `indexes` are names, without the primary key's index.
    """

    columns: Mapping[str, TableColumn]
    primary_key: tuple[str, ...] = ()
    primary_key_name: str = ""
    limits: Mapping[tuple[str, str], Limit] = field(default_factory=dict)
    indexes: Mapping[str, Index] = field(default_factory=dict)
    holds_rows: bool = True
    partitioned_by: str = ""
    """The partitioning as PostgreSQL prints it, such as `RANGE (day)`; empty for a table without partitions."""
    repeated: bool = False
    """Whether several rows share a declared key. Then the newest version stays."""

    @property
    def keeps_history(self) -> bool:
        """Whether its rows are versions: it has `valid_from` and `valid_to`, and a key or an index of Pulso ETL uses them."""
        ours = "valid_from" in self.primary_key or any(index.condition == CURRENT for index in self.indexes.values())
        return ours and {"valid_from", "valid_to"} <= self.columns.keys()


def read_table(conn: psycopg.Connection, schema: str, name: str) -> Table | None:
    """The table, or None if it does not exist. Raises SchemaRefused for a view."""
    row = conn.execute(CATALOG, (schema, name)).fetchone()
    if row is None:
        return None
    kind, partitioning, columns, constraints, indexes = row
    if kind not in ("r", "p"):
        raise SchemaRefused(f"{schema}.{name} is not an ordinary table; rename it, or set another schema (DATABASE_SCHEMA)")
    key = next((c for c in constraints if c["kind"] == "p"), None)
    limits = {}
    for constraint in constraints:
        found = LIMIT.findall(constraint["text"])
        if constraint["kind"] == "c" and len(found) == 1 and len(constraint["columns"] or ()) == 1:
            operator, value = found[0]
            limits[constraint["columns"][0], operator] = Limit(constraint["name"], int(value))
    return Table(
        columns={column["name"]: TableColumn(**column) for column in columns},
        primary_key=tuple(key["columns"]) if key else (),
        primary_key_name=key["name"] if key else "",
        limits=limits,
        indexes={i["name"]: Index(tuple(i["columns"]), i["unique"], _bare(i["condition"] or "")) for i in indexes},
        partitioned_by=(partitioning or "").replace('"', ""),
    )


def _bare(condition: str) -> str:
    return condition.replace('"', "").removeprefix("(").removesuffix(")")
