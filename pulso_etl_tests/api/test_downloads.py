"""Rows as CSV: exact, safe in a spreadsheet, and in little memory."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from fastapi import HTTPException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from pulso_etl.api.database import Database
from pulso_etl.api.downloads import AT_ONCE, BATCH_ROWS, FORMULA, MOST_DAYS, Downloads, rows_query
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.postgres.session_settings import Limits
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import Column, ColumnType
from pulso_etl.tables import TABLES
from pulso_etl_tests.api.conftest import SECRETS, TOKENS
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.declarations import declare
from pulso_etl_tests.sync.samples import D1, D2, WINDOW, things

READ = SECRETS["read"][0]
ROWS_CSV = "/api/v1/etl/status/table/dashboard_data/rows.csv"
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.sampled_from(
    ['"', ",", "\r\n", "=1+1", "-2"]
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXTS, st.none() | TEXTS), max_size=5, unique_by=lambda row: row[0]))
def test_what_is_written_is_read_back_and_no_text_is_a_formula(
    conn: psycopg.Connection, schema: str, rows: list[tuple[str, str | None]]
) -> None:
    conn.execute("DROP TABLE IF EXISTS things")
    conn.execute("CREATE TABLE things (day date, name text, other text)")
    conn.cursor().executemany("INSERT INTO things VALUES ('2026-02-28', %s, %s)", rows)
    spec = declare(
        name="things",
        description="",
        primary_key=("day", "name"),
        partition_column="day",
        columns=[Column(name=name, type=ColumnType(kind)) for name, kind in (("day", "date"), ("name", "text"), ("other", "text"))],
    )
    written = "".join(line for (line,) in conn.execute(rows_query(spec, schema), {"start": D2, "end": D2}).fetchall())
    read = list(csv.reader(io.StringIO(written, newline="")))
    assert sorted(read) == sorted(["2026-02-28", *(safe(text or "") for text in row)] for row in rows)


def safe(text: str) -> str:
    return f"'{text}" if text.startswith(tuple(FORMULA)) else text


def test_an_empty_text_is_no_null_and_lines_of_many_columns_end_as_rfc_4180_says(conn: psycopg.Connection, schema: str) -> None:
    spec = things(*(Column(name=f"c{number}", type=ColumnType.INTEGER) for number in range(130)))
    for statement in Statements(spec, schema).create_table():
        conn.execute(statement)
    conn.execute("INSERT INTO things (day, name, c129) VALUES (%s, '', 7)", (D1,))
    [(line,)] = conn.execute(rows_query(spec, schema), {"start": D1, "end": D1}).fetchall()
    assert line == '2026-02-27,"",' + "," * 133 + "7\r\n"


@asynccontextmanager
async def opened(server_url: str, schema: str) -> AsyncIterator[Downloads]:
    database = Database(Settings(database_url=SecretStr(server_url), database_schema=schema), tables=False)
    await database.open()
    try:
        yield Downloads(database)
    finally:
        await database.close()


def test_values_are_exact_and_instants_have_their_zone(conn: psycopg.Connection, server_url: str, schema: str) -> None:
    spec = things(Column(name="tags", type=ColumnType.TEXT, repeated=True))
    conn.execute(
        "CREATE TABLE things (day date, name text, hour bigint, money numeric, rate float8, stamp timestamptz, tags text[])"
    )
    conn.execute(
        "INSERT INTO things VALUES (%s, '=ñandú', -9, 12345678901234567890.10, 0.1, '2026-03-01 17:00:00.5+00', '{a,\"b,c\"}'), "
        "(%s, 'b', NULL, -1.50, 1e300, NULL, NULL), ('2025-01-01', 'other', 0, 0, 0, NULL, NULL)",
        (D2, D1),
    )

    async def read() -> str:
        async with opened(server_url, schema) as downloads:
            return "".join([part async for part in (await downloads.begin(spec, WINDOW)).body_iterator])

    assert asyncio.run(read()).split("\r\n") == [
        "\ufeffday,name,hour,money,rate,stamp,tags",
        '2026-02-27,"b",,-1.5,1e+300,,',
        '2026-02-28,"\'=ñandú",-9,12345678901234567890.1,0.1,2026-03-01T12:00:00.5-05:00,"[""a"", ""b,c""]"',
        "",
    ]


def test_rows_come_in_parts_and_a_download_that_is_left_gives_its_connection_back(
    conn: psycopg.Connection, server_url: str, schema: str
) -> None:
    conn.execute("CREATE TABLE things (day date, name text, hour bigint, money numeric, rate float8, stamp timestamptz)")
    conn.execute("INSERT INTO things SELECT %s, n::text, 1, 1, 1, NULL FROM generate_series(1, %s) n", (D1, 3 * BATCH_ROWS))
    spec = things()

    async def left(message: Any) -> None:
        raise OSError("the caller is gone")

    async def read() -> None:
        async with opened(server_url, schema) as downloads:
            going = [await downloads.begin(spec, WINDOW) for _ in range(AT_ONCE)]
            with pytest.raises(HTTPException, match="go on already"):
                await downloads.begin(spec, WINDOW)
            part = await anext(aiter(going[0].body_iterator))
            assert isinstance(part, str)
            assert part.count("\r\n") == BATCH_ROWS + 1
            for one in going:
                with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever the server does with a caller who is gone
                    await one({"type": "http", "method": "GET"}, _waiting, left)
            whole = [part async for part in (await downloads.begin(spec, WINDOW)).body_iterator]
            assert len(whole) == 3
            assert "".join(map(str, whole)).count("\r\n") == 3 * BATCH_ROWS + 1

    asyncio.run(read())


def test_a_download_may_take_longer_than_other_answers(
    conn: psycopg.Connection, server_url: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn.execute("CREATE TABLE things (day date, name text, hour bigint, money numeric, rate float8, stamp timestamptz)")
    conn.execute("INSERT INTO things SELECT %s, n::text, 1, 1, 1, NULL FROM generate_series(1, %s) n", (D1, 3 * BATCH_ROWS))
    limit = timedelta(seconds=0.3)
    monkeypatch.setattr("pulso_etl.api.database.LIMITS", Limits(limit, limit, limit, timedelta(seconds=20)))

    async def read() -> int:
        async with opened(server_url, schema) as downloads:
            lines = 0
            async for part in (await downloads.begin(things(), WINDOW)).body_iterator:
                lines += str(part).count("\r\n")
                await asyncio.sleep(0.2)
            return lines

    assert asyncio.run(read()) == 3 * BATCH_ROWS + 1


async def _waiting() -> Any:
    await asyncio.Event().wait()


def test_a_table_that_was_never_loaded_has_no_rows_to_download(server_url: str, schema: str) -> None:
    async def read() -> None:
        async with opened(server_url, schema) as downloads:
            for _ in range(AT_ONCE + 1):
                with pytest.raises(HTTPException) as raised:
                    await downloads.begin(things(), DayRange(D1, D2))
                assert raised.value.status_code == 404

    asyncio.run(read())


@pytest.fixture(scope="module")
def server(server_url: str) -> Iterator[ApiServer]:
    """An API in front of PostgreSQL alone."""
    away = "http://127.0.0.1:9/graphql"
    given = Settings(database_url=SecretStr(server_url), database_schema="downloads", dagster_graphql_url=away, api_tokens=TOKENS)
    with psycopg.connect(server_url, autocommit=True) as conn, ApiServer(given) as server:
        conn.execute("CREATE SCHEMA downloads")
        yield server
        conn.execute("DROP SCHEMA downloads CASCADE")


def test_a_range_is_downloaded_by_everyone_with_a_token(server: ApiServer, server_url: str) -> None:
    spec = TABLES["dashboard_data"]
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute("SET search_path = downloads")
        for statement in Statements(spec, "downloads").create_table():
            conn.execute(statement)
        conn.execute(
            "INSERT INTO dashboard_data (fecha_foto, archivo, cartera, servicio, recupero) VALUES "
            "(%s, 'b', '=x', 'FIJA', 0.10), (%s, 'a', 'x', 'MOVIL', 12345678901234567.89), (%s, 'a', 'x', 'FIJA', 1)",
            (D2, D2, D1),
        )
    asked = {"from": str(D2), "to": str(D2)}
    assert server.call("GET", ROWS_CSV, params=asked).status_code == 401
    told = server.call("GET", ROWS_CSV, READ, params=asked)
    assert told.status_code == 200
    assert told.headers["Content-Type"] == "text/csv; charset=utf-8; header=present"
    assert told.headers["Content-Disposition"] == f'attachment; filename="dashboard_data_{D2}_{D2}.csv"'
    read = list(csv.DictReader(io.StringIO(told.content.decode("utf-8-sig"), newline="")))
    assert list(read[0]) == list(spec.column_names)
    assert [(row["archivo"], row["cartera"], row["recupero"]) for row in read] == [
        ("a", "x", "12345678901234567.89"),
        ("b", "'=x", "0.1"),
    ]
    head = server.call("HEAD", ROWS_CSV, READ, params=asked)
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"from": "2026-11-25", "to": "2026-11-24"}, "starts on 2026-11-25, after its end"),
        ({"from": "2025-01-01", "to": "2026-11-24"}, f"a download has {MOST_DAYS} at most"),
        ({"from": "2026-11-25"}, "Field required"),
        ({"from": "yesterday", "to": "2026-11-24"}, "valid date"),
        ({"from": "2026-11-24", "to": "2026-11-24", "limit": "5"}, "unknown parameter"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused_as_a_problem(server: ApiServer, asked: dict[str, str], reason: str) -> None:
    told = server.call("GET", ROWS_CSV, READ, params=asked)
    assert (told.status_code, told.headers["Content-Type"]) == (422, "application/problem+json")
    assert reason in told.text
    assert told.json()["table"] == "dashboard_data"


def test_an_unknown_table_has_no_rows(server: ApiServer) -> None:
    asked = {"from": "2026-11-24", "to": "2026-11-24"}
    assert server.call("GET", ROWS_CSV.replace("dashboard", "x"), READ, params=asked).status_code == 404
