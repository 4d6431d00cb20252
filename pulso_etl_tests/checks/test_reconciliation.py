"""Reconciliation of tables that quarantine rows: real PostgreSQL, and the emulator's BigQuery."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pytest
from google.cloud import bigquery
from psycopg import sql

from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.checks.asset_checks import reconciled
from pulso_etl.checks.reconciliation import Reconciliation, differences, measures, reconcile, source_query
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.loading.load import load
from pulso_etl.sync.loading.request import LoadRequest, Past, Source
from pulso_etl.sync.owed import Horizon
from pulso_etl.sync.spec import Column, ColumnType, TableSpec
from pulso_etl.sync.target import Target
from pulso_etl_tests.bigquery.evaluation import evaluate
from pulso_etl_tests.declarations import altered, declare

D1, D2 = date(2026, 5, 4), date(2026, 5, 5)
WINDOW, TODAY = DayRange(D1, D2), date(2026, 6, 20)
TABLE = "mibot-222814.RECONCILED.visits"
COLUMNS = (
    Column(name="day", type=ColumnType.DATE),
    Column(name="agent", type=ColumnType.TEXT),
    Column(name="visits", type=ColumnType.INTEGER, minimum=0),
    Column(name="rate", type=ColumnType.DOUBLE),
)


def visits(**changes: Any) -> TableSpec:
    fields: dict[str, Any] = {
        "name": "visits",
        "description": "For tests.",
        "primary_key": ("day", "agent"),
        "partition_column": "day",
        "columns": COLUMNS,
        "query": "SELECT day, agent, visits, rate FROM `{visits}` WHERE day BETWEEN @start AND @end",
        "on_reject": "quarantine",
        "maximum_quarantined_share": 1,
        "minimum_kept_share": 0,
    }
    return declare(**fields | changes)


class Tried:
    """A table in BigQuery, and a load and a comparison of it."""

    def __init__(self, conn: psycopg.Connection, schema: str, client: bigquery.Client, source: BigQuerySource) -> None:
        self.conn, self.schema, self.client, self.source = conn, schema, client, source

    def write(self, rows: list[tuple[date, str | None, int, float | str]]) -> None:
        """Replaces the rows in BigQuery; a rate may be the text NaN."""
        self.client.query(f"DELETE FROM `{TABLE}` WHERE TRUE").result()
        for day, agent, count, rate in rows:
            name = "NULL" if agent is None else f"'{agent}'"
            values = f"DATE '{day}', {name}, {count}, CAST('{rate}' AS FLOAT64)"
            self.client.query(f"INSERT INTO `{TABLE}` (day, agent, visits, rate) VALUES ({values})").result()

    def load(self, spec: TableSpec) -> None:
        stream = self.source.stream(spec, WINDOW, "run")
        with self.conn.transaction():
            load(self.target(spec), LoadRequest(WINDOW, Source(stream.open, past=Past(D1))))

    def target(self, spec: TableSpec) -> Target:
        return Target(self.conn, spec, self.schema)

    def compare(self, spec: TableSpec) -> tuple[Reconciliation, str]:
        """The findings of a reconciliation, and its text. The reconciliation writes nothing."""
        before = self.conn.execute("SELECT count(*) FROM etl_quarantine").fetchone()
        found = reconcile(self.target(spec), self.source, WINDOW, TODAY, "run")
        self.conn.execute("SELECT pg_advisory_unlock_all()")
        assert self.conn.execute("SELECT count(*) FROM etl_quarantine").fetchone() == before
        return found, reconciled(spec, found).text


@pytest.fixture
def tried(conn: psycopg.Connection, schema: str, emulator: BigQueryEmulator) -> Tried:
    client = emulator.client()
    client.create_dataset("RECONCILED", exists_ok=True)
    fields = [("day", "DATE"), ("agent", "STRING"), ("visits", "INT64"), ("rate", "FLOAT64")]
    client.create_table(bigquery.Table(TABLE, [bigquery.SchemaField(*field) for field in fields]), exists_ok=True)
    source = BigQuerySource(project="mibot-222814", sources={"visits": TABLE}, emulator_host=emulator.rest_url)
    return Tried(conn, schema, client, source)


BAD: tuple[tuple[date, str | None, int, float | str], ...] = (
    (D1, "nan", 3, "NaN"),
    (D1, "twice", 1, 0.5),
    (D1, "twice", 2, 0.5),
    (D2, None, 5, 0.5),
    (D2, "below", -1, 0.5),
)


def test_quarantined_rows_are_named_and_the_rest_is_compared(tried: Tried) -> None:
    spec, good = visits(), [(D1, "a", 1, 0.5), (D2, "b", 2, 0.25)]
    tried.write([*good, (D1, "nan", 7, 0.5), (D2, "below", 8, 0.5)])
    tried.load(spec)
    # Two keys keep their last good rows. The other keys have never had a good row.
    tried.write([*good, *BAD])
    tried.load(spec)
    assert tried.conn.execute("SELECT agent FROM visits ORDER BY 1").fetchall() == [("a",), ("b",), ("below",), ("nan",)]
    found, text = tried.compare(spec)
    assert (found.differences, dict(found.quarantined)) == ((), {D1: 3, D2: 2})
    assert (found.source_rows, found.target_rows) == (2, 2)
    assert text.startswith("2 rows agree. 5 row(s) of the source are in quarantine (2026-05-04: 3; 2026-05-05: 2)")


@pytest.mark.parametrize(
    ("statement", "differing"),
    [
        ("UPDATE visits SET visits = visits + 1 WHERE agent = 'a'", {(D1, "sum of visits")}),
        ("DELETE FROM visits WHERE agent = 'b'", {(D2, "rows"), (D2, "sum of visits"), (D2, "values of rate")}),
        ("INSERT INTO visits (day, agent, visits) VALUES ('2026-05-04', 'x', 4)", {(D1, "rows"), (D1, "sum of visits")}),
        ("UPDATE visits SET visits = 99 WHERE agent = 'nan'", set()),
    ],
)
def test_what_is_wrong_beside_quarantined_rows_is_found(tried: Tried, statement: str, differing: set[tuple[date, str]]) -> None:
    spec, good = visits(), [(D1, "a", 1, 0.5), (D2, "b", 2, 0.25)]
    tried.write([*good, (D1, "nan", 7, 0.5)])
    tried.load(spec)
    tried.write([*good, *BAD])
    tried.load(spec)
    tried.conn.execute(statement.encode())
    found, _ = tried.compare(spec)
    assert differing <= {(one.day, str(one.measure)) for one in found.differences}
    assert {one.day for one in found.differences} == {day for day, _ in differing}


def test_a_table_of_snapshots_is_compared_by_its_newest_ones_without_the_quarantined_rows(tried: Tried) -> None:
    spec = visits(primary_key=("visits", "agent"), snapshot_of=("visits",))
    tried.write([(D1, "a", 1, 0.5), (D1, "gone", 1, 0.5), (D1, "nan", 1, 0.5), (D2, "a", 1, 0.25), (D1, "b", 2, 0.5)])
    tried.load(spec)
    tried.write([(D1, "a", 1, 0.5), (D1, "gone", 1, 0.5), (D2, "a", 1, 0.25), (D2, "nan", 1, "NaN"), (D1, "b", 2, 0.5)])
    tried.load(spec)
    found, _ = tried.compare(spec)
    assert (found.differences, dict(found.quarantined), found.target_rows) == ((), {D2: 1}, 2)
    tried.conn.execute("UPDATE visits SET rate = 9 WHERE agent = 'b'")
    assert {one.day for one in tried.compare(spec)[0].differences} == {D1}
    # A withdrawn snapshot is a difference. It is not an error of the comparison.
    tried.write([(D1, "a", 1, 0.5)])
    assert {one.day for one in tried.compare(spec)[0].differences} == {D1, D2}


def test_of_several_versions_the_newest_is_compared(tried: Tried) -> None:
    spec = visits(version_column="visits")
    tried.write([(D1, "a", 1, 0.5), (D1, "a", 2, 0.75), (D2, "b", 1, 0.5), (D2, "nan", 1, "NaN")])
    tried.load(spec)
    found, _ = tried.compare(spec)
    assert (found.differences, found.target_rows, dict(found.quarantined)) == ((), 2, {D2: 1})
    plain = altered(spec, on_reject=visits(on_reject="fail").loading.on_reject)
    tried.conn.execute("DELETE FROM visits WHERE agent = 'b'")
    tried.write([(D1, "a", 1, 0.5), (D1, "a", 2, 0.75)])
    assert tried.compare(plain)[0].differences == ()


def test_a_day_that_is_still_owed_by_an_earlier_lookback_is_no_error_yet(tried: Tried) -> None:
    """The lookback of sixty days was lowered after the reading. The next refresh reads the day once more."""
    tried.write([(D1, "a", 1, 0.5), (D1, "nan", 1, "NaN")])
    tried.load(visits())
    tried.write([(D1, "a", 2, 0.5)])
    assert "Load them again" in tried.compare(visits())[1]
    marks, read_at = Watermarks(tried.schema), datetime(2026, 5, 6, 12, tzinfo=UTC)
    extraction = RunningAttempt("visits", WINDOW, "run", 1, read_at)
    with tried.conn.transaction():
        marks.create(tried.conn)
        marks.start(tried.conn, extraction)
        marks.succeed(tried.conn, extraction, Loaded(read_at, {D1: 1, D2: 0}, 1, 1.0, True, Horizon(60)))
    assert "The next refresh reads these days again" in tried.compare(visits())[1]


KINDS = "mibot-222814.RECONCILED.kinds"
KIND_COLUMNS = (
    Column(name="day", type=ColumnType.DATE),
    Column(name="agent", type=ColumnType.TEXT),
    Column(name="visits", type=ColumnType.INTEGER),
    Column(name="money", type=ColumnType.NUMERIC, precision=12, scale=4),
    Column(name="rate", type=ColumnType.DOUBLE),
    Column(name="note", type=ColumnType.TEXT),
    Column(name="seen", type=ColumnType.TIMESTAMP),
    Column(name="local", type=ColumnType.DATETIME),
    Column(name="clock", type=ColumnType.TIME),
    Column(name="raw", type=ColumnType.BYTES),
    Column(name="doc", type=ColumnType.JSON),
    Column(name="tags", type=ColumnType.TEXT, repeated=True),
    Column(name="sizes", type=ColumnType.INTEGER, repeated=True),
    Column(name="good", type=ColumnType.BOOLEAN),
)
ROWS_OF_KINDS = (
    "SELECT DATE '2026-05-04' AS day, 'a' AS agent, 1 AS visits, NUMERIC '1.5' AS money, 0.5 AS rate, '' AS note, "
    "TIMESTAMP '2026-05-04 10:00:00.000005+00' AS seen, DATETIME '2026-05-31 23:59:59.999999' AS local, "
    "TIME '23:59:59.000001' AS clock, FROM_HEX('00ff') AS raw, JSON '{\"a\": 1}' AS doc, ['x', 'y'] AS tags, [1, 2] AS sizes, "
    "TRUE AS good "
    "UNION ALL SELECT DATE '2026-05-04', 'ñ\U0001f600', 2, NUMERIC '-100', -0.0, NULL, TIMESTAMP '1969-12-31 23:59:59.5+00', "
    "DATETIME '0001-01-01 00:00:00', TIME '00:00:00', FROM_HEX(''), JSON '[1]', [''], [2, 1], FALSE "
    "UNION ALL SELECT DATE '2026-05-31', 'a', 3, NUMERIC '0.001', 1e300, 'z', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL"
)


@pytest.fixture
def kinds(tried: Tried) -> tuple[Tried, TableSpec]:
    """A table with a column of every type, loaded."""
    names = ", ".join(column.name for column in KIND_COLUMNS)
    query = f"SELECT {names} FROM `{{kinds}}` WHERE day BETWEEN @start AND @end"
    spec = visits(name="kinds", columns=KIND_COLUMNS, query=query, on_reject="fail")
    types = {"text": "STRING", "date": "DATE", "bigint": "INT64", "numeric(12,4)": "NUMERIC", "double precision": "FLOAT64"}
    types |= {"timestamp with time zone": "TIMESTAMP", "timestamp without time zone": "DATETIME", "bytea": "BYTES"}
    types |= {"time without time zone": "TIME", "jsonb": "JSON", "boolean": "BOOL"}
    types |= {"text[]": "ARRAY<STRING>", "bigint[]": "ARRAY<INT64>"}
    fields = ", ".join(f"{column.name} {types[column.sql_type]}" for column in KIND_COLUMNS)
    tried.client.query(f"CREATE OR REPLACE TABLE `{KINDS}` ({fields})").result()
    tried.client.query(f"INSERT INTO `{KINDS}` {ROWS_OF_KINDS}").result()
    tried.source = tried.source.model_copy(update={"sources": {"kinds": KINDS}})
    stream = tried.source.stream(spec, MONTH, "run")
    with tried.conn.transaction():
        load(tried.target(spec), LoadRequest(MONTH, Source(stream.open)))
    return tried, spec


MONTH = DayRange(D1, date(2026, 5, 31))


def found_in(tried: Tried, spec: TableSpec) -> set[str]:
    found = reconcile(tried.target(spec), tried.source, MONTH, TODAY, "run")
    assert found.source_rows == 3
    return {str(one.measure) for one in found.differences}


SWAPPED = "UPDATE kinds k SET {0} = o.{0} FROM kinds o WHERE k.day = o.day AND k.agent <> o.agent"


def test_no_difference_is_told_of_equal_rows_and_every_one_that_differs_is_found(kinds: tuple[Tried, TableSpec]) -> None:
    tried, spec = kinds
    assert found_in(tried, spec) == set()
    garbled = {
        "agent": "'b'",
        "visits": "visits + 1",
        "money": "money + 0.0001",
        "rate": "rate + 0.001",
        "note": "NULL",
        "seen": "seen + interval '1 microsecond'",
        "local": "local + interval '1 microsecond'",
        "clock": "clock - interval '1 microsecond'",
        "raw": "raw || '\\x00'::bytea",
        "doc": "NULL",
        "tags": "ARRAY['x', 'z']",
        "sizes": "ARRAY[2, 1]",
        "good": "NOT good",
    }
    for column, value in garbled.items():
        with tried.conn.transaction(force_rollback=True):
            tried.conn.execute(f"UPDATE kinds SET {column} = {value} WHERE agent = 'a' AND day = '2026-05-04'".encode())
            assert found_in(tried, spec), column
    for column in garbled.keys() - {"agent", "doc"}:
        with tried.conn.transaction(force_rollback=True):
            # The values of two rows have changed places, so that every sum is as it was.
            tried.conn.execute(SWAPPED.format(column).encode())
            assert found_in(tried, spec), column
    for statement in ("DELETE FROM kinds WHERE visits = 3", "UPDATE kinds SET note = '' WHERE note IS NULL"):
        with tried.conn.transaction(force_rollback=True):
            tried.conn.execute(statement.encode())
            assert found_in(tried, spec), statement
    assert found_in(tried, spec) == set()


def test_googlesql_gives_the_figures_of_every_type_that_postgresql_gives(kinds: tuple[Tried, TableSpec]) -> None:
    tried, spec = kinds
    by = measures(spec)
    statement = source_query(spec, by).replace("`{kinds}`", f"({ROWS_OF_KINDS})")
    days = {"start": ("DATE", MONTH.start), "end": ("DATE", MONTH.end)}
    told = {row["pulso_day"]: list(row.values())[1:] for row in evaluate(statement, days, {}, {})}
    figures = sql.SQL(", ").join(one.in_postgres() for one in by)
    kept = {day: values for day, *values in tried.conn.execute(sql.SQL("SELECT day, {} FROM kinds GROUP BY 1").format(figures))}
    assert sorted(told) == sorted(kept) == [D1, MONTH.end]
    assert [one for day in kept for one in differences(by, day, told[day], kept[day])] == []
