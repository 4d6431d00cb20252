"""Opens every session on PostgreSQL. Each session states all settings that our statements and their readers depend on
(see `session_settings`).

The server, the database, the role, the environment (PGCLIENTENCODING, PGOPTIONS, …) or the used session of a pooler may have other
values. A session states them after it has connected, all in one message, because a pooler may refuse them at the start.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pulso_etl.sync.errors import DestinationError
from pulso_etl.sync.postgres.connection import Connection
from pulso_etl.sync.postgres.encoding import Encoding
from pulso_etl.sync.postgres.roles import split_role
from pulso_etl.sync.postgres.server_errors import naming_refusals
from pulso_etl.sync.postgres.session_settings import STATED, STATING, UNLIMITED, Limits

SEARCH_PATH = "concat_ws(', ', 'pg_temp', 'pg_catalog', nullif(pg_catalog.current_setting('search_path'), ''))"
"""The server's own functions come first. Schemas that other people's triggers may need come after them."""
CLOSED_PATH = "concat_ws(', ', 'pg_temp', 'pg_catalog')"
"""The path of a login that works as a role. A function in another schema could fit the arguments better than the server's own.
PostgreSQL would prefer it, and it could `SET ROLE` to every role of the login."""
PROBE_SECONDS = 2.0
"""How long a pooler may take to give a second session. A pooler that shares sessions gives it at once."""
PROBES = 3


class Start(TypedDict):
    """The arguments that open a session."""

    conninfo: str
    autocommit: bool
    client_encoding: str
    application_name: str
    connect_timeout: int


@dataclass(frozen=True)
class Session:
    """Describes a session: the URL, with the role that it works as (see `roles.as_role`), and its purpose, which names it.

    `connect_seconds` limits the attempt to reach each of the server's addresses.
    """

    url: str
    purpose: str
    limits: Limits = UNLIMITED
    connect_seconds: int = 10

    @property
    def name(self) -> str:
        """The name of the session at the server."""
        return f"pulso-etl {self.purpose}"[:63]

    def start(self) -> Start:
        """The arguments with which psycopg opens it. `statement` runs next."""
        conninfo, _ = split_role(self.url)
        # The encoding comes first, because the server may not know the encoding that the environment names.
        return Start(
            conninfo=conninfo,
            autocommit=True,
            client_encoding="UTF8",
            application_name=self.name,
            connect_timeout=self.connect_seconds,
        )

    def statement(self) -> sql.Composed:
        """The statement that states every setting, so that the values of a used session do not matter. Needs autocommit mode."""
        _, role = split_role(self.url)
        settings = STATED | self.limits.settings() | {"application_name": self.name}
        works_as = sql.SQL("SET ROLE {}").format(sql.Identifier(role)) if role else sql.SQL("RESET ROLE")
        path = CLOSED_PATH if role else SEARCH_PATH
        pairs = sql.SQL(", ").join(sql.SQL("({}, {})").format(name, value) for name, value in settings.items())
        return sql.SQL("RESET ALL; {}; SELECT pg_catalog.set_config('search_path', pg_catalog.{}, false); {}").format(
            sql.SQL(STATING).format(pairs), sql.SQL(path), works_as
        )

    def open(self, **more: Any) -> psycopg.Connection:
        """A connection in autocommit mode, which a `with` closes. `more` are parameters of libpq. Raises psycopg.Error."""
        start = self.start()
        with naming_refusals(start["conninfo"]):
            conn = Connection.connect(**start, **more)
        try:
            conn.execute(self.statement())
            Encoding.learnt(conn).adapt(conn)
        except BaseException:
            conn.close()
            raise
        return conn

    @contextmanager
    def hold(self, **more: Any) -> Iterator[psycopg.Connection]:
        """A connection that keeps one session until the end, with its locks and temporary tables. Otherwise the same as `open`.

        Before it does anything, it raises DestinationError behind a pooler that shares sessions, and for a database without an
        encoding. Raises psycopg.Error.
        """
        with self.open(**more) as conn:
            Encoding.of(conn).refuse_none(conn.info.dbname)
            self._refuse_shared(conn)
            yield conn

    def _refuse_shared(self, conn: psycopg.Connection) -> None:
        # A pooler invents its own process numbers. If the numbers agree, there is no pooler.
        if conn.info.backend_pid == (mine := _server_process(conn)):
            return
        with closing(Connection.connect(**self.start())) as other:
            for _ in range(PROBES):
                theirs = _process_within(other, PROBE_SECONDS)
                if theirs is None:
                    return
                if theirs == mine or _server_process(conn) != mine:
                    raise DestinationError(
                        "PostgreSQL: the pooler gives one server session to several clients (pool_mode=transaction or "
                        "statement), so a session loses its locks and settings; set pool_mode=session, or name the "
                        "server itself in DATABASE_URL"
                    )


def buffer_temporary_tables(conn: psycopg.Connection, megabytes: int) -> None:
    """Gives the session's temporary tables this much memory (MiB). A session that has already used some keeps what it has."""
    try:
        conn.execute("SELECT set_config('temp_buffers', %s, false)", (f"{megabytes}MB",))
    except pg.InvalidParameterValue:
        # This is a used session of a pooler. It works, and is only slower.
        return


def _server_process(conn: psycopg.Connection) -> int:
    row = conn.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def _process_within(conn: psycopg.Connection, seconds: float) -> int | None:
    """The server process that answers, or None if none answers in time, because each belongs to another client."""
    raw, deadline = conn.pgconn, time.monotonic() + seconds
    raw.send_query(b"SELECT pg_catalog.pg_backend_pid()")
    while raw.is_busy():
        ready, _, _ = select.select([raw.socket], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        raw.consume_input()
    result = raw.get_result()
    while raw.get_result() is not None:
        pass
    value = result.get_value(0, 0) if result is not None and result.ntuples else None
    return None if value is None else int(value)
