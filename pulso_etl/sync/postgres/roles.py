"""A login can work as a role of PostgreSQL: its objects then belong to the role, and it sees what the role may see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

ROLE = re.compile(r"(?:^|\s)-c\s*role=(\S+)")
"""The role in the `options` of a connection string."""


def as_role(database_url: str, role: str) -> str:
    """A connection string with which the login works as the role from its first statement. Without a role, the URL itself."""
    if not role:
        return database_url
    options = conninfo_to_dict(database_url).get("options")
    return make_conninfo(database_url, options=" ".join(filter(None, [options, f"-c role={role}"])))  # type: ignore[list-item]


def split_role(database_url: str) -> tuple[str, str]:
    """The connection string without its role, and the role (empty for none). A pooler may refuse `options`."""
    parts = conninfo_to_dict(database_url)
    options = str(parts.pop("options", None) or "")
    roles = ROLE.findall(options)
    if not roles:
        return database_url, ""
    if left := ROLE.sub("", options).strip():
        parts["options"] = left
    return make_conninfo(**parts), roles[-1]  # type: ignore[arg-type]


@contextmanager
def as_login(conn: psycopg.Connection) -> Iterator[None]:
    """Uses the login's own rights for a moment: a role cannot control the login's other sessions. Needs autocommit mode."""
    before = conn.execute("SELECT current_setting('role')").fetchone()
    conn.execute("SET ROLE NONE")
    try:
        yield
    finally:
        conn.execute("SELECT set_config('role', %s, false)", before)
