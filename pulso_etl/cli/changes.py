"""Commands that show what loads changed, and undo a load."""

from __future__ import annotations

import getpass
from datetime import timedelta
from math import isnan
from typing import Annotated

import typer
from rich.table import Table

from pulso_etl.calls import dagster_instance
from pulso_etl.cli.terminal import TenantOption, say, served_settings, session, show
from pulso_etl.refreshing.planner import named_tables
from pulso_etl.refreshing.undoing import undo as undo_load
from pulso_etl.sync.figures import Number
from pulso_etl.sync.ledger.changes import Change, Changes, Kept
from pulso_etl.sync.ledger.undoings import LONGEST_HOLD, Wish
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.movements import movements
from pulso_etl.sync.spec import TableSpec
from pulso_etl.tenancy.tenants import chosen

TableArgument = Annotated[str, typer.Argument(help="The table.")]


def changes(
    table: TableArgument,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many loads, the newest first.")] = 10,
    before: Annotated[int | None, typer.Option(help="Only loads before the one of this number.")] = None,
    tenant: TenantOption = None,
) -> None:
    """Shows what the last loads of a table changed, per day: rows, and the figures before and after."""
    settings, tables = chosen(served_settings(), tenant)
    [spec] = named_tables([table], tables)
    with session(settings).open() as conn:
        Watermarks(settings.database_schema).create(conn)
        found = Changes(settings.database_schema).latest(conn, spec.name, limit, before)
    for change in found:
        say(f"{change}: {_standing(change)}")
        tell_days(spec, change)
    if not found:
        say(f"{spec.name}: the change log has no load")


def undo(
    table: TableArgument,
    load: Annotated[int | None, typer.Option(help="The load's number (pulso-etl changes); the last one if not given.")] = None,
    hold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=LONGEST_HOLD,
            help="Hours in which only people refresh the table afterwards; as long as its frequency if not given.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would do, and change nothing.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Undoes a load: the table is as it was before it, in one transaction. The days are owed again."""
    if hold is not None and isnan(hold):
        raise typer.BadParameter("nan is no number of hours", param_hint="--hold")
    settings, tables = chosen(served_settings(), tenant)
    [spec] = named_tables([table], tables)
    wish = Wish(load, None if hold is None else timedelta(hours=hold), f"command line, {getpass.getuser()}")
    report = undo_load(settings, spec, wish, None if dry_run else dagster_instance)
    change = report.change
    say(f"{spec.name}: {change} {'would be' if dry_run else 'is'} undone:")
    tell_days(spec, report.undone.as_change())
    until = f"{spec.zone.local(report.held_until):%Y-%m-%d %H:%M %Z}"
    if dry_run:
        say("nothing was changed")
    else:
        say(f"{spec.name}: its days are owed again; the next refresh after {until} reads them. Until then only people refresh it")
        say(f"read them before: pulso-etl refresh {spec.as_argument} --force")


def tell_days(spec: TableSpec, change: Change) -> None:
    """Prints what a load did to each day."""
    shown = Table("day", "new", "changed", "gone", *(figure.name for figure in spec.figures), box=None)
    moved = {(one.day, one.figure.name): one for one in movements(spec, change)}
    for day in change.days:
        cells = [moved.get((day.day, figure.name)) for figure in spec.figures]
        figures = ("-" if one is None else f"{_number(one.before)} -> {_number(one.after)}" for one in cells)
        shown.add_row(str(day.day), str(day.new), str(day.changed), str(day.gone), *figures)
    show(shown)


def _standing(change: Change) -> str:
    if change.undoes is not None:
        return f"undid load {change.undoes}"
    if change.undone_by is not None:
        return f"undone by load {change.undone_by}"
    return f"cannot be undone: {change.reason}" if change.kept is Kept.NONE else "can be undone while nobody has changed its rows"


def _number(value: Number | None) -> str:
    return "none" if value is None else f"{value:,f}".rstrip("0").rstrip(".") if "." in f"{value:f}" else f"{value:,}"
