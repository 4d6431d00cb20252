"""The rows of a table as CSV: read by a cursor of the server, so that a download of any size takes little memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack

import psycopg
from fastapi import HTTPException
from psycopg import errors as pg
from psycopg import sql
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from pulso_etl.api.database import Database, DatabaseUnavailable
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.postgres.identifiers import listed
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import Column, ColumnType, TableSpec

MOST_DAYS = 366
BATCH_ROWS = 2_000
AT_ONCE = 2
"""So many downloads may go on at the same time: each holds a connection."""
MARK = "\ufeff"
"""The byte order mark. Without it, Excel takes UTF-8 for another encoding."""
STATED = """
SELECT set_config(name, value, true)
FROM (VALUES ('transaction_timeout', '0'), ('cursor_tuple_fraction', '0.001'), ('TimeZone', %s)) AS stated (name, value)
WHERE current_setting(name, true) IS NOT NULL
"""
"""A whole download may take longer than other answers, but none of its parts. The first rows should come soon: then the
server reads along the key, and does not sort all rows before."""
FORMULA = "=+-@\t\r\n"
"""A spreadsheet may take a text that begins so for a formula."""
AS_JSON = "to_jsonb({}) #>> '{{}}'"
FORMS: Mapping[str, str] = defaultdict(
    lambda: "{}::text",
    {
        # JSON writes ISO 8601, while a text has a space before the time.
        ColumnType.TIMESTAMP: AS_JSON,
        ColumnType.DATETIME: AS_JSON,
        # BigQuery's numbers have nine digits after the point, mostly zeros.
        ColumnType.NUMERIC: "trim_scale({})::text",
        "array": AS_JSON,
    },
)
"""How a value is written, by the type of its column."""
FREE = (ColumnType.TEXT, ColumnType.JSON, ColumnType.BYTES)
"""Types whose values may have any characters."""
MOST_ARGUMENTS = 100
"""PostgreSQL's functions take no more."""


def header(spec: TableSpec) -> str:
    """The first line. The names of columns need no quotes."""
    return MARK + ",".join(spec.column_names) + "\r\n"


def rows_query(spec: TableSpec, schema: str) -> sql.Composed:
    """The query of a range's rows, each as a line of CSV, in the order of the key. Its parameters are `start` and `end`."""
    names = Statements(spec, schema)
    return sql.SQL("SELECT {} || E'\\r\\n' FROM {} WHERE {} BETWEEN %(start)s AND %(end)s AND {} ORDER BY {}").format(
        _joined([_field(column) for column in spec.columns]), names.target, names.partition, names.current, listed(spec.primary_key)
    )


def _joined(fields: Sequence[sql.Composed]) -> sql.Composed:
    """The fields with commas between them; a null is empty."""
    most = MOST_ARGUMENTS // 2
    parts = [fields[first : first + most] for first in range(0, len(fields), most)]
    return sql.SQL(" || ',' || ").join(sql.SQL("concat({})").format(sql.SQL(", ',', ").join(part)) for part in parts)


def _field(column: Column) -> sql.Composed:
    """The value as a field of CSV. A null is null, and an empty text is `""`. A text that a spreadsheet would take for a formula
    gets an apostrophe in front."""
    form = FORMS["array" if column.repeated else column.type]
    text = sql.SQL(form).format(sql.Identifier(column.name))
    if not column.repeated and column.type not in FREE:
        return text
    return sql.SQL(
        "'\"' || CASE WHEN strpos({formula}, left({text}, 1)) > 0 AND {text} <> '' THEN '''' ELSE '' END "
        "|| replace({text}, '\"', '\"\"') || '\"'"
    ).format(text=sql.SQL("({})").format(text), formula=FORMULA)


class Download(StreamingResponse):
    """A file for a browser to save. When the caller has it or goes away, the cursor is closed."""

    def __init__(self, first: str, rest: AsyncGenerator[str], name: str) -> None:
        self._first, self._rest = first, rest
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
        super().__init__(self._all(), media_type="text/csv; charset=utf-8; header=present", headers=headers)

    async def _all(self) -> AsyncGenerator[str]:
        yield self._first
        async for part in self._rest:
            yield part

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._rest.aclose()


class Downloads:
    """The downloads of a deployment."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._free = AT_ONCE

    async def begin(self, spec: TableSpec, window: DayRange) -> Download:
        """The answer, its first rows already read.

        Raises PlanError for too many days, HTTPException 404 for a table that was never loaded and 429 while too many downloads go
        on, and DatabaseUnavailable.
        """
        if window.days > MOST_DAYS:
            raise PlanError(f"{window} are {window.days} days; a download has {MOST_DAYS} at most: ask for several")
        if self._free == 0:
            raise HTTPException(429, f"{AT_ONCE} downloads go on already; try again soon", {"Retry-After": "5"})
        parts = self._parts(spec, window)
        return Download(await anext(parts), parts, f"{spec.name}_{window.start}_{window.end}.csv")

    async def _parts(self, spec: TableSpec, window: DayRange) -> AsyncGenerator[str]:
        self._free -= 1
        try:
            async with AsyncExitStack() as held:
                conn = await held.enter_async_context(self._database.connection())
                await held.enter_async_context(conn.transaction())
                await conn.execute(STATED, (spec.timezone,))
                cursor = await held.enter_async_context(conn.cursor("pulso_download"))
                text = header(spec)
                await _open(cursor, spec, rows_query(spec, self._database.schema), window)
                while rows := await cursor.fetchmany(BATCH_ROWS):
                    yield text + "".join(line for (line,) in rows)
                    text = ""
                if text:
                    yield text
        finally:
            self._free += 1


async def _open(cursor: psycopg.AsyncServerCursor, spec: TableSpec, query: sql.Composed, window: DayRange) -> None:
    try:
        await cursor.execute(query, {"start": window.start, "end": window.end})
    except (pg.UndefinedTable, pg.UndefinedColumn) as error:
        raise HTTPException(404, f"{spec.name} is not in PostgreSQL as it is declared: refresh it first") from error
    except pg.InsufficientPrivilege as error:
        raise DatabaseUnavailable(f"the API may not read {spec.name}; grant its role SELECT on the table") from error
