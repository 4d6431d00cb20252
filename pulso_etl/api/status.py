"""The state of the tables. It is read at most once a second for all callers, and changes go to all listeners."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from statistics import median
from time import monotonic
from typing import Any

import psycopg
from psycopg import sql
from pydantic import BaseModel

from pulso_etl.api.changes import MOST_KEYS, ChangedKeys, Keys
from pulso_etl.api.dagster_client import Daemon, DagsterClient, DagsterUnavailable, Present, Run
from pulso_etl.api.database import Database, DatabaseUnavailable
from pulso_etl.api.holdings import Holding, Holdings
from pulso_etl.api.models import (
    Costs,
    DataChange,
    DayCheck,
    DayState,
    Extraction,
    Fault,
    LastStatus,
    Overall,
    PartitionStatus,
    RunUnderWay,
    SourceToFresh,
    Status,
    TableDetail,
    TableStatus,
)
from pulso_etl.api.shapes import Failure, Progress
from pulso_etl.api.spending import Spendings
from pulso_etl.api.waits import Waits
from pulso_etl.automation.preview_shapes import DaysToRead
from pulso_etl.refreshing.budget import QueryBudget
from pulso_etl.refreshing.due import MEMORY, Rhythm, Standing, decide_due
from pulso_etl.refreshing.freshness import Condition, freshness
from pulso_etl.refreshing.lost_runs import attempt_of
from pulso_etl.refreshing.ranges import range_of
from pulso_etl.refreshing.runs import refreshed_tables, tenant_of
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger.changes import Changes
from pulso_etl.sync.ledger.locks import HELD_LOCKS, table_lock
from pulso_etl.sync.ledger.undoings import is_undoing
from pulso_etl.sync.ledger.watermarks import Attempt, TableState
from pulso_etl.sync.reasons import Reasons
from pulso_etl.sync.redaction import scrub
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.tags import PIPELINE_TAG, SKIPPED_TAG, TENANT_TAG
from pulso_etl.sync.zone import DEFAULT_ZONE

SHOWN = 20
"""Length of a list of extractions."""
CALENDAR_DAYS = 30
NO_REASON = "the run ended before its load began; see its page in Dagster"
SENSOR_SECONDS = 10.0
"""How often Dagster is asked whether the refresh sensor is on."""
MAXIMUM_AGE = 1.0
"""Seconds for which all callers get the same snapshot."""
EXTRACTION_COLUMNS = sql.SQL(
    "table_name, extraction_id, attempt, status, partition_start, partition_end, started_at, finished_at, "
    "extraction_duration_seconds, records_extracted, metadata, error_message, error_cause, id"
)
FINISHED = 7
"""The place of `finished_at` in these columns."""
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


@dataclass(frozen=True)
class Beside:
    """What is known of a table beside its row of watermarks: runs of Dagster that failed without an attempt, what it holds, what
    its queries used, and how long its readers wait for changes of the source."""

    lost: Sequence[Attempt] = ()
    holding: Holding = field(default_factory=Holding)
    costs: Costs | None = None
    waits: SourceToFresh | None = None


NOTHING = Beside()


def status_of(
    spec: TableSpec, state: TableState | None, run: Run | None, rows: int | None, look: Look, beside: Beside = NOTHING
) -> TableStatus:
    """The status of one table, from its row of watermarks, the run that goes on (if any), and the rows that this run has copied."""
    watermark = state.watermark if state else None
    lost = [attempt for attempt in beside.lost if not attempt.withdrawn]
    attempts = (*(state.attempts if state else ()), *lost)
    decision = decide_due(spec, Standing(watermark, attempts), look.now, look.rhythm)
    fresh = freshness(spec, watermark, look.now)
    ended = _last_lost(state, lost)
    last = LastStatus.FAILED if ended else LastStatus(state.status) if state else LastStatus.NEVER
    failed = last is LastStatus.FAILED or bool(decision.failures)
    failure = _failure(state, ended, decision.failures, look.ui_url) if failed else None
    holding = beside.holding
    common = TableStatus(
        table=spec.name,
        title=spec.title or spec.name,
        subtitle=spec.subtitle or spec.description,
        description=spec.description,
        group=spec.group,
        state=fresh.condition(failed=failed),
        status=last,
        freshness=fresh.state,
        age_seconds=None if fresh.since is None else round((look.now - fresh.since).total_seconds(), 1),
        refresh_every_seconds=int(spec.schedule.refresh_every.total_seconds()),
        last_extracted_at=fresh.since,
        due_at=fresh.due_at,
        stale_after=fresh.stale_after,
        data_until=_data_until(holding, fresh.since),
        rows=holding.rows,
        source_to_fresh=beside.waits,
        last_load=None if holding.last_load is None else extraction(holding.last_load, look.ui_url),
        run_under_way=_under_way(run, state, rows, {attempt.run_id for attempt in beside.lost}),
        run_id=ended.run_id if ended else None,
        next_due=decision.due,
        error=failure and failure.message,
        failure=failure,
        costs=beside.costs,
    )
    if state is None:
        return common
    return common.model_copy(
        update={
            "last_partition": state.last_partition,
            "data_version": state.data_version,
            "records": state.records,
            "duration_seconds": state.seconds,
            "bytes_billed": _integer(state.metadata.get("bytes_billed")),
            "bytes_avoided": _integer(state.metadata.get("bytes_avoided")),
            "estimated_cost_usd": state.metadata.get("estimated_cost_usd"),
            "run_id": ended.run_id if ended else state.extraction_id,
            "rows_lost": state.lost.rows if state.lost else None,
            "partitions_lost": str(state.lost.window) if state.lost else None,
            "restored_by": state.lost.command(spec) if state.lost else None,
            "recovery_attempts": state.recovery_attempts,
            "held_until": state.held_until,
        }
    )


def _data_until(holding: Holding, since: datetime | None) -> datetime | None:
    """How far the rows reach. Hours that the source gives before they have come do not count."""
    if holding.reaches is None or holding.last_load is None:
        return since
    finished: datetime = holding.last_load[FINISHED]
    return min(holding.reaches, finished)


def _last_lost(state: TableState | None, lost: Sequence[Attempt]) -> Attempt | None:
    """The run of Dagster that failed without an attempt, if nothing has happened to the table since."""
    last = max(lost, key=lambda attempt: attempt.finished_at, default=None)
    return last if last and (state is None or last.finished_at > state.updated_at) else None


def _failure(state: TableState | None, ended: Attempt | None, failures: Sequence[Attempt], ui_url: str) -> Failure:
    """Why the table is failed: the end of its last run, else of its last attempt, else of the last one that was not made good."""
    if ended is None and state is not None and state.cause is not None:
        return Failure.of(state.cause, state.error or "", run_url(ui_url, state.extraction_id))
    told = ended or (failures[-1] if failures else None)
    cause = told and told.cause
    return Failure.of(cause or Cause.UNKNOWN, (told and told.error) or "", run_url(ui_url, told.run_id if told else None))


def _under_way(run: Run | None, state: TableState | None, rows: int | None, ended: Container[str]) -> RunUnderWay | None:
    if run is not None:
        window = range_of(run.tags)
        return RunUnderWay(
            run_id=run.run_id,
            state=run.progress,
            pipeline_id=run.tags.get(PIPELINE_TAG),
            partitions=window and str(window),
            rows=rows,
            started_at=run.started_at,
        )
    loads = [load for load in state.running if load.run_id not in ended] if state is not None else []
    if loads:
        # Dagster does not answer or does not know the run. The watermark shows that a load is running.
        load = loads[0]
        return RunUnderWay(
            run_id=load.run_id, state=Progress.RUNNING, partitions=str(load.window), rows=rows, started_at=load.started_at
        )
    return None


def lost_attempts(
    failed: Iterable[Run], states: Mapping[str, TableState], tables: Mapping[str, TableSpec]
) -> dict[str, list[Attempt]]:
    """By table, the failed runs of Dagster that wrote no attempt, as attempts. A run of several tables counts for all of them, but
    only if it died before the first of them began: later, a table without an attempt may have been left out as fresh."""
    known = {name: {attempt.run_id for attempt in state.attempts} for name, state in states.items()}
    found: dict[str, list[Attempt]] = defaultdict(list)
    for run in failed:
        names = [name for name in refreshed_tables(run, tables) if name in tables]
        began = any(run.run_id in known.get(name, ()) for name in tables)
        if began or run.ended is None or SKIPPED_TAG in run.tags:
            continue
        for name in names:
            if (attempt := attempt_of(run.ended, tables[name])) is not None:
                found[name].append(replace(attempt, metadata=Reasons.of_run(run.tags, attempt.window).as_metadata()))
    return dict(found)


def _run_ids(lost: Mapping[str, Sequence[Attempt]]) -> set[str]:
    return {attempt.run_id for attempts in lost.values() for attempt in attempts}


def _newest(extractions: Iterable[Extraction], limit: int = SHOWN) -> list[Extraction]:
    return sorted(extractions, key=lambda one: one.finished_at, reverse=True)[:limit]


def _window(one: Extraction) -> tuple[date, date]:
    first, _, last = one.partitions.partition("..")
    window = DayRange.parse(first, last or first)
    return window.start, window.end


def runs_by_table(runs: Iterable[Run], tables: Mapping[str, TableSpec]) -> dict[str, Run]:
    """The current run of each table, if it has one. A running run comes before a queued run, then the oldest comes first."""
    found: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: (run.progress is Progress.QUEUED, run.created_at)):
        for table in refreshed_tables(run, tables):
            found.setdefault(table, run)
    return found


def overall(
    tables: Sequence[TableStatus],
    recent: Sequence[Extraction],
    now: datetime,
    *,
    dagster: bool,
    daemon: Daemon | None = None,
    timezone: str = DEFAULT_ZONE,
) -> Status:
    """The state of all tables together."""
    updates = [table.last_extracted_at for table in tables if table.last_extracted_at is not None]
    by_status = Counter(table.status for table in tables)
    by_state = Counter(table.state for table in tables)
    silent = daemon is not None and bool(daemon.late(now))
    troubled = silent or not all(table.state.is_well for table in tables)
    return Status(
        status=Overall.UNREACHABLE if not dagster else Overall.DEGRADED if troubled else Overall.OK,
        last_updated=max(updates, default=None),
        oldest_update=min(updates, default=None),
        generated_at=now,
        timezone=timezone,
        dagster=dagster,
        daemon=None if daemon is None else not silent,
        daemon_seen_at=None if daemon is None else daemon.last_beat,
        total_tables=len(tables),
        states={state: by_state[state] for state in Condition},
        successes=by_status[LastStatus.SUCCESS],
        failures=by_status[LastStatus.FAILED],
        running=sum(table.run_under_way is not None for table in tables),
        tables=list(tables),
        recent_activity=list(recent),
    )


def run_url(ui_url: str, run_id: str | None) -> str | None:
    """The address of the run's page in Dagster's UI at `ui_url`. An undoing has none."""
    return f"{ui_url}/runs/{run_id}" if run_id and not is_undoing(run_id) else None


def extraction(row: Sequence[Any], ui_url: str) -> Extraction:
    """An attempt from its row of `etl_extractions`, whose columns are EXTRACTION_COLUMNS."""
    table, run_id, attempt, status, start, end, started, finished, seconds, records, metadata, error, cause, *place = row
    failed = LastStatus(status) is LastStatus.FAILED
    return Extraction(
        id=place[0] if place else None,
        table=table,
        run_id=run_id,
        run_url=run_url(ui_url, run_id),
        attempt=attempt,
        status=LastStatus(status),
        partitions=str(DayRange(start, end)),
        started_at=started,
        finished_at=finished,
        duration_seconds=seconds,
        records=records,
        **{name: _integer(metadata.get(f"rows_{name}")) for name in ("inserted", "updated", "unchanged", "deleted")},
        bytes_billed=_integer(metadata.get("bytes_billed")),
        bytes_avoided=_integer(metadata.get("bytes_avoided")),
        estimated_cost_usd=metadata.get("estimated_cost_usd"),
        error=error,
        failure=Failure.of(Cause.of(cause), error or "", run_url(ui_url, run_id)) if failed else None,
        load_id=_integer(metadata.get("load_id")),
        undoes=_integer(metadata.get("undoes")),
        **_why(metadata),
    )


def _why(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Why the attempt was made, as the fields of `Extraction`."""
    reasons = Reasons.of_metadata(metadata)
    return {"reason": reasons.plan, "reasons": [DaysToRead.of(one) for one in reasons.days]} if reasons else {}


def lost_extraction(table: str, attempt: Attempt, ui_url: str) -> Extraction:
    """An attempt from a run of Dagster that died before its load began."""
    return Extraction(
        table=table,
        run_id=attempt.run_id,
        run_url=run_url(ui_url, attempt.run_id),
        attempt=0,
        status=LastStatus.FAILED,
        partitions=str(attempt.window),
        started_at=attempt.started_at,
        finished_at=attempt.finished_at,
        duration_seconds=round((attempt.finished_at - attempt.started_at).total_seconds(), 3),
        records=None,
        error=attempt.error,
        failure=Failure.of(attempt.cause or Cause.UNKNOWN, attempt.error or "", run_url(ui_url, attempt.run_id)),
        **_why(attempt.metadata),
    )


@dataclass(frozen=True)
class DayHeld:
    """A day of the ledger: its rows now, the reading of its last load, the last reading that found it equal to the source, until
    when the source may change it, and the run that loaded it (None: it had no rows at the source, and no run read it). Instants
    carry a zone."""

    rows: int
    loaded_at: datetime
    read_at: datetime
    open_until: date
    run_id: str | None


Tried = tuple[date, date, str, datetime, str]
"""An attempt: first day, last day, status, end, run."""


WEEKS = 8
"""The usual number of rows of a weekday follows from so many weeks before it."""
FEWEST = 3
"""So many of these days must be loaded."""


def calendar(
    spec: TableSpec, shown: DayRange, held: Mapping[date, DayHeld], attempts: Iterable[Tried], now: datetime
) -> list[PartitionStatus]:
    """The days of `shown`. `attempts` come oldest first; the last one of a day counts. `held` also has days before `shown`, from
    which the usual rows follow, and the table's first and last loaded day."""
    tried: dict[date, Tried] = {}
    for attempt in attempts:
        start, end = max(attempt[0], shown.start), min(attempt[1], shown.end)
        if start <= end:
            tried |= dict.fromkeys(DayRange(start, end), attempt)
    failed = {day: attempt for day, attempt in tried.items() if attempt[2] != "success"}
    first, last = min(held, default=date.max), max(held, default=date.min)
    found = [_day(spec, day, held.get(day), failed.get(day), now) for day in shown]
    return [
        day.model_copy(update=_usual(spec, day, held, now) | {"gap": day.day not in held and first < day.day < last})
        for day in found
    ]


def _usual(spec: TableSpec, told: PartitionStatus, held: Mapping[date, DayHeld], now: datetime) -> dict[str, Any]:
    """The usual rows of the day, and whether its own are unusual."""
    before = [held.get(told.day - timedelta(weeks=weeks)) for weeks in range(1, WEEKS + 1)]
    rows = [day.rows for day in before if day is not None]
    if len(rows) < FEWEST:
        return {}
    usual, factor = round(median(rows)), spec.quality.volume_factor
    over = told.day < spec.zone.day(now)
    unusual = usual > 0 and told.rows is not None and ((over and told.rows * factor < usual) or told.rows > usual * factor)
    return {"usual_rows": usual, "unusual": unusual}


def _day(spec: TableSpec, day: date, held: DayHeld | None, failed: Tried | None, now: datetime) -> PartitionStatus:
    *_, ended, run = failed or (None, None)
    if held is None:
        state, check = (DayState.FAILED, DayCheck.FAILED) if failed else (DayState.MISSING, None)
        return PartitionStatus(day=day, state=state, loaded_at=ended, run_id=run, check=check, checked_at=ended, check_run_id=run)
    loaded = PartitionStatus(day=day, state=DayState.LOADED, loaded_at=held.loaded_at, run_id=held.run_id, rows=held.rows)
    if ended is not None and ended > held.read_at:
        return loaded.model_copy(update={"check": DayCheck.FAILED, "checked_at": ended, "check_run_id": run})
    still_open = spec.zone.day(held.read_at) < held.open_until
    overdue = still_open and now - held.read_at > 2 * spec.schedule.refresh_every
    check = DayCheck.UNVERIFIED if overdue else DayCheck.OK
    return loaded.model_copy(update={"check": check, "checked_at": held.read_at})


def _integer(value: Any) -> int | None:
    return None if value is None else int(value)


@dataclass(frozen=True)
class Snapshot:
    """The state at one instant, also as JSON."""

    status: Status
    json: bytes
    keys: Mapping[int, Keys | None] = field(default_factory=dict)
    """The keys of the rows that the recent loads changed, by the number of the load."""
    taken: float = field(default_factory=monotonic)


class StatusReader:
    """Reads the state from PostgreSQL and Dagster."""

    def __init__(self, settings: Settings, database: Database, dagster: DagsterClient, tables: Mapping[str, TableSpec]) -> None:
        self.settings = settings
        self.database = database
        self.dagster = dagster
        self.tables = tables
        self.rhythm = Rhythm.of(settings)
        self.changed_keys = ChangedKeys(Changes(database.schema))
        self.holdings = Holdings(database.marks, tables, EXTRACTION_COLUMNS)
        self.spendings = Spendings(database.marks.queries, QueryBudget.of(settings).pricing, settings.zone)
        self.waits = Waits(database.marks)
        self._automation: tuple[float, bool | None] = (0.0, None)
        """Until when (by the process's clock) it is known whether the refresh sensor is on, and whether it is."""
        self._reasons: dict[str, str] = {}
        self._lost: dict[str, list[Extraction]] = {}
        """By table, the attempts of the last snapshot that never reached PostgreSQL."""
        self._locks = {table_lock(database.schema, table): table for table in tables}

    async def snapshot(self) -> Snapshot:
        """The state now. If Dagster does not answer, it has only what PostgreSQL knows. Raises DatabaseUnavailable."""
        now = datetime.now(UTC)
        tenant = tenant_of(self.tables)
        asked = asyncio.ensure_future(self.dagster.present(now - MEMORY, {TENANT_TAG: tenant} if tenant else {}))
        try:
            async with self.database.connection() as conn:
                states = await self.database.states(conn, now - MEMORY)
                recent = await self._extractions(conn)
                keys = await self.changed_keys.read(conn, (one.load_id for one in recent if one.load_id is not None))
                copied = await self.rows_copied(conn)
                holdings = await self.holdings.read(conn, states)
                costs = await self.spendings.read(conn, self.tables, now) if states else {}
                waits = await self.waits.read(conn, states)
        except BaseException:
            asked.cancel()
            raise
        try:
            present, reached = await asked, True
            automation = await self._refreshes_itself()
        except DagsterUnavailable:
            present, reached, automation = Present((), (), None), False, None
        runs = runs_by_table(present.under_way, self.tables)
        lost = await self._explained(lost_attempts(present.failed, states, self.tables))
        look = Look(now, self.rhythm, self.settings.dagster_ui_url)
        told = [
            status_of(
                spec,
                states.get(name),
                runs.get(name),
                copied.get(name),
                look,
                Beside(lost.get(name, ()), holdings.get(name, Holding()), costs.get(name), waits.get(name)),
            )
            for name, spec in self.tables.items()
        ]
        self._lost = {
            name: [lost_extraction(name, attempt, look.ui_url) for attempt in attempts if not attempt.withdrawn]
            for name, attempts in lost.items()
        }
        recent = _newest([*recent, *chain.from_iterable(self._lost.values())])
        status = overall(told, recent, now, dagster=reached, daemon=present.daemon, timezone=self.settings.timezone)
        status = status.model_copy(update={"automation": automation, "costs": costs.get("")})
        return Snapshot(status, status.model_dump_json().encode(), keys)

    async def _refreshes_itself(self) -> bool | None:
        """Whether the refresh sensor is on. Dagster is asked every SENSOR_SECONDS."""
        until, known = self._automation
        if monotonic() < until or not self.tables:
            return known
        try:
            known = await self.dagster.automation(next(iter(self.tables.values())))
        except DagsterUnavailable:
            known = None
        self._automation = (monotonic() + SENSOR_SECONDS, known)
        return known

    async def _explained(self, lost: Mapping[str, Sequence[Attempt]]) -> dict[str, list[Attempt]]:
        """The attempts with Dagster's reasons. Each run is asked about once."""
        known = {run_id: reason for run_id, reason in self._reasons.items() if run_id in _run_ids(lost)}
        for run_id in _run_ids(lost) - known.keys():
            try:
                known[run_id] = await self.dagster.failure(run_id) or NO_REASON
            except DagsterUnavailable:
                break
        self._reasons = known
        return {
            table: [replace(attempt, error=scrub(known.get(attempt.run_id, NO_REASON))) for attempt in attempts]
            for table, attempts in lost.items()
        }

    async def detail(self, status: TableStatus) -> TableDetail:
        """The table's status and history. Raises DatabaseUnavailable."""
        return TableDetail(
            table=status,
            extractions=await self.extractions(status.table, SHOWN),
            recovery_attempts=status.recovery_attempts,
            partitions=await self.days(status.table, CALENDAR_DAYS),
        )

    async def extractions(self, table: str, limit: int, before: int | None = None) -> list[Extraction]:
        """The table's attempts, newest first: the last ones, or those before the one with the id `before`. Raises
        DatabaseUnavailable."""
        async with self.database.connection() as conn:
            found = await self._extractions(conn, table, limit, before)
        return found if before is not None else _newest([*found, *self._lost.get(table, ())], limit)

    async def days(self, table: str, days: int, before: date | None = None) -> list[PartitionStatus]:
        """The last days up to today, or up to the day before `before`; oldest first. Raises DatabaseUnavailable."""
        now = datetime.now(UTC)
        last = self.settings.zone.day(now) if before is None else before - timedelta(days=1)
        shown = DayRange(last - timedelta(days=days - 1), last)
        async with self.database.connection() as conn:
            return await self.calendar(conn, table, shown, now)

    async def calendar(self, conn: psycopg.AsyncConnection, table: str, shown: DayRange, now: datetime) -> list[PartitionStatus]:
        """The days of `shown`, as they are known at the instant `now`."""
        held, attempts = await self._days(conn, table, shown)
        tried = [(*_window(one), "failed", one.finished_at, one.run_id) for one in self._lost.get(table, ())]
        attempts = sorted([*attempts, *tried], key=lambda attempt: attempt[3])
        return calendar(self.tables[table], shown, held, attempts, now)

    async def _days(self, conn: psycopg.AsyncConnection, table: str, shown: DayRange) -> tuple[dict[date, DayHeld], list[Tried]]:
        """The days of the ledger, from the weeks before `shown` on and with the first and the last of all; and the attempts over
        days of `shown`, oldest first."""
        days = await conn.execute(
            sql.SQL(
                "SELECT day, coalesce(found, rows), loaded_at, read_at, open_until, nullif(extraction_id, '') FROM {} "
                "WHERE table_name = %s AND (day BETWEEN %s AND %s "
                "OR day IN (SELECT unnest(ARRAY[min(day), max(day)]) FROM {} WHERE table_name = %s))"
            ).format(*[self.database.marks.ledger.days] * 2),
            (table, shown.start - timedelta(weeks=WEEKS), shown.end, table),
        )
        held = {day: DayHeld(*more) for day, *more in await days.fetchall()}
        # No attempt can load a day before the day begins.
        cursor = await conn.execute(
            sql.SQL(
                "SELECT partition_start, partition_end, status, finished_at, extraction_id FROM {} "
                "WHERE table_name = %s AND finished_at >= %s AND partition_start <= %s ORDER BY id"
            ).format(self.database.marks.history),
            (table, shown.start - timedelta(days=1), shown.end),
        )
        return held, await cursor.fetchall()

    async def _extractions(
        self, conn: psycopg.AsyncConnection, table: str | None = None, limit: int = SHOWN, before: int | None = None
    ) -> list[Extraction]:
        query = sql.SQL(
            "SELECT {} FROM {} WHERE table_name = coalesce(%s, table_name) AND id < coalesce(%s, id + 1) ORDER BY id DESC LIMIT %s"
        ).format(EXTRACTION_COLUMNS, self.database.marks.history)
        cursor = await conn.execute(query, (table, before, limit))
        return [extraction(row, self.settings.dagster_ui_url) for row in await cursor.fetchall()]

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
    """The table without the age, which changes all the time, and without the costs: others are told with it."""
    return table.model_copy(update={"age_seconds": None, "costs": None})


@dataclass(frozen=True)
class Event:
    """A server-sent event. `id` has the versions of the tables' rows: a listener who comes back with it hears what has changed."""

    name: str
    body: BaseModel
    id: str = ""


def versions_of(tables: Iterable[TableStatus]) -> str:
    """The versions of the tables' rows as text, such as `dashboard_data=3,evolution_data=0`."""
    return ",".join(f"{table.table}={table.data_version or 0}" for table in tables)


def parse_versions(text: str) -> dict[str, int]:
    """The versions by table. What is not written so does not count."""
    parts = (part.partition("=") for part in text.split(","))
    return {table: int(version) for table, _, version in parts if version.isascii() and version.isdecimal() and len(version) < 19}


def data_changes(before: Mapping[str, int], snapshot: Snapshot) -> list[DataChange]:
    """The tables whose rows have changed since the versions `before`, each with the days and rows that the loads changed.

    A table that `before` lacks has not changed: its reader has just been told of it.
    """
    found = []
    for table in snapshot.status.tables:
        version = table.data_version or 0
        if (steps := version - before.get(table.table, version)) == 0:
            continue
        recent = snapshot.status.recent_activity
        loads = [one for one in recent if one.table == table.table and (one.inserted or one.updated or one.deleted)]
        # Each load that changes rows is one step. A version that is lower than before belongs to another database.
        known = loads[:steps] if 0 < steps <= len(loads) else None
        found.append(
            DataChange(
                table=table.table,
                data_version=version,
                days=None if known is None else list(dict.fromkeys(one.partitions for one in known)),
                keys=None if known is None else _keys(snapshot.keys.get(one.load_id or 0) for one in known),
            )
        )
    return found


def _keys(loads: Iterable[Keys | None]) -> Keys | None:
    """The keys of several loads together, each once; None if one of them has none, or if there are too many."""
    every: dict[tuple[tuple[str, str], ...], None] = {}
    for keys in loads:
        if keys is None:
            return None
        every |= dict.fromkeys(tuple(key.items()) for key in keys)
    return [dict(key) for key in every] if len(every) <= MOST_KEYS else None


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

    async def events(self, interval: float = MAXIMUM_AGE, last_id: str = "") -> AsyncIterator[Event]:
        """`status` first and when the summary changes, else `table` for each changed table; after them `data` for each table whose
        rows have changed since the versions of `last_id`; `unavailable` when PostgreSQL goes away."""
        known: dict[str, TableStatus] = {}
        versions = parse_versions(last_id)
        whole: object = None
        while True:
            try:
                snapshot = await self.current(interval)
                status = snapshot.status
            except DatabaseUnavailable as error:
                if whole != "unavailable":
                    whole = "unavailable"
                    yield Event("unavailable", _fault(error))
            else:
                told = (status.status, status.dagster, status.daemon, status.states, status.running, status.last_updated)
                changed = [table for table in status.tables if known.get(table.table) != change_key(table)]
                known = {table.table: change_key(table) for table in status.tables}
                event_id = versions_of(status.tables)
                if told != whole:
                    whole = told
                    yield Event("status", status, event_id)
                else:
                    for table in changed:
                        yield Event("table", table, event_id)
                for change in data_changes(versions, snapshot):
                    yield Event("data", change, event_id)
                versions = parse_versions(event_id)
            await asyncio.sleep(interval)
