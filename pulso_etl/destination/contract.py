"""The source's columns against the declaration and the table: what is loaded, what is added, what is left out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pyarrow as pa

from pulso_etl.destination.catalog import Table
from pulso_etl.destination.conform import new_columns, wire_schema, wire_type
from pulso_etl.destination.migration import unknown_columns
from pulso_etl.refresh import DayRange
from pulso_etl.tables.spec import IDENTIFIER, Column, ColumnType, Contract, TableSpec

PREFERENCE = (
    ColumnType.TEXT,
    ColumnType.DATE,
    ColumnType.BOOLEAN,
    ColumnType.TIMESTAMP,
    ColumnType.INTEGER,
    ColumnType.NUMERIC,
    ColumnType.DOUBLE,
)
"""A new column takes the first of these types that takes its values without loss."""


@dataclass(frozen=True)
class Drift:
    """How the source and the table differ from the declaration, in columns.

    `added`: new in the source and loaded. `not_loaded`: new in the source and left out. `vanished`: added once, given no longer.
    """

    added: list[str] = field(default_factory=list)
    not_loaded: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)

    def warnings(self) -> list[str]:
        """A line for people for each kind of difference."""
        lines = (
            ("new columns in the source, added to the table", self.added),
            ("new columns in the source, not loaded", self.not_loaded),
            ("columns of the table that the source gives no longer, null in new rows", self.vanished),
        )
        return [f"{text}: {', '.join(names)}" for text, names in lines if names]

    def as_dict(self) -> dict[str, list[str]]:
        named = {"columns_added": self.added, "columns_not_loaded": self.not_loaded, "columns_vanished": self.vanished}
        return {key: names for key, names in named.items() if names}


def fit(spec: TableSpec, source: pa.Schema, table: Table, window: DayRange) -> tuple[TableSpec, pa.Schema, Drift]:
    """The declaration as this load takes it, the schema in which its rows travel, and the drift.

    Where the contract is `evolve`, that declaration has the source's new columns. Raises ContractError, see `wire_schema`.
    """
    evolved = spec.with_columns(_new(spec, source, table)) if spec.contract is Contract.EVOLVE else spec
    drift = Drift(
        added=[name for name in evolved.column_names if name not in table.columns and name not in spec.column_names],
        not_loaded=new_columns(evolved, source),
        vanished=unknown_columns(evolved, table),
    )
    return evolved, wire_schema(evolved, source, window), drift


def column_type(given: pa.DataType) -> ColumnType | None:
    """The type of a column for values of an Arrow type; None where no type takes them all without loss."""
    if pa.types.is_null(given):
        return None
    return next((kind for kind in PREFERENCE if wire_type(kind, given) is not None), None)


def _new(spec: TableSpec, source: pa.Schema, table: Table) -> tuple[Column, ...]:
    """Columns for what the source has beyond the declaration.

    One that the table has already keeps its type there, unless the source's values no longer fit it: then it is declared as the
    source has it, and the table is refused with the statements that change its type.
    """
    known = {kind.value: kind for kind in ColumnType}
    columns = []
    for name in new_columns(spec, source):
        if not re.fullmatch(IDENTIFIER, name) or spec.is_reserved(name) or len(source.get_all_field_indices(name)) != 1:
            continue
        given, held = source.field(name).type, table.columns.get(name)
        kind = known.get(held.type) if held else None
        if kind is None or wire_type(kind, given) is None:
            kind = column_type(given)
        if kind is not None:
            columns.append(Column(name=name, type=kind, description="New in the source"))
    return tuple(columns)
