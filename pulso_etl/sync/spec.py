"""What a table is: one declaration, from which the database schema, the asset, the load and the documentation follow.

Nothing here talks to a database or to Dagster.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pulso_etl.sync.errors import SourceError
from pulso_etl.sync.zone import DEFAULT_ZONE, Zone, known_zone

IDENTIFIER = r"^[a-z_][a-z0-9_]{0,62}$"
TENANT = r"^[a-z](?:_?[a-z0-9])*$"
"""Names of tenants have no two underscores together and none at the end, so `TENANT__NAME` can be read in only one way."""


class ColumnType(StrEnum):
    """Types of columns, by the name that PostgreSQL gives them."""

    TEXT = "text"
    DATE = "date"
    INTEGER = "bigint"
    NUMERIC = "numeric"
    DOUBLE = "double precision"
    TIMESTAMP = "timestamp with time zone"
    BOOLEAN = "boolean"
    DATETIME = "timestamp without time zone"
    TIME = "time without time zone"
    BYTES = "bytea"
    JSON = "jsonb"


GREATEST_LIMIT = {ColumnType.INTEGER: 2**63 - 1, ColumnType.NUMERIC: 10**38 - 1, ColumnType.DOUBLE: 2**53}
"""The column types that take limits, and how far from zero a limit may lie so that the type holds it exactly."""


WITHOUT_WIDTH = {ColumnType.TEXT, ColumnType.NUMERIC, ColumnType.BYTES, ColumnType.JSON}
"""The types whose values have no fixed size."""


class Contract(StrEnum):
    """What a load does with columns of the source that are not declared."""

    FREEZE = "freeze"
    EVOLVE = "evolve"


class OnReject(StrEnum):
    """What a load does when it meets rows that can't be loaded."""

    FAIL = "fail"
    QUARANTINE = "quarantine"


class Strategy(StrEnum):
    """How the rows that the source gives for a range of days become rows of the table."""

    UPSERT = "upsert"
    REPLACE_PARTITION = "replace_partition"
    APPEND = "append"
    SCD2 = "scd2"


class ChangeCapture(StrEnum):
    """The function of BigQuery that lists a source table's changes."""

    CHANGES = "changes"
    APPENDS = "appends"


class Column(BaseModel):
    """One column of a table.

    `required` columns are NOT NULL; `minimum` and `maximum` are inclusive and become a CHECK constraint: a load that breaks these
    is refused. `expected`, `expected_minimum` and `expected_maximum` set the same rules for values that the source may have reason
    to break: such a value is loaded, and a check warns. `unit` is for people.

    `repeated`: the column holds arrays of the type, as a REPEATED column of BigQuery does. `precision` is the number of all digits
    of a numeric column, `scale` the number of digits after the point. A value with more digits is refused or quarantined, and
    never rounded.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(pattern=IDENTIFIER)
    type: ColumnType
    description: str = ""
    unit: str = ""
    repeated: bool = False
    precision: int | None = Field(default=None, ge=1, le=38)
    scale: int | None = Field(default=None, ge=0, le=38)
    required: bool = False
    minimum: int | None = None
    maximum: int | None = None
    expected: bool = False
    expected_minimum: int | None = None
    expected_maximum: int | None = None

    @model_validator(mode="after")
    def _type_exists(self) -> Column:
        digits = (self.precision, self.scale)
        if digits != (None, None):
            if self.type is not ColumnType.NUMERIC:
                raise ValueError(f"column {self.name}: precision and scale on a column of {self.type}; only numeric takes them")
            if self.precision is None or self.scale is None or self.scale > self.precision:
                raise ValueError(f"column {self.name}: precision and scale go together, the scale not above the precision")
        if self.repeated and self.type is ColumnType.JSON:
            raise ValueError(f"column {self.name}: JSON can't be repeated; declare one of JSON, and write TO_JSON(x) in the SQL")
        return self

    @property
    def sql_type(self) -> str:
        """The type as PostgreSQL prints it, such as `numeric(10,2)` or `text[]`."""
        digits = "" if self.precision is None else f"({self.precision},{self.scale})"
        return f"{self.type.value}{digits}{'[]' * self.repeated}"

    @property
    def has_width(self) -> bool:
        """Whether every value takes the same room."""
        return not self.repeated and self.type not in WITHOUT_WIDTH

    @model_validator(mode="after")
    def _limits_fit(self) -> Column:
        limits = ("minimum", "maximum", "expected_minimum", "expected_maximum")
        given = {name: value for name in limits if (value := getattr(self, name)) is not None}
        greatest = None if self.repeated else GREATEST_LIMIT.get(self.type)
        if given and greatest is None:
            numbers = ", ".join(GREATEST_LIMIT)
            raise ValueError(f"column {self.name}: {', '.join(given)} on a column of {self.sql_type}; only {numbers} take limits")
        if beyond := [name for name, value in given.items() if greatest is not None and abs(value) > greatest]:
            raise ValueError(f"column {self.name}: {', '.join(beyond)} beyond ±{greatest}, which {self.type} can't hold exactly")
        for least, most in (limits[:2], limits[2:]):
            if least in given and most in given and given[least] > given[most]:
                raise ValueError(f"column {self.name}: {least} {given[least]} is above {most} {given[most]}: no value fits")
        return self


STAMPS = (
    Column(name="created_at", type=ColumnType.TIMESTAMP, required=True),
    Column(name="updated_at", type=ColumnType.TIMESTAMP, required=True),
)
VALIDITY = (
    Column(name="valid_from", type=ColumnType.TIMESTAMP, required=True),
    Column(name="valid_to", type=ColumnType.TIMESTAMP),
)
OURS = "pulso_"
"""The prefix of the names that our own statements give to tables and columns; no declared name has it."""
BOOKKEEPING = "etl_"
"""The prefix of our own tables (watermarks, history, quarantine, alerts, …); no declared table has it."""
SYSTEM_COLUMNS = {"ctid", "tableoid", "xmin", "xmax", "cmin", "cmax"}
"""Columns that PostgreSQL gives to every table."""
DELETED = Column(name="pulso_deleted", type=ColumnType.BOOLEAN, required=True)
"""A column that comes with every row that was read as a change: whether the source has deleted the row."""
CAPTURE_LAG = timedelta(minutes=10)
"""How old a change must be to be captured: BigQuery's change history may still lack newer changes."""
PLACEHOLDER = re.compile(r"`\{(\w+)\}`")
"""A source table in a query, with its back-ticks. Any other brace belongs to the query: a pattern, JSON, a comment."""
ZONE = "'{timezone}'"
"""The time zone of the table's days in a query, with its quotes."""
ROW_SOURCE = re.compile(r",?\s*\bFROM\s+`\{(\w+)\}`", re.IGNORECASE)
"""Where a query that reads changes names its one source table."""
NOT_BY_ROW = re.compile(r"\b(WITH|DISTINCT|JOIN|UNION|GROUP|HAVING|OVER|QUALIFY|LIMIT)\b", re.IGNORECASE)
"""Words that a query can't have if each row of its source makes at most one row, whatever the other rows are."""
MOST_COLUMNS = 1590
"""The most columns that a table may declare: PostgreSQL takes 1,600, and the destination needs some of them."""
MOST_KEY_COLUMNS = 31
"""The most columns of a primary key: PostgreSQL takes 32, and a table that keeps history needs one of them."""
LONGEST_PARTITIONED = 54
"""The longest name of a table with months: the name and an ending such as `_y2026m01` fit PostgreSQL's 63 characters."""


def fill(query: str, tables: Mapping[str, str], timezone: str) -> str:
    """The query with the full names of its source tables and the time zone in place of the placeholders; `tables` has a name for
    each."""
    return PLACEHOLDER.sub(lambda found: f"`{tables[found[1]]}`", query).replace(ZONE, f"'{timezone}'")


def qualified(tenant: str, name: str) -> str:
    """A name in Dagster that belongs to a tenant: `TENANT__NAME`, or just the name where there are no tenants."""
    return f"{tenant}__{name}" if tenant else name


class TableSpec(BaseModel):
    """One table: where it comes from, what it holds, and how it is kept.

    `columns` are all that the query returns, keys included; the destination adds `kept_columns`.
    `query` is BigQuery SQL with placeholders for the source tables, in back-ticks and braces (`PLACEHOLDER`), and the parameters
    `@start`, `@end` (DATE, inclusive). The text `'{timezone}'` becomes the name of the table's time zone.
    `version_column`: if the source has several rows of a key, the row with the greatest version is kept. The column is required,
    like a key. If the partition column is in the key, this is the greatest version that the source has now; else the greatest
    version ever seen.
    `snapshot_of`: columns of the key. For each value of these columns, the source's partitions are snapshots, and the table holds
    the newest one as a whole (see docs/tables.md): a row that the newest lacks is gone, whatever older snapshots say.
    `stamp_columns` say when the source computed a row. A change in them alone never marks a row as changed.
    `minimum_kept_share`: a load that would leave less than this share (0..1) of a partition range's rows is refused.
    `minimum_records`: how many rows the last `lookback_days` days should hold at least; 0 sets no minimum.
    `volume_factor`: a day with so many times more, or fewer, rows than earlier days of that weekday raises a warning.
    `chunk_days`: a back-fill of more days is split into runs of so many days, and these may run at the same time.
    `reconcile_days`: how many trailing days a reconciliation compares with the source.
    `batch_rows`: rows per batch read from the source. `priority`: runs with a greater priority leave the queue first.

    `contract` decides on columns of the source that are not declared. With `freeze` a warning names them and the load leaves them
    out; a column of the table that is not declared stops the load. With `evolve` the load adds them to the table as nullable
    columns. It leaves out, with a warning, a column whose type or name no table can hold. A column that the source no longer gives
    stays in the table, null in new rows, and raises a warning. A declared column that is missing stops every load.

    `on_reject` decides on rows that can't be loaded: a null where a value is required, NaN or Infinity, a NUL character, a value
    beyond a limit or beyond its type, a key that the source gives more than once. With `fail` the first such row stops the load.
    With `quarantine` these rows go to the table `etl_quarantine`, with all rows of a duplicated key, and the other rows are
    loaded. The table's row of a quarantined key stays as it is: the key has not vanished from the source, and its last good state
    stands. (A row whose key is itself at fault protects nothing.) The load fails if more than `maximum_quarantined_share` (0..1)
    of the rows read would be quarantined; more than `alert_quarantined_share` raises an alert.

    `tenant`: the tenant that owns the table, in a deployment with several. The file of tenants sets it, never a declaration.
    `timezone`: the zone whose days the partitions are, by its IANA name. In a deployment the setting TIMEZONE sets it, never a
    declaration.

    `strategy`: how a load changes a range that was loaded before.
    - `upsert`: new rows are inserted, changed ones updated, vanished ones deleted where the partition column is in the key.
      An unchanged row is not written.
    - `replace_partition`: every row of the range is deleted and every row of the source inserted, changed or not.
    - `append`: rows are only ever added. The primary key says which rows are the same; it may repeat, in the source and in the
      table. A range that is loaded again gains the rows that it lacks: for each key, as many as the source has more than the
      table. So nothing is added twice, and a row that changed in the source, or vanished, stays as it was first loaded. Copies
      with equal values are matched first; see `loading.strategies.missing`.
    - `scd2`: rows are versions of a key, valid from `valid_from` until before `valid_to` (instants of loads; null: the current
      version). A changed row closes the current version and opens another at the same instant, a vanished one is closed, an
      unchanged one is not written.

    `change_capture`: where they can, the refresh sensor's runs read only the rows that changed, by that function of BigQuery,
    instead of the whole window. The query must make each of its rows from one row of one base table.
    `partition_by`: with `month` the table in PostgreSQL has range partitions by the partition column, one for each month; that
    column must be in the primary key. `retention_months`: how many whole months before the current one are kept. `pulso-etl
    retention` removes older months, and a load never brings them back.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(pattern=IDENTIFIER)
    description: str
    title: str = ""
    """What the table's readers call it, in their language; where it is empty they are shown the name."""
    subtitle: str = ""
    """What the table shows, in a few words of their language; where it is empty they are shown the description."""
    primary_key: tuple[str, ...] = Field(min_length=1)
    partition_column: str
    columns: tuple[Column, ...]
    query: str = ""
    group: str = "pulso"
    owners: tuple[str, ...] = ("team:data-engineering",)
    tags: dict[str, str] = Field(default_factory=dict)
    lookback_days: int = Field(default=1, ge=1)
    refresh_every: timedelta = Field(default=timedelta(hours=24), gt=timedelta(0))
    timeout: timedelta = Field(default=timedelta(minutes=30), gt=timedelta(0))
    batch_rows: int = Field(default=10_000, ge=1)
    priority: int = 0
    version_column: str | None = None
    snapshot_of: tuple[str, ...] = ()
    stamp_columns: tuple[str, ...] = ()
    minimum_kept_share: float = Field(default=0.5, ge=0, le=1)
    minimum_records: int = Field(default=0, ge=0)
    volume_factor: float = Field(default=2.0, gt=1)
    chunk_days: int = Field(default=92, ge=1, le=366)
    reconcile_days: int = Field(default=35, ge=1)
    contract: Contract = Contract.FREEZE
    on_reject: OnReject = OnReject.FAIL
    maximum_quarantined_share: float = Field(default=0.05, ge=0, le=1)
    alert_quarantined_share: float = Field(default=0.01, ge=0, le=1)
    strategy: Strategy = Strategy.UPSERT
    change_capture: ChangeCapture | None = None
    partition_by: Literal["month"] | None = None
    retention_months: int | None = Field(default=None, ge=1)
    tenant: str = Field(default="", pattern=rf"^$|{TENANT}", max_length=31)
    timezone: Annotated[str, AfterValidator(known_zone)] = DEFAULT_ZONE

    @model_validator(mode="after")
    def _names_are_free(self) -> TableSpec:
        names = self.column_names
        prefix = next((ours for ours in (OURS, BOOKKEEPING) if self.name.startswith(ours)), None)
        reserved = sorted(name for name in names if self.is_reserved(name))
        return self._without(
            (prefix, f"names that begin with {prefix} are ours; choose another name"),
            (len(names) != len(set(names)), "a column is declared twice"),
            (reserved, f"{reserved} are kept by the destination and can't be declared"),
            (len(names) > MOST_COLUMNS, f"{len(names)} columns; a table can have {MOST_COLUMNS} at most"),
        )

    @model_validator(mode="after")
    def _names_are_declared(self) -> TableSpec:
        key = self.primary_key
        named = {*key, self.partition_column, *self.stamp_columns, *self.snapshot_of, *filter(None, [self.version_column])}
        unknown = sorted(named - set(self.column_names))
        return self._without(
            (len(key) != len(set(key)), "a column stands in the primary key twice"),
            (len(key) > MOST_KEY_COLUMNS, f"{len(key)} columns in the primary key; a key can have {MOST_KEY_COLUMNS} at most"),
            (unknown, f"{unknown} are named but not declared as columns"),
        )

    @model_validator(mode="after")
    def _columns_fit_their_parts(self) -> TableSpec:
        ordering = map(self.column, (*self.primary_key, *filter(None, [self.version_column])))
        without_order = [f"{one.name} holds {one.sql_type}" for one in ordering if one.repeated or one.type is ColumnType.JSON]
        partitions = self.column(self.partition_column)
        return self._without(
            (without_order, f"{', '.join(without_order)}, which is no key and no version"),
            (partitions.type is not ColumnType.DATE, f"the partition column {partitions.name} must be a date"),
            (set(self.stamp_columns) & set(self.primary_key), "a stamp column can't be part of the primary key"),
        )

    @model_validator(mode="after")
    def _partitions_own_their_rows(self) -> TableSpec:
        needs = f"needs the partition column {self.partition_column} in the primary key"
        by_partition = self.strategy in (Strategy.REPLACE_PARTITION, Strategy.APPEND)
        ordered = self.version_column is not None or self.snapshot_of
        return self._without(
            (
                by_partition and (not self.partition_in_key or self.version_column is not None),
                f"{self.strategy} {needs}, and no version_column",
            ),
            (
                self.partition_by and not self.partition_in_key,
                f"partition_by {needs}: PostgreSQL keeps a key unique within a partition only",
            ),
            (
                not self.partition_in_key and not ordered,
                "a key that lives in several partitions needs a version_column, or snapshot_of, else older days win",
            ),
        )

    @model_validator(mode="after")
    def _months_are_kept(self) -> TableSpec:
        # The shortest month has 28 days. A lookback or reconciliation must not reach a month that is gone.
        kept_days = 28 * (self.retention_months or 0)
        return self._without(
            (
                self.partition_by and len(self.name) > LONGEST_PARTITIONED,
                f"the name of a table with partitions has {LONGEST_PARTITIONED} characters at most",
            ),
            (self.retention_months and not self.partition_by, "retention_months needs partition_by"),
            (
                self.retention_months and max(self.lookback_days, self.reconcile_days) > kept_days,
                "retention_months must cover lookback_days and reconcile_days, at 28 days a month",
            ),
        )

    @model_validator(mode="after")
    def _snapshots_are_whole(self) -> TableSpec:
        if not self.snapshot_of:
            return self
        inexact = {ColumnType.NUMERIC, ColumnType.DOUBLE} & {self.column(name).type for name in self.snapshot_of}
        faults = [
            (self.partition_in_key, f"a primary key without the partition column {self.partition_column}"),
            (set(self.snapshot_of) - set(self.primary_key), "columns of the primary key"),
            (inexact, "columns whose values are exact"),
            (len(self.snapshot_of) != len(set(self.snapshot_of)), "each column once"),
            (self.version_column, "no version_column: the partition column is the version"),
            (self.partition_column in self.stamp_columns, "a partition column that is no stamp column"),
        ]
        if needs := [need for fault, need in faults if fault]:
            raise ValueError(f"{self.name}: snapshot_of {self.snapshot_of} needs {'; '.join(needs)}")
        return self

    @model_validator(mode="after")
    def _changes_can_be_captured(self) -> TableSpec:
        if self.change_capture is None:
            return self
        fed = (Strategy.UPSERT, Strategy.APPEND) if self.change_capture is ChangeCapture.APPENDS else (Strategy.UPSERT,)
        faults = [
            (not self.partition_in_key or self.version_column, "the partition column in the primary key, and no version_column"),
            (self.strategy not in fed, f"the strategy {' or '.join(fed)}"),
            (self.on_reject is not OnReject.FAIL, "on_reject fail"),
            (self.refresh_every <= CAPTURE_LAG, f"refresh_every above {CAPTURE_LAG}"),
        ]
        # A declaration that was read back from an asset's metadata has no query.
        if self.query:
            by_row = (
                len(PLACEHOLDER.findall(self.query)) == 1 and ROW_SOURCE.search(self.query) and not NOT_BY_ROW.search(self.query)
            )
            faults.append((not by_row, "a query of the form SELECT … FROM `{source}` WHERE …, which makes each row from one row"))
        if needs := [need for fault, need in faults if fault]:
            raise ValueError(f"{self.name}: change_capture {self.change_capture} needs {'; '.join(needs)}")
        return self

    def _without(self, *faults: tuple[object, str]) -> TableSpec:
        """The declaration, if none of the faults is there. Raises ValueError with every fault that is."""
        if found := [text for is_there, text in faults if is_there]:
            raise ValueError(f"{self.name}: {'; '.join(found)}")
        return self

    def __copy__(self) -> Self:
        """A copy for `model_copy`, which changes fields: the copy computes cached properties again."""
        copied = super().__copy__()
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    def column(self, name: str) -> Column:
        """The column of that name. Raises KeyError."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def with_columns(self, more: tuple[Column, ...]) -> TableSpec:
        """The declaration with more columns. Their names are new, and not reserved unless they are our own."""
        return self._with(self.columns + more)

    def without(self, column: Column) -> TableSpec:
        """The declaration without that column."""
        return self._with(tuple(other for other in self.columns if other.name != column.name))

    def _with(self, columns: tuple[Column, ...]) -> TableSpec:
        # Not validated: DELETED has a name of ours.
        return self.model_copy(update={"columns": columns})

    # Not cached: a copy under another name needs another path.
    @property
    def asset_path(self) -> tuple[str, ...]:
        """The key of the table's asset, piece by piece."""
        return (self.tenant, self.name) if self.tenant else (self.name,)

    @property
    def asset_name(self) -> str:
        """The key of the table's asset as Dagster writes it in one text."""
        return "/".join(self.asset_path)

    @property
    def as_argument(self) -> str:
        """How the command line names the table."""
        return f"{self.name} --tenant {self.tenant}" if self.tenant else self.name

    @cached_property
    def zone(self) -> Zone:
        """The days that the partitions are."""
        return Zone(self.timezone)

    def in_zone(self, timezone: str) -> TableSpec:
        """The table with the days of that time zone."""
        return self.model_copy(update={"timezone": known_zone(timezone)})

    def qualify(self, name: str) -> str:
        """The name in Dagster of something that belongs to the table's tenant."""
        return qualified(self.tenant, name)

    @cached_property
    def kept_columns(self) -> tuple[Column, ...]:
        """The columns that the destination adds and fills. Required ones default to the time of the load's transaction."""
        return STAMPS + (VALIDITY if self.strategy is Strategy.SCD2 else ())

    def is_reserved(self, name: str) -> bool:
        """Whether the name is taken, so that a column of the source can't have it in the table."""
        return name.startswith(OURS) or name in SYSTEM_COLUMNS or any(column.name == name for column in self.kept_columns)

    @cached_property
    def table_key(self) -> tuple[str, ...]:
        """The PRIMARY KEY of the table in PostgreSQL; empty where rows need not be unique."""
        return {Strategy.APPEND: (), Strategy.SCD2: (*self.primary_key, "valid_from")}.get(self.strategy, self.primary_key)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The source tables that the query reads, by placeholder."""
        return tuple(sorted(set(PLACEHOLDER.findall(self.query))))

    def source_tables(self, known: Mapping[str, str]) -> dict[str, str]:
        """Full names of the source tables that the query reads, by placeholder; `known` has all names.

        Raises SourceError for a placeholder without a name.
        """
        if unknown := [name for name in self.sources if name not in known]:
            raise SourceError(
                f"{self.name}: the query names the sources {unknown}, which no setting describes; known are {sorted(known)}"
            )
        return {name: known[name] for name in self.sources}

    @cached_property
    def partition_in_key(self) -> bool:
        """Whether a partition owns its rows, so a load can make it equal to the source."""
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
        return column.required or column.name in (*self.primary_key, self.partition_column, self.version_column)

    def as_metadata(self) -> dict[str, Any]:
        """The declaration as plain JSON, for an asset's definition metadata (see `from_metadata`)."""
        return self.model_dump(mode="json", exclude={"query"})

    @classmethod
    def from_metadata(cls, value: dict[str, Any]) -> TableSpec:
        """The declaration out of an asset's definition metadata. Raises pydantic.ValidationError."""
        return cls.model_validate(value)
