"""What scripts, notebooks and tests call: the same refreshes, plans and states as every other way in. `pulso_etl` exports it.

Each function reads the settings as the command line does: the environment, `.env` in the working directory, or the embedded
default. Its errors are those of `pulso_etl.sync.errors`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from time import monotonic
from typing import Any

import dagster as dg
import pyarrow as pa

from pulso_etl import embedded, logs
from pulso_etl.automation.preview import Previews
from pulso_etl.automation.preview_shapes import Preview
from pulso_etl.backfill import Common, chains, run_chunks, whole
from pulso_etl.bigquery.source import build_source
from pulso_etl.refreshing.execution import Outcome
from pulso_etl.refreshing.freshness import FreshnessState, freshness
from pulso_etl.refreshing.planner import Planner, named_tables, watermarks_of
from pulso_etl.refreshing.request import Grants, Mode, RefreshRequest
from pulso_etl.settings import Settings, load_env_file, load_settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import LoadFailed, PlanError, SettingsError
from pulso_etl.sync.ledger.ledger import server_clock
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.loading.load import translated
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.reading import chosen_columns
from pulso_etl.sync.reading import read as read_rows
from pulso_etl.sync.target import Target
from pulso_etl.tenancy.tenants import Deployed, chosen

Say = Callable[[str], None]
Day = date | str
"""A day, or its ISO form."""
QUIET: dict[str, Any] = {"log_level": "WARNING", "events": False}
"""The caller hears of the warnings of the runs, and of no messages of Dagster."""
ASKED_BY = "python"
"""The name of the caller in the tags of the runs."""


@dataclass(frozen=True)
class TableStatus:
    """How a table stands. Instants carry a zone, `seconds` is the duration of the last attempt, `rows` are in the table."""

    table: str
    state: FreshnessState
    last_extracted_at: datetime | None = None
    last_partition: date | None = None
    rows: int | None = None
    records: int | None = None
    seconds: float | None = None
    error: str | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether a refresh without `force` would skip it."""
        return self.state is FreshnessState.FRESH


def refresh(
    table: str,
    *,
    force: bool = False,
    allow_shrink: bool = False,
    start: Day | None = None,
    end: Day | None = None,
    tenant: str | None = None,
) -> Outcome:
    """Refreshes the table in this process, and returns counts of rows, seconds, bytes billed and cost in US dollars.

    Without days the days that are due are read; a fresh table is skipped (its `window` is None) unless `force`. With `start` or
    `end`, or both, those days are read. Raises LoadFailed if the run fails, and before it PlanError, SettingsError, BudgetExceeded
    or DestinationError.
    """
    request = RefreshRequest(
        (table,),
        Mode.INCREMENTAL,
        start=_day(start),
        end=_day(end),
        grants=Grants(force, allow_shrink),
        max_concurrent=1,
        asked_by=ASKED_BY,
    )
    (outcome,) = refresh_tables(_deployment(tenant), request)
    if outcome.error is not None:
        raise LoadFailed(f"{table}: {outcome.error}")
    return outcome


def plan(*tables: str, force: bool = False, tenant: str | None = None) -> Preview:
    """What a refresh of the tables, or of all, would do now: the days, why each would be read, bytes, cost and budget.

    It is the answer of `pulso-etl plan`, and launches nothing. Raises as `refresh`.
    """
    settings, known = _deployment(tenant)
    with _session(settings).open() as conn:
        previews = Previews(settings, Planner.of(settings, known), build_source(settings))
        return previews.of(conn, RefreshRequest(tables, grants=Grants(force)), server_clock(conn))


def status(tenant: str | None = None) -> dict[str, TableStatus]:
    """How each table stands. Raises SettingsError and DestinationError."""
    (settings, tables), now = _deployment(tenant), datetime.now(UTC)
    found = {}
    with _session(settings).open() as conn:
        marks = Watermarks(settings.database_schema)
        states = marks.read(conn)
        for name, spec in tables.items():
            state = states.get(name)
            stands = freshness(spec, state.watermark if state else None, now).state
            found[name] = TableStatus(name, stands)
            if state is not None:
                rows = marks.ledger.rows(conn, name)
                of_attempt = (state.records, state.seconds, state.error)
                found[name] = TableStatus(name, stands, state.last_extracted_at, state.last_partition, rows, *of_attempt)
    return found


def query(sql: str, *, tenant: str | None = None) -> pa.Table:
    """The result of a query in BigQuery, under the limit of bytes of one query. The budgets do not count it.

    Raises SettingsError and SourceError.
    """
    settings, _ = _deployment(tenant)
    return build_source(settings).query(sql)


def read(table: str, start: Day, end: Day, *, columns: list[str] | None = None, tenant: str | None = None) -> pa.Table:
    """The table's rows of the days, both included, from PostgreSQL. Amounts are exact decimals; `.to_pandas()` makes a data frame.

    `columns` names the columns; without it, all. Raises PlanError for an unknown table, ContractError for an unknown column, and
    DestinationError.
    """
    settings, known = _deployment(tenant)
    (spec,) = named_tables([table], known)
    first, last = _day(start), _day(end)
    assert first is not None
    assert last is not None
    if first > last:
        raise PlanError(f"{table}: the first day {first} is after the last day {last}")
    window = DayRange(first, last)
    with translated(spec, window), _session(settings).hold() as conn, conn.transaction():
        return read_rows(Target(conn, spec, settings.database_schema), [window], chosen_columns(spec, columns))


def _deployment(tenant: str | None) -> Deployed:
    load_env_file()
    embedded.join()
    return chosen(load_settings(), tenant)


def _session(settings: Settings) -> Session:
    return Session(settings.database_url.get_secret_value(), ASKED_BY)


def _day(given: Day | None) -> date | None:
    if not isinstance(given, str):
        return given
    try:
        return date.fromisoformat(given)
    except ValueError:
        raise PlanError(f"{given!r} is no day; write it like 2026-11-26") from None


def refresh_tables(part: Deployed, request: RefreshRequest, say: Say = lambda _: None) -> list[Outcome]:
    """Plans and runs each table of the request. Many days are split into chunks. A failed table does not stop the others.

    `say` hears of each plan and of each chunk.

    `max_concurrent` runs go on at a time; several runs have a process each. Before the first run, raises PlanError, or
    BudgetExceeded unless the request has the grant `force`.
    """
    settings, tables = part
    planner = Planner.of(settings, tables)
    now = datetime.now(UTC)
    # Refuses an invalid request before anything is written, because opening the ledger may create its tables.
    planner.plans(request, {}, now)
    with _session(settings).open() as conn:
        kept = Watermarks(settings.database_schema)
        kept.create(conn)
        marks = watermarks_of(kept.read(conn))
    planner.admit(request)
    plans = planner.plans(request, marks, now)
    for plan in plans:
        say(f"{plan.table}: {plan.window or 'skipped'} ({plan.reason})")
    # People get the outcome of each run in the final report. A machine that reads the log needs every line.
    logger = {"log_level": "INFO", "events": True} if logs.as_json() else QUIET
    todo = chains(tables, plans)
    progress = Progress(Counter(plan.table for chain in todo for plan in chain.plans), say)
    # Reports a fault of Dagster's instance before anything runs.
    with dagster_instance() as instance:
        run_chunks(Common(settings, tables, logger), instance, todo, min(request.max_concurrent, len(todo)), progress.tell)
    return [whole(tables[plan.table], plan, progress.parts[plan.table], progress.seconds[plan.table]) for plan in plans]


@dataclass
class Progress:
    """The outcomes of the chunks so far, by table. `expected`: the number of chunks per table. `say` hears of each of many."""

    expected: Mapping[str, int]
    say: Say
    parts: dict[str, list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=monotonic)

    def tell(self, outcome: Outcome) -> None:
        """Adds the outcome of a chunk."""
        table, done = outcome.table, self.parts[outcome.table]
        done.append(outcome)
        if self.expected[table] == 1:
            self.seconds[table] = outcome.seconds
            return
        self.seconds[table] = monotonic() - self.began
        found = "failed" if outcome.error else f"{outcome.counts.get('read', 0)} rows"
        self.say(f"{table}: {outcome.window}: {found}, {outcome.seconds:.1f} s ({len(done)} of {self.expected[table]})")


def dagster_instance() -> dg.DagsterInstance:
    """The Dagster instance of DAGSTER_HOME. Raises SettingsError."""
    try:
        return dg.DagsterInstance.get()
    except Exception as error:
        reason = str(error).partition("\n")[0].strip()
        raise SettingsError(f"Dagster: {reason}; check DAGSTER_HOME, the dagster.yaml in it and DAGSTER_POSTGRES_URL") from error
