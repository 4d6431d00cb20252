"""The Arrow types in which BigQuery's types arrive."""

from __future__ import annotations

import pyarrow as pa

ARROW_TYPES: dict[str, pa.DataType] = {
    "STRING": pa.string(),
    "INT64": pa.int64(),
    "INTEGER": pa.int64(),
    "FLOAT64": pa.float64(),
    "FLOAT": pa.float64(),
    "NUMERIC": pa.decimal128(38, 9),
    "BIGNUMERIC": pa.decimal256(76, 38),
    "BOOL": pa.bool_(),
    "BOOLEAN": pa.bool_(),
    "BYTES": pa.binary(),
    "JSON": pa.string(),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "DATETIME": pa.timestamp("us"),
    "TIMESTAMP": pa.timestamp("us", "UTC"),
}
"""By the names of GoogleSQL, and by those in a job's schema."""
OTHER = pa.struct([])
"""Stands for any other type: no column of a table accepts it."""


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of BigQuery's type, such as `INT64` or `ARRAY<STRING>`."""
    if name.startswith("ARRAY<"):
        return pa.list_(arrow_type(name.removeprefix("ARRAY<").removesuffix(">")))
    return ARROW_TYPES.get(name, OTHER)
