"""The table in PostgreSQL against its declaration: created, migrated where that is safe and cheap, refused where it is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import sql

from pulso_etl.destination.identifiers import listed
from pulso_etl.errors import SchemaRefused
from pulso_etl.tables.spec import Column, ColumnType, Contract, Strategy, TableSpec

CATALOG = """
SELECT c.relkind, pg_get_partkeydef(c.oid),
    (SELECT coalesce(jsonb_agg(jsonb_build_object('name', attname, 'type', format_type(atttypid, atttypmod),
            'not_null', attnotnull, 'filled', atthasdef OR attidentity <> '') ORDER BY attnum), '[]')
        FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
    (SELECT coalesce(jsonb_agg(jsonb_build_object('name', conname, 'kind', contype, 'text', pg_get_constraintdef(k.oid),
            'columns', (SELECT jsonb_agg(attname ORDER BY place) FROM unnest(conkey) WITH ORDINALITY AS u (number, place)
                        JOIN pg_attribute ON attrelid = c.oid AND attnum = number))), '[]')
        FROM pg_constraint k WHERE conrelid = c.oid AND contype IN ('p', 'c')),
    (SELECT array_agg(i.relname::text) FROM pg_index JOIN pg_class i ON i.oid = indexrelid WHERE indrelid = c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s
"""
LIMIT = re.compile(r"(>=|<=)[ (']*(-?\d+)(?![\d.])")
"""A limit in a constraint as PostgreSQL prints it: `CHECK ((x >= 0))`, `CHECK ((x >= ('-5'::integer)::numeric))`."""


@dataclass(frozen=True)
class TableColumn:
    """A column as PostgreSQL has it; `filled`: it has a default, an identity or an expression."""

    name: str
    type: str
    not_null: bool = False
    filled: bool = False


@dataclass(frozen=True)
class Limit:
    """A CHECK constraint that bounds one column, by its name."""

    constraint: str
    value: int


@dataclass(frozen=True)
class Table:
    """A table as PostgreSQL has it. `limits` are by column and operator (`>=`, `<=`)."""

    columns: Mapping[str, TableColumn]
    primary_key: tuple[str, ...] = ()
    primary_key_name: str = ""
    limits: Mapping[tuple[str, str], Limit] = field(default_factory=dict)
    indexes: frozenset[str] = frozenset()
    holds_rows: bool = True
    partitioned_by: str = ""
    """As PostgreSQL prints it, such as `RANGE (day)`; empty for a table without partitions."""


@dataclass(frozen=True)
class Change:
    """One statement that brings a table closer to its declaration; `refusal` says why only a person may run it."""

    statement: sql.Composed
    refusal: str | None = None


def create_table(spec: TableSpec, schema: str) -> list[sql.Composed]:
    """The table with its key, checks and indexes."""
    lines = [_definition(spec, column) for column in (*spec.columns, *spec.kept_columns)]
    if spec.table_key:
        lines.append(sql.SQL("PRIMARY KEY ({})").format(listed(spec.table_key)))
    target = sql.Identifier(schema, spec.name)
    return [
        sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}){}").format(target, sql.SQL(", ").join(lines), _partitioning(spec)),
        *_indexes(spec, target).values(),
    ]


def migrate(spec: TableSpec, schema: str, table: Table) -> list[Change]:
    """What must change for the table to be as declared, in the order in which it can be run; nothing where it already is.

    Safe and cheap changes are to be run: columns, limits (for rows written from now on) and indexes are added, NOT NULL is
    lifted, a type loses its length where PostgreSQL rewrites nothing for that. The others are refused.
    """
    target = sql.Identifier(schema, spec.name)
    if table.partitioned_by.replace('"', "") != (f"RANGE ({spec.partition_column})" if spec.partition_by else ""):
        return _conversion(spec, schema, table)
    changes: list[Change] = []

    def alter(action: str, *values: sql.Composable, refusal: str | None = None) -> None:
        changes.append(Change(sql.SQL("ALTER TABLE {} ").format(target) + sql.SQL(action).format(*values), refusal))

    for column in (*spec.columns, *spec.kept_columns):
        name, kind = sql.Identifier(column.name), sql.SQL(column.type.value)
        found, required, default = table.columns.get(column.name), spec.required(column), _default(spec, column)
        if found is None:
            if required and not default and table.holds_rows:
                alter(
                    "ADD COLUMN {}; UPDATE {} SET {} = ?; ALTER TABLE {} ALTER COLUMN {} SET NOT NULL",
                    _definition(spec, column, nullable=True),
                    *(target, name, target, name),
                    refusal=f"{column.name}: required, and the rows that are there have no value for it (put it for the ?)",
                )
            else:
                alter("ADD COLUMN {}", _definition(spec, column))
            continue
        if found.type != column.type.value:
            alter(
                "ALTER COLUMN {} TYPE {} USING {}::{}",
                *(name, kind, name, kind),
                refusal=None
                if _rewrites_nothing(found.type, column.type)
                else f"{column.name}: declared {kind.as_string()}, the table has {found.type}",
            )
        if required and not found.not_null:
            alter("ALTER COLUMN {} SET NOT NULL", name, refusal=f"{column.name}: required, and the table allows null")
        if found.not_null and not required:
            alter("ALTER COLUMN {} DROP NOT NULL", name)
        if default and not found.filled:
            alter("ALTER COLUMN {} SET DEFAULT now()", name)
        for operator, value in _limits(column):
            limit = table.limits.get((column.name, operator))
            if limit is not None and limit.value != value:
                alter("DROP CONSTRAINT {}", sql.Identifier(limit.constraint))
            if value is not None and (limit is None or limit.value != value):
                # Rows of before may lie outside: they are not read, let alone changed.
                alter("ADD {} NOT VALID", _check(column, operator, value))
    if set(table.primary_key) != set(spec.table_key):
        actions = []
        if table.primary_key:
            actions.append(sql.SQL("DROP CONSTRAINT {}").format(sql.Identifier(table.primary_key_name)))
        if spec.table_key:
            actions.append(sql.SQL("ADD PRIMARY KEY ({})").format(listed(spec.table_key)))
        declared, got = (", ".join(key) or "none" for key in (spec.table_key, table.primary_key))
        alter("{}", sql.SQL(", ").join(actions), refusal=f"primary key: declared ({declared}), the table has ({got})")
    for unknown in (table.columns[name] for name in unknown_columns(spec, table)):
        name = sql.Identifier(unknown.name)
        if spec.contract is Contract.FREEZE:
            alter("DROP COLUMN {}", name, refusal=f"{unknown.name}: in the table and not declared (or set the contract to evolve)")
        elif unknown.not_null and not unknown.filled:
            alter("ALTER COLUMN {} DROP NOT NULL", name, refusal=f"{unknown.name}: the table requires a value, the source has none")
    changes += [Change(statement) for name, statement in _indexes(spec, target).items() if name not in table.indexes]
    return changes


def unknown_columns(spec: TableSpec, table: Table) -> list[str]:
    """Columns of the table that neither the declaration nor the destination knows."""
    known = {column.name for column in (*spec.columns, *spec.kept_columns)}
    return [name for name in table.columns if name not in known]


def read_table(conn: psycopg.Connection, schema: str, name: str) -> Table | None:
    """The table as the server's catalog has it, by one query; None where there is none. Raises SchemaRefused for a view."""
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
        indexes=frozenset(indexes or ()),
        partitioned_by=partitioning or "",
    )


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
    _refuse(spec, schema, migrate(spec, schema, table))
    return table


def migrate_table(conn: psycopg.Connection, spec: TableSpec, schema: str, table: Table) -> list[str]:
    """Runs what `migrate` finds, in the caller's transaction, and returns the statements.

    An ALTER TABLE keeps readers out until that transaction ends: call this late. Raises SchemaRefused.
    """
    changes = migrate(spec, schema, table)
    _refuse(spec, schema, changes)
    for change in changes:
        conn.execute(change.statement)
    return [change.statement.as_string() for change in changes]


def _refuse(spec: TableSpec, schema: str, changes: list[Change]) -> None:
    refusals = [f"\n  {change.refusal}" for change in changes if change.refusal]
    if refusals:
        statements = [f"\n  {change.statement.as_string()};" for change in changes]
        raise SchemaRefused(
            f"{spec.name}: the table in schema {schema} is not as declared, and to change it may lose data or rewrite all of it:"
            f"{''.join(refusals)}\nNothing was loaded. Correct the declaration, or run by hand, in this order:{''.join(statements)}"
        )


def _partitioning(spec: TableSpec) -> sql.Composed:
    if spec.partition_by is None:
        return sql.Composed([])
    return sql.SQL(" PARTITION BY RANGE ({})").format(sql.Identifier(spec.partition_column))


def _conversion(spec: TableSpec, schema: str, table: Table) -> list[Change]:
    """The statements that rewrite the table with the partitions that it should have, or without any."""
    name = f"{spec.name[:51]}_unconverted"
    old, target = sql.Identifier(schema, name), sql.Identifier(schema, spec.name)
    kept = listed(column.name for column in (*spec.columns, *spec.kept_columns) if column.name in table.columns)
    declared, got = _partitioning(spec).as_string().strip() or "none", table.partitioned_by or "none"
    create, *indexes = create_table(spec, schema)
    statements = [sql.SQL("ALTER TABLE {} RENAME TO {}").format(target, sql.Identifier(name)), create]
    if spec.partition_by:
        statements.append(
            sql.SQL(
                "DO $$ DECLARE first date; BEGIN FOR first IN SELECT DISTINCT date_trunc('month', {})::date FROM {} LOOP "
                "EXECUTE format('CREATE TABLE %I.%I PARTITION OF %I.%I FOR VALUES FROM (%L) TO (%L)', {}, {} || "
                "to_char(first, '\"_y\"YYYY\"m\"MM'), {}, {}, first, (first + interval '1 month')::date); END LOOP; END $$"
            ).format(sql.Identifier(spec.partition_column), old, *map(sql.Literal, (schema, spec.name, schema, spec.name)))
        )
    statements += [sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(target, kept, kept, old)]
    statements += [sql.SQL("DROP TABLE {}").format(old), *indexes]
    refusal = f"partitions: declared {declared.removeprefix('PARTITION BY ')}, the table has {got}"
    return [Change(statement, refusal if number == 0 else None) for number, statement in enumerate(statements)]


def _definition(spec: TableSpec, column: Column, *, nullable: bool = False) -> sql.Composed:
    line = sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(column.type.value))
    if spec.required(column) and not nullable:
        line += sql.SQL(" NOT NULL")
    if _default(spec, column):
        line += sql.SQL(" DEFAULT now()")
    for operator, value in _limits(column):
        if value is not None:
            line += sql.SQL(" {}").format(_check(column, operator, value))
    return line


def _default(spec: TableSpec, column: Column) -> bool:
    return column.required and column in spec.kept_columns


def _limits(column: Column) -> tuple[tuple[str, int | None], ...]:
    return (">=", column.minimum), ("<=", column.maximum)


def _check(column: Column, operator: str, value: int) -> sql.Composed:
    return sql.SQL("CHECK ({} {} {})").format(sql.Identifier(column.name), sql.SQL(operator), sql.Literal(value))


def _indexes(spec: TableSpec, target: sql.Identifier) -> dict[str, sql.Composed]:
    """By name. The partition column is indexed where the key does not lead with it."""
    indexes: dict[str, sql.Composed] = {}

    def index(what: str, columns: tuple[str, ...], kind: str = "INDEX", where: str = "") -> None:
        name = f"{spec.name}_{what}_idx"[:63]
        indexes[name] = sql.SQL("CREATE {} IF NOT EXISTS {} ON {} ({}){}").format(
            sql.SQL(kind), sql.Identifier(name), target, listed(columns), sql.SQL(where)
        )

    if spec.primary_key[0] != spec.partition_column:
        index(spec.partition_column, (spec.partition_column,))
    if spec.strategy is Strategy.APPEND:
        index("key", spec.primary_key)
    if spec.strategy is Strategy.SCD2:
        index("current", spec.primary_key, "UNIQUE INDEX", " WHERE valid_to IS NULL")
    return indexes


def _rewrites_nothing(found: str, declared: ColumnType) -> bool:
    """Whether PostgreSQL changes the type in its catalog alone: it only loses a length or a precision."""
    plain = re.sub(r"\(.*?\)", "", found)
    return plain == declared.value or (plain, declared) == ("character varying", ColumnType.TEXT)
