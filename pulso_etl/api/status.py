"""The state of the tables. It is read at most once a second for all callers, and changes go to all listeners."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from time import monotonic
from typing import Any

import psycopg
from psycopg import sql

from pulso_etl.api.dagster_client import DagsterClient, DagsterUnavailable, Run
from pulso_etl.api.database import Database, DatabaseUnavailable
from pulso_etl.api.models import (
    DayState,
    Extraction,
    Failure,
    Fault,
    LastStatus,
    Overall,
    PartitionStatus,
    Progress,
    RunUnderWay,
    Status,
    TableDetail,
    TableStatus,
)
from pulso_etl.refreshing.due import MEMORY, Rhythm, Standing, decide_due
from pulso_etl.refreshing.freshness import FreshnessState, freshness
from pulso_etl.refreshing.ranges import range_of
from pulso_etl.refreshing.runs import refreshed_tables
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger.locks import HELD_LOCKS, table_lock
from pulso_etl.sync.ledger.watermarks import TableState
from pulso_etl.sync.redaction import scrub
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.zone import DEFAULT_ZONE

SHOWN = 20
"""Length of a list of extractions."""
CALENDAR_DAYS = 30
MAXIMUM_AGE = 1.0
"""Seconds for which all callers get the same snapshot."""
EXTRACTION_COLUMNS = sql.SQL(
    "table_name, extraction_id, attempt, status, partition_start, partition_end, started_at, finished_at, "
    "extraction_duration_seconds, records_extracted, metadata, error_message, error_cause"
)
COPIES = f"""
SELECT key, tuples_processed FROM ({HELD_LOCKS}) AS held JOIN pg_stat_progress_copy USING (pid) WHERE command = 'COPY FROM'
"""  # noqa: S608 - made of constants
"""Rows that each load has copied so far, by the key of its table's lock."""


@dataclass(frozen=True)
class Look:
    """What all tables of one snapshot share: the instant, the rhythm, and the address of Dagster's UI."""

    now: datetime
    rhythm: Rhythm
    ui_url: str


def status_of(spec: TableSpec, state: TableState | None, run: Run | None, rows: int | None, look: Look) -> TableStatus:
    """The status of one table, from its row of watermarks, the run that goes on (if any), and the rows that this run has copied."""
    if state is None:
        return TableStatus(
            table=spec.name,
            title=spec.title or spec.name,
            subtitle=spec.subtitle or spec.description,
            description=spec.description,
            group=spec.group,
            status=LastStatus.NEVER,
            freshness=FreshnessState.NEVER,
            refresh_every_seconds=int(spec.schedule.refresh_every.total_seconds()),
            run_under_way=_under_way(run, None, None),
        )
    watermark = state.watermark
    decision = decide_due(spec, Standing(watermark, state.attempts), look.now, look.rhythm)
    fresh = freshness(spec, watermark, look.now)
    return TableStatus(
        table=spec.name,
        title=spec.title or spec.name,
        subtitle=spec.subtitle or spec.description,
        description=spec.description,
        group=spec.group,
        status=LastStatus(state.status),
        freshness=fresh.state,
        age_seconds=None if fresh.since is None else round((look.now - fresh.since).total_seconds(), 1),
        refresh_every_seconds=int(spec.schedule.refresh_every.total_seconds()),
        last_extracted_at=fresh.since,
        last_partition=watermark.last_partition,
        data_version=state.data_version,
        records=state.records,
        duration_seconds=state.seconds,
        bytes_billed=_integer(state.metadata.get("bytes_billed")),
        estimated_cost_usd=state.metadata.get("estimated_cost_usd"),
        run_id=state.extraction_id,
        rows_lost=state.lost.rows if state.lost else None,
        partitions_lost=str(state.lost.window) if state.lost else None,
        restored_by=state.lost.command(spec) if state.lost else None,
        run_under_way=_under_way(run, state, rows),
        next_due=decision.due,
        recovery_attempts=state.recovery_attempts,
        error=state.error,
        failure=None
        if state.cause is None
        else Failure.of(state.cause, state.error or "", run_url(look.ui_url, state.extraction_id)),
    )


def _under_way(run: Run | None, state: TableState | None, rows: int | None) -> RunUnderWay | None:
    if run is not None:
        window = range_of(run.tags)
        return RunUnderWay(
            run_id=run.run_id, state=run.progress, partitions=window and str(window), rows=rows, started_at=run.started_at
        )
    if state is not None and state.running:
        # Dagster does not answer or does not know the run. The watermark shows that a load is running.
        load = state.running[0]
        return RunUnderWay(
            run_id=load.run_id, state=Progress.RUNNING, partitions=str(load.window), rows=rows, started_at=load.started_at
        )
    return None


def runs_by_table(runs: Iterable[Run], tables: Mapping[str, TableSpec]) -> dict[str, Run]:
    """The current run of each table, if it has one. A running run comes before a queued run, then the oldest comes first."""
    found: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: (run.progress is Progress.QUEUED, run.created_at)):
        for table in refreshed_tables(run, tables):
            found.setdefault(table, run)
    return found


def overall(
    tables: Sequence[TableStatus], recent: Sequence[Extraction], now: datetime, *, dagster: bool, timezone: str = DEFAULT_ZONE
) -> Status:
    """The state of all tables together."""
    updates = [table.last_extracted_at for table in tables if table.last_extracted_at is not None]
    by_status = Counter(table.status for table in tables)
    troubled = any(table.status is LastStatus.FAILED or table.freshness is FreshnessState.STALE for table in tables)
    return Status(
        status=Overall.UNREACHABLE if not dagster else Overall.DEGRADED if troubled else Overall.OK,
        last_updated=max(updates, default=None),
        generated_at=now,
        timezone=timezone,
        dagster=dagster,
        total_tables=len(tables),
        successes=by_status[LastStatus.SUCCESS],
        failures=by_status[LastStatus.FAILED],
        running=sum(table.run_under_way is not None for table in tables),
        tables=list(tables),
        recent_activity=list(recent),
    )


def run_url(ui_url: str, run_id: str | None) -> str | None:
    """The address of the run's page in Dagster's UI at `ui_url`."""
    return f"{ui_url}/runs/{run_id}" if run_id else None


def extraction(row: Sequence[Any], ui_url: str) -> Extraction:
    """An attempt from its row of `etl_extractions`, whose columns are EXTRACTION_COLUMNS."""
    table, run_id, attempt, status, start, end, started, finished, seconds, records, metadata, error, cause = row
    failed = LastStatus(status) is LastStatus.FAILED
    return Extraction(
        table=table,
        run_id=run_id,
        attempt=attempt,
        status=LastStatus(status),
        partitions=str(DayRange(start, end)),
        started_at=started,
        finished_at=finished,
        duration_seconds=seconds,
        records=records,
        **{name: _integer(metadata.get(f"rows_{name}")) for name in ("inserted", "updated", "unchanged", "deleted")},
        bytes_billed=_integer(metadata.get("bytes_billed")),
        estimated_cost_usd=metadata.get("estimated_cost_usd"),
        error=error,
        failure=Failure.of(Cause.of(cause), error or "", run_url(ui_url, run_id)) if failed else None,
    )


def calendar(today: date, attempts: Iterable[tuple[date, date, str, datetime, str]]) -> list[PartitionStatus]:
    """The last days up to `today`. `attempts` (first day, last day, status, end, run) come oldest first; the last one counts."""
    shown = DayRange(today - timedelta(days=CALENDAR_DAYS - 1), today)
    days = {day: PartitionStatus(day=day, state=DayState.MISSING) for day in shown}
    for start, end, status, finished, run_id in attempts:
        state = DayState.LOADED if status == "success" else DayState.FAILED
        for day in shown:
            if start <= day <= end:
                days[day] = PartitionStatus(day=day, state=state, loaded_at=finished, run_id=run_id)
    return list(days.values())


def _integer(value: Any) -> int | None:
    return None if value is None else int(value)


@dataclass(frozen=True)
class Snapshot:
    """The state at one instant, also as JSON."""

    status: Status
    json: bytes
    taken: float = field(default_factory=monotonic)


class StatusReader:
    """Reads the state from PostgreSQL and Dagster."""

    def __init__(self, settings: Settings, database: Database, dagster: DagsterClient, tables: Mapping[str, TableSpec]) -> None:
        self.settings = settings
        self.database = database
        self.dagster = dagster
        self.tables = tables
        self.rhythm = Rhythm.of(settings)
        self._locks = {table_lock(database.schema, table): table for table in tables}

    async def snapshot(self) -> Snapshot:
        """The state now. If Dagster does not answer, it has only what PostgreSQL knows. Raises DatabaseUnavailable."""
        now = datetime.now(UTC)
        runs_under_way = asyncio.ensure_future(self.dagster.runs_under_way())
        try:
            async with self.database.connection() as conn:
                states = await self.database.states(conn, now - MEMORY)
                recent = await self._extractions(conn)
                copied = await self.rows_copied(conn)
        except BaseException:
            runs_under_way.cancel()
            raise
        try:
            runs, reached = runs_by_table(await runs_under_way, self.tables), True
        except DagsterUnavailable:
            runs, reached = {}, False
        look = Look(now, self.rhythm, self.settings.dagster_ui_url)
        told = [status_of(spec, states.get(name), runs.get(name), copied.get(name), look) for name, spec in self.tables.items()]
        status = overall(told, recent, now, dagster=reached, timezone=self.settings.timezone)
        return Snapshot(status, status.model_dump_json().encode())

    async def detail(self, status: TableStatus) -> TableDetail:
        """The table's status and history. Raises DatabaseUnavailable."""
        today = self.settings.zone.day(datetime.now(UTC))
        # No attempt can load a day before the day begins.
        since = today - timedelta(days=CALENDAR_DAYS)
        query = sql.SQL(
            "SELECT partition_start, partition_end, status, finished_at, extraction_id FROM {} "
            "WHERE table_name = %s AND finished_at >= %s ORDER BY id"
        ).format(self.database.marks.history)
        async with self.database.connection() as conn:
            cursor = await conn.execute(query, (status.table, since))
            attempts = await cursor.fetchall()
            extractions = await self._extractions(conn, status.table)
        return TableDetail(
            table=status,
            extractions=extractions,
            recovery_attempts=status.recovery_attempts,
            partitions=calendar(today, attempts),
        )

    async def _extractions(self, conn: psycopg.AsyncConnection, table: str | None = None) -> list[Extraction]:
        query = sql.SQL("SELECT {} FROM {} {} ORDER BY id DESC LIMIT {}").format(
            EXTRACTION_COLUMNS,
            self.database.marks.history,
            sql.SQL("WHERE table_name = {}").format(table) if table else sql.SQL(""),
            SHOWN,
        )
        return [extraction(row, self.settings.dagster_ui_url) for row in await (await conn.execute(query)).fetchall()]

    async def rows_copied(self, conn: psycopg.AsyncConnection) -> dict[str, int]:
        """Rows that the running loads have copied so far, by table."""
        role = self.settings.owner.database_role
        if role:
            # The loads are other sessions of the login, and a role cannot see those.
            await conn.execute("SET ROLE NONE")
        try:
            rows = await (await conn.execute(COPIES)).fetchall()
        finally:
            if role:
                await conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        found: Counter[str] = Counter()
        for key, copied in rows:
            if key in self._locks:
                found[self._locks[key]] += copied
        return dict(found)


def _fault(error: DatabaseUnavailable) -> Fault:
    told = scrub(str(error))
    return Fault(detail=told, failure=Failure.of(error.cause, told))


def change_key(table: TableStatus) -> TableStatus:
    """The table without the age, which changes all the time."""
    return table.model_copy(update={"age_seconds": None})


class StatusFeed:
    """Gives one snapshot to all callers of the same second, and the changes to all listeners."""

    def __init__(self, read: Callable[[], Coroutine[Any, Any, Snapshot]]) -> None:
        self._read = read
        self._last: Snapshot | None = None
        self._reading: asyncio.Task[Snapshot] | None = None

    async def current(self, maximum_age: float = MAXIMUM_AGE) -> Snapshot:
        """A snapshot that is at most `maximum_age` seconds old. Raises DatabaseUnavailable."""
        if self._last is not None and monotonic() - self._last.taken < maximum_age:
            return self._last
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        # Shielded: a caller who goes away must not cancel the reading of the others.
        self._last = await asyncio.shield(self._reading)
        return self._last

    def forget(self) -> None:
        """Makes the next caller get a new snapshot, because something has changed."""
        self._last = None

    async def events(self, interval: float = MAXIMUM_AGE) -> AsyncIterator[tuple[str, str]]:
        """Names and JSON data of events: `status` first and when the summary changes, else `table` for each changed table, and
        `unavailable` when PostgreSQL goes away."""
        known: dict[str, TableStatus] = {}
        whole: object = None
        while True:
            try:
                status = (await self.current(interval)).status
            except DatabaseUnavailable as error:
                if whole != "unavailable":
                    whole = "unavailable"
                    yield "unavailable", _fault(error).model_dump_json()
            else:
                told = (status.status, status.successes, status.failures, status.running, status.last_updated)
                changed = [table for table in status.tables if known.get(table.table) != change_key(table)]
                known = {table.table: change_key(table) for table in status.tables}
                if told != whole:
                    whole = told
                    yield "status", status.model_dump_json()
                else:
                    for table in changed:
                        yield "table", table.model_dump_json()
            await asyncio.sleep(interval)
