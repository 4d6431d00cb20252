"""Arrow's types: the plain type of stored values, and the one type in which values travel to a column."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from pulso_etl.sync.spec import Column, ColumnType

WIRE_TYPES: dict[ColumnType, pa.DataType] = {
    ColumnType.TEXT: pa.string(),
    ColumnType.DATE: pa.date32(),
    ColumnType.INTEGER: pa.int64(),
    ColumnType.DOUBLE: pa.float64(),
    ColumnType.TIMESTAMP: pa.timestamp("us", "UTC"),
    ColumnType.BOOLEAN: pa.bool_(),
    ColumnType.DATETIME: pa.timestamp("us"),
    ColumnType.TIME: pa.time64("us"),
    ColumnType.BYTES: pa.binary(),
    ColumnType.JSON: pa.string(),
}
"""The one Arrow type in which each column type travels. NUMERIC keeps its own decimal, see `wire_type`."""
ACCEPTED: dict[ColumnType, Callable[[pa.DataType], bool]] = {
    ColumnType.TEXT: pa.types.is_string,
    ColumnType.DATE: pa.types.is_date,
    ColumnType.INTEGER: pa.types.is_integer,
    ColumnType.DOUBLE: lambda t: pa.types.is_floating(t) or pa.types.is_integer(t),
    # A time without zone is ambiguous: the source must say which instant it means.
    ColumnType.TIMESTAMP: lambda t: pa.types.is_timestamp(t) and t.tz is not None,
    ColumnType.BOOLEAN: pa.types.is_boolean,
    ColumnType.DATETIME: lambda t: pa.types.is_timestamp(t) and t.tz is None,
    ColumnType.TIME: pa.types.is_time,
    ColumnType.BYTES: pa.types.is_binary,
    ColumnType.JSON: pa.types.is_string,
}
"""Which stored types each column type takes without loss. A single value may still not fit."""
JSON, GEOGRAPHY = "arrow.json", b"google:sqlType:geography"
LISTS = (
    *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    *(pa.types.is_list_view, pa.types.is_large_list_view),
)
TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)


def stored(given: pa.DataType) -> pa.DataType | None:
    """The plain type of the values in an array of the type; None if an extension type gives the values another meaning."""
    if isinstance(given, pa.BaseExtensionType):
        return stored(given.storage_type) if given.extension_name == JSON else None
    if pa.types.is_dictionary(given) or pa.types.is_run_end_encoded(given):
        return stored(given.value_type)
    if any(is_kind(given) for is_kind in LISTS):
        item = stored(given.value_type)
        return None if item is None else pa.list_(item)
    if any(is_kind(given) for is_kind in TEXTS):
        return pa.string()
    if any(is_kind(given) for is_kind in BYTES):
        return pa.binary()
    return given


def decoded(array: pa.Array) -> pa.Array:
    """The same values as an array of the plain type. The caller checks first that a plain type exists (see `stored`)."""
    if isinstance(array.type, pa.BaseExtensionType):
        return decoded(array.storage)
    if pa.types.is_dictionary(array.type):
        return decoded(array.dictionary_decode())
    if pa.types.is_run_end_encoded(array.type):
        return decoded(pc.run_end_decode(array))
    if any(is_kind(array.type) for is_kind in LISTS):
        return relisted(array, decoded(pc.list_flatten(array)))
    plain = stored(array.type)
    return array if plain == array.type else array.cast(plain)


def relisted(array: pa.Array, items: pa.Array) -> pa.Array:
    """A list array with the lengths and nulls of `array` and with these items."""
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
    return pa.ListArray.from_arrays(offsets, items, mask=array.is_null())


def wire_type(column: Column, given: pa.DataType) -> pa.DataType | None:
    """The Arrow type in which values of the type `given` travel to the column; None if values would be lost.

    Values that pgpq can't encode travel as text, see `travels_as_text`.
    """
    plain = stored(given)
    if plain is None:
        return None
    # The type of an empty struct is falsy, so the code compares types with None.
    if not column.repeated:
        return _scalar(column, plain)
    if not pa.types.is_list(plain) and not pa.types.is_null(plain):
        return None
    item = _scalar(column, plain if pa.types.is_null(plain) else plain.value_type)
    # pgpq writes arrays of instants as arrays of times without zone.
    return None if item is None else pa.list_(pa.string() if column.type is ColumnType.TIMESTAMP else item)


def _scalar(column: Column, given: pa.DataType) -> pa.DataType | None:
    if column.type is not ColumnType.NUMERIC:
        return WIRE_TYPES[column.type] if pa.types.is_null(given) or ACCEPTED[column.type](given) else None
    if not (pa.types.is_decimal(given) or pa.types.is_integer(given) or pa.types.is_null(given)):
        return None
    if column.precision is not None:
        return pa.decimal128(column.precision, column.scale)
    if pa.types.is_null(given):
        return pa.decimal128(38, 9)
    if pa.types.is_integer(given):
        return pa.decimal128(38, 0)
    # pgpq can encode neither decimal256 nor a negative scale.
    return pa.string() if pa.types.is_decimal256(given) or given.scale < 0 else pa.decimal128(38, given.scale)


def travels_as_text(column: Column, wire: pa.DataType) -> bool:
    """Whether the values travel as text and the server has to convert them to the column's type."""
    item = wire.value_type if column.repeated else wire
    return column.type not in (ColumnType.TEXT, ColumnType.JSON) and pa.types.is_string(item)


def is_geography(field: pa.Field) -> bool:
    """Whether BigQuery's client marks the texts of a field as GEOGRAPHY."""
    return (field.metadata or {}).get(b"ARROW:extension:name") == GEOGRAPHY


def advice(field: pa.Field) -> str | None:
    """What to write in the SQL for a field whose type no column can have."""
    name, given = f"`{field.name}`", field.type
    item = given.value_type if any(is_kind(given) for is_kind in LISTS) else given
    if is_geography(field):
        return f"GEOGRAPHY: write ST_ASTEXT({name}) or ST_ASGEOJSON({name})"
    if pa.types.is_interval(item) or pa.types.is_duration(item):
        return f"INTERVAL: write CAST({name} AS STRING), or EXTRACT its parts"
    if pa.types.is_struct(item) and {one.name for one in item} == {"start", "end"} and item == given:
        return f"RANGE: write RANGE_START({name}) and RANGE_END({name})"
    if pa.types.is_struct(item) or pa.types.is_map(item):
        return f"STRUCT: write TO_JSON({name}) and declare JSON, or select its fields"
    if isinstance(item, pa.BaseExtensionType):
        return f"the type {item.extension_name}: cast it to the type in which it is stored"
    return None
