"""Refreshes by request of a caller: they are planned like any other, launched through Dagster, and watched.

Dagster keeps the runs. The table `etl_refreshes` in PostgreSQL keeps each request, its caller and its runs. Dagster also limits
how many runs of a refresh go on at the same time: a tag gives each run one of the refresh's slots, and `dagster.yaml` allows one
run per slot. A refresh therefore continues when the API is away.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from pulso_etl.api.dagster_client import DagsterClient, DagsterUnavailable, LaunchRefused, Run, RunStatus
from pulso_etl.api.database import Database
from pulso_etl.api.models import Refresh, RefreshState, RefreshSummary, TableRun
from pulso_etl.api.shapes import Failure, Progress
from pulso_etl.api.status import StatusReader
from pulso_etl.automation.preview_shapes import DaysToRead
from pulso_etl.refreshing.launch import Launch, in_slots, launches
from pulso_etl.refreshing.plan import RefreshPlan
from pulso_etl.refreshing.planner import Planner, watermarks_of
from pulso_etl.refreshing.ranges import range_of
from pulso_etl.refreshing.request import RefreshRequest
from pulso_etl.refreshing.runs import is_of, joined
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.reasons import Reasons
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.tags import PIPELINE_TAG, TABLE_TAG
from pulso_etl.tenancy.tenants import route

RECENT = timedelta(days=1)
"""An older request cannot be running any more."""
ROUTE = "/api/v1/etl/refresh"
audit = logging.getLogger("pulso_etl.audit")


@dataclass(frozen=True)
class LaunchedPart:
    """The launch of one table: skipped if it has no run and no error. `joined`: the run was already going on before the request.

    Many days are split into chunks, one run each. `run_id` is the run of the newest days, `more` are the other runs.
    """

    run_id: str | None
    message: str
    error: bool = False
    joined: bool = False
    more: Sequence[str] = ()

    @property
    def run_ids(self) -> list[str]:
        return [] if self.run_id is None else [self.run_id, *self.more]


@dataclass(frozen=True)
class Launched:
    """A refresh from the table `etl_refreshes`."""

    pipeline_id: str
    parts: Mapping[str, LaunchedPart]
    requested_by: str
    requested_at: datetime

    @classmethod
    def of(cls, row: Sequence[Any]) -> Launched:
        """The refresh of a row."""
        pipeline_id, parts, requested_by, requested_at = row
        return cls(pipeline_id, {table: LaunchedPart(**part) for table, part in parts.items()}, requested_by, requested_at)

    @property
    def run_ids(self) -> list[str]:
        return [run_id for part in self.parts.values() for run_id in part.run_ids]


NOT_WELL = {Progress.FAILED, Progress.CANCELED}
ENDED_LATER = "loaded; the run was ended after its load"


@dataclass(frozen=True)
class Watched:
    """What is known about a refresh's runs, by table: the newest run of each chunk, the rows that they have copied so far or have
    read at the end, and the error of a run that failed or that ended after its load."""

    runs: Mapping[str, Sequence[Run]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    causes: Mapping[str, Cause] = field(default_factory=dict)
    """Causes of failures by table, from the history of extractions."""
    asked: bool = False
    """Whether Dagster has answered. If so, Dagster does not know the runs that are missing here."""


def progress(launched: Launched, watched: Watched, ui_url: str, base: str = "") -> Refresh:
    """The progress of the refresh. `base` is the prefix of the API's paths."""
    runs = {table: _table_run(table, part, watched, ui_url) for table, part in launched.parts.items()}
    states = {run.state for run in runs.values()}
    ends = [run.finished_at for run in runs.values() if run.finished_at is not None]
    status = RefreshState.SUCCESS
    if states & {Progress.QUEUED, Progress.RUNNING}:
        status = RefreshState.RUNNING
    elif states & NOT_WELL:
        status = RefreshState.FAILED
    return Refresh(
        pipeline_id=launched.pipeline_id,
        status=status,
        tables_requested=list(launched.parts),
        runs=runs,
        started_at=launched.requested_at,
        finished_at=None if status is RefreshState.RUNNING else max(ends, default=launched.requested_at),
        status_url=f"{base}{ROUTE}/{launched.pipeline_id}",
        requested_by=launched.requested_by,
    )


def _table_run(table: str, part: LaunchedPart, watched: Watched, ui_url: str) -> TableRun:
    if part.run_id is None:
        if not part.error:
            return TableRun(table=table, state=Progress.SKIPPED, message=part.message)
        failure = Failure.of(Cause.LAUNCHER_UNAVAILABLE, part.message)
        return TableRun(table=table, state=Progress.FAILED, message=part.message, failure=failure)
    runs = watched.runs.get(table, ())
    told = telling(runs)
    run_id = told.run_id if told else part.run_id
    shown = TableRun(table=table, state=Progress.QUEUED, run_id=run_id, run_url=f"{ui_url}/runs/{run_id}", message=part.message)
    if told is None and watched.asked:
        gone = "Dagster does not know this run any more; look at the table's status"
        failure = Failure.of(Cause.ABANDONED, gone, shown.run_url)
        return shown.model_copy(update={"state": Progress.FAILED, "message": gone, "failure": failure})
    if told is None:
        return shown
    named = sorted(((run, window) for run in runs if (window := range_of(run.tags)) is not None), key=lambda one: one[1].start)
    windows = [window for _, window in named]
    message = watched.errors.get(table, part.message)
    ended = [run for run in runs if run.progress not in (Progress.QUEUED, Progress.RUNNING)]
    if len(runs) > 1:
        message = f"{message}; {len(ended)} of {len(runs)} chunks have ended"
    state = told.progress
    if state is Progress.QUEUED and ended:
        state = Progress.RUNNING
    elif state is Progress.SUCCESS and part.error:
        # Some of its chunks could not be launched.
        state = Progress.FAILED
    return shown.model_copy(
        update={
            "state": state,
            "partitions": str(DayRange(min(w.start for w in windows), max(w.end for w in windows))) if windows else None,
            "rows": watched.rows.get(table),
            "message": message,
            "reasons": [DaysToRead.of(one) for run, window in named for one in Reasons.of_run(run.tags, window).days] or None,
            "failure": Failure.of(_cause(watched.causes.get(table), state), message, shown.run_url) if state in NOT_WELL else None,
            "started_at": min((run.started_at for run in runs if run.started_at is not None), default=None),
            "finished_at": max((run.ended_at for run in ended if run.ended_at is not None), default=None)
            if len(ended) == len(runs)
            else None,
        }
    )


def _cause(kept: Cause | None, state: Progress) -> Cause:
    """The cause of a run's end. If the history has no cause, the run was canceled or lost its process."""
    return kept or (Cause.CANCELLED if state is Progress.CANCELED else Cause.ABANDONED)


def telling(runs: Sequence[Run]) -> Run | None:
    """The run to show for a table. First choice is a running one, then a queued one, then a failed one, then any."""
    order = (Progress.RUNNING, Progress.QUEUED, Progress.FAILED, Progress.CANCELED, Progress.SUCCESS)
    return min(runs, key=lambda run: order.index(run.progress), default=None)


class Refreshes:
    """Launches refreshes, and reports their progress."""

    def __init__(
        self, settings: Settings, database: Database, dagster: DagsterClient, reader: StatusReader, tables: Mapping[str, TableSpec]
    ) -> None:
        self.settings = settings
        self.database = database
        self.dagster = dagster
        self.reader = reader
        self.tables = tables
        self.planner = Planner.of(settings, tables)
        self._table = database.refreshes
        # A request that waits for its turn must not hold a connection that other requests need.
        self._launching = asyncio.Lock()

    async def launch(self, asked: RefreshRequest) -> Refresh:
        """Plans each table and launches its run. If an identical refresh is already running, returns that one.

        Raises PlanError, BudgetExceeded (unless forced), DagsterUnavailable and DatabaseUnavailable; nothing is launched then.
        """
        async with self._launching, self.database.connection() as conn, conn.transaction():
            # One launch at a time over all processes, so that two identical requests find each other. This is a lock of the table,
            # because every login of the database could take an advisory lock. A login that may only read cannot take this one.
            await conn.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(self._table))
            if (same := await self._same_under_way(conn, asked)) is not None:
                return same
            await asyncio.to_thread(self.planner.admit, asked)
            marks = watermarks_of(await self.database.states(conn))
            plans = self.planner.plans(asked, marks, datetime.now(UTC))
            under_way = joined(asked, plans, await self.dagster.runs_under_way(), self.tables)
            pipeline_id = uuid.uuid4().hex
            parts = await self._launch_parts(pipeline_id, asked, plans, under_way)
            requested_at = await self._remember(conn, pipeline_id, asked, parts)
        launched = Launched(pipeline_id, parts, asked.asked_by, requested_at)
        for table, part in parts.items():
            came_of_it = part.run_id or part.message
            name = self.tables[table].asset_name
            audit.info("%s asked for %s of %s: %s (refresh %s)", asked.asked_by, asked.mode, name, came_of_it, pipeline_id)
        return self._told(launched, Watched({table: [under_way[table]] for table, part in parts.items() if part.joined}))

    async def _launch_parts(
        self, pipeline_id: str, asked: RefreshRequest, plans: Sequence[RefreshPlan], under_way: Mapping[str, Run]
    ) -> dict[str, LaunchedPart]:
        parts: dict[str, LaunchedPart] = {}
        to_launch: dict[str, RefreshPlan] = {}
        for plan in plans:
            if plan.window is None:
                parts[plan.table] = LaunchedPart(None, plan.reason)
            elif (run := under_way.get(plan.table)) is not None:
                parts[plan.table] = LaunchedPart(run.run_id, "a run of this table was already going on", joined=True)
            else:
                to_launch[plan.table] = plan
        wanted = launches(self.tables, to_launch.values())
        runs: dict[str, list[Launch]] = defaultdict(list)
        for launch in in_slots(wanted, pipeline_id, asked.max_concurrent):
            runs[launch.spec.name].append(launch)
        launched = await asyncio.gather(
            *(self._launch_part(runs[table], plan.reason) for table, plan in to_launch.items()), return_exceptions=True
        )
        lost = [part for part in launched if isinstance(part, DagsterUnavailable)]
        for table, part in zip(to_launch, launched, strict=True):
            if isinstance(part, BaseException) and not isinstance(part, DagsterUnavailable):
                raise part
            parts[table] = part if isinstance(part, LaunchedPart) else LaunchedPart(None, str(part), error=True)
        if lost and len(lost) == len(to_launch):
            raise lost[0]
        return {table: parts[table] for table in asked.tables}

    async def _launch_part(self, wanted: Sequence[Launch], reason: str) -> LaunchedPart:
        """Launches a table's chunks, the newest days first. Raises DagsterUnavailable if the first chunk cannot be launched."""
        run_ids: list[str] = []
        for launch in wanted:
            try:
                run_ids.append(await self.dagster.launch(launch))
            except (LaunchRefused, DagsterUnavailable) as error:
                if not run_ids and isinstance(error, DagsterUnavailable):
                    raise
                left = f"{len(run_ids)} of {len(wanted)} chunks are launched: " if len(wanted) > 1 else ""
                return LaunchedPart(run_ids[0] if run_ids else None, f"{left}{error}", error=True, more=run_ids[1:])
        return LaunchedPart(run_ids[0], reason, more=run_ids[1:])

    async def _remember(
        self, conn: psycopg.AsyncConnection, pipeline_id: str, asked: RefreshRequest, parts: Mapping[str, LaunchedPart]
    ) -> datetime:
        cursor = await conn.execute(
            sql.SQL(
                "INSERT INTO {} (pipeline_id, fingerprint, request, runs, requested_by) VALUES (%s, %s, %s, %s, %s) "
                "RETURNING requested_at"
            ).format(self._table),
            (
                pipeline_id,
                asked.fingerprint,
                Jsonb(asked.as_json()),
                Jsonb({table: asdict(part) for table, part in parts.items()}),
                asked.asked_by,
            ),
        )
        row = await cursor.fetchone()
        assert row is not None
        requested_at: datetime = row[0]
        return requested_at

    async def _same_under_way(self, conn: psycopg.AsyncConnection, asked: RefreshRequest) -> Refresh | None:
        since = datetime.now(UTC) - RECENT
        found = await self._find(conn, sql.SQL("fingerprint = %s AND requested_at > %s"), (asked.fingerprint, since))
        if found is None or not found.run_ids:
            return None
        told = self._told(found, await self._watch(conn, found))
        return told.model_copy(update={"already_running": True}) if told.status is RefreshState.RUNNING else None

    async def _find(self, conn: psycopg.AsyncConnection, condition: sql.SQL, values: tuple[Any, ...]) -> Launched | None:
        cursor = await conn.execute(
            sql.SQL("SELECT pipeline_id, runs, requested_by, requested_at FROM {} WHERE {} ORDER BY id DESC LIMIT 1").format(
                self._table, condition
            ),
            values,
        )
        row = await cursor.fetchone()
        return None if row is None else Launched.of(row)

    async def progress(self, pipeline_id: str) -> Refresh | None:
        """The progress of the refresh; None if it is unknown. Raises DagsterUnavailable and DatabaseUnavailable."""
        async with self.database.connection() as conn:
            found = await self._find(conn, sql.SQL("pipeline_id = %s"), (pipeline_id,))
            return None if found is None else self._told(found, await self._watch(conn, found))

    async def newest(self, limit: int) -> list[RefreshSummary]:
        """The newest refreshes. Raises DagsterUnavailable and DatabaseUnavailable."""
        async with self.database.connection() as conn:
            cursor = await conn.execute(
                sql.SQL("SELECT pipeline_id, runs, requested_by, requested_at FROM {} ORDER BY id DESC LIMIT %s").format(
                    self._table
                ),
                (limit,),
            )
            found = [Launched.of(row) for row in await cursor.fetchall()]
        under_way = await self.dagster.runs_under_way()
        ids = {run.run_id for run in under_way if is_of(run.tags, self.settings.owner.tenant)}
        again = {run.tags.get(PIPELINE_TAG) for run in under_way}
        base = route(self.settings.owner.tenant)
        return [
            RefreshSummary(
                pipeline_id=one.pipeline_id,
                tables_requested=list(one.parts),
                running=one.pipeline_id in again or not ids.isdisjoint(one.run_ids),
                started_at=one.requested_at,
                status_url=f"{base}{ROUTE}/{one.pipeline_id}",
                requested_by=one.requested_by,
                reasons={table: part.message for table, part in one.parts.items()},
            )
            for one in found
        ]

    async def end(self, refresh: Refresh, by: str) -> Refresh:
        """Ends the refresh's own runs that wait or go on. Raises DagsterUnavailable and DatabaseUnavailable."""
        tenant = self.settings.owner.tenant
        own = await self.dagster.runs(tags=[{"key": PIPELINE_TAG, "value": refresh.pipeline_id}])
        for run in own:
            if run.progress in (Progress.QUEUED, Progress.RUNNING) and is_of(run.tags, tenant):
                audit.info("%s ends run %s of refresh %s", by, run.run_id, refresh.pipeline_id)
                await self.dagster.terminate(run.run_id)
        return await self.progress(refresh.pipeline_id) or refresh

    def _told(self, launched: Launched, watched: Watched) -> Refresh:
        return progress(launched, watched, self.settings.dagster_ui_url, route(self.settings.owner.tenant))

    async def _watch(self, conn: psycopg.AsyncConnection, launched: Launched) -> Watched:
        """Reads the state of the refresh's runs, and of runs that Dagster launched again after a crash."""
        if not launched.run_ids:
            return Watched()
        own, named = await asyncio.gather(
            self.dagster.runs(tags=[{"key": PIPELINE_TAG, "value": launched.pipeline_id}]),
            self.dagster.runs(runIds=launched.run_ids),
        )
        newest = newest_runs(launched, [*own, *named], self.settings.owner.tenant)
        every = [run.run_id for runs in newest.values() for run in runs]
        copied = await self.reader.rows_copied(conn)
        cursor = await conn.execute(
            sql.SQL(
                "SELECT DISTINCT ON (table_name, extraction_id) table_name, extraction_id, records_extracted, error_message, "
                "error_cause, status = 'success' FROM {} WHERE extraction_id = ANY(%s) ORDER BY table_name, extraction_id, id DESC"
            ).format(self.database.marks.history),
            (every,),
        )
        ended = {(table, run_id): told for table, run_id, *told in await cursor.fetchall()}
        rows: dict[str, int] = {}
        errors: dict[str, str] = {}
        causes: dict[str, Cause] = {}
        for table, runs in newest.items():
            if any(run.progress is Progress.RUNNING for run in runs) and table in copied:
                rows[table] = copied[table]
            for place, run in enumerate(runs):
                records, error, cause, loaded = ended.get((table, run.run_id), (None, None, None, False))
                if records is not None:
                    rows[table] = rows.get(table, 0) + int(records)
                runs[place] = as_it_loaded(run, loaded)
                if error is not None and run.progress in NOT_WELL:
                    causes.setdefault(table, Cause.of(cause))
                if run.progress is Progress.FAILED and table not in errors:
                    reason = error or await self.dagster.failure(run.run_id)
                    errors[table] = f"{ENDED_LATER}: {reason}" if loaded else reason or "the run failed; see its page in Dagster"
                elif run.progress is Progress.CANCELED and loaded:
                    errors.setdefault(table, ENDED_LATER)
        return Watched(newest, rows, errors, causes, asked=True)


def as_it_loaded(run: Run, loaded: bool) -> Run:
    """The run, as a success if its last attempt has `loaded` the table. A later failure or cancel of the run does not undo
    the load."""
    ended = run.progress in (Progress.FAILED, Progress.CANCELED)
    return replace(run, status=RunStatus.SUCCESS) if loaded and ended else run


def newest_runs(launched: Launched, runs: Iterable[Run], tenant: str = "") -> dict[str, list[Run]]:
    """The newest run of each chunk of each table: the run of the launch, or the run that replaced it after a crash.

    Only runs of the tenant count, because the ids come from a table that the tenant's own role may write to.
    """
    newest: dict[str, dict[DayRange | None, Run]] = defaultdict(dict)
    for run in sorted((run for run in runs if is_of(run.tags, tenant)), key=lambda run: run.created_at):
        own = run.tags.get(PIPELINE_TAG) == launched.pipeline_id
        for table, part in launched.parts.items():
            if run.run_id in part.run_ids or (own and run.tags.get(TABLE_TAG) == table):
                newest[table][range_of(run.tags)] = run
    return {table: list(by_window.values()) for table, by_window in newest.items()}
