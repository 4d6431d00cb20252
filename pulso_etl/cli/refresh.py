"""Commands that run a refresh, or a comparison with BigQuery, and wait for the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Annotated, Any

import typer
from rich.table import Table

from pulso_etl import logs
from pulso_etl.cli.backfill import Common, chains, run_chunks, whole
from pulso_etl.cli.terminal import TenantOption, console, dagster_instance, say, served_settings, session, show
from pulso_etl.definitions import build_defs
from pulso_etl.refreshing.execution import Outcome, run_reconciliation
from pulso_etl.refreshing.planner import Planner, named_tables, watermarks_of
from pulso_etl.refreshing.request import Grants, Mode, RefreshRequest
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.tenancy.tenants import Deployed, chosen

QUIET: dict[str, Any] = {"log_level": "WARNING", "events": False}
"""The terminal shows the warnings of the runs, and no messages of Dagster."""
COMMAND_LINE = "command line"
"""The name of the caller in the tags of the runs."""
COUNTS = ("read", "inserted", "updated", "unchanged", "deleted", "quarantined")


def refresh_tables(part: Deployed, request: RefreshRequest) -> list[Outcome]:
    """Plans and runs each table of the request. Many days are split into chunks. A failed table does not stop the others.

    `max_concurrent` runs go on at a time; several runs have a process each. Before the first run, raises PlanError, or
    BudgetExceeded unless the request has the grant `force`.
    """
    settings, tables = part
    planner = Planner.of(settings, tables)
    now = datetime.now(UTC)
    # Refuses an invalid request before anything is written, because opening the ledger may create its tables.
    planner.plans(request, {}, now)
    with session(settings).open() as conn:
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
    progress = Progress(Counter(plan.table for chain in todo for plan in chain.plans))
    # Reports a fault of Dagster's instance before anything runs.
    with dagster_instance(), console.status("loading ..."):
        run_chunks(Common(settings, tables, logger), todo, min(request.max_concurrent, len(todo)), progress.tell)
    return [whole(tables[plan.table], plan, progress.parts[plan.table], progress.seconds[plan.table]) for plan in plans]


@dataclass
class Progress:
    """The outcomes of the chunks so far, by table. Prints each chunk when it ends. `expected`: the number of chunks per table."""

    expected: Mapping[str, int]
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
        say(f"{table}: {outcome.window}: {found}, {outcome.seconds:.1f} s ({len(done)} of {self.expected[table]})")


def report(outcomes: Sequence[Outcome]) -> None:
    """Prints the outcome of each table. Exits with code 1 if a table failed."""
    table = Table("table", "partitions", *COUNTS, "seconds", "bytes billed", "cost USD", box=None)
    for outcome in outcomes:
        state = "failed" if outcome.error else str(outcome.window or "fresh")
        counts = [str(outcome.counts.get(name, "-")) for name in COUNTS]
        cost = f"{outcome.cost:.4f}"
        table.add_row(outcome.table, state, *counts, f"{outcome.seconds:.1f}", str(outcome.bytes_billed), cost)
    show(table)
    for outcome in outcomes:
        if outcome.owed:
            say(f"{outcome.table}: the watermark stays; days still owed, which the next refresh reads: {outcome.owed}")
        for text in outcome.warnings:
            say(f"warning: {outcome.table}: {text}")
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        say(f"failed: {outcome.table}: {outcome.error}")
    if failed:
        raise typer.Exit(1)


def refresh(
    tables: Annotated[list[str] | None, typer.Argument(help="Tables; all of them if none is named.")] = None,
    mode: Annotated[Mode, typer.Option(help="How the days are chosen.")] = Mode.INCREMENTAL,
    days: Annotated[int | None, typer.Option(help="Trailing days, with --mode sliding_window.")] = None,
    start: Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")] = None,
    end: Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Refresh fresh tables too.")] = False,
    allow_shrink: Annotated[bool, typer.Option("--allow-shrink", help="Let many rows be deleted.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Runs at a time; several runs have a process each.")] = 1,
    tenant: TenantOption = None,
) -> None:
    """Refreshes tables through Dagster, without its daemon. Many days are split into chunks."""
    request = RefreshRequest(
        tuple(tables or ()),
        mode,
        days,
        start.date() if start else None,
        end.date() if end else None,
        Grants(force, allow_shrink),
        workers,
        asked_by=COMMAND_LINE,
    )
    report(refresh_tables(chosen(served_settings(), tenant), request))


def reconcile(
    tables: Annotated[list[str] | None, typer.Argument(help="Tables; all of them if none is named.")] = None,
    start: Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")] = None,
    end: Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day.")] = None,
    tenant: TenantOption = None,
) -> None:
    """Compares tables with BigQuery: rows and sums of each partition. Costs one query per table."""
    settings, known = chosen(served_settings(), tenant)
    specs = named_tables(tables or [], known)
    if (start is None) != (end is None):
        raise PlanError("give both --from and --to, or neither")
    window = DayRange(start.date(), end.date()) if start and end else None
    defs = build_defs(settings, tables=known)
    shown = Table("table", "agrees", "partitions", "seconds", "bytes billed", "cost USD", "result", box=None)
    agree = True
    with dagster_instance() as instance:
        for spec in specs:
            with console.status(f"{spec.name} ..."):
                found = run_reconciliation(defs, instance, spec, window, logger=QUIET)
            agree = agree and found.agrees is True
            verdict = {True: "yes", False: "no", None: "unknown"}[found.agrees]
            row = (found.partitions, f"{found.seconds:.1f}", str(found.bytes_billed), f"{found.cost:.4f}", found.text)
            shown.add_row(spec.name, verdict, *row)
    show(shown)
    if not agree:
        raise typer.Exit(1)
