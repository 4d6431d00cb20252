"""BigQuery's types, from a query to PostgreSQL."""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal

import psycopg

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.loading.load import load
from pulso_etl.sync.loading.request import LoadRequest, Source
from pulso_etl.sync.spec import Column, ColumnType
from pulso_etl.sync.target import Target
from pulso_etl_tests.bigquery.conftest import MakeSource
from pulso_etl_tests.declarations import declare


def test_every_type_that_the_emulator_gives_lands_as_it_is(make_source: MakeSource, conn: psycopg.Connection, schema: str) -> None:
    one = {
        "d": (ColumnType.DATETIME, "DATETIME '2026-07-06 23:59:59.123456'", datetime(2026, 7, 6, 23, 59, 59, 123456)),
        "t": (ColumnType.TIME, "TIME '23:59:59.999999'", time(23, 59, 59, 999999)),
        "b": (ColumnType.BYTES, "FROM_HEX('00ff')", b"\0\xff"),
        "j": (ColumnType.JSON, """JSON '{"a": [1, null]}'""", {"a": [1, None]}),
        "n": (ColumnType.NUMERIC, "NUMERIC '1.25'", Decimal("1.25")),
    }
    many = {"texts": (ColumnType.TEXT, "['a', 'b']", ["a", "b"]), "numbers": (ColumnType.INTEGER, "[1, 2]", [1, 2])}
    columns = [Column(name=name, type=kind) for name, (kind, _, _) in one.items()]
    columns += [Column(name=name, type=kind, repeated=True) for name, (kind, _, _) in many.items()]
    selected = ", ".join(f"{text} AS {name}" for name, (_, text, _) in (one | many).items())
    spec = declare(
        name="typed",
        description="For tests.",
        primary_key=("day",),
        partition_column="day",
        columns=(Column(name="day", type=ColumnType.DATE), *columns),
        query=f"SELECT day, {selected} FROM UNNEST(GENERATE_DATE_ARRAY(@start, @end)) AS day",
    )
    window = DayRange(date(2026, 7, 6), date(2026, 7, 7))
    for written in (2, 0):
        with conn.transaction():
            source = Source(make_source().stream(spec, window, "run-1").open)
            done = load(Target(conn, spec, schema), LoadRequest(window, source))
        assert done.total.written == written
    names = ", ".join(one | many)
    assert conn.execute(f"SELECT DISTINCT {names} FROM typed").fetchall() == [tuple(value for *_, value in (one | many).values())]
