"""The command that shows what a refresh would do."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from pulso_etl.automation.preview import Previews
from pulso_etl.automation.preview_shapes import Preview
from pulso_etl.bigquery.source import build_source
from pulso_etl.cli.terminal import TenantOption, say, served_settings, session, show
from pulso_etl.refreshing.planner import Planner
from pulso_etl.refreshing.request import Grants, RefreshRequest
from pulso_etl.sync.ledger.ledger import server_clock
from pulso_etl.tenancy.tenants import chosen


def plan(
    tables: Annotated[list[str] | None, typer.Argument(help="Tables; all of them if none is named.")] = None,
    force: Annotated[bool, typer.Option("--force", help="As if fresh tables were refreshed too, whole.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Shows what a refresh would do now: the days, why each is read, bytes and cost. Of tables that are not due: when they will be
    refreshed because their source has changed. Launches nothing."""
    settings, known = chosen(served_settings(), tenant)
    previews = Previews(settings, Planner.of(settings, known), build_source(settings))
    request = RefreshRequest(tuple(tables or ()), grants=Grants(force=force))
    with session(settings).open() as conn:
        preview = previews.of(conn, request, server_clock(conn))
    if as_json:
        say(preview.model_dump_json(indent=2))
    else:
        tell(preview)


def tell(preview: Preview) -> None:
    """Prints the preview for people."""
    shown = Table("table", "days to read", "verified", "bytes read", "bytes billed", "cost USD", "reason", box=None)
    for table in preview.tables:
        cost = None if table.cost_usd is None else f"{table.cost_usd:.4f}"
        row = (table.days_to_read or "none", table.days_verified, table.bytes_read, table.bytes_billed, cost)
        shown.add_row(table.table, *("-" if value is None else str(value) for value in row), table.reason)
    show(shown)
    for table in preview.tables:
        for when, read in (("", table), ("refresh on change: ", table.on_change)):
            for days in read.days if read else ():
                say(f"{table.table}: {when}{days.start}..{days.end}: {days.why}")
            if read and read.fault:
                say(f"fault: {table.table}: {when}{read.fault}")
    for limit in preview.budget:
        say(f"budget: {limit.text}")
