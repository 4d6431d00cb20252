"""Commands that run a refresh, or a comparison with BigQuery, and wait for the end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from pulso_etl.calls import QUIET, dagster_instance, refresh_tables
from pulso_etl.cli.terminal import TenantOption, console, say, served_settings, show
from pulso_etl.definitions import build_defs
from pulso_etl.refreshing.execution import Outcome, run_reconciliation
from pulso_etl.refreshing.planner import named_tables
from pulso_etl.refreshing.request import Grants, Mode, RefreshRequest
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PlanError
from pulso_etl.tenancy.tenants import chosen

COMMAND_LINE = "command line"
"""The name of the caller in the tags of the runs."""
COUNTS = ("read", "inserted", "updated", "unchanged", "deleted", "quarantined")


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
    with console.status("loading ..."):
        outcomes = refresh_tables(chosen(served_settings(), tenant), request, say)
    report(outcomes)


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
