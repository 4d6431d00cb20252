"""The HTTP API: its routes, and the answers to errors."""

from __future__ import annotations

import asyncio
import gzip
import logging
import mimetypes
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import anyio
import psycopg
from fastapi import APIRouter, Body, Depends, FastAPI, Header, HTTPException, Path, Query, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from pulso_etl.access.tokens import opening
from pulso_etl.api import metrics
from pulso_etl.api.access import Gatekeeper, Guard
from pulso_etl.api.bodies import StrictRequest
from pulso_etl.api.changes import Asked, read_changes, undoing
from pulso_etl.api.dagster_client import DagsterClient, DagsterUnavailable
from pulso_etl.api.database import Database, DatabaseUnavailable
from pulso_etl.api.doctor import checkup
from pulso_etl.api.downloads import MOST_DAYS, Download, Downloads
from pulso_etl.api.faults import PROBLEM, fault_of
from pulso_etl.api.figures import FiguresReader
from pulso_etl.api.gateway import Gateway
from pulso_etl.api.habits import Habits, tag_of, unchanged, until_stop
from pulso_etl.api.handlers import HANDLERS, invalid, table_of
from pulso_etl.api.health import HealthProbe
from pulso_etl.api.models import (
    TABLE_EXAMPLE,
    Checkup,
    Cleanup,
    ColumnConfig,
    Contact,
    DashboardRequest,
    Ended,
    Extraction,
    ExtractionMode,
    Fault,
    Figures,
    Health,
    PartitionStatus,
    Refresh,
    RefreshSummary,
    SourceUpdate,
    SourceUpdated,
    Status,
    TableChanges,
    TableConfig,
    TableDetail,
    TableStatus,
    Undoing,
    ValidationFaults,
)
from pulso_etl.api.outages import OutageWatch
from pulso_etl.api.refreshes import Refreshes
from pulso_etl.api.routes import Admin, Reader, Refresher, StrictRoute
from pulso_etl.api.sizes import Sizes
from pulso_etl.api.status import CALENDAR_DAYS, SHOWN, StatusFeed, StatusReader, versions_of
from pulso_etl.automation.preview_shapes import Preview
from pulso_etl.bigquery.reach import Reach
from pulso_etl.refreshing.request import Grants, Mode, RefreshRequest
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import BudgetExceeded, DestinationError, PlanError, PulsoError, UndoRefused
from pulso_etl.sync.ledger.changes import Changes
from pulso_etl.sync.ledger.ledger import server_clock
from pulso_etl.sync.ledger.undoings import LONGEST_HOLD, Wish
from pulso_etl.sync.postgres.server_errors import keeps_out, meaning
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.spec import TableSpec
from pulso_etl.tables import TABLES

if TYPE_CHECKING:
    from pulso_etl.automation.preview import Previews
    from pulso_etl.automation.recovery import EndedAttempt
    from pulso_etl.sync.undoing import Report

Answers = dict[int | str, dict[str, Any]]
RETRY_SECONDS = 5
STREAM_END_SECONDS = 1
"""How long a stream of events may take to end when the server stops."""
ROLE_HEADER = "Pulso-Role"
"""Header that tells a page the role of its token."""
VERSION_HEADER = "Pulso-Data-Version"
"""Header with the versions of the tables' rows."""
DASHBOARD = "dashboard"
"""The group of tables that the dashboard shows."""
UNAVAILABLE: dict[str, Any] = {
    "model": Fault,
    "description": "PostgreSQL or Dagster does not answer.",
    "headers": {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}},
}
REFUSED: Answers = {
    401: {"model": Fault, "description": "No token, or an unknown token."},
    403: {"model": Fault, "description": "The token's role is too low, or the page's origin is not allowed."},
    429: {
        "model": Fault,
        "description": "Too many unknown tokens came from the caller's address, or the token asks too often.",
        "headers": {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}},
    },
}
BROKEN: Answers = {400: {"model": Fault, "description": "The body is not JSON, or is incomplete."}}
INVALID: Answers = {422: {"model": ValidationFaults, "description": "The request makes no sense."}}
UNCHANGED: Answers = {
    304: {"description": "What is shown has not changed since the ETag that was sent, or no row since the data version."}
}
UNKNOWN: Answers = {404: {"model": Fault, "description": "Not known."}}
TOO_MANY: dict[str, Any] = {
    "model": Fault,
    "description": "Too many launches, or the day's BigQuery budget is spent.",
    "headers": {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}},
}
LAUNCHES: Answers = {**REFUSED, **INVALID, **UNKNOWN, 413: {"model": Fault}, 429: TOO_MANY, 503: UNAVAILABLE}
MODES = {
    Mode.INCREMENTAL: ("From the watermark, less the table's lookback, to today. A fresh table is skipped.", []),
    Mode.SLIDING_WINDOW: ("The last days up to today: `days` of them, or the table's lookback.", ["days"]),
    Mode.FULL_REFRESH: ("Every partition.", []),
}
GRAPHQL_REQUEST = {
    "type": "object",
    "required": ["query"],
    "properties": {
        "query": {"type": "string"},
        "variables": {"type": ["object", "null"]},
        "operationName": {"type": ["string", "null"]},
    },
    "examples": [{"query": "{ version }"}],
}
GRAPHQL_ANSWER = {"type": "object", "properties": {"data": {}, "errors": {"type": "array", "items": {"type": "object"}}}}
GRAPHQL_ANSWERS: Answers = {
    200: {
        "description": "What Dagster answers.",
        "content": {
            "application/json": {"schema": {"anyOf": [GRAPHQL_ANSWER, {"type": "array", "items": GRAPHQL_ANSWER}]}},
        },
    },
    400: {
        "description": "Not GraphQL, or GraphQL that Dagster does not accept.",
        "content": {
            "application/json": {"schema": GRAPHQL_ANSWER},
            PROBLEM: {"schema": {"$ref": "#/components/schemas/Fault"}},
        },
    },
}
GRAPHQL_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"anyOf": [GRAPHQL_REQUEST, {"type": "array", "items": GRAPHQL_REQUEST, "minItems": 1, "maxItems": 10}]}
            }
        },
    }
}
FUTURE = timedelta(minutes=5)
"""How far the clock of somebody who announces an update may be ahead."""
NOT_UNDONE: dict[str, Any] = {
    "model": Fault,
    "description": "The load cannot be undone: somebody has changed its rows since, or their values are not kept.",
}
MOST_LOADS = 2**63 - 1
EARLIEST = date(1900, 1, 1)
"""Before this day there are no partitions."""
audit = logging.getLogger("pulso_etl.audit")
IfNoneMatch = Annotated[
    str | None,
    Header(
        description="An ETag: the answer is 304 if only ages have changed since. Or the content of Pulso-Data-Version in quotes: "
        "the answer is 304 if no row has changed since."
    ),
]
LastEventId = Annotated[
    str | None, Header(description="The id of the last event that the listener has heard: it is told what it has missed since.")
]
TableName = Annotated[str, Path(description="The table.", examples=[TABLE_EXAMPLE], max_length=100)]


class DaysAsked:
    """The days that a request asks for, from the parameters of its address."""

    def __init__(
        self,
        mode: Annotated[Mode, Query(description="How the server chooses the days.")] = Mode.INCREMENTAL,
        start: Annotated[date | None, Query(alias="from", description="First day; wins over the mode.")] = None,
        end: Annotated[date | None, Query(alias="to", description="Last day; wins over the mode.")] = None,
        days: Annotated[int | None, Query(ge=1, le=100_000, description="Trailing days, with sliding_window.")] = None,
    ) -> None:
        self.mode, self.start, self.end, self.days = mode, start, end, days

    def of(self, table: str, grants: Grants, asked_by: str) -> RefreshRequest:
        """The request for these days of the table."""
        return RefreshRequest((table,), self.mode, self.days, self.start, self.end, grants, max_concurrent=1, asked_by=asked_by)


class ChangesAsked:
    """Which loads a request asks for, from the parameters of its address."""

    def __init__(
        self,
        before: Annotated[int | None, Query(ge=1, le=MOST_LOADS, description="Only loads before the one of this number.")] = None,
        limit: Annotated[int, Query(ge=1, le=500, description="How many loads, or rows of the load.")] = SHOWN,
        load: Annotated[int | None, Query(ge=1, le=MOST_LOADS, description="Only this load, with its rows.")] = None,
        day: Annotated[date | None, Query(description="With `load`: only rows of this day.")] = None,
        offset: Annotated[int, Query(ge=0, le=10_000_000, description="With `load`: leave out so many rows.")] = 0,
    ) -> None:
        self.asked = Asked(limit, before, load, day, offset)


class Deployment:
    """The parts that the routes use."""

    def __init__(self, settings: Settings, tables: Mapping[str, TableSpec], *, discreet: bool) -> None:
        """`discreet`: strangers can ask for the health, so the answer shows no details."""
        self.settings = settings
        self.tables = tables
        self.database = Database(settings)
        self.dagster = DagsterClient(settings.dagster_graphql_url, settings.dagster_graphql_token)
        self.reader = StatusReader(settings, self.database, self.dagster, tables)
        self.sizes = Sizes.of(settings, self.database)
        self.feed = StatusFeed(self.reader.snapshot)
        self.figures = FiguresReader(self.reader)
        self.downloads = Downloads(self.database)
        self.refreshes = Refreshes(settings, self.database, self.dagster, self.reader, tables)
        self.previewing = asyncio.Lock()
        """One preview at a time: each asks BigQuery and holds a thread."""
        self.health = HealthProbe(
            self.database,
            self.dagster,
            Reach.of(settings),
            table=next(iter(tables.values()), None),
            discreet=discreet,
        )

    @cached_property
    def previews(self) -> Previews:
        """What tells of a refresh beforehand, with one source for all requests."""
        # Imported here: BigQuery's client takes 70 MB, which a process that nobody asks for a plan does not need.
        from pulso_etl.automation.preview import Previews
        from pulso_etl.bigquery.source import build_source

        return Previews(self.settings, self.refreshes.planner, build_source(self.settings))

    def known(self, *tables: str) -> tuple[str, ...]:
        """The names without repetitions. Raises HTTPException 404 for an unknown table."""
        for table in tables:
            if table not in self.tables:
                raise HTTPException(404, f"unknown table {table[:100]}; known are {', '.join(self.tables)}")
        return tuple(dict.fromkeys(tables))


def deployment(request: Request) -> Deployment:
    """The deployment of the request's application."""
    found: Deployment = request.app.state.deployment
    return found


router = APIRouter(prefix="/api/v1/etl", route_class=StrictRoute)


@router.post("/refresh/dashboard", status_code=202, responses={**LAUNCHES, **BROKEN}, tags=["refresh"])
async def refresh_dashboard(
    request: Request, caller: Refresher, body: Annotated[DashboardRequest | None, Body()] = None
) -> Refresh:
    """Refreshes the named tables, or the tables of the dashboard. Skips fresh tables unless `force` is set.

    Answers at once. While a refresh is running, an identical request returns the `pipeline_id` of that refresh.
    """
    here, asked = deployment(request), body or DashboardRequest()
    group = [name for name, spec in here.tables.items() if spec.group == DASHBOARD]
    tables = here.known(*(group if asked.tables is None else asked.tables))
    wanted = RefreshRequest(tables, grants=Grants(force=asked.force), max_concurrent=asked.max_concurrent, asked_by=caller.name)
    return await _launch(request, caller, wanted)


@router.post("/refresh/table/{table_name}", status_code=202, responses=LAUNCHES, tags=["refresh"])
async def refresh_table(
    request: Request,
    caller: Refresher,
    table_name: TableName,
    days: Annotated[DaysAsked, Depends()],
    force: Annotated[bool, Query(description="Refresh the table even if it is fresh.")] = False,
) -> Refresh:
    """Refreshes one table."""
    [table] = deployment(request).known(table_name)
    return await _launch(request, caller, days.of(table, Grants(force=force), caller.name))


async def _launch(request: Request, caller: Refresher, asked: RefreshRequest) -> Refresh:
    await request.app.state.gatekeeper.count_launches(caller, len(asked.tables))
    here = deployment(request)
    try:
        return await here.refreshes.launch(asked)
    finally:
        here.feed.forget()


@router.get("/refresh/{pipeline_id}", responses={**REFUSED, **INVALID, **UNKNOWN, 503: UNAVAILABLE}, tags=["refresh"])
async def refresh_progress(
    request: Request,
    caller: Reader,
    pipeline_id: Annotated[str, Path(max_length=64, description="The id that the launch returned.")],
) -> Refresh:
    """The progress of a refresh, table by table."""
    found = await deployment(request).refreshes.progress(pipeline_id.replace("\0", ""))
    if found is None:
        raise HTTPException(404, "unknown refresh; use the pipeline_id that the launch returned")
    return found


@router.get("/refreshes", responses={**REFUSED, **INVALID, 503: UNAVAILABLE}, tags=["refresh"])
async def refreshes(
    request: Request,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=100, description="How many, the newest first.")] = 20,
) -> list[RefreshSummary]:
    """The refreshes that somebody requested over this API, the newest first."""
    return await deployment(request).refreshes.newest(limit)


@router.delete("/refresh/{pipeline_id}", status_code=202, responses={**LAUNCHES}, tags=["refresh"])
async def end_refresh(
    request: Request,
    caller: Refresher,
    pipeline_id: Annotated[str, Path(max_length=64, description="The id that the launch returned.")],
) -> Refresh:
    """Ends the runs of a refresh that wait or go on. An open load is rolled back. Runs that it only joined go on."""
    here = deployment(request)
    found = await here.refreshes.progress(pipeline_id.replace("\0", ""))
    if found is None:
        raise HTTPException(404, "unknown refresh; use the pipeline_id that the launch returned")
    await request.app.state.gatekeeper.count_launches(caller, max(1, len(found.runs)))
    try:
        return await here.refreshes.end(found, caller.name)
    finally:
        here.feed.forget()


@router.get("/plan", responses={**REFUSED, **INVALID, **UNKNOWN, 503: UNAVAILABLE}, tags=["refresh"])
async def plan(
    request: Request,
    caller: Reader,
    table: Annotated[list[str] | None, Query(max_length=100, description="Tables; all of them if none is named.")] = None,
    force: Annotated[bool, Query(description="As if fresh tables were refreshed too, whole.")] = False,
) -> Preview:
    """What a refresh would do now: the days, why each would be read, bytes by a dry run, and their cost. Of a table that is not
    due: when the sensor will refresh it because its source has changed. Launches nothing."""
    here = deployment(request)
    asked = RefreshRequest(here.known(*(table or ())), grants=Grants(force=force))
    async with here.previewing:
        with _naming_database():
            return await asyncio.to_thread(_preview, here, asked)


def _preview(here: Deployment, asked: RefreshRequest) -> Preview:
    with Session(here.settings.database_url.get_secret_value(), "api", connect_seconds=5).hold() as conn:
        return here.previews.of(conn, asked, server_clock(conn))


@router.get("/status", response_model=Status, responses={**REFUSED, **UNCHANGED, 503: UNAVAILABLE}, tags=["status"])
async def status(request: Request, caller: Reader, if_none_match: IfNoneMatch = None) -> Response:
    """The state of all tables, a second old at most. Its ETag changes with everything that it shows except ages; the header
    `Pulso-Data-Version` changes exactly when rows of a table do."""
    snapshot = await deployment(request).feed.current()
    return _conditional(request, snapshot.status, snapshot.status.tables, {ROLE_HEADER: caller.role.name.lower()}, snapshot.json)


@router.get(
    "/status/table/{table_name}",
    response_model=TableDetail,
    responses={**REFUSED, **UNCHANGED, **INVALID, **UNKNOWN, 503: UNAVAILABLE},
    tags=["status"],
)
async def table_status(request: Request, caller: Reader, table_name: TableName, if_none_match: IfNoneMatch = None) -> Response:
    """The state of one table, its last 20 extractions and its last 30 days. The header `Pulso-Data-Version` changes exactly when
    rows of the table do."""
    here = deployment(request)
    [table] = here.known(table_name)
    told = next(one for one in (await here.feed.current()).status.tables if one.table == table)
    return _conditional(request, await here.reader.detail(told), [told], {})


@router.get("/figures", response_model=Figures, responses={**REFUSED, **UNCHANGED, 503: UNAVAILABLE}, tags=["status"])
async def figures(request: Request, caller: Reader, if_none_match: IfNoneMatch = None) -> Response:
    """The key figures that the tables declare: today, beside yesterday and the same weekday of the week before, and 30 days. They
    come from PostgreSQL. Values are exact, so they are texts."""
    here = deployment(request)
    told = (await here.feed.current()).status.tables
    return _conditional(request, await here.figures.read({one.table: one.data_version or 0 for one in told}), told, {})


@router.get(
    "/status/table/{table_name}/rows.csv",
    response_class=Response,
    response_model=None,
    responses={
        **REFUSED,
        **INVALID,
        **UNKNOWN,
        503: UNAVAILABLE,
        200: {"description": "The rows.", "content": {"text/csv": {"schema": {"type": "string"}}}},
    },
    tags=["status"],
)
async def table_rows(
    request: Request,
    caller: Reader,
    table_name: TableName,
    start: Annotated[date, Query(alias="from", ge=EARLIEST, description="First day.")],
    end: Annotated[date, Query(alias="to", ge=EARLIEST, description=f"Last day; {MOST_DAYS} days at most.")],
) -> Download:
    """The rows of these days as CSV (RFC 4180) in UTF-8 with a byte order mark, which spreadsheets need. See docs/api.md."""
    here = deployment(request)
    [table] = here.known(table_name)
    window = DayRange(start, end)
    audit.info("%s downloads %s %s", caller.name, table, window)
    return await here.downloads.begin(here.tables[table], window)


@router.get("/status/table/{table_name}/changes", responses={**REFUSED, **INVALID, **UNKNOWN, 503: UNAVAILABLE}, tags=["status"])
async def table_changes(
    request: Request,
    caller: Reader,
    table_name: TableName,
    paging: Annotated[ChangesAsked, Depends()],
) -> TableChanges:
    """What the last loads of a table changed, the newest first: rows of each day, and figures before and after. With `load`, only
    that load, and its rows before and after."""
    here = deployment(request)
    [table] = here.known(table_name)
    if paging.asked.load_id is not None:
        audit.info("%s reads the rows that load %d of %s changed", caller.name, paging.asked.load_id, table)
    with _naming_database():
        found = await asyncio.to_thread(_changes, here, here.tables[table], paging.asked)
    if found is None:
        raise HTTPException(404, f"{table}: the change log has no load {paging.asked.load_id}")
    return found


def _changes(here: Deployment, spec: TableSpec, asked: Asked) -> TableChanges | None:
    settings = here.settings
    with Session(settings.database_url.get_secret_value(), "api", connect_seconds=5).open() as conn:
        here.database.marks.create(conn)
        return read_changes(conn, Changes(settings.database_schema), spec, asked, settings.dagster_ui_url)


@router.post("/undo/table/{table_name}", responses={**LAUNCHES, 409: NOT_UNDONE}, tags=["operation"])
async def undo_table(
    request: Request,
    caller: Admin,
    table_name: TableName,
    load: Annotated[
        int | None, Query(ge=1, le=MOST_LOADS, description="The load; without it, the last one that is not undone.")
    ] = None,
    hold_hours: Annotated[
        float | None,
        Query(ge=0, le=LONGEST_HOLD, description="How long only people refresh the table afterwards; its frequency if not given."),
    ] = None,
    dry_run: Annotated[bool, Query(description="Only tell what it would do.")] = False,
) -> Undoing:
    """Undoes a load: the table is as it was before it, in one transaction. The days are owed again. Refused if somebody has changed
    the same rows since, or if their values are not kept."""
    here = deployment(request)
    [table] = here.known(table_name)
    await request.app.state.gatekeeper.count_launches(caller, 1)
    wish = Wish(load, None if hold_hours is None else timedelta(hours=hold_hours), caller.name)
    try:
        with _naming_database():
            report = await asyncio.to_thread(_undo, here, here.tables[table], wish, dry_run=dry_run)
    finally:
        here.feed.forget()
    if report.load_id is not None:
        audit.info("%s has undone load %d of %s", caller.name, report.change.load_id, table)
    return undoing(here.tables[table], report)


@router.get("/status/table/{table_name}/days", responses={**REFUSED, **INVALID, **UNKNOWN, 503: UNAVAILABLE}, tags=["status"])
async def table_days(
    request: Request,
    caller: Reader,
    table_name: TableName,
    before: Annotated[
        date | None, Query(ge=EARLIEST, description="Up to the day before this one; without it, up to today.")
    ] = None,
    days: Annotated[int, Query(ge=1, le=366, description="How many days.")] = CALENDAR_DAYS,
) -> list[PartitionStatus]:
    """Days of one table, oldest first. For older ones, ask again with `before` as the first day of the answer."""
    here = deployment(request)
    [table] = here.known(table_name)
    return await here.reader.days(table, days, before)


@router.get(
    "/status/table/{table_name}/extractions", responses={**REFUSED, **INVALID, **UNKNOWN, 503: UNAVAILABLE}, tags=["status"]
)
async def table_extractions(
    request: Request,
    caller: Reader,
    table_name: TableName,
    before: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="The id of the attempt before which to begin.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="How many, the newest first.")] = SHOWN,
) -> list[Extraction]:
    """Attempts of one table, the newest first. For older ones, ask again with `before` as the last id of the answer."""
    here = deployment(request)
    [table] = here.known(table_name)
    return await here.reader.extractions(table, limit, before)


def _conditional(
    request: Request, shown: BaseModel, tables: Sequence[TableStatus], headers: Mapping[str, str], body: bytes | None = None
) -> Response:
    """The answer, or 304 if the client has it: by the ETag of what is shown, or by the versions of the tables' rows.

    The ETag is weak, because ages change without it. `no-store` keeps browsers from sending the tag unasked.
    """
    versions = versions_of(tables)
    tag = tag_of(shown)
    answer = {**headers, "ETag": tag, VERSION_HEADER: versions, "Cache-Control": "no-store"}
    if unchanged(request, tag) or unchanged(request, f'W/"{versions}"'):
        return Response(status_code=304, headers=answer)
    return Response(body or shown.model_dump_json().encode(), media_type="application/json", headers=answer)


@router.get("/health", responses={503: {"model": Health, "description": "A part does not answer."}}, tags=["status"])
async def health(
    request: Request,
    response: Response,
    live: Annotated[bool, Query(description="Only check that this process is alive, without the other parts.")] = False,
) -> Health:
    """Whether a refresh could run now: 200, or 503 if a part fails. Needs no token."""
    if live:
        return Health(ready=True, parts={}, checked_at=datetime.now(UTC))
    found = await deployment(request).health.look()
    response.status_code = 200 if found.ready else 503
    return found


@router.post("/cleanup", responses={**REFUSED, 503: UNAVAILABLE}, tags=["operation"])
async def cleanup(request: Request, caller: Admin) -> Cleanup:
    """Ends extractions that died or hang, so that their tables are refreshed again. Returns what it ended."""
    here = deployment(request)
    with _naming_database():
        ended = await asyncio.to_thread(_recover, here)
    audit.info("%s asked for a cleanup: %d attempt(s) ended", caller.name, len(ended))
    told = [
        Ended(
            table=one.table,
            partitions=str(one.window),
            run_id=one.run_id,
            reason=one.reason,
            recovery_attempts=one.recovery_attempts,
        )
        for one in ended
    ]
    return Cleanup(ended=told, message=f"{len(told)} attempt(s) ended" if told else "no attempt is stale")


@contextmanager
def _naming_database() -> Iterator[None]:
    """Raises DatabaseUnavailable for errors of a session that the route opened itself."""
    try:
        yield
    except psycopg.Error as error:
        if not keeps_out(error):
            raise
        raise DatabaseUnavailable(f"{meaning(error).tell(error)}") from error
    except DestinationError as error:
        raise DatabaseUnavailable(str(error)) from error


# The next three import what they need when somebody asks for it, in a thread, because it takes a second.


def _undo(here: Deployment, spec: TableSpec, wish: Wish, *, dry_run: bool) -> Report:
    from dagster import DagsterInstance

    from pulso_etl.refreshing.undoing import undo

    return undo(here.settings, spec, wish, None if dry_run else DagsterInstance.get)


def _recover(here: Deployment) -> list[EndedAttempt]:
    from pulso_etl.api.instance import recover

    return recover(here.settings, here.tables)


def _announce(here: Deployment, source: str, updated_at: datetime, said_by: str) -> tuple[str, bool]:
    from pulso_etl.api.instance import announce

    return announce(here.settings, source, updated_at, said_by)


@router.post(
    "/source/{source}/updated",
    status_code=202,
    responses={**REFUSED, **BROKEN, **INVALID, **UNKNOWN, 429: TOO_MANY, 503: UNAVAILABLE},
    tags=["refresh"],
)
async def source_updated(
    request: Request,
    caller: Refresher,
    source: Annotated[str, Path(description="The source.", examples=["gestiones_unificadas"], max_length=100)],
    body: Annotated[SourceUpdate | None, Body()] = None,
) -> SourceUpdated:
    """Says that a source in BigQuery was updated. Dagster shows it as an observation of the source's asset, and the refresh sensor
    refreshes the tables that read the source. Saying the same `updated_at` again changes nothing."""
    here, now = deployment(request), datetime.now(UTC)
    readers = [spec for spec in here.tables.values() if source in spec.sources]
    if not readers:
        known = sorted({name for spec in here.tables.values() for name in spec.sources})
        raise HTTPException(404, f"unknown source {source}; known are {', '.join(known)}")
    updated_at = (body and body.updated_at) or now
    if updated_at > now + FUTURE:
        raise PlanError(f"{source}: the source cannot have been updated at {updated_at.isoformat()}, which is in the future")
    await request.app.state.gatekeeper.count_launches(caller, 1)
    asset, recorded = await asyncio.to_thread(_announce, here, source, updated_at, caller.name)
    audit.info("%s said that %s was updated at %s", caller.name, asset, updated_at.isoformat())
    return SourceUpdated(
        source=source,
        asset=asset,
        updated_at=updated_at,
        recorded=recorded,
        tables=[spec.name for spec in readers],
        by_rhythm=[spec.name for spec in readers if not spec.schedule.refresh_on_change],
    )


@router.get("/config/tables", responses=REFUSED, tags=["configuration"])
async def config_tables(request: Request, caller: Reader) -> list[TableConfig]:
    """The configuration of each table."""
    here = deployment(request)
    names = here.settings.sources()
    return [
        TableConfig(
            table=spec.name,
            title=spec.title or spec.name,
            subtitle=spec.subtitle or spec.description,
            description=spec.description,
            group=spec.group,
            primary_key=list(spec.primary_key),
            partition_column=spec.partition_column,
            lookback_days=spec.schedule.lookback_days,
            refresh_every_seconds=int(spec.schedule.refresh_every.total_seconds()),
            refresh_on_change=spec.schedule.refresh_on_change,
            least_interval_seconds=int(spec.schedule.least_interval.total_seconds()),
            settling_seconds=int(spec.schedule.settling_time.total_seconds()),
            timeout_seconds=int(spec.loading.timeout.total_seconds()),
            strategy=spec.loading.strategy,
            sources=list(spec.source_tables(names)),
            source_tables=list(spec.source_tables(names).values()),
            columns=[
                ColumnConfig(name=column.name, type=column.sql_type, description=column.description, unit=column.unit)
                for column in (*spec.columns, *spec.kept_columns)
            ],
        )
        for spec in here.tables.values()
    ]


@router.get("/config/extraction-modes", responses=REFUSED, tags=["configuration"])
async def extraction_modes(caller: Reader) -> list[ExtractionMode]:
    """The ways to choose the days of a refresh."""
    return [
        ExtractionMode(mode=mode, description=text, parameters=parameters, default=mode is Mode.INCREMENTAL)
        for mode, (text, parameters) in MODES.items()
    ]


@router.get("/config/contact", responses=REFUSED, tags=["configuration"])
async def contact(request: Request, caller: Reader) -> Contact:
    """Whom to ask for help. The answer needs neither PostgreSQL nor Dagster."""
    settings = deployment(request).settings
    return Contact(
        name=settings.contact_name or None,
        mail=settings.contact_mail or None,
        whatsapp=settings.contact_whatsapp.removeprefix("+") or None,
    )


class EventStream(EventSourceResponse):
    """Events for one caller, who is counted while the stream is open."""

    def __init__(self, source: AsyncIterator[dict[str, str]], stop: anyio.Event, count: Counter[str], name: str) -> None:
        # When the server stops, the stream ends like a complete answer.
        super().__init__(source, ping=15, shutdown_event=stop, shutdown_grace_period=STREAM_END_SECONDS)
        self._count, self._name = count, name
        count[name] += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._count[self._name] -= 1


@router.get(
    "/events",
    response_class=EventSourceResponse,
    responses={**REFUSED, 200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    tags=["status"],
)
async def events(request: Request, caller: Reader, last_event_id: LastEventId = None) -> EventSourceResponse:
    """Server-sent events: `status` (a Status) first and when the summary changes, else `table` (a TableStatus) for each. `data` (a
    DataChange) says which days of a table have changed."""
    gatekeeper: Gatekeeper = request.app.state.gatekeeper
    gatekeeper.admit_stream(caller)
    feed, stop = deployment(request).feed, anyio.Event()

    async def heard() -> AsyncIterator[dict[str, str]]:
        async for event in until_stop(stop, feed.events(last_id=last_event_id or "")):
            told = {"event": event.name, "data": event.body.model_dump_json()}
            yield told | ({"id": event.id} if event.id else {})

    return EventStream(heard(), stop, gatekeeper.streams, caller.name)


root = APIRouter()
gateway = APIRouter(route_class=StrictRoute)
"""The routes of a whole deployment, with or without tenants: Dagster's GraphQL, which shows all runs, and the doctor."""
no_gateway = APIRouter(route_class=StrictRoute)
"""The GraphQL route of a tenant, who must not see the runs of others."""


@root.get("/api/v1/openapi.json", include_in_schema=False)
async def document(request: Request, caller: Reader) -> JSONResponse:
    """The OpenAPI document, for every caller with a token."""
    app: FastAPI = request.app
    return JSONResponse(app.openapi())


@root.get(
    "/metrics",
    response_class=Response,
    responses={**REFUSED, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, 503: UNAVAILABLE},
    tags=["status"],
)
async def prometheus(request: Request, caller: Reader) -> Response:
    """Metrics for Prometheus."""
    here = deployment(request)
    text = await metrics.exposition(here.database, here.sizes, await here.feed.current())
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@gateway.post(
    "/graphql",
    response_class=Response,
    responses={**REFUSED, **GRAPHQL_ANSWERS, 413: {"model": Fault}, 415: {"model": Fault}, 429: TOO_MANY, 503: UNAVAILABLE},
    openapi_extra=GRAPHQL_BODY,
    tags=["graphql"],
)
async def dagster_graphql(request: StrictRequest, caller: Reader) -> Response:
    """Dagster's GraphQL: queries for readers, launches and cancels for the role `refresh`, everything else for administrators.

    Takes JSON only: one request, or an array of them.
    """
    return await Gateway(request.app.state.deployment.dagster, request.app.state.gatekeeper).answer(request, caller)


@gateway.get("/api/v1/etl/doctor", responses={**REFUSED, 503: UNAVAILABLE}, tags=["operation"])
async def doctor(caller: Admin) -> Checkup:
    """Checks settings, BigQuery, PostgreSQL and Dagster, as `pulso-etl doctor` does. Takes some ten seconds; nothing is billed."""
    return await checkup()


@no_gateway.post("/graphql", include_in_schema=False)
async def no_graphql() -> Response:
    """Tells a tenant where Dagster's GraphQL is."""
    raise HTTPException(404, "Dagster's GraphQL shows every tenant's runs: administrators of the deployment find it at /graphql")


def create_app(settings: Settings, *, tables: Mapping[str, TableSpec] = TABLES) -> FastAPI:
    """The application of a deployment or of one of its tenants. It connects when it starts. If a part is away then, each request
    tries again."""
    tenant = settings.owner.tenant

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # With tokens, other machines can call the server, and the health needs no token.
        here = Deployment(settings, tables, discreet=settings.guarded)
        tokens = settings.keyring(lambda given: opening(given, tenant))
        async with serving(app, here, Gatekeeper(settings, tokens, local=not settings.guarded)):
            watch = asyncio.create_task(OutageWatch(settings, here.dagster).run())
            try:
                yield
            finally:
                watch.cancel()

    app = FastAPI(
        title="Pulso ETL",
        version="1",
        description="Refreshes the tables that mirror BigQuery, and shows their state.",
        lifespan=lifespan,
        # FastAPI's own pages load scripts from another host, and its route of the OpenAPI document asks for no token.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.include_router(router)
    app.include_router(root)
    app.openapi = partial(_document, app)  # type: ignore[method-assign]
    app.include_router(no_gateway if tenant else gateway)
    _serve_page(app)
    guard(app, settings)
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document. Faults have the media type of problem details."""
    if app.openapi_schema is None:
        found = FastAPI.openapi(app)
        faults = {f"#/components/schemas/{shape.__name__}" for shape in (Fault, ValidationFaults)}
        for operation in (one for path in found["paths"].values() for one in path.values()):
            for answer in operation["responses"].values():
                content = answer.get("content", {})
                if content.get("application/json", {}).get("schema", {}).get("$ref") in faults:
                    answer["content"] = {PROBLEM: content["application/json"]}
    schema = app.openapi_schema
    assert schema is not None
    return schema


class Connected(Protocol):
    """The parts that an application uses: at least PostgreSQL and Dagster."""

    database: Database
    dagster: DagsterClient


@asynccontextmanager
async def serving(app: FastAPI, here: Connected, gatekeeper: Gatekeeper) -> AsyncIterator[None]:
    """Opens and closes the parts that every application has."""
    app.state.deployment = here
    app.state.gatekeeper = gatekeeper
    await here.database.open()
    try:
        yield
    finally:
        await here.dagster.close()
        await here.database.close()


def guard(app: FastAPI, settings: Settings) -> None:
    """Adds what every application has: answers to errors, and the middleware that runs before all routes."""
    origins = settings.cors_origins()
    for kind, answer in (HANDLERS | ANSWERS).items():
        app.add_exception_handler(kind, answer)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "If-None-Match", "Last-Event-ID"],
            expose_headers=[ROLE_HEADER, VERSION_HEADER, "Content-Disposition", "ETag", "Retry-After"],
            max_age=600,
        )
    app.add_middleware(Guard, tokens=settings.guarded, origins=origins)
    app.add_middleware(Habits)


def _serve_page(app: FastAPI) -> None:
    """Serves the status page, one route per file, so that every other path still gets its own 404 or 405."""
    page = FilePath(__file__).parent / "page"
    for file in sorted(path for path in page.rglob("*") if path.is_file()):
        inside = file.relative_to(page).as_posix()
        # The name of an asset follows from its content, so only the page itself must be checked for a newer version.
        cache = "public, max-age=31536000, immutable" if inside.startswith("assets/") else "no-cache"
        path = {"index.html": "/", "docs.html": "/docs"}.get(inside, f"/{inside}")
        app.add_api_route(
            path, PageFile(file, cache).answer, methods=["GET", "HEAD"], include_in_schema=False, name=inside, response_model=None
        )


class PageFile:
    """A file of the page, which browsers get compressed if they can read that."""

    def __init__(self, file: FilePath, cache: str) -> None:
        self._file = file
        self._headers = {"Cache-Control": cache, "Vary": "Accept-Encoding"}
        self._packed: bytes | None = None

    async def answer(self, request: Request) -> Response:
        """The answer. It is compressed once, by the first request that asks for it."""
        kinds = [part.partition(";")[0].strip() for part in request.headers.get("accept-encoding", "").split(",")]
        if "gzip" not in kinds:
            return FileResponse(self._file, headers=self._headers)
        if self._packed is None:
            self._packed = gzip.compress(self._file.read_bytes(), mtime=0)
        media = mimetypes.guess_type(self._file.name)[0] or "application/octet-stream"
        return Response(self._packed, media_type=media, headers={**self._headers, "Content-Encoding": "gzip"})


async def _unavailable(request: Request, error: Exception) -> Response:
    assert isinstance(error, PulsoError)
    return fault_of(503, error, {"Retry-After": str(RETRY_SECONDS)}, table_of(request))


async def _no_sense(request: Request, error: Exception) -> Response:
    return invalid([{"loc": ["query"], "msg": str(error), "type": "plan_error"}], table_of(request))


async def _not_undone(request: Request, error: Exception) -> Response:
    assert isinstance(error, UndoRefused)
    return fault_of(409, error, table=table_of(request))


async def _budget_spent(request: Request, error: Exception) -> Response:
    assert isinstance(error, BudgetExceeded)
    now, zone = datetime.now(UTC), request.app.state.deployment.settings.zone
    midnight = zone.begin(zone.day(now) + timedelta(days=1))
    return fault_of(429, error, {"Retry-After": str(int((midnight - now).total_seconds()) + 1)}, table_of(request))


ANSWERS = {
    DagsterUnavailable: _unavailable,
    DatabaseUnavailable: _unavailable,
    PlanError: _no_sense,
    UndoRefused: _not_undone,
    BudgetExceeded: _budget_spent,
}
