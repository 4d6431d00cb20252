"""Arrow batches made to fit a table's declaration exactly, or a clear error: nothing is bent silently."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from pulso_etl.destination.encoding import UTF8, Encoding
from pulso_etl.errors import ContractError, RejectedRows
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


UNNAMED_INDEX = re.compile(r"__index_level_\d+__")
"""How Arrow names what pandas has no name for."""


class Reason(StrEnum):
    """Why a row can't be loaded."""

    NULL = "null"
    NOT_FINITE = "NaN or Infinity"
    MISFIT = "does not fit the type"
    NUL = "NUL character"
    ENCODING = "not in the database's encoding"
    LIMIT = "beyond a limit"
    DUPLICATE = "duplicate key"
    TOO_LONG = "key too long for an index"
    REFUSED = "refused by PostgreSQL"


@dataclass(frozen=True)
class Fault:
    """Rows of a batch that can't be loaded because of one column: a mask (true, or not), the reason, and a text for people."""

    column: Column
    reason: Reason
    text: str
    rows: pa.BooleanArray


Reject = Callable[[pa.RecordBatch, pa.RecordBatch, list[Fault]], pa.RecordBatch]
"""Takes a batch as the source gave it, the same conformed, and its faults; returns the conformed rows without fault."""


def wire_schema(spec: TableSpec, source: pa.Schema, window: DayRange) -> pa.Schema:
    """The schema in which batches of `source` are sent, in the order of the declaration.

    Raises ContractError that lists every missing column and every type that can't be taken without loss, with the new columns
    beside them: a column that was renamed is one of each.
    """
    faults: list[str] = []
    lines: list[str] = []
    fields: list[pa.Field] = []
    for column in spec.columns:
        indices = source.get_all_field_indices(column.name)
        if len(indices) != 1:
            faults.append(f"{column.name}: {'missing' if not indices else 'given more than once'}")
            lines.append(f"{column.name}: expected {column.type.value}, got {'nothing' if not indices else 'several'}")
            continue
        given = source.field(indices[0]).type
        wire = wire_type(column.type, given)
        if wire is None:
            faults.append(f"{column.name}: declared {column.type.value}, the source gives {given}")
            lines.append(f"{column.name}: expected {column.type.value}, got {given}")
        else:
            fields.append(pa.field(column.name, wire))
    if faults:
        lines += [f"{field.name}: expected nothing, got {field.type}" for field in source if field.name not in spec.column_names]
        raise ContractError(
            f"{spec.name} {window}: the source does not fit the declaration: {'; '.join(faults)}\n  " + "\n  ".join(lines)
        )
    return pa.schema(fields)


def new_columns(spec: TableSpec, source: pa.Schema) -> list[str]:
    """Columns of the source that the declaration does not know; an index of pandas that has no name is none."""
    return [name for name in source.names if name not in spec.column_names and not UNNAMED_INDEX.fullmatch(name)]


def wire_type(kind: ColumnType, given: pa.DataType) -> pa.DataType | None:
    """The Arrow type in which values of the type `given` travel to a column of that kind; None where some would be lost."""
    if pa.types.is_dictionary(given):
        given = given.value_type
    if pa.types.is_null(given):
        return pa.decimal128(38, 9) if kind is ColumnType.NUMERIC else WIRE_TYPES[kind]
    if kind is ColumnType.NUMERIC:
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
    }[kind]
    return WIRE_TYPES[kind] if accepted(given) else None


def conform(
    spec: TableSpec,
    batch: pa.RecordBatch,
    wire: pa.Schema,
    window: DayRange,
    reject: Reject | None = None,
    encoding: Encoding = UTF8,
) -> pa.RecordBatch:
    """The batch in the wire schema, every value checked; `encoding` is that of the database.

    `reject` takes the rows that can't be loaded, which are then left out; without it the first fault raises RejectedRows, with
    table, column and partition. Raises ContractError for days outside of the window, whoever asks.
    """
    arrays, faults = [], []
    for column in spec.columns:
        array, found = check(column, spec.required(column), batch.column(column.name), wire.field(column.name).type, encoding)
        arrays.append(array)
        faults += found
    conformed = pa.RecordBatch.from_arrays(arrays, schema=wire)
    if faults and reject is None:
        raise _refusal(spec, window, faults[0], conformed.column(spec.partition_column))
    bounds = pc.min_max(conformed.column(spec.partition_column)).as_py()
    for day in (bounds["min"], bounds["max"]):
        if day is not None and cast(date, day) not in window:
            raise ContractError(f"{spec.name} {window}: the source returned rows of {day}, outside of what was asked")
    return reject(batch, conformed, faults) if faults and reject else conformed


def check(
    column: Column, required: bool, array: pa.Array, kind: pa.DataType, encoding: Encoding = UTF8
) -> tuple[pa.Array, list[Fault]]:
    """The values of a column as `kind`, and which rows of it can't be loaded and why. What no cast can take is null."""
    faults: list[Fault] = []
    given = array
    if required and array.null_count:
        faults.append(Fault(column, Reason.NULL, "null", array.is_null()))
    if pa.types.is_floating(array.type):
        bad = pc.invert(pc.is_finite(array))
        if pc.any(bad).as_py():
            faults.append(Fault(column, Reason.NOT_FINITE, "NaN or Infinity", bad))
    try:
        array = array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        array, bad = _cast_what_fits(array, kind)
        faults.append(Fault(column, Reason.MISFIT, f"a value does not fit {column.type.value} ({error})", bad))
    if column.type is ColumnType.TEXT and _zero_byte(array):
        bad = pc.match_substring(array, "\0")
        if pc.any(bad).as_py():
            faults.append(Fault(column, Reason.NUL, "a NUL character, which PostgreSQL can't store,", bad))
    if column.type is ColumnType.TEXT and (bad := encoding.beyond(array)) is not None:
        kind_of = encoding.missing_kind(array.filter(bad)[0].as_py())
        text = f"a character ({kind_of}) that the database's encoding {encoding.name} can't hold"
        faults.append(Fault(column, Reason.ENCODING, text, bad))
    # A decimal that travels as text is compared as the number that it was.
    values = given if column.type is ColumnType.NUMERIC and pa.types.is_string(kind) else array
    for limit, outside in ((column.minimum, pc.less), (column.maximum, pc.greater)):
        if limit is not None:
            bad = _beyond(values, limit, outside)
            if pc.any(bad).as_py():
                faults.append(Fault(column, Reason.LIMIT, f"a value beyond the limit {limit}", bad))
    return array, faults


def _beyond(values: pa.Array, limit: int, outside: Callable[[pa.Array, pa.Scalar], pa.BooleanArray]) -> pa.BooleanArray:
    """Which values are outside of the limit; `outside` compares them."""
    if pa.types.is_decimal(values.type):
        if values.type.scale < 0:
            values = values.cast(pa.decimal256(76, 0))
        # A limit that the type can't hold lies beyond every value of it, on its side of zero.
        if abs(limit) >= 10 ** (values.type.precision - values.type.scale):
            every = outside(pa.scalar(0), pa.scalar(1 if limit > 0 else -1)).as_py()
            return pc.if_else(values.is_valid(), every, None)
    return outside(values, pa.scalar(limit, values.type))


def _cast_what_fits(array: pa.Array, kind: pa.DataType) -> tuple[pa.Array, pa.Array]:
    """The array cast, with null where the cast refuses, and a mask of those; found by halving, so that the cast alone decides."""
    try:
        return array.cast(kind), pa.repeat(False, len(array))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if len(array) == 1:
            return pa.nulls(1, kind), pa.array([True])
    middle = len(array) // 2
    parts = [_cast_what_fits(part, kind) for part in (array[:middle], array[middle:])]
    return pa.concat_arrays([part[0] for part in parts]), pa.concat_arrays([part[1] for part in parts])


def _refusal(spec: TableSpec, window: DayRange, fault: Fault, days: pa.Array) -> RejectedRows:
    day = days[pc.index(pc.fill_null(fault.rows, False), True).as_py()].as_py()
    where = f"partition {day}" if day is not None else f"partition unknown, in {window}"
    return RejectedRows(
        f"{spec.name}, column {fault.column.name}, {where}: {fault.text} in {pc.sum(fault.rows).as_py()} row(s); "
        "correct the source, nothing was loaded"
    )


def _zero_byte(array: pa.StringArray) -> bool:
    """Whether the text has a zero byte: searched in the one buffer of all values, far quicker than value by value."""
    _, offsets, data = array.buffers()
    if data is None:
        return False
    ends = memoryview(offsets).cast("i")
    return b"\0" in bytes(memoryview(data)[ends[array.offset] : ends[array.offset + len(array)]])
