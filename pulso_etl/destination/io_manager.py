"""The IO manager: what an asset yields as Arrow becomes rows of its PostgreSQL table, data and watermark in one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, date, datetime
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import psycopg
import pyarrow as pa
from dagster import ConfigurableIOManager, Failure, InputContext, OutputContext

from pulso_etl.destination.conform import WIRE_TYPES
from pulso_etl.destination.load import LoadResult, load, translated
from pulso_etl.destination.statements import Statements
from pulso_etl.destination.watermarks import Watermarks
from pulso_etl.errors import ContractError, PulsoError
from pulso_etl.refresh import DayRange, lima_day
from pulso_etl.tables.spec import Column, ColumnType, TableSpec

SPEC_KEY = "pulso_etl/table"
"""Definition metadata of an asset under which its TableSpec stands, as `TableSpec.as_metadata()` gives it."""
ALLOW_SHRINK_TAG = "pulso_etl/allow_shrink"
"""Run tag; "true" lets a load delete more rows than the table's guard allows."""


@runtime_checkable
class DeferredStream(Protocol):
    """Rows that are asked for when the load is ready for them; may be opened again."""

    metadata: dict[str, Any]

    def open(self) -> AbstractContextManager[pa.RecordBatchReader]: ...


class PostgresUpsertIOManager(ConfigurableIOManager):
    """Upserts an asset's partitions into PostgreSQL.

    Works for any daily-partitioned asset whose definition metadata hold a TableSpec under `pulso_etl/table`. Takes a
    DeferredStream, pyarrow.RecordBatchReader, pyarrow.Table or pandas.DataFrame; gives a downstream asset its partition or range
    as pyarrow.Table, or pandas.DataFrame by type annotation. `lock_timeout_seconds` bounds the wait for another writer,
    `work_mem_mb` is the server's work memory in MiB.
    """

    database_url: str
    database_schema: str = "public"
    lock_timeout_seconds: int = 900
    work_mem_mb: int = 256

    @contextmanager
    def connect(self, run_id: str) -> Iterator[psycopg.Connection]:
        """A connection in autocommit mode, named after the run so that its server session can be found."""
        with psycopg.connect(
            self.database_url, autocommit=True, application_name=f"pulso-etl {run_id}"[:63], connect_timeout=10
        ) as conn:
            conn.execute("SELECT set_config('lock_timeout', %s, false)", (f"{self.lock_timeout_seconds}s",))
            conn.execute("SET TIME ZONE 'UTC'")
            yield conn

    def handle_output(self, context: OutputContext, obj: Any) -> None:
        """Loads what the asset yielded.

        Raises the errors of `pulso_etl.errors` that a retry may mend, and dagster.Failure (not retried) for the others;
        either way the table is as it was before.
        """
        spec = _spec(context.definition_metadata, context.asset_key.to_user_string())
        window = _window(context.asset_partition_keys)
        step = context.step_context
        open_stream, metadata, repeatable = _stream(spec, obj)
        began = time.monotonic()
        marks = Watermarks(self.database_schema)
        with translated(spec, window), self.connect(context.run_id) as conn, conn.transaction():
            marks.create(conn)
            for statement in Statements(spec, self.database_schema).create_table():
                conn.execute(statement)
            extraction = marks.start(conn, spec.name, window, context.run_id, step.previous_attempt_count + 1)
        try:
            with translated(spec, window), self.connect(context.run_id) as conn, conn.transaction():
                result = load(
                    conn,
                    spec,
                    self.database_schema,
                    window,
                    open_stream,
                    repeatable=repeatable,
                    allow_shrink=step.run_tags.get(ALLOW_SHRINK_TAG) == "true",
                    work_mem_mb=self.work_mem_mb,
                )
                details = _details(result, metadata)
                marks.succeed(
                    conn,
                    extraction,
                    spec.name,
                    window,
                    records=result.total.read,
                    seconds=time.monotonic() - began,
                    reached_today=window.end >= lima_day(datetime.now(UTC)),
                    metadata=details | {"partition_start": str(window.start), "partition_end": str(window.end)},
                )
        except BaseException as error:
            # Whatever went wrong, an interrupt included: the data are rolled back and the watermark says so.
            self._record_failure(context, marks, extraction, spec, error, time.monotonic() - began)
            if isinstance(error, PulsoError) and not error.retryable:
                raise Failure(description=str(error), allow_retries=False) from error
            raise
        if result.new_columns:
            context.log.warning(f"{spec.name}: new columns in the source, not loaded: {', '.join(result.new_columns)}")
        context.log.info(f"{spec.name} {window}: {result.plan}, {result.total.as_dict()}, seconds {result.seconds}")
        context.add_output_metadata(details)
        for day, counts in result.by_day.items():
            # The range's output metadata are the same for all its partitions; these are each one's own.
            step.add_asset_metadata(counts.as_dict(), context.asset_key, partition_key=day.isoformat())

    def _record_failure(
        self,
        context: OutputContext,
        marks: Watermarks,
        extraction: int,
        spec: TableSpec,
        error: BaseException,
        seconds: float,
    ) -> None:
        message = str(error) or type(error).__name__
        try:
            with self.connect(context.run_id) as conn, conn.transaction():
                marks.fail(conn, extraction, spec.name, error=message, seconds=seconds)
        except psycopg.Error:
            context.log.warning(f"{spec.name}: the failure could not be recorded, PostgreSQL is away")

    def load_input(self, context: InputContext) -> Any:
        """The upstream asset's partition or range, as pyarrow.Table, or pandas.DataFrame where the input is annotated so."""
        upstream = context.upstream_output
        if upstream is None:
            raise ContractError("an input needs an upstream asset that this IO manager wrote")
        spec = _spec(upstream.definition_metadata, context.asset_key.to_user_string())
        window = _window(context.asset_partition_keys)
        with translated(spec, window), self.connect("load_input") as conn:
            query = Statements(spec, self.database_schema).select()
            rows = conn.execute(query, {"start": window.start, "end": window.end}).fetchall()
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(spec.columns)
        table = pa.table(
            [pa.array(list(values), _read_type(column)) for column, values in zip(spec.columns, columns, strict=True)],
            names=list(spec.column_names),
        )
        return table.to_pandas() if context.dagster_type.typing_type is pd.DataFrame else table


def _read_type(column: Column) -> pa.DataType | None:
    # Numeric has no one scale: Arrow infers it from the values, exactly.
    return None if column.type is ColumnType.NUMERIC else WIRE_TYPES[column.type]


def _spec(metadata: Any, asset: str) -> TableSpec:
    value = metadata.get(SPEC_KEY)
    if value is None:
        raise ContractError(f"asset {asset} has no TableSpec: add {{'{SPEC_KEY}': spec.as_metadata()}} to its metadata")
    return TableSpec.from_metadata(getattr(value, "value", value))


def _window(keys: Any) -> DayRange:
    days = sorted(date.fromisoformat(key) for key in keys)
    window = DayRange(days[0], days[-1])
    if window.days != len(days):
        raise ContractError(f"the partitions {days[0]}..{days[-1]} are not one contiguous range; launch each range alone")
    return window


def _stream(spec: TableSpec, obj: Any) -> tuple[Callable[[], AbstractContextManager[pa.RecordBatchReader]], dict[str, Any], bool]:
    """How to open what the asset yielded, the metadata it fills, and whether it can be opened twice."""
    if isinstance(obj, DeferredStream):
        return obj.open, obj.metadata, True
    if isinstance(obj, pa.RecordBatchReader):
        return lambda: nullcontext(obj), {}, False
    if isinstance(obj, pd.DataFrame):
        obj = pa.Table.from_pandas(obj, preserve_index=False)
    if isinstance(obj, pa.Table):
        return lambda: nullcontext(obj.to_reader(max_chunksize=spec.batch_rows)), {}, True
    raise ContractError(
        f"{spec.name}: the asset yielded {type(obj).__name__}; expected a RecordBatchReader, Table, DataFrame or stream"
    )


def _details(result: LoadResult, metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        **result.total.as_dict(),
        **metadata,
        "load_plan": result.plan,
        **{f"seconds_{stage}": seconds for stage, seconds in result.seconds.items()},
    }
