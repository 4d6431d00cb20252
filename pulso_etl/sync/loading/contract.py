"""Compares the source's columns with the declaration and the table: which are loaded, added or left out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.loading.arrow_types import JSON, advice, is_geography, stored, travels_as_text, wire_type
from pulso_etl.sync.loading.conform import new_columns, wire_schema
from pulso_etl.sync.postgres.catalog import Table
from pulso_etl.sync.schema.migration import unknown_columns
from pulso_etl.sync.spec import IDENTIFIER, Column, ColumnType, Contract, TableSpec

PREFERENCE = (
    ColumnType.TEXT,
    ColumnType.DATE,
    ColumnType.BOOLEAN,
    ColumnType.TIMESTAMP,
    ColumnType.INTEGER,
    ColumnType.NUMERIC,
    ColumnType.DOUBLE,
    ColumnType.DATETIME,
    ColumnType.TIME,
    ColumnType.BYTES,
)
"""A new column gets the first of these types that holds its values without loss."""


@dataclass(frozen=True)
class Drift:
    """How the columns of the source and of the table differ from the declaration.

    `added` columns are new in the source and loaded. `not_loaded` columns are new in the source and left out. `vanished` columns
    were added by an earlier load, and the source no longer gives them. `advice` says what to write in the SQL for columns that
    the contract would add and that no table can hold.
    """

    added: list[str] = field(default_factory=list)
    not_loaded: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def warnings(self) -> list[str]:
        """A line for people for each kind of difference, and for each piece of advice."""
        lines = (
            ("new columns in the source, added to the table", self.added),
            ("new columns in the source, not loaded", self.not_loaded),
            ("columns of the table that the source no longer gives, null in new rows", self.vanished),
        )
        return [f"{text}: {', '.join(names)}" for text, names in lines if names] + self.advice

    def as_dict(self) -> dict[str, list[str]]:
        named = {"columns_added": self.added, "columns_not_loaded": self.not_loaded, "columns_vanished": self.vanished}
        return {key: names for key, names in named.items() if names}


class Fitted(NamedTuple):
    """The declaration that one load uses, the schema in which the rows travel, and the drift.

    If the contract is `evolve`, the declaration includes the source's new columns.
    """

    spec: TableSpec
    wire: pa.Schema
    drift: Drift

    @property
    def text_columns(self) -> frozenset[str]:
        """The columns of other types whose values travel as text."""
        return frozenset(one.name for one in self.spec.columns if travels_as_text(one, self.wire.field(one.name).type))


def fit(spec: TableSpec, source: pa.Schema, table: Table, window: DayRange) -> Fitted:
    """Fits the declaration to the columns of the source. Raises ContractError, see `wire_schema`."""
    evolved = spec.with_columns(_new(spec, source, table)) if spec.loading.contract is Contract.EVOLVE else spec
    not_loaded = new_columns(evolved, source)
    drift = Drift(
        added=[name for name in evolved.column_names if name not in table.columns and name not in spec.column_names],
        not_loaded=not_loaded,
        vanished=unknown_columns(evolved, table),
        advice=[
            f"{field.name}, not loaded: {told}"
            for field in source
            if spec.loading.contract is Contract.EVOLVE and field.name in not_loaded and (told := advice(field))
        ],
    )
    return Fitted(evolved, wire_schema(evolved, source, window), drift)


def column_type(given: pa.DataType) -> ColumnType | None:
    """The column type for values of an Arrow type; None if no type holds them all without loss."""
    if pa.types.is_null(given):
        return None
    if isinstance(given, pa.BaseExtensionType) and given.extension_name == JSON:
        return ColumnType.JSON
    return next((kind for kind in PREFERENCE if wire_type(Column(name="x", type=kind), given) is not None), None)


def column_for(field: pa.Field) -> Column | None:
    """A column for the values of a field of the source; None if no type holds them all without loss.

    The field's name must be valid as a column's name.
    """
    plain = None if is_geography(field) else stored(field.type)
    if plain is None:
        return None
    repeated = pa.types.is_list(plain)
    kind = column_type(plain.value_type if repeated else field.type)
    return None if kind is None else Column(name=field.name, type=kind, repeated=repeated, description="New in the source")


def _held(name: str, sql_type: str) -> Column | None:
    """The column as the table has it; None if no declaration can have its type."""
    columns = (
        Column(name=name, type=kind, repeated=repeated, description="New in the source")
        for kind in ColumnType
        for repeated in (False, True)
        if not (repeated and kind is ColumnType.JSON)
    )
    return next((column for column in columns if column.sql_type == sql_type), None)


def _new(spec: TableSpec, source: pa.Schema, table: Table) -> tuple[Column, ...]:
    """Columns for the source's fields that are not declared.

    A column that the table already has keeps its type there. If the source's values no longer fit that type, the column is
    declared as the source has it, and the table is refused with the statements that change the type.
    """
    columns = []
    for name in new_columns(spec, source):
        if not re.fullmatch(IDENTIFIER, name) or spec.is_reserved(name) or len(source.get_all_field_indices(name)) != 1:
            continue
        field, held = source.field(name), table.columns.get(name)
        column = _held(name, held.type) if held else None
        if column is None or is_geography(field) or wire_type(column, field.type) is None:
            column = column_for(field)
        if column is not None:
            columns.append(column)
    return tuple(columns)
