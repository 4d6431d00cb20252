"""The statements that turn the existing table into the declared one, in an order that works. Nothing runs here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from psycopg import sql

from pulso_etl.sync.postgres.catalog import CURRENT, Index, Table
from pulso_etl.sync.postgres.identifiers import listed
from pulso_etl.sync.spec import VALIDITY, Column, ColumnType, Contract, Strategy, TableSpec

HISTORY = {column.name for column in VALIDITY}


@dataclass(frozen=True)
class Change:
    """One statement that brings a table closer to its declaration; `refusal` says why only a person may run it."""

    statement: sql.Composed
    refusal: str | None = None


def create_table(spec: TableSpec, schema: str) -> list[sql.Composed]:
    """The table with its key, checks and indexes."""
    lines = [_definition(spec, column) for column in _all_columns(spec)]
    if spec.table_key:
        lines.append(sql.SQL("PRIMARY KEY ({})").format(listed(spec.table_key)))
    create = sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}){}").format(
        sql.Identifier(schema, spec.name), sql.SQL(", ").join(lines), _partitioning(spec)
    )
    return [create, *(_create_index(spec, schema, index) for index in _declared_indexes(spec))]


def needed_changes(spec: TableSpec, schema: str, table: Table, *, aside: str | None = None) -> list[Change]:
    """The changes that make the table as declared, in an order that works. None are needed if it is as declared.

    Safe and cheap changes may run. They add columns, limits (for rows written from now on) and indexes, they drop NOT NULL, and
    they drop the length of a type if PostgreSQL does not rewrite the table for it. Other changes are refused. Before rows leave
    the table, all its rows are copied to the table `aside`.
    """
    partitioning = f"RANGE ({spec.partition_column})" if spec.retention.partition_by else ""
    build = _alter if table.partitioned_by == partitioning else _rebuild
    return build(spec, schema, table, aside or aside_name(spec))


def aside_name(spec: TableSpec, number: int = 1) -> str:
    """The name of a copy of the old table."""
    return f"{spec.name[:54]}_before{number if number > 1 else ''}"


def copy_aside(spec: TableSpec, schema: str, aside: str) -> sql.Composed:
    """Copies all rows of the table to a table of its own."""
    return sql.SQL("CREATE TABLE {} AS TABLE {}").format(sql.Identifier(schema, aside), sql.Identifier(schema, spec.name))


def version(spec: TableSpec, alias: str | None = None) -> sql.Composed:
    """The value that orders the rows of a key: the row with the greatest value is the newest."""
    name = spec.version_column or spec.partition_column
    column = sql.Composed([sql.Identifier(alias, name) if alias else sql.Identifier(name)])
    # BigQuery orders texts by code points. This does the same, whatever the database's language is.
    return column + sql.SQL(' COLLATE "C"') if spec.column(name).type is ColumnType.TEXT else column


def unknown_columns(spec: TableSpec, table: Table) -> list[str]:
    """Columns of the table that neither the declaration nor the destination knows."""
    known = {column.name for column in _all_columns(spec)}
    return [name for name in table.columns if name not in known]


def loses_history(spec: TableSpec, table: Table) -> bool:
    """Whether the table keeps versions of rows and the declaration does not."""
    return table.keeps_history and spec.loading.strategy is not Strategy.SCD2


def without_history(table: Table) -> Table:
    """The table without the two columns that say when a version was valid."""
    return replace(table, columns={name: column for name, column in table.columns.items() if name not in HISTORY})


def key_differs(spec: TableSpec, table: Table) -> bool:
    """Whether the table's key has other columns than the declared key. Their order does not matter."""
    return set(table.primary_key) != set(spec.table_key)


def cast(column: Column, table: Table) -> sql.Composed:
    """The column's value, in the declared type."""
    name = sql.Identifier(column.name)
    if table.columns[column.name].type == column.sql_type:
        return sql.Composed([name])
    return sql.SQL("{}::{}").format(name, sql.SQL(column.sql_type))


def _alter(spec: TableSpec, schema: str, table: Table, aside: str) -> list[Change]:
    """Changes the table in place: it keeps its views, grants and a user's own indexes."""
    held = without_history(table) if loses_history(spec, table) else table
    return [
        *_copied(spec, schema, table, aside),
        *_released(spec, schema, table),
        *(change for column in _all_columns(spec) for change in _column(spec, schema, held, column)),
        *_unknown(spec, schema, held),
        *_secured(spec, schema, held),
    ]


def _rebuild(spec: TableSpec, schema: str, table: Table, aside: str) -> list[Change]:
    """Creates the table anew from a copy, with the declared partitions, or without partitions."""
    held = without_history(table) if loses_history(spec, table) else table
    target, copy = sql.Identifier(schema, spec.name), sql.Identifier(schema, aside)
    # With `evolve` the table may have columns of the source that the declaration does not name.
    more = [held.columns[name] for name in unknown_columns(spec, held) if spec.loading.contract is Contract.EVOLVE]
    create, *indexes = create_table(spec, schema)
    statements = [copy_aside(spec, schema, aside)] if table.holds_rows else []
    statements += [sql.SQL("DROP TABLE {}").format(target), create]
    statements += [
        sql.SQL("ALTER TABLE {} ADD COLUMN {} {}").format(target, sql.Identifier(column.name), sql.SQL(column.type))
        for column in more
    ]
    if table.holds_rows:
        values = {column.name: cast(column, held) for column in _all_columns(spec) if column.name in held.columns}
        values |= {column.name: sql.Composed([sql.Identifier(column.name)]) for column in more}
        if _history_begins(spec, held):
            values["valid_from"] = sql.Composed([sql.Identifier("updated_at")])
        keys = sql.SQL(", ").join(values[name] for name in spec.primary_key)
        statements += _months(spec, schema, copy) if spec.retention.partition_by else []
        statements.append(
            sql.SQL("INSERT INTO {} ({}) SELECT {}{} FROM {}{}{}").format(
                target,
                listed(values),
                sql.SQL("DISTINCT ON ({}) ").format(keys) if held.repeated else sql.SQL(""),
                sql.SQL(", ").join(values.values()),
                copy,
                sql.SQL(f" WHERE {CURRENT}" if loses_history(spec, table) else ""),
                sql.SQL(" ORDER BY {}, {}").format(keys, _newest_first(spec)) if held.repeated else sql.SQL(""),
            )
        )
    statements += indexes
    if table.holds_rows and not (loses_history(spec, table) or held.repeated):
        statements.append(sql.SQL("DROP TABLE {}").format(copy))
    declared = _partitioning(spec).as_string().strip().removeprefix("PARTITION BY ").replace('"', "")
    refusals = [f"partitions: declared {declared or 'none'}, the table has {table.partitioned_by or 'none'}"]
    refusals += [change.refusal for change in _alter(spec, schema, table, aside) if change.refusal]
    first, *others = statements
    return [Change(first, "\n  ".join(dict.fromkeys(refusals))), *(Change(statement) for statement in others)]


def _copied(spec: TableSpec, schema: str, table: Table, aside: str) -> Iterator[Change]:
    """Keeps rows that have to leave the table in a copy."""
    if not table.holds_rows or not (loses_history(spec, table) or table.repeated):
        return
    yield Change(copy_aside(spec, schema, aside), f"rows have to leave the table; {schema}.{aside} keeps a copy of all its rows")
    if loses_history(spec, table):
        yield Change(sql.SQL("DELETE FROM {} WHERE NOT ({})").format(sql.Identifier(schema, spec.name), sql.SQL(CURRENT)))


def _released(spec: TableSpec, schema: str, table: Table) -> Iterator[Change]:
    """Drops the parts that depend on changing columns: the key, the index of current versions, limits."""
    if table.primary_key and key_differs(spec, table):
        yield _altered(spec, schema, "DROP CONSTRAINT {}", sql.Identifier(table.primary_key_name), refusal=_other_key(spec, table))
    for name, index in table.indexes.items():
        if index.condition == CURRENT and index.unique and index not in _declared_indexes(spec):
            # Pulso ETL made this index. It would refuse rows that a key with more columns allows.
            yield Change(sql.SQL("DROP INDEX {}").format(sql.Identifier(schema, name)))
    if loses_history(spec, table):
        why = f"history: the table keeps versions of its rows, and {spec.loading.strategy} keeps none"
        for name in ("valid_from", "valid_to"):
            yield _altered(spec, schema, "DROP COLUMN {}", sql.Identifier(name), refusal=why)
    for column in _all_columns(spec):
        for operator, value in _limits(column):
            limit = table.limits.get((column.name, operator))
            if limit is not None and limit.value != value:
                yield _altered(spec, schema, "DROP CONSTRAINT {}", sql.Identifier(limit.constraint))


def _column(spec: TableSpec, schema: str, table: Table, column: Column) -> Iterator[Change]:
    name, kind = sql.Identifier(column.name), sql.SQL(column.sql_type)
    found, required, default = table.columns.get(column.name), spec.required(column), _default(spec, column)
    if found is None:
        missing = required and not default and table.holds_rows
        why = f"{column.name}: required, and the existing rows have no value for it" if missing else None
        yield _altered(spec, schema, "ADD COLUMN {}", _definition(spec, column), refusal=why)
        if column.name == "valid_from" and _history_begins(spec, table) and table.holds_rows:
            yield Change(sql.SQL("UPDATE {} SET valid_from = updated_at").format(sql.Identifier(schema, spec.name)))
        return
    if found.type != column.sql_type:
        free = _rewrites_nothing(found.type, column)
        why = None if free else f"{column.name}: declared {column.sql_type}, the table has {found.type}"
        if found.filled and not free:
            yield _altered(spec, schema, "ALTER COLUMN {} DROP DEFAULT", name)
            found = replace(found, filled=False)
        # PostgreSQL may have no cast between the types. An empty table needs none.
        value = sql.SQL("{}::{}").format(name if table.holds_rows else sql.NULL, kind)
        yield _altered(spec, schema, "ALTER COLUMN {} TYPE {} USING {}", name, kind, value, refusal=why)
    if required and not found.not_null:
        why = f"{column.name}: required, and the table allows null"
        yield _altered(spec, schema, "ALTER COLUMN {} SET NOT NULL", name, refusal=why)
    if found.not_null and not required:
        yield _altered(spec, schema, "ALTER COLUMN {} DROP NOT NULL", name)
    if default and not found.filled:
        yield _altered(spec, schema, "ALTER COLUMN {} SET DEFAULT now()", name)


def _unknown(spec: TableSpec, schema: str, table: Table) -> Iterator[Change]:
    for column in (table.columns[name] for name in unknown_columns(spec, table)):
        name = sql.Identifier(column.name)
        if spec.loading.contract is Contract.FREEZE:
            why = f"{column.name}: in the table but not declared; declare it, or set the contract to evolve"
            yield _altered(spec, schema, "DROP COLUMN {}", name, refusal=why)
        elif column.not_null and not column.filled:
            why = f"{column.name}: the table requires a value, the source has none"
            yield _altered(spec, schema, "ALTER COLUMN {} DROP NOT NULL", name, refusal=why)


def _secured(spec: TableSpec, schema: str, table: Table) -> Iterator[Change]:
    """Adds the parts that need the declared columns: the key, limits, indexes."""
    if table.repeated:
        yield Change(
            sql.SQL(
                "DELETE FROM {0} t USING (SELECT ctid AS tid, tableoid AS part, row_number() OVER (PARTITION BY {1} ORDER BY {2}) "
                "AS place FROM {0}) d WHERE t.ctid = d.tid AND t.tableoid = d.part AND d.place > 1"
            ).format(sql.Identifier(schema, spec.name), listed(spec.primary_key), _newest_first(spec))
        )
    if spec.table_key and key_differs(spec, table):
        yield _altered(spec, schema, "ADD PRIMARY KEY ({})", listed(spec.table_key), refusal=_other_key(spec, table))
    for column in _all_columns(spec):
        for operator, value in _limits(column):
            limit = table.limits.get((column.name, operator))
            if column.name in table.columns and value is not None and (limit is None or limit.value != value):
                # Earlier rows may be beyond the limit. PostgreSQL does not check them.
                yield _altered(spec, schema, "ADD {} NOT VALID", _check(column, operator, value))
    for index in _declared_indexes(spec):
        if index not in table.indexes.values():
            yield Change(_create_index(spec, schema, index))


def _altered(spec: TableSpec, schema: str, action: str, *values: sql.Composable, refusal: str | None = None) -> Change:
    target = sql.Identifier(schema, spec.name)
    return Change(sql.SQL("ALTER TABLE {} ").format(target) + sql.SQL(action).format(*values), refusal)


def _history_begins(spec: TableSpec, table: Table) -> bool:
    """Whether existing rows become first versions: each is valid since it was written."""
    return spec.loading.strategy is Strategy.SCD2 and "valid_from" not in table.columns and "updated_at" in table.columns


def _other_key(spec: TableSpec, table: Table) -> str:
    declared, got = (", ".join(key) or "none" for key in (spec.table_key, table.primary_key))
    return f"primary key: declared ({declared}), the table has ({got})"


def _newest_first(spec: TableSpec) -> sql.Composed:
    return sql.SQL("{} DESC").format(version(spec))


def _partitioning(spec: TableSpec) -> sql.Composed:
    if spec.retention.partition_by is None:
        return sql.Composed([])
    return sql.SQL(" PARTITION BY RANGE ({})").format(sql.Identifier(spec.partition_column))


def _months(spec: TableSpec, schema: str, source: sql.Identifier) -> list[sql.Composed]:
    """Creates a partition for each month of the rows in `source`."""
    return [
        sql.SQL(
            "DO $$ DECLARE first date; BEGIN FOR first IN SELECT DISTINCT date_trunc('month', {})::date FROM {} LOOP "
            "EXECUTE format('CREATE TABLE %I.%I PARTITION OF %I.%I FOR VALUES FROM (%L) TO (%L)', {}, {} || "
            "to_char(first, '\"_y\"YYYY\"m\"MM'), {}, {}, first, (first + interval '1 month')::date); END LOOP; END $$"
        ).format(sql.Identifier(spec.partition_column), source, *map(sql.Literal, (schema, spec.name, schema, spec.name)))
    ]


def _all_columns(spec: TableSpec) -> tuple[Column, ...]:
    return (*spec.columns, *spec.kept_columns)


def _definition(spec: TableSpec, column: Column) -> sql.Composed:
    line = sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(column.sql_type))
    if spec.required(column):
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


def _declared_indexes(spec: TableSpec) -> tuple[Index, ...]:
    """The indexes besides the primary key's. The partition column is indexed if the key does not begin with it."""
    indexes = []
    if spec.primary_key[0] != spec.partition_column:
        indexes.append(Index((spec.partition_column,)))
    if spec.loading.strategy is Strategy.APPEND:
        indexes.append(Index(spec.primary_key))
    if spec.loading.strategy is Strategy.SCD2:
        indexes.append(Index(spec.primary_key, unique=True, condition=CURRENT))
    return tuple(indexes)


def _create_index(spec: TableSpec, schema: str, index: Index) -> sql.Composed:
    # PostgreSQL chooses the name, so that it differs from the names of other indexes.
    return sql.SQL("CREATE {} ON {} ({}){}").format(
        sql.SQL("UNIQUE INDEX" if index.unique else "INDEX"),
        sql.Identifier(schema, spec.name),
        listed(index.columns),
        sql.SQL(f" WHERE {index.condition}" if index.condition else ""),
    )


def _rewrites_nothing(found: str, declared: Column) -> bool:
    """Whether PostgreSQL changes the type in its catalog only: the type just loses a length or a precision."""
    plain = re.sub(r"\(.*?\)", "", found)
    return plain == declared.sql_type or (plain, declared.sql_type) == ("character varying", ColumnType.TEXT.value)
