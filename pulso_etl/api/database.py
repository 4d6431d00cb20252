"""PostgreSQL for the API: a pool of asynchronous connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from pulso_etl.settings import Settings
from pulso_etl.sync.errors import DestinationError, DestinationUnavailable, first_line
from pulso_etl.sync.ledger.watermarks import TableState, Watermarks
from pulso_etl.sync.postgres.encoding import Encoding
from pulso_etl.sync.postgres.server_errors import keeps_out, meaning
from pulso_etl.sync.postgres.session_settings import Limits
from pulso_etl.sync.postgres.sessions import Session

POOL_SIZE = 8
WAIT_SECONDS = 5.0
LIMITS = Limits(*[timedelta(seconds=30)] * 4)
"""Longest wait for an answer. The server cancels a statement after that time."""


class DatabaseUnavailable(DestinationUnavailable):
    """PostgreSQL does not answer."""


class Database:
    """The connections, and the names of the tables that the API uses.

    The first use checks that nobody shares the sessions, and creates the project's own tables if `tables` is set.
    """

    def __init__(self, settings: Settings, *, tables: bool = True) -> None:
        self.url = settings.database_url.get_secret_value()
        self.schema = settings.database_schema
        self.marks = Watermarks(self.schema)
        self.refreshes = sql.Identifier(self.schema, "etl_refreshes")
        self._tables = tables
        self._prepared = False
        self._session = Session(self.url, "api", LIMITS, connect_seconds=int(WAIT_SECONDS))
        start: dict[str, Any] = {**self._session.start()}
        self._pool = AsyncConnectionPool(
            start.pop("conninfo"),
            min_size=1,
            max_size=POOL_SIZE,
            open=False,
            timeout=WAIT_SECONDS,
            reconnect_timeout=WAIT_SECONDS,
            configure=self._configure,
            check=self._check,
            kwargs=start,
        )

    async def _configure(self, conn: psycopg.AsyncConnection) -> None:
        await conn.execute(self._session.statement())
        Encoding.of(conn).adapt(conn)

    async def _check(self, conn: psycopg.AsyncConnection) -> None:
        try:
            await AsyncConnectionPool.check_connection(conn)
        except psycopg.Error:
            # If the server closed this connection, it closed the others too. The pool alone would test them one by one, with waits.
            await self._pool.drain()
            raise

    async def open(self) -> None:
        """Starts to connect, without waiting."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[psycopg.AsyncConnection]:
        """A connection in autocommit mode. Raises DatabaseUnavailable, also if the server goes away during its use."""
        try:
            if not self._prepared:
                await asyncio.to_thread(self._prepare)
                self._prepared = True
            async with self._pool.connection() as conn:
                yield conn
        except DestinationError as error:
            # A pooler shares the sessions. Loads refuse it too.
            raise DatabaseUnavailable(str(error)) from error
        except PoolTimeout as error:
            raise DatabaseUnavailable(f"PostgreSQL does not answer: {first_line(error)}") from error
        except psycopg.Error as error:
            if not keeps_out(error):
                raise
            raise DatabaseUnavailable(f"{meaning(error).tell(error)}") from error

    async def states(self, conn: psycopg.AsyncConnection, since: datetime | None = None) -> dict[str, TableState]:
        """The result of `Watermarks.read`. Raises DatabaseUnavailable if another release changes the ledger at the same time."""
        query, parameters = self.marks.query(since)
        try:
            return self.marks.states(await (await conn.cursor(row_factory=dict_row).execute(query, parameters)).fetchall())
        except (pg.UndefinedTable, pg.UndefinedColumn) as error:
            # The next connection migrates an older ledger, and refuses a newer one.
            self._prepared = False
            raise DatabaseUnavailable(f"the ledger has changed meanwhile: {first_line(error)}") from error

    def _prepare(self) -> None:
        with self._session.hold() as conn, conn.transaction():
            if self._tables:
                self.marks.create(conn)
