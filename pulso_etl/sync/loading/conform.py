"""Makes Arrow batches fit a table's declaration exactly, or raises a clear error. No value is changed silently."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import ContractError, RejectedRows
from pulso_etl.sync.loading.arrow_types import advice, decoded, is_geography, relisted, wire_type
from pulso_etl.sync.postgres.encoding import UTF8, Encoding
from pulso_etl.sync.spec import Column, TableSpec

UNNAMED_INDEX = re.compile(r"__index_level_\d+__")
"""How Arrow names an index to which pandas gives no name."""


class Reason(StrEnum):
    """Why a row can't be loaded."""

    NULL = "null"
    NOT_FINITE = "NaN or Infinity"
    MISFIT = "does not fit the type"
    NUL = "NUL character"
    ENCODING = "not in the database's encoding"
    UTF8 = "invalid UTF-8"
    LIMIT = "beyond a limit"
    DUPLICATE = "duplicate key"
    TOO_LONG = "key too long for an index"
    REFUSED = "refused by PostgreSQL"


@dataclass(frozen=True)
class ColumnFault:
    """Rows of a batch that can't be loaded because of one column. `rows` is a mask: true for such a row. `text` is for people."""

    column: Column
    reason: Reason
    text: str
    rows: pa.BooleanArray


Reject = Callable[[pa.RecordBatch, pa.RecordBatch, list[ColumnFault]], pa.RecordBatch]
"""Takes a batch as the source gave it, the same batch conformed, and its faults; returns the conformed rows without fault."""


def wire_schema(spec: TableSpec, source: pa.Schema, window: DayRange) -> pa.Schema:
    """The schema in which batches of `source` are sent, in the order of the declaration.

    Raises ContractError, which lists every missing column, every type that would lose values, and every new column. If the source
    renames a column, the list has it twice: the old name is missing, and the new name is new.
    """
    faults: list[str] = []
    lines: list[str] = []
    fields: list[pa.Field] = []
    for column in spec.columns:
        indices = source.get_all_field_indices(column.name)
        if len(indices) != 1:
            faults.append(f"{column.name}: {'missing' if not indices else 'given more than once'}")
            lines.append(f"{column.name}: expected {column.sql_type}, got {'nothing' if not indices else 'several'}")
            continue
        field = source.field(indices[0])
        wire = None if is_geography(field) else wire_type(column, field.type)
        if wire is None:
            told = "; ".join(filter(None, [str(field.type), advice(field)]))
            faults.append(f"{column.name}: declared {column.sql_type}, the source gives {field.type}")
            lines.append(f"{column.name}: expected {column.sql_type}, got {told}")
        else:
            fields.append(pa.field(column.name, wire))
    if faults:
        lines += [f"{field.name}: expected nothing, got {field.type}" for field in source if field.name not in spec.column_names]
        raise ContractError(
            f"{spec.name} {window}: the source does not fit the declaration: {'; '.join(faults)}\n  " + "\n  ".join(lines)
        )
    return pa.schema(fields)


def new_columns(spec: TableSpec, source: pa.Schema) -> list[str]:
    """The columns of the source that the declaration does not know, without an unnamed index of pandas."""
    return [name for name in source.names if name not in spec.column_names and not UNNAMED_INDEX.fullmatch(name)]


def conform(
    spec: TableSpec,
    batch: pa.RecordBatch,
    wire: pa.Schema,
    window: DayRange,
    reject: Reject | None = None,
    encoding: Encoding = UTF8,
) -> pa.RecordBatch:
    """The batch in the wire schema, with every value checked; `encoding` is the database's.

    `reject` takes the rows that can't be loaded, and the result leaves them out. Without `reject`, the first fault raises
    RejectedRows, which names table, column and partition. With or without it, a day outside of the window raises ContractError.
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
            raise ContractError(f"{spec.name} {window}: the source returned rows of {day}, a day that was not asked for")
    return reject(batch, conformed, faults) if faults and reject else conformed


def check(
    column: Column, required: bool, array: pa.Array, kind: pa.DataType, encoding: Encoding = UTF8
) -> tuple[pa.Array, list[ColumnFault]]:
    """The values of a column as `kind`, and the faults of its rows. A value that can't be cast becomes null."""
    array = decoded(array)
    missing = [ColumnFault(column, Reason.NULL, "null", array.is_null())] if required and array.null_count else []
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), kind), missing
    if not column.repeated:
        values, found = _check_values(column, array, kind, encoding)
        return values, missing + found
    values, found = _check_values(column, pc.list_flatten(array), kind.value_type, encoding)
    parents, places = pc.list_parent_indices(array), pa.array(range(len(array)), pa.int64())
    for number, fault in enumerate(found):
        rows = pc.is_in(places, pc.unique(parents.filter(fault.rows)).cast(pa.int64()))
        found[number] = replace(fault, rows=rows)
    return relisted(array, values), missing + found


def _check_values(column: Column, given: pa.Array, kind: pa.DataType, encoding: Encoding) -> tuple[pa.Array, list[ColumnFault]]:
    """Like `check`, for single values of a plain type."""
    faults = _not_finite(column, given) if pa.types.is_floating(given.type) else []
    is_text = pa.types.is_string(given.type)
    if is_text:
        given, bad = _cast_what_fits(given.cast(pa.binary()), pa.string())
        faults += _found(column, Reason.UTF8, "a text that is not UTF-8", bad)
    try:
        array = _cast(given, kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        array, bad = _cast_what_fits(given, kind)
        faults.append(ColumnFault(column, Reason.MISFIT, f"a value does not fit {column.sql_type} ({error})", bad))
    if is_text:
        faults += _not_storable(column, array, encoding)
    # A decimal that travels as text is compared as a number.
    return array, faults + _beyond_limits(column, given if pa.types.is_decimal(given.type) else array)


def _found(column: Column, reason: Reason, text: str, bad: pa.BooleanArray) -> list[ColumnFault]:
    """The fault, if any row has it."""
    return [ColumnFault(column, reason, text, bad)] if pc.any(bad).as_py() else []


def _not_finite(column: Column, values: pa.Array) -> list[ColumnFault]:
    return _found(column, Reason.NOT_FINITE, "NaN or Infinity", pc.invert(pc.is_finite(values)))


def _not_storable(column: Column, texts: pa.Array, encoding: Encoding) -> list[ColumnFault]:
    """The faults of texts that PostgreSQL, or this database, can't hold."""
    faults = []
    if _zero_byte(texts):
        bad = pc.match_substring(texts, "\0")
        faults += _found(column, Reason.NUL, "a NUL character, which PostgreSQL can't store,", bad)
    if (bad := encoding.beyond(texts)) is not None:
        kind = encoding.missing_kind(texts.filter(bad)[0].as_py())
        text = f"a character ({kind}) that the database's encoding {encoding.name} can't hold"
        faults.append(ColumnFault(column, Reason.ENCODING, text, bad))
    return faults


def _beyond_limits(column: Column, values: pa.Array) -> list[ColumnFault]:
    limits = ((column.minimum, pc.less), (column.maximum, pc.greater))
    return [
        fault
        for limit, outside in limits
        if limit is not None
        for fault in _found(column, Reason.LIMIT, f"a value beyond the limit {limit}", _beyond(values, limit, outside))
    ]


def _beyond(values: pa.Array, limit: int, outside: Callable[[pa.Array, pa.Scalar], pa.BooleanArray]) -> pa.BooleanArray:
    """A mask of the values beyond the limit; `outside` compares a value with it."""
    if pa.types.is_decimal(values.type):
        if values.type.scale < 0:
            values = values.cast(pa.decimal256(76, 0))
        # If the type cannot hold the limit, the limit is above or below every value of the type.
        if abs(limit) >= 10 ** (values.type.precision - values.type.scale):
            every = outside(pa.scalar(0), pa.scalar(1 if limit > 0 else -1)).as_py()
            return pc.if_else(values.is_valid(), every, None)
    return outside(values, pa.scalar(limit, values.type))


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The array cast without loss. Raises pyarrow.ArrowInvalid."""
    if pa.types.is_decimal(kind):
        # Arrow's cast needs a decimal wide enough for every integer of the type, and refuses a negative scale.
        if pa.types.is_integer(array.type):
            array = array.cast(pa.decimal128(38, 0))
        elif array.type.scale < 0:
            array = array.cast(pa.decimal256(76, 0))
    return array.cast(kind)


def _cast_what_fits(array: pa.Array, kind: pa.DataType) -> tuple[pa.Array, pa.Array]:
    """The array cast, with null for each value that the cast refuses, and a mask of these values.

    The function halves the array until it finds them. So only the cast decides what fits.
    """
    try:
        return _cast(array, kind), pa.repeat(False, len(array))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if len(array) == 1:
            return pa.nulls(1, kind), pa.array([True])
    middle = len(array) // 2
    parts = [_cast_what_fits(part, kind) for part in (array[:middle], array[middle:])]
    return pa.concat_arrays([part[0] for part in parts]), pa.concat_arrays([part[1] for part in parts])


def _refusal(spec: TableSpec, window: DayRange, fault: ColumnFault, days: pa.Array) -> RejectedRows:
    day = days[pc.index(pc.fill_null(fault.rows, False), True).as_py()].as_py()
    where = f"partition {day}" if day is not None else f"partition unknown, in {window}"
    return RejectedRows(
        f"{spec.name}, column {fault.column.name}, {where}: {fault.text} in {pc.sum(fault.rows).as_py()} row(s); "
        "correct the source, nothing was loaded"
    )


def _zero_byte(array: pa.StringArray) -> bool:
    """Whether a text has a zero byte. Searches the one buffer of all values, which is far quicker than value by value."""
    _, offsets, data = array.buffers()
    if data is None:
        return False
    ends = memoryview(offsets).cast("i")
    return b"\0" in bytes(memoryview(data)[ends[array.offset] : ends[array.offset + len(array)]])
