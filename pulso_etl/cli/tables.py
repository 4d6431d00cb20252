"""Commands about tables: they show the state and the statements, and remove old months."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from pulso_etl.bigquery.pruning import fault as unpruned
from pulso_etl.bigquery.source import build_source
from pulso_etl.calls import dagster_instance
from pulso_etl.checks.statements import faults, not_loaded, statements
from pulso_etl.cli.terminal import TenantOption, say, served_settings, session, show
from pulso_etl.instance.retention import clean, old, told
from pulso_etl.refreshing.planner import named_tables
from pulso_etl.settings import Settings, load_settings
from pulso_etl.sync.days import first_kept_day
from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.ledger.retention import delete_old, old_rows
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.loading.months import expired, remove_expired
from pulso_etl.sync.loading.strategies import statements_in_order
from pulso_etl.sync.reasons import Reasons
from pulso_etl.sync.redaction import scrub
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import fill
from pulso_etl.sync.target import Target
from pulso_etl.tables import TABLES
from pulso_etl.tables.sources import SOURCES
from pulso_etl.tenancy.tenants import chosen


def status(
    why: Annotated[bool, typer.Option("--why", help="Also say why each day of the last run was read.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Shows for each table how far it is loaded and how fresh it is."""
    (settings, tables), now = chosen(served_settings(), tenant), datetime.now(UTC)
    with session(settings).open() as conn:
        marks = Watermarks(settings.database_schema)
        for name, seen in marks.read(conn).items():
            if seen.replaced and name in tables:
                marks.look(conn, tables[name])
        states = marks.read(conn)
    table = Table("table", "status", "fresh", "last partition", "age", "records", "seconds", box=None)
    for name, spec in tables.items():
        state = states.get(name)
        if state is None:
            table.add_row(name, "never loaded")
            continue
        age = now - state.last_extracted_at if state.last_extracted_at else None
        fresh = None if age is None else "yes" if age < spec.schedule.refresh_every and state.lost is None else "no"
        seconds = None if state.seconds is None else f"{state.seconds:.1f}"
        row = (state.status, fresh, state.last_partition, age and str(age).split(".")[0], state.records, seconds)
        table.add_row(name, *("-" if value is None else str(value) for value in row))
    show(table)
    for name, spec in tables.items():
        if name in states and (lost := states[name].lost) is not None:
            say(f"rows are missing: {name}: {lost}; load them again: {lost.command(spec)}")
    for state in states.values() if why else ():
        if (reasons := Reasons.of_metadata(state.metadata)) is not None:
            say(f"{state.table_name}: {reasons.plan}")
            for one in reasons.days:
                say(f"{state.table_name}: {one.days}: {one.why}")
    for state in states.values():
        if state.error:
            say(f"failed: {state.table_name}: {scrub(state.error)}")


def retention(
    tables: Annotated[list[str] | None, typer.Argument(help="Tables; all of them if none is named.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Detach the months, and leave each as a table of its own.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Delete the months with their rows.")] = False,
    records: Annotated[bool, typer.Option("--records", help="Delete what is older than RETENTION_DAYS.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Shows the months that tables no longer keep, and what is older than RETENTION_DAYS; removes them only with an option."""
    if detach and drop:
        raise PlanError("give either --detach or --drop")
    settings, known = chosen(served_settings(), tenant)
    if not tables and not detach and not drop:
        _tell_records(settings, delete=records)
    schema, today = settings.database_schema, settings.zone.day(datetime.now(UTC))
    months = 0
    with session(settings).hold() as conn:
        for spec in named_tables(tables or [], known):
            if spec.retention.retention_months is None:
                say(f"{spec.name}: keeps every month (no retention_months)")
                continue
            wait = settings.lock_timeout_seconds
            removing = detach or drop
            target = Target(conn, spec, schema)
            found = remove_expired(target, today, drop=drop, lock_timeout_seconds=wait) if removing else None
            say(f"{spec.name}: keeps days from {first_kept_day(spec, today)} on")
            for one in expired(target, today) if found is None else found:
                months += 1
                done = "dropped" if drop else f"now the table {one.schema}.{one.name}" if detach else "would be removed"
                rows = "rows not counted yet" if one.rows is None else f"about {one.rows:,} rows"
                size = f"{rows}, {one.size / 2**20:.1f} MiB"
                say(f"{spec.name}: {one.name}, {one.start or 'the beginning'} to before {one.end}, {size}: {done}")
    untouched = months and not (detach or drop)
    say(f"{months} month(s)" + ("; nothing was removed: give --detach or --drop" if untouched else ""))


def check(
    tables: Annotated[list[str] | None, typer.Argument(help="Tables; all of them if none is named.")] = None,
    pruning: Annotated[
        bool, typer.Option("--pruning", help="Also ask BigQuery, for free, whether a day reads only its partitions.")
    ] = False,
    tenant: TenantOption = None,
) -> None:
    """Analyses the SQL of tables with GoogleSQL. Without --pruning it needs neither settings nor an account, and sends nothing."""
    wrong = _tell_pruning(tables or [], tenant) if pruning else False
    for spec in named_tables(tables or [], TABLES):
        found = faults(spec, SOURCES)
        wrong = wrong or bool(found)
        for fault in found:
            say(f"FAIL {fault}")
        if not found:
            left_out = f"; not loaded, because not declared: {', '.join(names)}" if (names := not_loaded(spec, SOURCES)) else ""
            analysed = ", ".join(statements(spec))
            say(f"ok   {spec.name}.sql: the {len(spec.query_columns)} declared columns{left_out}; analysed: {analysed}")
    if wrong:
        raise typer.Exit(1)


def _tell_pruning(tables: list[str], tenant: str | None) -> bool:
    """Says for each table whether a refresh of a day reads only its partitions. Returns whether one does not."""
    settings, known = chosen(served_settings(), tenant)
    source, wrong = build_source(settings), False
    for spec in named_tables(tables, known):
        found = unpruned(source, spec, spec.zone.day(datetime.now(UTC)))
        wrong = wrong or found is not None
        say(
            f"FAIL {spec.name}: {found}"
            if found
            else f"ok   {spec.name}: a day reads its own partitions, or the least that is billed"
        )
    return wrong


def _tell_records(settings: Settings, *, delete: bool) -> None:
    now = datetime.now(UTC)
    with dagster_instance() as instance:
        found = clean(instance, settings.retention, now) if delete else old(instance, settings.retention, now)
    with session(settings).hold() as conn:
        end = delete_old if delete else old_rows
        rows = end(conn, settings.database_schema, settings.retention.before(now))
    done = "deleted" if delete else "would be deleted (--records)"
    say(f"kept for days: {settings.retention}")
    say(f"Dagster: {found}: {done}")
    say(f"ledger: {told(rows)}: {done}")


def show_sql(
    table: Annotated[str, typer.Argument(help="The table.")],
    tenant: TenantOption = None,
) -> None:
    """Prints the statements that a refresh of the table runs, on BigQuery and on PostgreSQL."""
    settings, tables = chosen(load_settings(), tenant)
    [spec] = named_tables([table], tables)
    say(f"-- BigQuery\n{fill(spec.source.query, spec.source_tables(settings.sources()), spec.timezone)}\n-- PostgreSQL")
    for statement in statements_in_order(Statements(spec, settings.database_schema)):
        say(f"{statement.as_string()};")
