"""Reads rows of a table back for a downstream asset or a notebook, in the type that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pyarrow as pa
from psycopg.types.string import TextLoader

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import ContractError
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.loading.arrow_types import WIRE_TYPES
from pulso_etl.sync.postgres.bookkeeping import exists
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import Column, ColumnType, TableSpec
from pulso_etl.sync.target import Target

Form = Callable[[pa.Table], Any]
ARROW = "pyarrow"
"""As pandas itself names it."""


def read(target: Target, ranges: Sequence[DayRange], names: Sequence[str]) -> pa.Table:
    """The named columns of the rows of the days, ordered by day and key. Runs in the connection's transaction.

    A table that nobody has loaded yet has no rows. Raises ContractError for a table that was loaded and is missing now.
    """
    spec = target.spec
    wanted = pa.schema([(name, _read_type(spec.column(name))) for name in names])
    chunks: list[list[pa.Array]] = [[] for _ in names]
    if ranges and _is_there(target):
        query = Statements(spec, target.schema).select(names)
        for days in ranges:
            with target.conn.cursor("pulso_load_input") as cursor:
                # JSON is read as the text that the server prints, because Python's numbers cannot hold every number of JSON.
                cursor.adapters.register_loader("jsonb", TextLoader)
                cursor.execute(query, {"start": days.start, "end": days.end})
                while rows := cursor.fetchmany(spec.source.batch_rows):
                    for values, field, found in zip(zip(*rows, strict=True), wanted, chunks, strict=True):
                        found.append(_array(spec, values, field))
    columns = [_joined(spec, field, found) for field, found in zip(wanted, chunks, strict=True)]
    return pa.Table.from_arrays(columns, names=list(names))


def _is_there(target: Target) -> bool:
    name = target.spec.name
    if exists(target.conn, target.schema, name):
        return True
    if Watermarks(target.schema).ever_loaded(target.conn, name):
        raise ContractError(f"{name}: the table was loaded before and is missing in PostgreSQL now; load its days again")
    return False


def _array(spec: TableSpec, values: Sequence[Any], field: pa.Field) -> pa.Array:
    """The values as an array. Decimals with many digits before the point get fewer digits after it."""
    kind = field.type
    try:
        return pa.array(values, kind)
    except pa.ArrowInvalid:
        item = kind.value_type if pa.types.is_list(kind) else kind
        if not pa.types.is_decimal256(item):
            raise
        numbers = [one for value in values for one in (value if isinstance(value, list) else [value]) if one is not None]
        narrower = pa.decimal256(76, max(0, 76 - max(one.adjusted() + 1 for one in numbers)))
        try:
            return pa.array(values, pa.list_(narrower) if pa.types.is_list(kind) else narrower)
        except pa.ArrowInvalid as error:
            raise _too_many_digits(spec, field) from error


def _joined(spec: TableSpec, field: pa.Field, chunks: Sequence[pa.Array]) -> pa.ChunkedArray:
    """The chunks as one array of one type. Raises ContractError if no decimal type holds the digits of all chunks."""
    kinds = [chunk.type for chunk in chunks]
    kind = min(kinds, key=_scale, default=field.type)
    try:
        return pa.chunked_array([chunk.cast(kind) for chunk in chunks], kind)
    except pa.ArrowInvalid as error:
        raise _too_many_digits(spec, field) from error


def _too_many_digits(spec: TableSpec, field: pa.Field) -> ContractError:
    return ContractError(
        f"{spec.name}: the numbers of {field.name} need more than 76 digits before and after the point, and Arrow's decimal has no "
        "more; read fewer days at once, or leave the column out (the input's metadata `columns`)"
    )


def _scale(kind: pa.DataType) -> int:
    item = kind.value_type if pa.types.is_list(kind) else kind
    return item.scale if pa.types.is_decimal(item) else 0


def _read_type(column: Column) -> pa.DataType:
    if column.type is not ColumnType.NUMERIC:
        kind = WIRE_TYPES[column.type]
    elif column.precision is not None:
        kind = pa.decimal128(column.precision, column.scale)
    else:
        # Arrow's widest decimal holds every NUMERIC and BIGNUMERIC of BigQuery exactly.
        kind = pa.decimal256(76, 38)
    return pa.list_(kind) if column.repeated else kind


def chosen_columns(spec: TableSpec, columns: Any) -> Sequence[str]:
    """The names that an input's metadata lists under `columns`; without them all columns.

    Raises ContractError for anything but a list of the table's columns.
    """
    if columns is None:
        return spec.column_names
    if not isinstance(columns, list | tuple) or not columns or not all(isinstance(name, str) for name in columns):
        raise ContractError(f"{spec.name}: the input's metadata `columns` must be a list of names, not {columns!r}")
    if unknown := [name for name in columns if name not in spec.column_names]:
        raise ContractError(f"{spec.name}: the input asks for columns that are not declared: {', '.join(unknown)}")
    return columns


def form_of(table: str, annotation: Any, dtype_backend: Any = None) -> Form:
    """How rows become the type that an input is annotated with. With `dtype_backend` "pyarrow" a DataFrame keeps Arrow's types.

    Raises ContractError for any other type or backend.
    """
    if dtype_backend not in (None, ARROW):
        raise ContractError(f"{table}: the input's metadata `dtype_backend` may be {ARROW!r}, not {dtype_backend!r}")
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for kind in kinds:
        if kind is Any or (isinstance(kind, type) and issubclass(pa.Table, kind)):
            return lambda rows: rows
        if isinstance(kind, type) and issubclass(pa.RecordBatchReader, kind):
            return lambda rows: rows.to_reader()
        # pandas is imported only for inputs that ask for it.
        if isinstance(kind, type) and kind.__module__.partition(".")[0] == "pandas" and kind.__name__ == "DataFrame":
            return _arrow_frame if dtype_backend else _frame
    raise ContractError(
        f"{table}: the input has the type {annotation}; annotate it as pyarrow.Table, pyarrow.RecordBatchReader or pandas.DataFrame"
    )


def _frame(rows: pa.Table) -> Any:
    """The rows as pandas.DataFrame. Integers with nulls become nullable integers, because a double cannot hold all their digits."""
    import pandas

    frame = rows.to_pandas()
    for name in rows.column_names:
        if pa.types.is_integer(rows[name].type) and rows[name].null_count:
            frame[name] = rows[name].to_pandas(types_mapper=lambda _: pandas.Int64Dtype())
    return frame


def _arrow_frame(rows: pa.Table) -> Any:
    """The rows as pandas.DataFrame with Arrow's types: dates stay dates, decimals stay decimals, and nulls stay nulls."""
    import pandas

    return rows.to_pandas(types_mapper=pandas.ArrowDtype)
