"""What a table is: one declaration that feeds the database schema, the asset, the load and the documentation.

Nothing here talks to a database or to Dagster.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from functools import cached_property
from string import Formatter
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

IDENTIFIER = r"^[a-z_][a-z0-9_]{0,62}$"


class ColumnType(StrEnum):
    """Types of columns, by the name that PostgreSQL gives them."""

    TEXT = "text"
    DATE = "date"
    INTEGER = "bigint"
    NUMERIC = "numeric"
    DOUBLE = "double precision"
    TIMESTAMP = "timestamp with time zone"
    BOOLEAN = "boolean"


class Column(BaseModel):
    """One column of a table.

    `required` columns are NOT NULL; `minimum` and `maximum` are inclusive and become a CHECK constraint: a load that breaks these
    is refused. `expected`, `expected_minimum` and `expected_maximum` say the same of what the source may break with good reason:
    it lands, and a check warns. `unit` is for people.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(pattern=IDENTIFIER)
    type: ColumnType
    description: str = ""
    unit: str = ""
    required: bool = False
    minimum: int | None = None
    maximum: int | None = None
    expected: bool = False
    expected_minimum: int | None = None
    expected_maximum: int | None = None


class TableSpec(BaseModel):
    """One table: where it comes from, what it holds, and how it is kept.

    `columns` are all that the query returns, keys included; the destination adds `created_at` and `updated_at`.
    `query` is BigQuery SQL with `{placeholders}` for the source tables and the parameters `@start`, `@end` (DATE, inclusive).
    `version_column`: where one key appears in several partitions, the row with the greatest version is kept.
    `stamp_columns` say when the source computed a row; a change in them alone is no change of the row.
    `minimum_kept_share`: a load that would leave less than this share (0..1) of a partition range's rows is refused.
    `minimum_records`: rows that the last `lookback_days` days should hold at least; 0 says nothing.
    `volume_factor`: a day with so many times more, or fewer, rows than the same weekday before it is a warning.
    `reconcile_days`: trailing days that a reconciliation compares with the source.
    `batch_rows`: rows per batch read from the source. `priority`: runs of a greater one leave the queue first.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(pattern=IDENTIFIER)
    description: str
    primary_key: tuple[str, ...] = Field(min_length=1)
    partition_column: str
    columns: tuple[Column, ...]
    query: str = ""
    group: str = "pulso"
    owners: tuple[str, ...] = ("team:data-engineering",)
    tags: dict[str, str] = Field(default_factory=dict)
    lookback_days: int = Field(default=1, ge=1)
    refresh_every: timedelta = timedelta(hours=24)
    timeout: timedelta = timedelta(minutes=30)
    batch_rows: int = Field(default=10_000, ge=1)
    priority: int = 0
    version_column: str | None = None
    stamp_columns: tuple[str, ...] = ()
    minimum_kept_share: float = Field(default=0.5, ge=0, le=1)
    minimum_records: int = Field(default=0, ge=0)
    volume_factor: float = Field(default=2.0, gt=1)
    reconcile_days: int = Field(default=35, ge=1)

    @model_validator(mode="after")
    def _names_exist(self) -> TableSpec:
        names = [column.name for column in self.columns]
        if len(names) != len(set(names)):
            raise ValueError(f"{self.name}: a column is declared twice")
        if reserved := {"created_at", "updated_at"} & set(names):
            raise ValueError(f"{self.name}: {sorted(reserved)} are kept by the destination and can't be declared")
        named = {*self.primary_key, self.partition_column, *self.stamp_columns}
        if self.version_column:
            named.add(self.version_column)
        if unknown := named - set(names):
            raise ValueError(f"{self.name}: {sorted(unknown)} are named but not declared as columns")
        if self.column(self.partition_column).type is not ColumnType.DATE:
            raise ValueError(f"{self.name}: the partition column {self.partition_column} must be a date")
        if set(self.stamp_columns) & set(self.primary_key):
            raise ValueError(f"{self.name}: a stamp column can't be part of the primary key")
        if not self.partition_in_key and self.version_column is None:
            raise ValueError(
                f"{self.name}: a key that lives in several partitions needs a version_column, or an older day would win"
            )
        return self

    def column(self, name: str) -> Column:
        """The column of that name. Raises KeyError."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The source tables that the query reads, by placeholder."""
        return tuple(sorted({name for _, name, _, _ in Formatter().parse(self.query) if name}))

    @cached_property
    def partition_in_key(self) -> bool:
        """Whether a partition owns its rows, so that a re-read partition can be made equal to the source."""
        return self.partition_column in self.primary_key

    @cached_property
    def value_columns(self) -> tuple[str, ...]:
        return tuple(name for name in self.column_names if name not in self.primary_key)

    @cached_property
    def compared_columns(self) -> tuple[str, ...]:
        """The columns whose change makes a row a changed row."""
        return tuple(name for name in self.value_columns if name not in self.stamp_columns)

    def required(self, column: Column) -> bool:
        """Whether the column is NOT NULL."""
        return column.required or column.name in self.primary_key or column.name == self.partition_column

    def as_metadata(self) -> dict[str, Any]:
        """The declaration as plain JSON, for an asset's definition metadata (see `from_metadata`)."""
        return self.model_dump(mode="json", exclude={"query"})

    @classmethod
    def from_metadata(cls, value: dict[str, Any]) -> TableSpec:
        """The declaration out of an asset's definition metadata. Raises pydantic.ValidationError."""
        return cls.model_validate(value)
