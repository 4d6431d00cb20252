"""Names as quoted SQL."""

from __future__ import annotations

from collections.abc import Iterable

from psycopg import sql


def listed(names: Iterable[str], alias: str | None = None) -> sql.Composed:
    """The names with commas between them, qualified by the table `alias` if it is given."""
    return sql.SQL(", ").join(sql.Identifier(alias, name) if alias else sql.Identifier(name) for name in names)


def equal(names: Iterable[str], left: str, right: str) -> sql.Composed:
    """The condition that two tables (aliases) have the same values, none of them null, in these columns."""
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(left, name), sql.Identifier(right, name)) for name in names
    )


def quoted_name(schema: str, table: str) -> str:
    """The table's full name, quoted, as text for `to_regclass`."""
    return sql.Identifier(schema, table).as_string()
