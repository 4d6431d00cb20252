"""What a table is: one declaration, from which the database schema, the asset, the load and the documentation follow.

Nothing here talks to a database or to Dagster.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pulso_etl.sync.errors import PlanError, SourceError
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


class Adds(StrEnum):
    """How the values of a day's rows make a figure."""

    SUM = "sum"
    COUNT = "count"
    DISTINCT = "distinct"
    RATIO = "ratio"


class Unit(StrEnum):
    """What a figure is a number of."""

    MONEY = "PEN"
    COUNT = "count"
    PERCENT = "percent"


class UnknownFieldsError(PlanError, ValueError):
    """Something is declared with fields that it does not have: `names`."""

    def __init__(self, text: str, names: list[str]) -> None:
        super().__init__(text)
        self.names = names


class Declared(BaseModel):
    """Something that is declared. A field that it does not have is refused, and the error says where the field stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _fields_are_known(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and (
            unknown := {name: misplaced(cls, name) for name in given if name not in cls.model_fields}
        ):
            text = "; ".join(unknown.values())
            raise UnknownFieldsError(text if "name" not in given else f"{given['name']}: {text}", list(unknown))
        return given


class Column(Declared):
    """One column of a table.

    `required` columns are NOT NULL; `minimum` and `maximum` are inclusive and become a CHECK constraint: a load that breaks these
    is refused. `expected`, `expected_minimum` and `expected_maximum` set the same rules for values that the source may have reason
    to break: such a value is loaded, and a check warns. `unit` is for people.

    `repeated`: the column holds arrays of the type, as a REPEATED column of BigQuery does. `precision` is the number of all digits
    of a numeric column, `scale` the number of digits after the point. A value with more digits is refused or quarantined, and
    never rounded.
    """

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
            raise ValueError(
                f"column {self.name}: JSON can't be repeated; declare it without `repeated`, and write TO_JSON(x) in the SQL"
            )
        return self

    @property
    def sql_type(self) -> str:
        """The type as PostgreSQL prints it, such as `numeric(10,2)` or `text[]`."""
        digits = "" if self.precision is None else f"({self.precision},{self.scale})"
        return f"{self.type.value}{digits}{'[]' * self.repeated}"

    @property
    def has_width(self) -> bool:
        """Whether all values have the same size."""
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


class Figure(Declared):
    """A number that a table's readers look at first, and how it follows from the rows of a day.

    `adds` says what it makes of the columns `of`:
    - `sum`: the sum of the one column.
    - `count`: the number of rows; `of` is empty.
    - `distinct`: how many different values the one column has. It does not add up: a value of two hours or of two days counts once.
    - `ratio`: the sum of the first column divided by the sum of the second; in percent if that is the unit. It does not add up
      either, but its two sums do. There is no ratio where the second sum is 0.

    A null counts as nothing. `over_days`: whether the figures of several days make one by addition. A number of events does; what a
    snapshot of each day says (a debt, an amount so far) does not. `title`: what the table's readers call it, in their language.
    `alert_factor`: a load that moves the figure of a day further from what is usual than so many times the usual spread raises an
    alert (see `movements`); None raises none.
    """

    name: str = Field(pattern=IDENTIFIER)
    title: str = Field(min_length=1)
    unit: Unit
    adds: Adds = Adds.SUM
    of: tuple[str, ...] = ()
    over_days: bool = True
    alert_factor: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _columns_fit(self) -> Figure:
        needs = {Adds.SUM: 1, Adds.COUNT: 0, Adds.DISTINCT: 1, Adds.RATIO: 2}[self.adds]
        if len(self.of) != needs:
            raise ValueError(f"figure {self.name}: {self.adds} is made of {needs} columns, and `of` names {len(self.of)}")
        if (self.unit is Unit.PERCENT) and self.adds is not Adds.RATIO:
            raise ValueError(f"figure {self.name}: only a ratio is in percent, since percentages of rows do not add up")
        if self.alert_factor is not None and self.adds is Adds.DISTINCT:
            raise ValueError(f"figure {self.name}: alert_factor on distinct values, whose movements are not recorded")
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


class Part(Declared):
    """A part of a declaration."""


class Source(Part):
    """Where the rows come from.

    `query` is BigQuery SQL. It names source tables by placeholders in back-ticks and braces (`PLACEHOLDER`), and has the parameters
    `@start` and `@end` (DATE, inclusive). The text `'{timezone}'` becomes the name of the table's time zone.
    `batch_rows`: rows per batch that is read.
    `change_capture`: the function of BigQuery by which the refresh sensor's runs read only the rows that changed, if they can (see
    `bigquery.capture`). The query then makes each of its rows from one row of one base table.
    `reads_with`: a table, the host, whose query gives this table's rows among its own columns, over the same days. If one launch
    refreshes both and the host's days cover those of this table, one read serves both (see `shared_reads`). Otherwise this table
    reads with its own query.
    """

    query: str = ""
    batch_rows: int = Field(default=10_000, ge=1)
    change_capture: ChangeCapture | None = None
    reads_with: str | None = Field(default=None, pattern=IDENTIFIER)


class Loading(Part):
    """How a load changes the table, and what it refuses.

    `strategy`: how a range that is loaded again changes the table.
    - `upsert`: new rows are inserted and changed rows are updated. Vanished rows are deleted where the partition column is in the
      key. Unchanged rows are not written.
    - `replace_partition`: every row of the range is deleted and every row of the source is inserted, changed or not.
    - `append`: rows are only added. The primary key says which rows are the same. A key may repeat, in the source and in the table.
      If the source has three rows of a key and the table has two, a load adds one. So no row is added twice, and a row that changed
      or vanished in the source stays as it was first loaded. See `loading.strategies.missing`.
    - `scd2`: rows are versions of a key. A version is valid from `valid_from` until before `valid_to` (instants of loads; null
      marks the current version). A changed row closes the current version and opens another at the same instant. A vanished row is
      closed. Unchanged rows are not written.

    `contract`, for columns of the source that are not declared. With `freeze` the load warns of them and leaves them out, and a
    column of the table that is not declared stops the load. With `evolve` the load adds them to the table as nullable columns. It
    warns of a column whose type or name no table can hold, and leaves it out. A column that the source no longer gives stays in the
    table: it is null in rows that are inserted from then on, and the load warns of it. A declared column that is missing stops
    every load.

    `on_reject`, for rows that can't be loaded: a null where a value is required, NaN or Infinity, a NUL character, a value beyond a
    limit or beyond its type, a key that the source gives more than once. With `fail` the first such row stops the load. With
    `quarantine` these rows go to the table `etl_quarantine`, with all rows of a duplicated key, and the others are loaded. The row
    that the table holds of a quarantined key stays as it is: the key has not vanished from the source. A row whose key is itself at
    fault protects nothing. If more than `maximum_quarantined_share` (0..1) of the rows would be quarantined, the load fails.

    `minimum_kept_share`: a load that would leave less than this share (0..1) of a range's rows is refused.
    `chunk_days`: a back-fill of more days is split into runs of so many days, which may go on at the same time.
    `timeout`: how long a load may take.
    """

    strategy: Strategy = Strategy.UPSERT
    contract: Contract = Contract.FREEZE
    on_reject: OnReject = OnReject.FAIL
    maximum_quarantined_share: float = Field(default=0.05, ge=0, le=1)
    minimum_kept_share: float = Field(default=0.5, ge=0, le=1)
    chunk_days: int = Field(default=92, ge=1, le=366)
    timeout: timedelta = Field(default=timedelta(minutes=30), gt=timedelta(0))


class Schedule(Part):
    """When the table is refreshed: every `refresh_every`, the last `lookback_days` days each time.

    `refresh_on_change`: it is also refreshed as soon as its source has changed, if the source gives a signal of its changes, and
    if somebody says that the source was updated. From the beginning of one load to such a refresh at least `least_interval`
    passes. A change that nobody has announced must be `settling_time` old, with no other change since.
    `priority`: runs of a table with a greater priority leave the queue first.
    """

    lookback_days: int = Field(default=1, ge=1)
    refresh_every: timedelta = Field(default=timedelta(hours=24), gt=timedelta(0))
    refresh_on_change: bool = True
    least_interval: timedelta = Field(default=timedelta(minutes=10), ge=timedelta(0))
    settling_time: timedelta = Field(default=timedelta(minutes=2), ge=timedelta(0))
    priority: int = 0


class Quality(Part):
    """What the checks look at after a load.

    `minimum_records`: the least rows that the last `lookback_days` days should hold; 0 sets no minimum.
    `volume_factor`: a check warns if a day has this many times more, or fewer, rows than the same weekday before it.
    `reconcile_days`: trailing days that a reconciliation compares with the source.
    `alert_quarantined_share`: a greater share (0..1) of quarantined rows raises an alert.
    """

    minimum_records: int = Field(default=0, ge=0)
    volume_factor: float = Field(default=2.0, gt=1)
    reconcile_days: int = Field(default=35, ge=1)
    alert_quarantined_share: float = Field(default=0.01, ge=0, le=1)


class Retention(Part):
    """How long rows stay.

    `partition_by`: with `month` the table in PostgreSQL has a range partition for each month, by the partition column. That column
    must be in the primary key. `retention_months`: how many whole months before the current one are kept.
    `pulso-etl retention` removes older months, and no load brings them back.
    """

    partition_by: Literal["month"] | None = None
    retention_months: int | None = Field(default=None, ge=1)


class ChangeLog(Part):
    """What is kept of the changes that loads make (see docs/changes.md). Counts and figures of each day are always kept.

    `changed_rows_kept`: of a load that changes at most so many rows, the old and new values of each are kept too. With 0 no values
    are kept. `changes_kept_days`: how many days the values stay. `changes_counted_by`: a column of the key; readers are told in how
    many of its values a day changed, as in "in 3 archivos".
    """

    changed_rows_kept: int = Field(default=100_000, ge=0)
    changes_kept_days: int = Field(default=30, ge=1)
    changes_counted_by: str | None = None


PARTS: dict[str, type[Part]] = {
    "source": Source,
    "loading": Loading,
    "schedule": Schedule,
    "quality": Quality,
    "retention": Retention,
    "change_log": ChangeLog,
}
PART_OF = {field: name for name, part in PARTS.items() for field in part.model_fields}
"""The part of each field that has one. No two parts share a name."""


def in_parts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that are named without their parts, by their parts: `lookback_days` stands in `schedule` then."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if name in PART_OF:
            found.setdefault(PART_OF[name], {})[name] = value
        else:
            found[name] = value
    return found


class TableSpec(Declared):
    """One table: what it holds, and, in six parts, where its rows come from and how they are kept.

    `columns` are all columns that the query returns, keys included, and `reading_stamps`. The destination adds `kept_columns`.
    `version_column`: if the source has several rows of a key, the load keeps the row with the greatest version. A version is
    required, like a key. If the partition column is in the key, the greatest version that the source has now counts. If it is not,
    the greatest version ever seen counts.
    `snapshot_of`: columns of the key. For each value of these columns, a day of the source is a snapshot. The table holds the
    newest snapshot as a whole (see docs/tables.md): a row that the newest snapshot lacks is gone, even if older snapshots have it.
    `hour_column`: if the table has a row for each hour, the column with the hour of the day, 0 to 23. The table's readers are told
    the greatest hour that its rows reach.
    `figures` are the numbers that the table's readers see first (see `Figure`).
    `stamp_columns` say when the source computed a row. A change in them alone is no change of the row.
    `reading_stamps` are those stamp columns that the query does not return. The load fills them with the instant at which the
    source computed the rows. So the query needs no clock of its own, and its text is the same all day.
    `tenant`: the tenant that owns the table, in a deployment with several. The file of tenants sets it, never a declaration.
    `timezone`: the zone whose days the partitions are, by its IANA name. In a deployment the setting TIMEZONE sets it, never a
    declaration.
    """

    name: str = Field(pattern=IDENTIFIER)
    description: str
    title: str = ""
    """What the table's readers call it, in their language. If it is empty, they see the name."""
    subtitle: str = ""
    """What the table shows, in a few words of the readers' language. If it is empty, they see the description."""
    primary_key: tuple[str, ...] = Field(min_length=1)
    partition_column: str
    columns: tuple[Column, ...]
    group: str = "pulso"
    owners: tuple[str, ...] = ("team:data-engineering",)
    tags: dict[str, str] = Field(default_factory=dict)
    version_column: str | None = None
    snapshot_of: tuple[str, ...] = ()
    stamp_columns: tuple[str, ...] = ()
    reading_stamps: tuple[str, ...] = ()
    hour_column: str | None = None
    figures: tuple[Figure, ...] = ()
    source: Source = Source()
    loading: Loading = Loading()
    schedule: Schedule = Schedule()
    quality: Quality = Quality()
    retention: Retention = Retention()
    change_log: ChangeLog = ChangeLog()
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
        single = filter(None, [self.version_column, self.hour_column])
        named = {*key, self.partition_column, *self.stamp_columns, *self.snapshot_of, *single}
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
            (without_order, f"{', '.join(without_order)}, which neither a key nor a version can hold"),
            (partitions.type is not ColumnType.DATE, f"the partition column {partitions.name} must be a date"),
            (
                self.hour_column is not None and self.column(self.hour_column).type is not ColumnType.INTEGER,
                f"the hour column {self.hour_column} must be an integer",
            ),
            (set(self.stamp_columns) & set(self.primary_key), "a stamp column can't be part of the primary key"),
            (
                self.change_log.changes_counted_by not in (None, *self.primary_key),
                f"changes_counted_by {self.change_log.changes_counted_by} is no column of the primary key",
            ),
        )

    @model_validator(mode="after")
    def _readings_are_stamps(self) -> TableSpec:
        beyond = sorted(set(self.reading_stamps) - set(self.stamp_columns))
        others = [name for name in self.reading_stamps if not beyond and self.column(name).sql_type != ColumnType.TIMESTAMP]
        return self._without(
            (beyond, f"reading_stamps {beyond} are no stamp_columns"),
            (others, f"reading_stamps {others} hold no {ColumnType.TIMESTAMP}"),
            (self.version_column in self.reading_stamps, "a version_column comes from the source, so it is no reading stamp"),
        )

    @model_validator(mode="after")
    def _figures_follow_from_columns(self) -> TableSpec:
        names = [figure.name for figure in self.figures]
        unknown = sorted({name for figure in self.figures for name in figure.of} - set(self.column_names))
        exact = (ColumnType.INTEGER, ColumnType.NUMERIC)
        columns = [
            self.column(name) for figure in self.figures if figure.adds is not Adds.DISTINCT for name in figure.of if not unknown
        ]
        inexact = sorted({column.name for column in columns if column.repeated or column.type not in exact})
        return self._without(
            (len(names) != len(set(names)), "two figures have one name"),
            (unknown, f"{unknown} are named by figures but not declared as columns"),
            (inexact, f"figures add up {inexact}; only {' and '.join(exact)} add up exactly"),
            (
                names and not self.partition_in_key,
                f"figures need the partition column {self.partition_column} in the primary key, so that each day keeps its rows",
            ),
        )

    @model_validator(mode="after")
    def _partitions_own_their_rows(self) -> TableSpec:
        needs = f"needs the partition column {self.partition_column} in the primary key"
        by_partition = self.loading.strategy in (Strategy.REPLACE_PARTITION, Strategy.APPEND)
        ordered = self.version_column is not None or self.snapshot_of
        return self._without(
            (
                by_partition and (not self.partition_in_key or self.version_column is not None),
                f"{self.loading.strategy} {needs}, and no version_column",
            ),
            (
                self.retention.partition_by and not self.partition_in_key,
                f"partition_by {needs}: PostgreSQL keeps a key unique within a partition only",
            ),
            (
                not self.partition_in_key and not ordered,
                "a key that can be in several partitions needs a version_column, or snapshot_of; without it, older days would win",
            ),
        )

    @model_validator(mode="after")
    def _months_are_kept(self) -> TableSpec:
        # The shortest month has 28 days. A lookback or reconciliation must not reach a month that is gone.
        kept_days = 28 * (self.retention.retention_months or 0)
        return self._without(
            (
                self.retention.partition_by and len(self.name) > LONGEST_PARTITIONED,
                f"the name of a table with partitions has {LONGEST_PARTITIONED} characters at most",
            ),
            (self.retention.retention_months and not self.retention.partition_by, "retention_months needs partition_by"),
            (
                self.retention.retention_months and max(self.schedule.lookback_days, self.quality.reconcile_days) > kept_days,
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
        if self.source.change_capture is None:
            return self
        fed = (Strategy.UPSERT, Strategy.APPEND) if self.source.change_capture is ChangeCapture.APPENDS else (Strategy.UPSERT,)
        faults = [
            (not self.partition_in_key or self.version_column, "the partition column in the primary key, and no version_column"),
            (self.loading.strategy not in fed, f"the strategy {' or '.join(fed)}"),
            (self.loading.on_reject is not OnReject.FAIL, "on_reject fail"),
            (self.schedule.refresh_every <= CAPTURE_LAG, f"refresh_every above {CAPTURE_LAG}"),
        ]
        # A declaration that was read back from an asset's metadata has no query.
        if self.source.query:
            by_row = (
                len(PLACEHOLDER.findall(self.source.query)) == 1
                and ROW_SOURCE.search(self.source.query)
                and not NOT_BY_ROW.search(self.source.query)
            )
            faults.append((not by_row, "a query of the form SELECT … FROM `{source}` WHERE …, which makes each row from one row"))
        if needs := [need for fault, need in faults if fault]:
            raise ValueError(f"{self.name}: change_capture {self.source.change_capture} needs {'; '.join(needs)}")
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

    def with_query(self, query: str) -> TableSpec:
        """The declaration with another query."""
        return self.model_copy(update={"source": self.source.model_copy(update={"query": query})})

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
        return STAMPS + (VALIDITY if self.loading.strategy is Strategy.SCD2 else ())

    def is_reserved(self, name: str) -> bool:
        """Whether the name is taken, so that a column of the source can't have it in the table."""
        return name.startswith(OURS) or name in SYSTEM_COLUMNS or any(column.name == name for column in self.kept_columns)

    @cached_property
    def table_key(self) -> tuple[str, ...]:
        """The PRIMARY KEY of the table in PostgreSQL; empty where rows need not be unique."""
        return {Strategy.APPEND: (), Strategy.SCD2: (*self.primary_key, "valid_from")}.get(self.loading.strategy, self.primary_key)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def query_columns(self) -> tuple[Column, ...]:
        """The columns that the query returns."""
        return tuple(column for column in self.columns if column.name not in self.reading_stamps)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The source tables that the query reads, by placeholder."""
        return tuple(sorted(set(PLACEHOLDER.findall(self.source.query))))

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

    @property
    def keeps_versions(self) -> bool:
        """Whether the table's rows are versions, and those with a `valid_to` are history."""
        return self.loading.strategy is Strategy.SCD2

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
        return self.model_dump(mode="json", exclude={"source": {"query"}})

    @classmethod
    def from_metadata(cls, value: dict[str, Any]) -> TableSpec:
        """The declaration out of an asset's definition metadata. Raises pydantic.ValidationError."""
        return cls.model_validate(value)


def misplaced(kind: type[Declared], name: str) -> str:
    """Why something of that kind does not take the field, and where the field stands, or which field has a name like it."""
    if part := PART_OF.get(name):
        return f"{name} is a field of {part}: {part}={PARTS[part].__name__}({name}=…)"
    if name in TableSpec.model_fields and issubclass(kind, Part):
        return f"{name} is a field of the table: TableSpec({name}=…)"
    others = () if kind is Column else (*TableSpec.model_fields, *PART_OF)
    if close := get_close_matches(name, (*kind.model_fields, *others), n=1):
        where = "" if close[0] in kind.model_fields else f" ({misplaced(kind, close[0])})"
        return f"{kind.__name__} has no field {name}; did you mean {close[0]}?{where}"
    return f"{kind.__name__} has no field {name}; its fields are {', '.join(kind.model_fields)}"
