"""Rows of a table read back, for an asset downstream or a notebook, in the form that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

import psycopg
import pyarrow as pa

from pulso_etl.destination.bookkeeping import exists
from pulso_etl.destination.conform import WIRE_TYPES
from pulso_etl.destination.statements import Statements
from pulso_etl.destination.watermarks import Watermarks
from pulso_etl.errors import ContractError
from pulso_etl.refresh import DayRange
from pulso_etl.tables.spec import Column, ColumnType, TableSpec

Form = Callable[[pa.Table], Any]


def read(conn: psycopg.Connection, spec: TableSpec, schema: str, ranges: Sequence[DayRange], names: Sequence[str]) -> pa.Table:
    """The rows of the days, by day and key, in the columns of those names; inside the transaction that `conn` is in.

    A table that nobody has loaded yet is empty. Raises ContractError for one that is gone.
    """
    wanted = pa.schema([(name, _read_type(spec.column(name))) for name in names])
    batches: list[pa.RecordBatch] = []
    if ranges and _is_there(conn, spec, schema):
        query = Statements(spec, schema).select(names)
        for days in ranges:
            with conn.cursor("pulso_load_input") as cursor:
                cursor.execute(query, {"start": days.start, "end": days.end})
                while rows := cursor.fetchmany(spec.batch_rows):
                    values = zip(wanted.types, zip(*rows, strict=True), strict=True)
                    batches.append(pa.RecordBatch.from_arrays([pa.array(column, kind) for kind, column in values], schema=wanted))
    return pa.Table.from_batches(batches, wanted)


def _is_there(conn: psycopg.Connection, spec: TableSpec, schema: str) -> bool:
    if exists(conn, schema, spec.name):
        return True
    if Watermarks(schema).ever_loaded(conn, spec.name):
        raise ContractError(f"{spec.name}: the table was loaded once, and is gone from PostgreSQL; load its days again")
    return False


def _read_type(column: Column) -> pa.DataType:
    # The widest decimal that Arrow has takes every NUMERIC and BIGNUMERIC of BigQuery as it is.
    return pa.decimal256(76, 38) if column.type is ColumnType.NUMERIC else WIRE_TYPES[column.type]


def chosen_columns(spec: TableSpec, columns: Any) -> Sequence[str]:
    """The names under `columns` of an input's metadata; without it all. Raises ContractError for what is no list of the table's."""
    if columns is None:
        return spec.column_names
    if not isinstance(columns, list | tuple) or not columns or not all(isinstance(name, str) for name in columns):
        raise ContractError(f"{spec.name}: the input's metadata `columns` must be a list of names, not {columns!r}")
    if unknown := [name for name in columns if name not in spec.column_names]:
        raise ContractError(f"{spec.name}: the input asks for columns that are not declared: {', '.join(unknown)}")
    return columns


def form_of(table: str, annotation: Any) -> Form:
    """How rows become what an input is annotated with. Raises ContractError for a form that they can't have."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for kind in kinds:
        if kind is Any or (isinstance(kind, type) and issubclass(pa.Table, kind)):
            return lambda rows: rows
        if isinstance(kind, type) and issubclass(pa.RecordBatchReader, kind):
            return lambda rows: rows.to_reader()
        # Pandas itself need not be imported by those who do not ask for it.
        if isinstance(kind, type) and kind.__module__.partition(".")[0] == "pandas" and kind.__name__ == "DataFrame":
            return _frame
    raise ContractError(
        f"{table}: the input is annotated {annotation}; annotate it pyarrow.Table, pyarrow.RecordBatchReader or pandas.DataFrame"
    )


def _frame(rows: pa.Table) -> Any:
    """As pandas.DataFrame; integers with nulls among them are nullable ones, as a double does not hold all their digits."""
    import pandas

    frame = rows.to_pandas()
    for name in rows.column_names:
        if pa.types.is_integer(rows[name].type) and rows[name].null_count:
            frame[name] = rows[name].to_pandas(types_mapper=lambda _: pandas.Int64Dtype())
    return frame
