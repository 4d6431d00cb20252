"""What an asset may yield. Each kind becomes a stream of Arrow batches that the load opens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import ContractError
from pulso_etl.sync.loading.request import Open
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.source_state import SourceState
from pulso_etl.sync.spec import TableSpec

STAMP = pa.timestamp("us", "UTC")


@runtime_checkable
class DeferredStream(Protocol):
    """Rows that the source gives when the load is ready for them. The stream may be opened again."""

    @property
    def metadata(self) -> dict[str, Any]:
        """What the stream reports after it was opened, for the materialization."""

    def open(self) -> AbstractContextManager[pa.RecordBatchReader]: ...


@runtime_checkable
class ChangeStream(DeferredStream, Protocol):
    """A deferred stream that may be able to give what changed instead of the whole window."""

    def capture(self, watermark: Watermark, written_at: datetime | None, now: datetime) -> datetime | None:
        """Makes the stream give the changes since the watermark, up to the instant that is returned. None if it gives all rows.

        `written_at`: when the last load of these days ended; the watermark may not show that load.
        """

    def whole(self, reason: str) -> None:
        """Makes the stream give all rows of the window."""


@runtime_checkable
class PastStream(DeferredStream, Protocol):
    """A deferred stream that can give rows of earlier days, for a table whose newest snapshot may be from such a day."""

    def read_past(self, days: DayRange) -> AbstractContextManager[pa.RecordBatchReader]: ...


@runtime_checkable
class ObservedStream(DeferredStream, Protocol):
    """A deferred stream that knows when the source computed its rows, and what the source was like before."""

    @property
    def computed_at(self) -> datetime | None:
        """The instant (with zone), once the stream is open; None where the source does not say."""

    def look(self, kept: Collection[str] = ()) -> SourceState | None:
        """The source's state now, before the stream is opened; None where it does not tell all changes. Raises no error of the
        source.

        `kept`: the base tables whose partitions' states the ledger has. Those of other base tables come with the state."""


@dataclass(frozen=True)
class Stream:
    """How to open what the asset yielded, the metadata that opening fills, and whether it can be opened twice.

    `deferred`: opening reads the source; any other stream was read while the step ran. `changes` is set if the stream may give
    only what changed, `read_past` if it can give rows of earlier days. `look` gives the source's state.
    """

    open: Open
    metadata: dict[str, Any]
    repeatable: bool
    deferred: bool = False
    changes: ChangeStream | None = None
    read_past: Callable[[DayRange], AbstractContextManager[pa.RecordBatchReader]] | None = None
    look: Callable[[Collection[str]], SourceState | None] = lambda kept: None


def as_stream(spec: TableSpec, window: DayRange, obj: Any) -> Stream:
    """The stream of what an asset yielded for the days of the window.

    Anything without rows and columns is a table without rows. So is a pandas.DataFrame without rows, because its types say nothing.
    A column of `reading_stamps` holds the instant at which the source computed the rows; where the source does not say, it is now.
    Raises ContractError for anything that is not a table.
    """
    started = datetime.now(UTC)
    if isinstance(obj, DeferredStream):
        source: DeferredStream = obj

        def computed_at() -> datetime:
            return (source.computed_at if isinstance(source, ObservedStream) else None) or started

        def read_past(days: DayRange) -> AbstractContextManager[pa.RecordBatchReader]:
            assert isinstance(source, PastStream)
            return _whole(spec, partial(source.read_past, days), computed_at)()

        return Stream(
            *(_whole(spec, obj.open, computed_at), obj.metadata),
            repeatable=True,
            deferred=True,
            changes=obj if isinstance(obj, ChangeStream) else None,
            read_past=read_past if isinstance(obj, PastStream) else None,
            look=obj.look if isinstance(obj, ObservedStream) else lambda kept: None,
        )
    if isinstance(obj, pa.RecordBatchReader):
        return Stream(_whole(spec, lambda: nullcontext(obj), lambda: started), {}, repeatable=False)
    if not hasattr(obj, "__arrow_c_stream__"):
        expected = "expected a RecordBatchReader, Table, DataFrame or stream"
        raise ContractError(f"{spec.name} {window}: the asset yielded {type(obj).__name__}; {expected}")
    try:
        table = _table(obj)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ContractError(f"{spec.name} {window}: the asset's {type(obj).__name__} can't be read as Arrow: {error}") from error
    rows = partial(table.to_reader, max_chunksize=spec.source.batch_rows)
    return Stream(_whole(spec, lambda: nullcontext(rows()), lambda: started), {}, repeatable=True)


def _table(obj: Any) -> pa.Table:
    # An asset that yields a DataFrame has imported pandas; other assets do not need it.
    pandas = sys.modules.get("pandas")
    if pandas is None or not isinstance(obj, pandas.DataFrame):
        return pa.table(obj)
    # An index with a name becomes a column, even a range. `conform.new_columns` decides on an index without a name.
    return pa.Table.from_pandas(obj, preserve_index=True) if len(obj) else pa.Table.from_pylist([])


def _whole(spec: TableSpec, open_stream: Open, computed_at: Callable[[], datetime]) -> Open:
    """Opens the stream with all columns: reading stamps are added, and a stream without columns and rows gets the declared ones."""

    @contextmanager
    def opened() -> Iterator[pa.RecordBatchReader]:
        with open_stream() as reader:
            if not reader.schema.names and not any(batch.num_rows for batch in reader):
                declared = pa.schema([(name, pa.null()) for name in spec.column_names])
                yield pa.RecordBatchReader.from_batches(declared, [])
            else:
                yield stamped(reader, [name for name in spec.reading_stamps if name not in reader.schema.names], computed_at())

    return opened


def stamped(reader: pa.RecordBatchReader, names: Sequence[str], at: datetime) -> pa.RecordBatchReader:
    """The reader with more columns, each of which holds the instant `at` in every row."""
    if not names:
        return reader
    stamp = pa.scalar(at, STAMP)
    schema = with_stamps(reader.schema, names)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            added = [pa.repeat(stamp, batch.num_rows)] * len(names)
            yield pa.RecordBatch.from_arrays([*batch.columns, *added], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def with_stamps(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """The schema with columns of instants after its own."""
    for name in names:
        schema = schema.append(pa.field(name, STAMP))
    return schema
