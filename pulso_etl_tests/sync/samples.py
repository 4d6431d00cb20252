"""A small table in all its variants, and how the tests of the load path load it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal

import psycopg
import pyarrow as pa

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.loading.load import load, translated
from pulso_etl.sync.loading.request import LoadRequest, Open, Source, Writer
from pulso_etl.sync.loading.result import LoadResult
from pulso_etl.sync.spec import Column, ColumnType, TableSpec
from pulso_etl.sync.target import Target
from pulso_etl_tests.declarations import altered, declare

D1, D2, D3 = date(2026, 2, 27), date(2026, 2, 28), date(2026, 3, 1)
WINDOW = DayRange(D1, D3)
NOON = datetime(2026, 3, 1, 17, tzinfo=UTC)

COLUMNS = (
    Column(name="day", type=ColumnType.DATE),
    Column(name="name", type=ColumnType.TEXT),
    Column(name="hour", type=ColumnType.INTEGER, minimum=0, maximum=23),
    Column(name="money", type=ColumnType.NUMERIC),
    Column(name="rate", type=ColumnType.DOUBLE),
    Column(name="stamp", type=ColumnType.TIMESTAMP),
)
SCHEMA = pa.schema(
    [
        ("day", pa.date32()),
        ("name", pa.string()),
        ("hour", pa.int64()),
        ("money", pa.decimal128(38, 9)),
        ("rate", pa.float64()),
        ("stamp", pa.timestamp("us", "UTC")),
    ]
)


def things(*more: Column, **changes: Any) -> TableSpec:
    """The declaration of `things`, with more columns or other fields."""
    fields: dict[str, Any] = {
        "name": "things",
        "description": "For tests.",
        "primary_key": ("day", "name"),
        "partition_column": "day",
        "columns": COLUMNS + more,
        "stamp_columns": ("stamp",),
    }
    return declare(**fields | changes)


def by_month(*more: Column, **changes: Any) -> TableSpec:
    """`things` in partitions of one month: D2 is the last day of a month, D3 the first day of the next."""
    return things(*more, **{"partition_by": "month"} | changes)


def monthly(**changes: Any) -> TableSpec:
    """`things` with a key that can be in several partitions. The newest day counts."""
    return things(primary_key=("name",), version_column="day", **changes)


def row(day: date | None, name: str | None, money: str | None = "1.5", **changes: Any) -> dict[str, Any]:
    values = {"day": day, "name": name, "hour": 9, "money": Decimal(money) if money else None, "rate": 0.25, "stamp": NOON}
    return values | changes


def table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def wider(rows: Sequence[dict[str, Any]], **columns: Any) -> pa.Table:
    """The rows with more columns in the source. Each column is a list of values or an Arrow array."""
    given = table(rows)
    for name, values in columns.items():
        given = given.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    return given


def request(window: DayRange, open_stream: Open, **options: Any) -> LoadRequest:
    """A request. Its options, and the options of its source and its writer, are given by name."""

    def of(kind: type[Source] | type[Writer]) -> dict[str, Any]:
        return {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}

    return LoadRequest(window, Source(open_stream, **of(Source)), Writer(**of(Writer)), **options)


@dataclass
class Loads:
    """Loads into a schema and reads from it, each load in a transaction of its own."""

    conn: psycopg.Connection
    schema: str
    partition_by: Literal["month"] | None = None
    """How tables whose key allows it are partitioned."""

    def __call__(
        self, source: Sequence[dict[str, Any]] | pa.Table, spec: TableSpec, window: DayRange = WINDOW, **options: Any
    ) -> LoadResult:
        given = source if isinstance(source, pa.Table) else table(source)
        spec = self.declared(spec)
        with translated(spec, window), self.conn.transaction():
            return load(
                self.target(spec),
                request(window, lambda: nullcontext(given.to_reader(max_chunksize=2)), **{"run_id": "r"} | options),
            )

    def target(self, spec: TableSpec) -> Target:
        return Target(self.conn, spec, self.schema)

    def declared(self, spec: TableSpec) -> TableSpec:
        """The declaration that the next loads use."""
        return altered(spec, partition_by=self.partition_by) if self.partition_by and spec.partition_in_key else spec

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.conn.execute(query.encode()).fetchall()

    def addresses(self) -> set[tuple[Any, ...]]:
        """The address of each row of `things`, and the transaction that wrote it. If both stay the same, nobody wrote the row."""
        return set(self.rows("SELECT xmin::text, tableoid, ctid::text FROM things"))

    def columns(self) -> dict[str, str]:
        found = "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'things'::regclass"
        return dict(self.rows(f"{found} AND attnum > 0 AND NOT attisdropped ORDER BY attnum"))
