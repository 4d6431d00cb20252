"""Looks at a statement's source before its rows are read: what would it bill, and has anything changed since they were read last?

A look is free. A dry run of the very statement names the base tables that it reads through every view, and its size. `tables.get`
of each of them, and of the views on the way, tells when it was last changed, and the views' texts. From these follows the source's
state, which is compared for equality only: if it is the state of the last load, nothing has to be read. Where the state does not
tell everything, the look says why, and there is no signal.

Only `partitions_of` bills: one query of INFORMATION_SCHEMA.PARTITIONS, 10 MiB, which is never cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, datetime
from hashlib import sha256

from google.api_core import exceptions as api
from google.api_core.retry import Retry, if_exception_type
from google.cloud import bigquery

from pulso_etl.bigquery.pricing import billed
from pulso_etl.bigquery.views import NotUnderstood, day_column, tables_in, unsteady
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.queries import Usage
from pulso_etl.sync.source_state import KeptPartitions, PartitionStates, SourceState
from pulso_etl.sync.spec import TableSpec

ONCE = Retry(predicate=if_exception_type())
"""No second attempt, because the caller is waiting."""
LOOK_SECONDS = 4.0
"""Limit of one look, and of all looks of one tick together, because a tick has a minute for everything."""
MOST_TABLES = 50
"""BigQuery lists at most this many referenced tables; of a query that reads so many, the list may lack some."""
AT_ONCE = 8
"""Requests of a look that go on at the same time."""
MOST_VIEWS = 100
"""Views under views: beyond this many a text cannot be followed."""

LIMITS = ("rateLimitExceeded", "quotaExceeded")
"""BigQuery's reasons for refusing a request of somebody who may send it, later."""

STREAMING_BUFFER = "__UNPARTITIONED__"
NO_DATE = "__NULL__"


NO_DAYS = DayRange(date.min, date.min)
"""A window of which no table has rows: BigQuery's first day."""


@dataclass(frozen=True)
class Size:
    """What a statement reads, by a dry run: bytes, and how many base tables."""

    bytes_processed: int
    tables: int

    @property
    def bytes_billed(self) -> int:
        """What BigQuery would bill for it, on demand."""
        return billed(self.bytes_processed, self.tables)


@dataclass(frozen=True)
class Look:
    """What BigQuery told of a statement.

    `tables` has the base tables by full name, `views` the views on the way. `bytes_processed` is what the dry run says the
    statement would read. `unseen`: why the look is not whole; empty if it is.
    """

    project: str
    statement: str
    bytes_processed: int = 0
    schema: tuple[tuple[str, str, str], ...] = ()
    tables: Mapping[str, bigquery.Table] = field(default_factory=dict)
    views: Mapping[str, bigquery.Table] = field(default_factory=dict)
    unseen: str = ""

    @property
    def size(self) -> Size:
        """What the statement reads."""
        return Size(self.bytes_processed, len(self.tables))

    @property
    def location(self) -> str | None:
        """Where the base tables are, and so the jobs that read them; None if it is not told."""
        return next((table.location for table in self.tables.values()), None)

    @property
    def changed(self) -> dict[str, datetime]:
        """When each base table last changed, by its full name."""
        return {name: table.modified for name, table in self.tables.items() if table.modified}

    @property
    def texts(self) -> dict[str, str]:
        """The texts of the views by their full names."""
        return {name: view.view_query or "" for name, view in self.views.items()}


def state_of(look: Look, spec: TableSpec) -> SourceState | str:
    """The source's state, or why it gives no signal. Pure."""
    return (
        look.unseen
        or _fault(look, spec)
        or SourceState(
            {
                "text": sha256(repr((look.statement, sorted(look.texts.items()), look.schema)).encode()).hexdigest()[:16],
                "tables": {
                    name: [_milliseconds(table.created), _milliseconds(table.modified), table.num_rows, table.num_bytes]
                    for name, table in look.tables.items()
                },
            },
            changed_at=max((one.modified for one in (*look.tables.values(), *look.views.values()) if one.modified), default=None),
        )
    )


def source_digest(look: Look, state: SourceState) -> str:
    """A text that is equal for two statements that read the same base tables through the same views in the same state. Pure."""
    return sha256(repr((sorted(state.facts["tables"].items()), sorted(look.texts.items()))).encode()).hexdigest()[:32]


def _milliseconds(at: datetime | None) -> int:
    return round(at.timestamp() * 1000) if at is not None else 0


def _fault(look: Look, spec: TableSpec) -> str:
    """Why the base tables' times do not tell whether the result has changed; empty if they do."""
    if not look.tables:
        return "it reads no table"
    if len(look.tables) >= MOST_TABLES:
        return f"it reads {MOST_TABLES} tables or more, of which BigQuery may not name all"
    for name, table in look.tables.items():
        if table.table_type != "TABLE":
            return f"{name} is a {table.table_type}, whose time says nothing about its rows"
        if table.streaming_buffer is not None:
            return f"{name} has rows in a streaming buffer"
        if table.modified is None:
            return f"{name} has no time of its last change"
    for name, view in look.views.items():
        if view.view_use_legacy_sql:
            return f"{name} is in legacy SQL"
    for name, text in {"the statement": look.statement, **look.texts}.items():
        if why := text_fault(text, spec):
            return f"{name}: {why}"
    return ""


def text_fault(text: str, spec: TableSpec) -> str:
    """Why the text of a statement or view gives no signal of changes; empty if it does. Pure."""
    try:
        return unsteady(text, spec.stamp_columns) or ""
    except NotUnderstood as error:
        return str(error)


def changed_tables(before: SourceState, now: SourceState) -> set[str] | None:
    """The base tables that alone differ between two states; None if anything else does. A table that was made anew is not the
    same table. Pure."""
    old, new = before.facts.get("tables", {}), now.facts["tables"]
    if before.facts.get("text") != now.facts["text"] or old.keys() != new.keys():
        return None
    if any(old[name][0] != new[name][0] for name in new):
        return None
    return {name for name in new if old[name] != new[name]}


def is_daily(look: Look, spec: TableSpec, name: str) -> bool:
    """Whether a partition of that base table makes one day of the result, and nothing else. Pure."""
    table = look.tables[name]
    partitioning = table.time_partitioning
    if partitioning is None or partitioning.type_ != "DAY" or partitioning.field is None:
        return False
    if not any(column.name == partitioning.field and column.field_type == "DATE" for column in table.schema):
        return False
    try:
        column = day_column(look.statement, look.texts, name, spec.partition_column, look.project)
        return column is not None and column == partitioning.field
    except NotUnderstood:
        return False


def dry_run(client: bigquery.Client, statement: str, config: bigquery.QueryJobConfig, seconds: float) -> bigquery.QueryJob:
    """A job that has not run: what BigQuery tells of the statement, for free. `config` has the statement's parameters.

    No request is sent twice, and none takes longer than `seconds`. Raises the client's errors.
    """
    config.dry_run, config.use_query_cache = True, False
    return client.query(statement, job_config=config, retry=ONCE, job_retry=None, timeout=seconds)


def holds_nothing(size: Size, none: Size, whole: Size) -> bool:
    """Whether days have no rows, by what dry runs of the same statement read: `size` over the days, `none` over NO_DAYS, `whole`
    over a window with rows. The days come from the partitions of a base table, and each row of it counts. Pure.

    If the whole window reads no more than no days at all, its filter leaves out no partition, and nothing follows.
    """
    return size.bytes_processed == none.bytes_processed < whole.bytes_processed


def take(client: bigquery.Client, statement: str, config: bigquery.QueryJobConfig, seconds: float) -> Look:
    """Asks BigQuery. `config` has the statement's parameters. No request is sent twice, and none takes longer than `seconds`.

    Raises the client's errors of the dry run; what is wrong with a single table makes the look incomplete.
    """
    job = dry_run(client, statement, config, seconds)
    named = set(map(_name, job.referenced_tables))
    schema = tuple((one.name, one.field_type, one.mode) for one in job.schema or ())
    size = job.total_bytes_processed or 0
    if len(named) >= MOST_TABLES:
        unseen = f"it reads {MOST_TABLES} tables or more, of which BigQuery may not name all"
        return Look(client.project, statement, size, schema, unseen=unseen)
    tables: dict[str, bigquery.Table] = {}
    views: dict[str, bigquery.Table] = {}
    try:
        waiting = named | tables_in(statement, client.project)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while waiting:
                found = list(pool.map(lambda name: client.get_table(name, retry=ONCE, timeout=seconds), sorted(waiting)))
                for name, table in zip(sorted(waiting), found, strict=True):
                    (views if table.table_type == "VIEW" else tables)[name] = table
                if len(views) > MOST_VIEWS:
                    raise NotUnderstood(f"it reads more than {MOST_VIEWS} views")
                waiting = set().union(*map(_read_by, (table for table in found if table.table_type == "VIEW"))) - {*tables, *views}
    except NotUnderstood as error:
        return Look(client.project, statement, size, schema, unseen=str(error))
    except (api.Forbidden, api.NotFound) as error:
        if is_limit(error):
            raise
        return Look(client.project, statement, size, schema, unseen=f"a table under it can't be looked at ({_short(error)})")
    return Look(client.project, statement, size, schema, tables, views)


def is_limit(error: Exception) -> bool:
    """Whether BigQuery refuses a request because there were too many. It does so with 403 too, which else means a missing right."""
    return any(isinstance(one, dict) and one.get("reason") in LIMITS for one in getattr(error, "errors", ()))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _read_by(view: bigquery.Table) -> set[str]:
    try:
        return tables_in(view.view_query or "", view.project)
    except NotUnderstood as error:
        raise NotUnderstood(f"{_name(view)}: {error}") from None


@dataclass(frozen=True)
class Partitions:
    """The states of the partitions of base tables: by table and partition id, a text that differs where the state does. `jobs` are
    the queries that asked for them, which bill."""

    states: PartitionStates
    jobs: Sequence[bigquery.QueryJob] = ()

    @property
    def used(self) -> Usage:
        """What asking for them used."""
        return sum((Usage(job.total_bytes_billed or 0, job.slot_millis or 0) for job in self.jobs), Usage())


def partitions_of(client: bigquery.Client, tables: Iterable[bigquery.Table], maximum_bytes: int, seconds: float) -> Partitions:
    """The states of the tables' partitions now. This bills, at most `maximum_bytes` a table."""
    asked = {_name(table): _partitions(client, table, maximum_bytes, seconds) for table in tables}
    return Partitions({name: states for name, (states, _) in asked.items()}, [job for _, job in asked.values()])


def unchanged_days(before: Mapping[str, KeptPartitions], now: PartitionStates, read: Mapping[date, datetime]) -> set[date]:
    """The days whose partitions are in the same state in both, in every table of `now`.

    Each of these tables has changed, and its partitions have to tell where: if they don't, no day is known to be unchanged. `read`
    has the days, each with the instant at which it was equal to the source. Pure.
    """
    unchanged = set(read)
    for name, states in now.items():
        known = before.get(name)
        if known is None or STREAMING_BUFFER in states:
            return set()
        partitions = known.states.keys() | states.keys()
        changed = {partition for partition in partitions if known.states.get(partition) != states.get(partition)}
        try:
            # Rows without a date are in no window.
            found = {_day(partition) for partition in changed - {NO_DATE}}
        except ValueError:
            return set()
        if not changed:
            return set()
        unchanged -= found | {day for day, at in read.items() if at < known.at}
    return unchanged


def _day(partition: str) -> date:
    # The hyphens matter: without them a month or an hour would also be read as a day.
    return date.fromisoformat(f"{partition[:4]}-{partition[4:6]}-{partition[6:]}")


def _name(table: bigquery.Table | bigquery.TableReference) -> str:
    return f"{table.project}.{table.dataset_id}.{table.table_id}"


STATES = """
SELECT partition_id, UNIX_MILLIS(last_modified_time) AS modified, total_rows, total_logical_bytes
FROM `{dataset}.INFORMATION_SCHEMA.PARTITIONS` WHERE table_name = @table
"""


def _partitions(
    client: bigquery.Client, table: bigquery.Table, maximum_bytes: int, seconds: float
) -> tuple[dict[str, str], bigquery.QueryJob]:
    job = client.query(
        STATES.format(dataset=f"{table.project}.{table.dataset_id}"),
        job_config=bigquery.QueryJobConfig(
            query_parameters=[bigquery.ScalarQueryParameter("table", "STRING", table.table_id)],
            labels={"app": "pulso-etl", "purpose": "changes"},
            maximum_bytes_billed=maximum_bytes,
        ),
        retry=ONCE,
        job_retry=None,
        timeout=seconds,
    )
    rows = list(job.result(retry=ONCE, job_retry=None, timeout=seconds))
    return {f"{row.partition_id}": f"{row.modified}/{row.total_rows}/{row.total_logical_bytes}" for row in rows}, job
