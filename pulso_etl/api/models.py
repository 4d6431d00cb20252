"""The shapes of the API's answers, which also make its OpenAPI document. Instants carry a zone; days are days of `timezone`."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.config import JsonDict

from pulso_etl.api.shapes import RUN_EXAMPLE, Failure, Progress, Shape, Told
from pulso_etl.automation.preview_shapes import DaysToRead
from pulso_etl.refreshing.freshness import Condition, FreshnessState
from pulso_etl.refreshing.request import Mode
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.spec import Unit

TABLE_EXAMPLE = "dashboard_data"


def _plain(number: Decimal) -> str:
    return f"{number:f}".rstrip("0").rstrip(".") if "." in f"{number:f}" else f"{number:f}"


Exact = Annotated[Decimal, PlainSerializer(_plain, return_type=str)]
"""A number as text, so that no program makes a float of it: all its digits, without zeros at the end."""


class RefreshState(StrEnum):
    """The progress of a refresh. It is failed when a table failed or was canceled and no other table is still running."""

    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"


class Overall(StrEnum):
    """The state of all tables. ok: all are loaded and none is stale or failed. degraded: some failed, are stale or were never
    loaded, or Dagster's daemon is silent. unreachable: Dagster does not answer."""

    OK = "ok"
    DEGRADED = "degraded"
    UNREACHABLE = "unreachable"


class LastStatus(StrEnum):
    """The result of a table's last extraction."""

    NEVER = "never"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"


class DashboardRequest(BaseModel):
    """What to refresh. All fields are optional."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"force": False, "tables": ["dashboard_data", "evolution_data"], "max_concurrent": 2}]},
    )

    force: bool = False
    """Refresh fresh tables too, even if the day's budget is spent."""
    tables: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None
    """The tables. Without it, the tables of the dashboard group."""
    max_concurrent: Annotated[int, Field(ge=1, le=100)] = 2
    """How many of the runs may go on at the same time."""


class SourceUpdate(BaseModel):
    """What is said of a source. All fields are optional."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"updated_at": "2026-11-25T15:02:40Z"}]},
    )

    updated_at: AwareDatetime | None = None
    """When the source was updated; now, if it is left out. Saying the same instant again records nothing."""


class SourceUpdated(Shape):
    """An announcement that a source was updated."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "source": "gestiones_unificadas",
                    "asset": "bigquery/gestiones_unificadas",
                    "updated_at": "2026-11-25T15:02:40Z",
                    "recorded": True,
                    "tables": ["operation_data", "productivity_data"],
                    "by_rhythm": [],
                }
            ]
        }
    )

    source: str
    asset: str
    """The source's asset in Dagster, which shows the announcement as an observation."""
    updated_at: datetime
    recorded: bool
    """False if the same instant was announced before."""
    tables: list[str]
    """The tables that read the source. The refresh sensor refreshes them at its next tick, at the earliest after their least
    interval."""
    by_rhythm: list[str]
    """Those of them that are refreshed by their rhythm only (`refresh_on_change` is off)."""


class TableRun(Shape):
    """One table's part of a refresh."""

    table: str
    state: Progress
    run_id: str | None = None
    """Dagster's run; null if the table was skipped or its run was not launched."""
    run_url: str | None = None
    """The run in Dagster's UI."""
    partitions: str | None = None
    """The days to refresh: `first..last`, or one day."""
    rows: int | None = None
    """Rows read so far; after the end, all rows read."""
    message: Told | None = None
    """Why it was skipped, why these days, or why it failed."""
    reasons: list[DaysToRead] | None = None
    """Why each day is read, oldest first; null as long as Dagster does not tell the run's days."""
    failure: Failure | None = None
    """Why it failed, or was canceled."""
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Refresh(Shape):
    """A refresh that somebody requested, and its progress."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "pipeline_id": "3c8e6a52f0f14c1e9f0c1e3b8b5e2a77",
                    "status": "running",
                    "tables_requested": ["dashboard_data", "evolution_data"],
                    "runs": {
                        "dashboard_data": {
                            "table": "dashboard_data",
                            "state": "running",
                            "run_id": RUN_EXAMPLE,
                            "run_url": f"http://127.0.0.1:3000/runs/{RUN_EXAMPLE}",
                            "partitions": "2026-11-19..2026-11-25",
                            "rows": 420,
                            "message": "lookback of 7 days from 2026-11-25",
                            "started_at": "2026-11-25T15:04:05Z",
                        },
                        "evolution_data": {
                            "table": "evolution_data",
                            "state": "skipped",
                            "message": "fresh: loaded 0:42:10 ago, due every 6:00:00",
                        },
                    },
                    "started_at": "2026-11-25T15:04:02Z",
                    "status_url": "/api/v1/etl/refresh/3c8e6a52f0f14c1e9f0c1e3b8b5e2a77",
                    "already_running": False,
                    "requested_by": "dashboard",
                }
            ]
        }
    )

    pipeline_id: str
    status: RefreshState
    tables_requested: list[str]
    runs: dict[str, TableRun]
    """By table."""
    started_at: datetime
    finished_at: datetime | None = None
    status_url: str
    """The address of its progress."""
    already_running: bool = False
    """True if an identical refresh was already running. Then this is that refresh, and nothing new was launched."""
    requested_by: str
    """The name of the token that requested it."""


class RefreshSummary(Shape):
    """A refresh of the list. Its `status_url` has its progress."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "pipeline_id": "3c8e6a52f0f14c1e9f0c1e3b8b5e2a77",
                    "tables_requested": ["dashboard_data", "evolution_data"],
                    "running": True,
                    "started_at": "2026-11-25T15:04:02Z",
                    "status_url": "/api/v1/etl/refresh/3c8e6a52f0f14c1e9f0c1e3b8b5e2a77",
                    "requested_by": "dashboard",
                    "reasons": {
                        "dashboard_data": "lookback of 7 days from 2026-11-25",
                        "evolution_data": "fresh: loaded 0:42:10 ago, due every 6:00:00",
                    },
                }
            ]
        }
    )

    pipeline_id: str
    tables_requested: list[str]
    running: bool
    """Whether a run of it waits or goes on."""
    started_at: datetime
    status_url: str
    """The address of its progress."""
    requested_by: str
    """The name of the token that requested it."""
    reasons: dict[str, Told] = {}
    """By table, why these days, or why it was skipped."""


class Extraction(Shape):
    """One finished attempt to load a range of a table. A run of Dagster that died before its load began is an attempt too."""

    table: str
    id: int | None = None
    """The place in the history: later attempts have greater ones. Null for a run that died before its load began."""
    run_id: str
    attempt: int
    """Which try of the run it was, from 1; 0 if the run died before its load began."""
    run_url: str | None = None
    """The run in Dagster's UI."""
    status: LastStatus
    partitions: str
    started_at: datetime
    finished_at: datetime
    duration_seconds: float | None
    records: int | None
    """Rows read from BigQuery."""
    inserted: int | None = None
    updated: int | None = None
    unchanged: int | None = None
    deleted: int | None = None
    bytes_billed: int | None = None
    bytes_avoided: int | None = None
    """Bytes that BigQuery did not bill, because only some days were read, or because its cache answered."""
    estimated_cost_usd: float | None = None
    error: Told | None = None
    """The message of `failure`."""
    failure: Failure | None = None
    load_id: int | None = None
    """Its number in the change log; null if it changed no row."""
    undoes: int | None = None
    """The load that it undid."""
    reason: Told | None = None
    """Why the run was launched, as the plan told it; null for attempts of releases that did not keep it."""
    reasons: list[DaysToRead] | None = None
    """Why each day was read, oldest first; null as `reason`. Of very many ranges, the oldest are told together."""


class Spent(Shape):
    """What queries of BigQuery used over a span of time. Queries of loads count, those of failed loads too, reconciliations and
    questions about changes."""

    bytes_billed: int
    bytes_avoided: int
    """Bytes that BigQuery would have billed, and did not: nothing had changed, only some days had, or its cache answered."""
    cost_usd: float
    """US dollars by the deployment's prices, before the free volume of the month."""
    avoided_usd: float | None = None
    """What the bytes avoided would have cost; null for a deployment that pays for slots."""


class Costs(Shape):
    """What queries of BigQuery used. Days and months are those of the deployment's time zone."""

    today: Spent
    month: Spent
    """This calendar month so far."""
    month_end: Spent
    """A forecast of the whole month: each day to come as the mean of the last 7 complete days."""


class RunUnderWay(Shape):
    """A run that refreshes the table now."""

    run_id: str
    state: Progress
    pipeline_id: str | None = None
    """The refresh that the run is part of, if somebody asked for it over this API."""
    partitions: str | None = None
    rows: int | None = None
    """Rows copied into PostgreSQL so far; null before and after the copy."""
    started_at: datetime | None = None


SPENT_EXAMPLE: JsonDict = {"bytes_billed": 62914560, "bytes_avoided": 220200960, "cost_usd": 0.000358, "avoided_usd": 0.001252}
COSTS_EXAMPLE: JsonDict = {
    "today": SPENT_EXAMPLE,
    "month": {"bytes_billed": 1572864000, "bytes_avoided": 5505024000, "cost_usd": 0.008941, "avoided_usd": 0.031292},
    "month_end": {"bytes_billed": 1887436800, "bytes_avoided": 6606028800, "cost_usd": 0.010729, "avoided_usd": 0.03755},
}


class SourceToFresh(Shape):
    """How long it took from a change of the source to the rows that show it, over the loads of the last days that brought one.

    The change is the last one of the base tables in BigQuery, or the announced update where BigQuery tells nothing.
    """

    days: int
    """How many days back the loads go."""
    loads: int
    """How many loads brought a change."""
    median_seconds: float
    p95_seconds: float
    """95 of 100 loads took at most this long."""


EXTRACTION_EXAMPLE: JsonDict = {
    "table": TABLE_EXAMPLE,
    "run_id": RUN_EXAMPLE,
    "attempt": 1,
    "status": "success",
    "partitions": "2026-11-19..2026-11-25",
    "started_at": "2026-11-25T15:04:05Z",
    "finished_at": "2026-11-25T15:04:07Z",
    "duration_seconds": 1.9,
    "records": 1190,
    "inserted": 170,
    "updated": 12,
    "unchanged": 1008,
    "deleted": 0,
    "bytes_billed": 10485760,
    "estimated_cost_usd": 0.00006,
}
TABLE_STATUS_EXAMPLE: JsonDict = {
    "table": TABLE_EXAMPLE,
    "title": "Tablero de cobranzas",
    "subtitle": "Indicadores por día, archivo, cartera y servicio",
    "description": "Indicators by day, campaign file, portfolio and service.",
    "group": "dashboard",
    "status": "success",
    "freshness": "fresh",
    "age_seconds": 2530.0,
    "refresh_every_seconds": 21600,
    "last_extracted_at": "2026-11-25T15:04:05Z",
    "last_partition": "2026-11-25",
    "data_version": 7,
    "records": 1190,
    "duration_seconds": 1.9,
    "bytes_billed": 10485760,
    "estimated_cost_usd": 0.00006,
    "costs": COSTS_EXAMPLE,
    "run_id": RUN_EXAMPLE,
    "next_due": "2026-11-25T21:04:05Z",
    "state": "fresh",
    "due_at": "2026-11-25T21:04:05Z",
    "stale_after": "2026-11-26T03:04:05Z",
    "rows": 5100,
    "data_until": "2026-11-25T15:04:05Z",
    "last_load": EXTRACTION_EXAMPLE,
    "source_to_fresh": {"days": 7, "loads": 31, "median_seconds": 214.0, "p95_seconds": 655.2},
}


class TableStatus(Shape):
    """One table."""

    model_config = ConfigDict(json_schema_extra={"examples": [TABLE_STATUS_EXAMPLE]})

    table: str
    title: str
    """The table's title for its readers, in Spanish."""
    subtitle: str
    """What the table shows, in a few words of Spanish."""
    description: str
    group: str
    state: Condition
    """The table's one state, the worst that applies: failed (and no later refresh has made it good), stale, due, fresh, never."""
    status: LastStatus
    """The result of the last extraction. `state` says whether the table is well."""
    freshness: FreshnessState
    """How old the rows are, whether or not a refresh failed."""
    age_seconds: float | None = None
    """Seconds since `last_extracted_at`."""
    refresh_every_seconds: int
    last_extracted_at: datetime | None = None
    """The rows are equal to BigQuery's rows at this instant."""
    due_at: datetime | None = None
    """From this instant on, `fresh` rows are `due`."""
    stale_after: datetime | None = None
    """After this instant, the rows are `stale`; null before the first load, and if loaded rows have disappeared."""
    data_until: datetime | None = None
    """The instant that the rows reach: of an hourly table the beginning of its greatest hour, else when BigQuery was read."""
    last_partition: date | None = None
    data_version: int | None = None
    """Rises by one with each load that changes rows of the table, and never otherwise; null before the first load."""
    rows: int | None = None
    """Rows in the table."""
    records: int | None = None
    """Rows that the last extraction read from BigQuery; `rows` has the rows in the table."""
    last_load: Extraction | None = None
    """The last extraction that succeeded: how many rows it inserted, updated and deleted."""
    source_to_fresh: SourceToFresh | None = None
    """How long readers waited for changes of the source; null if no load of the last days brought one."""
    duration_seconds: float | None = None
    bytes_billed: int | None = None
    """Of the last extraction."""
    bytes_avoided: int | None = None
    """Of the last extraction."""
    estimated_cost_usd: float | None = None
    costs: Costs | None = None
    """Of all queries for the table; null before the first one."""
    run_id: str | None = None
    """The run of the last extraction."""
    run_under_way: RunUnderWay | None = None
    held_until: datetime | None = None
    """A load was undone: until then only people refresh the table. Null once its days are read again."""
    next_due: datetime | None = None
    """When the table is next due; null: the refresh sensor launches it at its next tick. Nothing launches it if `automation` of the
    status is false."""
    recovery_attempts: int = 0
    """Attempts in a row that died and that the recovery ended."""
    error: Told | None = None
    """The message of `failure`."""
    failure: Failure | None = None
    """Why a refresh failed that no later one has made good."""
    rows_lost: int | None = None
    """Loaded rows that are no longer in the table: somebody emptied, dropped or restored it, or deleted rows."""
    partitions_lost: str | None = None
    """The days of the lost rows, from the first to the last."""
    restored_by: str | None = None
    """The command that loads the lost rows again."""


class Status(Shape):
    """All tables."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "status": "ok",
                    "last_updated": "2026-11-25T15:04:05Z",
                    "generated_at": "2026-11-25T15:46:15Z",
                    "timezone": "America/Bogota",
                    "dagster": True,
                    "daemon": True,
                    "daemon_seen_at": "2026-11-25T15:46:01Z",
                    "automation": True,
                    "oldest_update": "2026-11-25T15:04:05Z",
                    "total_tables": 1,
                    "states": {"failed": 0, "stale": 0, "due": 0, "fresh": 1, "never": 0},
                    "successes": 1,
                    "failures": 0,
                    "running": 0,
                    "tables": [TABLE_STATUS_EXAMPLE],
                    "recent_activity": [EXTRACTION_EXAMPLE],
                    "costs": COSTS_EXAMPLE,
                }
            ]
        }
    )

    status: Overall
    last_updated: datetime | None
    """The instant of the newest success of any table."""
    oldest_update: datetime | None = None
    """The oldest `last_extracted_at` of the loaded tables: no loaded table is older."""
    generated_at: datetime
    timezone: str
    """The time zone of the partitions' days, by its IANA name."""
    dagster: bool
    """Whether Dagster answers. If it does not, queued runs are unknown."""
    daemon: bool | None = None
    """Whether Dagster's daemon gives signs of life. Without it, nothing is refreshed by itself, and launched runs stay in the
    queue. Null if Dagster does not answer."""
    daemon_seen_at: datetime | None = None
    """The last sign of life of Dagster's daemon."""
    automation: bool | None = None
    """Whether Dagster's sensor refreshes due tables by itself. If it does not, `next_due` only says when a table is due. Null if
    Dagster does not answer."""
    total_tables: int
    states: dict[Condition, int] = Field(default_factory=dict)
    """How many tables are in each state. Each table counts once."""
    successes: int
    failures: int
    running: int
    """The number of tables with a queued or running run."""
    tables: list[TableStatus]
    recent_activity: list[Extraction]
    """The last extractions of all tables, newest first."""
    costs: Costs | None = None
    """Of all queries for all tables; null before the first one."""


class DataChange(Shape):
    """Rows of a table have changed: the event `data`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"table": TABLE_EXAMPLE, "data_version": 8, "days": ["2026-11-19..2026-11-25"], "keys": None}]
        }
    )

    table: str
    data_version: int
    """The version of the rows now."""
    days: list[str] | None
    """Where the changed rows are: ranges `first..last`, or single days. Null if that is not known any more: any day may have
    changed."""
    keys: list[dict[str, str]] | None = None
    """The keys of the changed rows, by column, as PostgreSQL prints the values; 200 at most. Null if there are more, or if they are
    not kept: any row of the days may have changed."""


class DayState(StrEnum):
    """Whether a day is loaded. failed: it never was, and the last attempt failed. missing: nobody has tried."""

    LOADED = "loaded"
    FAILED = "failed"
    MISSING = "missing"


class DayCheck(StrEnum):
    """The last comparison of a day with BigQuery. ok: it was equal. failed: the attempt failed, and what was loaded before is still
    there. unverified: the day can still change at the source, and nothing has compared it for twice the table's frequency."""

    OK = "ok"
    FAILED = "failed"
    UNVERIFIED = "unverified"


class PartitionStatus(Shape):
    """One day of a table: whether it is loaded, and how its last check ended."""

    day: date
    state: DayState
    loaded_at: datetime | None = None
    """When the rows were read that are there now; for a day without rows, when the last attempt ended."""
    run_id: str | None = None
    """The run that loaded the rows, or whose attempt failed."""
    rows: int | None = None
    """Rows of the day in the table; null if it was never loaded."""
    check: DayCheck | None = None
    """How the last check ended; null if nobody has tried."""
    checked_at: datetime | None = None
    """When the last check ended."""
    check_run_id: str | None = None
    """The run of a check that failed."""
    usual_rows: int | None = None
    """How many rows the same weekday had in the middle of the 8 weeks before; null if fewer than 3 of these days are loaded."""
    unusual: bool = False
    """Whether the rows are fewer or more than usual by the table's `volume_factor`. Today does not count as too few: it goes on."""
    gap: bool = False
    """Whether it is missing between loaded days."""


class DayMark(StrEnum):
    """Why a figure of a day is not the last word. goes_on: the day was not over when its rows were read, and is not over yet.
    cut_short: the day is over, and was last read before its end. missing: nothing is loaded. failed: the last attempt to read it
    failed. unverified: it can still change, and nothing has compared it for twice the table's frequency. quarantined: rows of it
    are set aside. lost: loaded rows of it are gone."""

    GOES_ON = "goes_on"
    CUT_SHORT = "cut_short"
    MISSING = "missing"
    FAILED = "failed"
    UNVERIFIED = "unverified"
    QUARANTINED = "quarantined"
    LOST = "lost"


class FigureDay(Shape):
    """A figure of one day."""

    day: date
    value: Exact | None = None
    """The figure of all rows of the day, exact; null if no rows are known."""
    marks: list[DayMark] = []
    """Why it is not the last word; empty for a whole day."""


class Comparison(FigureDay):
    """A figure beside that of an earlier day: the `value` of that day, in the same hours, as the table held it at the same hour, or
    of the whole day."""

    as_of: datetime | None = None
    """The `value` is what the table held at this instant: at the hour of `until`, on the earlier day. Null if the value is of the
    same hours or of the whole day."""
    loaded_at: datetime | None = None
    """The load that left this value, with `as_of`."""
    difference: Exact | None = None
    """How much more the shown day has; null if the two can't be compared."""
    percent: Exact | None = None
    """The difference in percent of the earlier value; null for a figure in percent, whose difference is in points."""


class FigureStatus(Shape):
    """A key figure: its value of the newest day, beside the day before and the same weekday of the week before, and 30 days."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "table": "operation_data",
                    "figure": "gestiones",
                    "title": "Gestiones",
                    "unit": "count",
                    "over_days": True,
                    "today": {"day": "2026-11-25", "value": "812", "marks": ["goes_on"]},
                    "until": "2026-11-25T15:04:05Z",
                    "hour": 10,
                    "value_at_hour": "798",
                    "yesterday": {"day": "2026-11-24", "value": "760", "difference": "38", "percent": "5", "marks": []},
                    "week_before": {"day": "2026-11-18", "value": "801", "difference": "-3", "percent": "-0.3745", "marks": []},
                    "days": [{"day": "2026-11-25", "value": "812", "marks": ["goes_on"]}],
                }
            ]
        }
    )

    table: str
    figure: str
    title: str
    """What the table's readers call it, in Spanish."""
    unit: Unit
    over_days: bool
    """Whether the values of several days add up."""
    today: FigureDay | None = None
    """The newest day that is known: today, or an earlier day if today is not loaded yet. Null before the first load."""
    until: datetime | None = None
    """When the rows of that day were read."""
    hour: int | None = None
    """The comparisons count the hours of each day before this one (1 to 23). Null: the day is compared as a whole, with what the
    table held at the same hour (`as_of`) if that is known, else with whole days."""
    value_at_hour: Exact | None = None
    """The figure of the newest day in these hours."""
    yesterday: Comparison | None = None
    """The day before."""
    week_before: Comparison | None = None
    """The same weekday of the week before."""
    days: list[FigureDay] = []
    """The 30 days up to the newest one, oldest first."""


class Figures(Shape):
    """The key figures of all tables."""

    timezone: str
    """The time zone of the days and hours, by its IANA name."""
    generated_at: datetime
    figures: list[FigureStatus]


class FigureMovement(Shape):
    """How a load moved a figure of a day. Values are exact, so they are texts; null for a ratio to 0."""

    day: date
    figure: str
    title: str
    """What the table's readers call it, in Spanish."""
    unit: Unit
    before: Decimal | None
    after: Decimal | None
    change: Decimal | None
    """By how much it rose; negative if it fell."""


class DayChanged(Shape):
    """What a load did to a day."""

    day: date
    new: int
    changed: int
    gone: int
    counted: int | None = None
    """In how many values of the column `counted_by` rows changed; null if the rows are not kept."""


class LoadChanges(Shape):
    """What a load changed."""

    load_id: int
    run_id: str
    run_url: str | None = None
    """The run in Dagster's UI; null for an undoing."""
    committed_at: datetime
    undoes: int | None = None
    """The load that this one undid."""
    undone_by: int | None = None
    """The load that undid this one."""
    undoable: bool
    """Whether it can be undone, as long as nobody changes its rows."""
    reason: str | None = None
    """Why the values of its rows are not kept."""
    movements: list[FigureMovement]
    """The biggest movements first: money, then counts, then percentages."""
    days: list[DayChanged]
    """The days that changed, the newest first."""


class ChangedRowShown(Shape):
    """A row before and after a load, by column, as PostgreSQL prints the values; null where there was no row, or is none."""

    day: date
    key: dict[str, str | None]
    old: dict[str, str | None] | None
    new: dict[str, str | None] | None


class TableChanges(Shape):
    """What the last loads of a table changed. Loads that changed nothing are not there."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "table": TABLE_EXAMPLE,
                    "counted_by": "archivo",
                    "older": None,
                    "rows": None,
                    "loads": [
                        {
                            "load_id": 12,
                            "run_id": RUN_EXAMPLE,
                            "run_url": f"http://127.0.0.1:3000/runs/{RUN_EXAMPLE}",
                            "committed_at": "2026-11-26T20:00:12Z",
                            "undoable": True,
                            "movements": [
                                {
                                    "day": "2026-11-26",
                                    "figure": "recupero",
                                    "title": "Recupero",
                                    "unit": "PEN",
                                    "before": "84120.50",
                                    "after": "96460.50",
                                    "change": "12340.00",
                                }
                            ],
                            "days": [{"day": "2026-11-26", "new": 0, "changed": 5, "gone": 0, "counted": 3}],
                        }
                    ],
                }
            ]
        }
    )

    table: str
    counted_by: str | None
    """The column of the key by which `counted` counts."""
    loads: list[LoadChanges]
    """The newest first."""
    older: int | None
    """For older loads, ask again with this as `before`; null if there are none."""
    rows: list[ChangedRowShown] | None = None
    """Rows of the load that was asked for, by day and key; null if none was."""


class Undoing(Shape):
    """What an undoing did, or would do."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "table": TABLE_EXAMPLE,
                    "undoes": 12,
                    "load_id": 13,
                    "dry_run": False,
                    "held_until": "2026-11-27T02:10:00Z",
                    "movements": [],
                    "days": [{"day": "2026-11-26", "new": 0, "changed": 5, "gone": 0}],
                    "message": "load 12 is undone; its days are owed again",
                }
            ]
        }
    )

    table: str
    undoes: int
    """The load that was undone."""
    load_id: int | None
    """The undoing's own number; null for a dry run."""
    dry_run: bool
    held_until: datetime
    """Until then only people refresh the table. Then the next refresh reads the days again."""
    movements: list[FigureMovement]
    days: list[DayChanged]
    message: str


class TableDetail(Shape):
    """One table with its history."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "table": TABLE_STATUS_EXAMPLE,
                    "extractions": [EXTRACTION_EXAMPLE],
                    "recovery_attempts": 0,
                    "partitions": [
                        {
                            "day": "2026-11-25",
                            "state": "loaded",
                            "loaded_at": "2026-11-25T15:04:05Z",
                            "run_id": RUN_EXAMPLE,
                            "rows": 170,
                            "check": "ok",
                            "checked_at": "2026-11-25T15:04:05Z",
                        }
                    ],
                }
            ]
        }
    )

    table: TableStatus
    extractions: list[Extraction]
    """The last 20, newest first."""
    recovery_attempts: int
    partitions: list[PartitionStatus]
    """The last 30 days, oldest first."""


class Ended(Shape):
    """An attempt that the cleanup has ended."""

    table: str
    partitions: str
    run_id: str
    reason: str
    recovery_attempts: int


class Cleanup(Shape):
    """The result of the cleanup."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ended": [], "message": "no attempt is stale"}]})

    ended: list[Ended]
    message: Told


class Finding(Shape):
    """What the doctor found of one part."""

    part: str
    ok: bool
    text: Told
    """How the part is, or what is wrong and what to do."""


class Checkup(Shape):
    """What the doctor found."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"ok": True, "findings": [{"part": "BigQuery", "ok": True, "text": "project mibot-222814 answers"}]}]
        }
    )

    ok: bool
    """Whether every part is in order."""
    findings: list[Finding]


class ColumnConfig(Shape):
    """A column of a table."""

    name: str
    type: str
    description: str
    unit: str


class TableConfig(Shape):
    """The configuration of a table."""

    table: str
    title: str
    """The table's title for its readers, in Spanish."""
    subtitle: str
    """What the table shows, in a few words of Spanish."""
    description: str
    group: str
    primary_key: list[str]
    partition_column: str
    lookback_days: int
    refresh_every_seconds: int
    refresh_on_change: bool
    """Whether the table is also refreshed as soon as its source has changed, or was updated as somebody says."""
    least_interval_seconds: int
    """At least so much time passes from a load to a refresh on change."""
    settling_seconds: int
    """A change must be so old, with no other change since, if nobody has announced it."""
    timeout_seconds: int
    strategy: str
    sources: list[str]
    """The names by which an update of a source is announced."""
    source_tables: list[str]
    """Full names of the source views in BigQuery, in the order of `sources`."""
    columns: list[ColumnConfig]


class Contact(Shape):
    """Whom to ask for help. What the deployment does not name is null."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "Ana Pérez", "mail": "datos@example.com", "whatsapp": "51987654321"}]}
    )

    name: str | None = None
    mail: str | None = None
    whatsapp: str | None = None
    """The number at WhatsApp, with the country's code; digits only."""


class ExtractionMode(Shape):
    """A way to choose the days of a refresh."""

    mode: Mode
    description: str
    parameters: list[str]
    default: bool


class PartState(StrEnum):
    """Whether a part answers."""

    OK = "ok"
    FAILING = "failing"


class Part(Shape):
    """One part of the deployment."""

    state: PartState
    message: Told
    seconds: float
    """How long the check took."""


class Health(Shape):
    """Whether this process is alive, and whether a refresh could run."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "live": True,
                    "ready": False,
                    "parts": {
                        "postgresql": {"state": "ok", "message": "answers", "seconds": 0.003},
                        "bigquery": {"state": "ok", "message": "answers", "seconds": 0.12},
                        "dagster": {"state": "ok", "message": "version 1.13.27", "seconds": 0.02},
                        "daemon": {"state": "failing", "message": "no heartbeat of sensor", "seconds": 0.02},
                    },
                    "checked_at": "2026-11-25T15:46:15Z",
                }
            ]
        }
    )

    live: bool = True
    ready: bool
    parts: dict[str, Part]
    checked_at: datetime


class Problem(Shape):
    """Why a request failed, as problem details (RFC 9457)."""

    type: str = "about:blank"
    """Names the kind of problem: `urn:pulso-etl:` and the cause."""
    title: str = ""
    """The title of `failure`."""
    status: int = 0
    """The HTTP status."""
    cause: Cause = Cause.UNKNOWN
    """The cause of `failure`: decide by it."""
    table: str | None = None
    """The table that the request named."""
    retryable: bool = False
    """Whether the same request may succeed later without any change."""
    run_url: str | None = None
    """The run in Dagster's UI."""
    failure: Failure


class Fault(Problem):
    """Why a request failed."""

    detail: Told
    """The message of `failure`."""


class ValidationFault(Shape):
    """The fault of one value of a request."""

    loc: list[str | int]
    msg: str
    type: str
    input: Any = None
    ctx: dict[str, Any] | None = None


class ValidationFaults(Problem):
    """The faults of a request."""

    detail: list[ValidationFault]
