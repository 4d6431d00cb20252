"""Arrow batches made to fit a table's declaration exactly, or a clear error: nothing is bent silently."""

from __future__ import annotations

from datetime import date
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from pulso_etl.errors import ContractError
from pulso_etl.refresh import DayRange
from pulso_etl.tables.spec import Column, ColumnType, TableSpec

WIRE_TYPES: dict[ColumnType, pa.DataType] = {
    ColumnType.TEXT: pa.string(),
    ColumnType.DATE: pa.date32(),
    ColumnType.INTEGER: pa.int64(),
    ColumnType.DOUBLE: pa.float64(),
    ColumnType.TIMESTAMP: pa.timestamp("us", "UTC"),
    ColumnType.BOOLEAN: pa.bool_(),
}
"""The one Arrow type in which each column type travels. NUMERIC keeps its own decimal, see `wire_schema`."""


def wire_schema(spec: TableSpec, source: pa.Schema, window: DayRange) -> pa.Schema:
    """The schema in which batches of `source` are sent, in the order of the declaration.

    Raises ContractError that lists every missing column and every type that can't be taken without loss.
    """
    faults: list[str] = []
    fields: list[pa.Field] = []
    for column in spec.columns:
        indices = source.get_all_field_indices(column.name)
        if len(indices) != 1:
            faults.append(f"{column.name}: {'missing' if not indices else 'given more than once'}")
            continue
        given = source.field(indices[0]).type
        wire = _wire_type(column, given)
        if wire is None:
            faults.append(f"{column.name}: declared {column.type.value}, the source gives {given}")
        else:
            fields.append(pa.field(column.name, wire))
    if faults:
        raise ContractError(f"{spec.name} {window}: the source does not fit the declaration: {'; '.join(faults)}")
    return pa.schema(fields)


def new_columns(spec: TableSpec, source: pa.Schema) -> list[str]:
    """Columns of the source that the declaration does not know."""
    return [name for name in source.names if name not in spec.column_names]


def _wire_type(column: Column, given: pa.DataType) -> pa.DataType | None:
    if pa.types.is_dictionary(given):
        given = given.value_type
    if pa.types.is_null(given):
        return pa.decimal128(38, 9) if column.type is ColumnType.NUMERIC else WIRE_TYPES[column.type]
    if column.type is ColumnType.NUMERIC:
        if pa.types.is_decimal256(given):
            # pgpq has no encoder for decimal256: it travels as text and the server reads it as numeric, exactly.
            return pa.string()
        if pa.types.is_decimal(given):
            return pa.decimal128(38, given.scale) if given.scale >= 0 else pa.string()
        return pa.decimal128(38, 0) if pa.types.is_integer(given) else None
    accepted = {
        ColumnType.TEXT: lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t),
        ColumnType.DATE: pa.types.is_date,
        ColumnType.INTEGER: pa.types.is_integer,
        ColumnType.DOUBLE: lambda t: pa.types.is_floating(t) or pa.types.is_integer(t),
        # A time without zone is ambiguous: the source must say which instant it means.
        ColumnType.TIMESTAMP: lambda t: pa.types.is_timestamp(t) and t.tz is not None,
        ColumnType.BOOLEAN: pa.types.is_boolean,
    }[column.type]
    return WIRE_TYPES[column.type] if accepted(given) else None


def conform(spec: TableSpec, batch: pa.RecordBatch, wire: pa.Schema, window: DayRange) -> pa.RecordBatch:
    """The batch in the wire schema, every value checked. Raises ContractError that names table, column and partition."""
    days = batch.column(spec.partition_column)

    def refuse(column: Column, what: str, bad: pa.Array | None = None) -> ContractError:
        where = str(window)
        if bad is not None:
            position = pc.index(pc.fill_null(bad, False), True).as_py()
            day = days[position].as_py()
            where = f"partition {day}" if day is not None else f"partition unknown, in {window}"
            what = f"{what} in {pc.sum(bad).as_py()} row(s)"
        return ContractError(f"{spec.name}, column {column.name}, {where}: {what}; correct the source, nothing was loaded")

    arrays: list[pa.Array] = []
    for column in spec.columns:
        array = batch.column(column.name)
        if spec.required(column) and array.null_count:
            raise refuse(column, "null", array.is_null())
        if pa.types.is_floating(array.type):
            bad = pc.invert(pc.is_finite(array))
            if pc.any(bad).as_py():
                raise refuse(column, "NaN or Infinity", bad)
        try:
            array = array.cast(wire.field(column.name).type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise refuse(column, f"a value does not fit {column.type.value} ({error})") from error
        if column.type is ColumnType.TEXT and _zero_byte(array):
            bad = pc.match_substring(array, "\0")
            if pc.any(bad).as_py():
                raise refuse(column, "a NUL character, which PostgreSQL can't store,", bad)
        for limit, outside in ((column.minimum, pc.less), (column.maximum, pc.greater)):
            if limit is not None:
                bad = outside(array, pa.scalar(limit, array.type))
                if pc.any(bad).as_py():
                    raise refuse(column, f"a value beyond the limit {limit}", bad)
        arrays.append(array)
    conformed = pa.RecordBatch.from_arrays(arrays, schema=wire)
    bounds = pc.min_max(conformed.column(spec.partition_column)).as_py()
    for day in (bounds["min"], bounds["max"]):
        if day is not None and cast(date, day) not in window:
            raise ContractError(f"{spec.name} {window}: the source returned rows of {day}, outside of what was asked")
    return conformed


def _zero_byte(array: pa.StringArray) -> bool:
    """Whether the text has a zero byte: searched in the one buffer of all values, far quicker than value by value."""
    _, offsets, data = array.buffers()
    if data is None:
        return False
    ends = memoryview(offsets).cast("i")
    return b"\0" in bytes(memoryview(data)[ends[array.offset] : ends[array.offset + len(array)]])
