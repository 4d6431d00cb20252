"""Roles of PostgreSQL as whom a login works: what a session creates belongs to the role, and it sees what the role may see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo


def as_role(database_url: str, role: str) -> str:
    """The connection string under which the login works as the role from its first statement; the URL itself for no role."""
    if not role:
        return database_url
    options = conninfo_to_dict(database_url).get("options")
    return make_conninfo(database_url, options=" ".join(filter(None, [options, f"-c role={role}"])))  # type: ignore[list-item]


@contextmanager
def as_login(conn: psycopg.Connection) -> Iterator[None]:
    """Meanwhile the session, in autocommit mode, has the rights of its login: over the login's other sessions no role has any."""
    conn.execute("SET ROLE NONE")
    try:
        yield
    finally:
        # To the role that the session began with.
        conn.execute("RESET ROLE")
