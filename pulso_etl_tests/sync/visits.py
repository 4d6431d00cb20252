"""A table and an asset as somebody outside of this project would write them for the IO manager."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import dagster as dg
import pyarrow as pa

from pulso_etl.sync.spec import Column, ColumnType
from pulso_etl.sync.tags import SPEC_KEY
from pulso_etl_tests.clock import ZONE
from pulso_etl_tests.declarations import declare

D1, D2, D3 = date(2026, 2, 27), date(2026, 2, 28), date(2026, 3, 1)
DAYS = dg.DailyPartitionsDefinition("2026-02-01", timezone=ZONE.name, end_offset=1)
NOON = datetime(2026, 3, 1, 17, tzinfo=UTC)

SPEC = declare(
    name="visits",
    description="For tests.",
    primary_key=("day", "site"),
    partition_column="day",
    columns=(
        Column(name="day", type=ColumnType.DATE),
        Column(name="site", type=ColumnType.TEXT),
        Column(name="hora", type=ColumnType.INTEGER, minimum=0, maximum=23),
        Column(name="amount", type=ColumnType.NUMERIC),
        Column(name="share", type=ColumnType.DOUBLE),
        Column(name="seen", type=ColumnType.TIMESTAMP),
    ),
    stamp_columns=("seen",),
    timezone=ZONE.name,
)
SCHEMA = pa.schema(
    [
        ("day", pa.date32()),
        ("site", pa.string()),
        ("hora", pa.int64()),
        ("amount", pa.decimal128(38, 9)),
        ("share", pa.float64()),
        ("seen", pa.timestamp("us", "UTC")),
    ]
)
Rows = list[tuple[date, str, str | None]]
ALL: Rows = [(D1, "a", "1.5"), (D1, "b", "0.000000001"), (D2, "a", "12345678901234567890123456789.5"), (D3, "ñ", None)]


def table(rows: Rows = ALL, stamp: datetime = NOON) -> pa.Table:
    values = [
        {"day": day, "site": site, "hora": 9, "amount": None if amount is None else Decimal(amount), "share": 0.25, "seen": stamp}
        for day, site, amount in rows
    ]
    return pa.Table.from_pylist(values, schema=SCHEMA)


@dataclass
class Arrowlike:
    """An object with Arrow's interface for streams. Tables of polars and DuckDB have the same interface."""

    table: pa.Table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


@dataclass
class Deferred:
    """A stream that the load opens. `during` runs between its first row and the others."""

    table: pa.Table
    during: Callable[[], None] = lambda: None
    metadata: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def open(self) -> Iterator[pa.RecordBatchReader]:
        self.metadata["pages"] = 7
        yield pa.RecordBatchReader.from_batches(self.table.schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        first, *rest = self.table.to_batches(max_chunksize=1)
        yield first
        self.during()
        yield from rest


def visits(yielded: Callable[[pa.Table], Any], **options: Any) -> dg.AssetsDefinition:
    """An asset that yields the result of `yielded` for the rows of its partitions."""
    given: dict[str, Any] = {
        "partitions_def": DAYS,
        "backfill_policy": dg.BackfillPolicy.single_run(),
        "metadata": {SPEC_KEY: SPEC.as_metadata()},
        "retry_policy": dg.RetryPolicy(max_retries=2),
    }

    @dg.asset(name="visits", io_manager_key="postgres", **given | options)
    def asset(context: dg.AssetExecutionContext) -> Any:
        keys = set(context.partition_keys) if context.has_partition_key or context.has_partition_key_range else set()
        rows = table()
        return yielded(rows.filter(pa.array([day.isoformat() in keys for day in rows["day"].to_pylist()], pa.bool_())))

    return asset


def materialize(
    manager: dg.ConfigurableIOManager,
    instance: dg.DagsterInstance,
    *assets: dg.AssetsDefinition,
    start: str | None = "2026-02-27",
    end: str | None = "2026-03-01",
    tags: dict[str, str] | None = None,
    **options: Any,
) -> dg.ExecuteInProcessResult:
    """Materializes assets over the days from `start` to `end`; without `end`, only the partition `start`."""
    bounds = {"dagster/asset_partition_range_start": start, "dagster/asset_partition_range_end": end} if start and end else {}
    return dg.materialize(
        assets,
        tags=bounds | (tags or {}),
        partition_key=None if end else start,
        resources={"postgres": manager},
        instance=instance,
        raise_on_error=False,
        **options,
    )
