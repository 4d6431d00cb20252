"""The command line, `pulso-etl`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import dagster as dg
import psycopg
import typer
from rich.console import Console
from rich.table import Table

from pulso_etl import logs
from pulso_etl.access.tokens import Role, make_token
from pulso_etl.alerts.service import try_channels
from pulso_etl.automation.recovery import recover
from pulso_etl.cli.backfill import Launch, chains, run_chunks, whole
from pulso_etl.definitions import build_defs
from pulso_etl.doctor import diagnose
from pulso_etl.refreshing.budget import DailyBudget
from pulso_etl.refreshing.launch import Outcome, plan_tables, run_reconciliation
from pulso_etl.refreshing.plan import Mode
from pulso_etl.settings import Settings, load_access_settings, load_env_file, load_settings
from pulso_etl.sync.days import DayRange, first_kept_day, lima_day
from pulso_etl.sync.errors import PlanError, PulsoError, SettingsError
from pulso_etl.sync.ledger import migrations
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.loading.months import expired, remove_expired
from pulso_etl.sync.loading.strategies import statements_in_order
from pulso_etl.sync.postgres.server_errors import meaning
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.redaction import clean, scrub
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import fill
from pulso_etl.sync.target import Target
from pulso_etl.tables import TABLES, TableSpec
from pulso_etl.tenancy.tenants import Deployed, chosen, deployed, grants, passwords, risk, select, sharing, works_as

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
QUIET: dict[str, Any] = {"log_level": "WARNING", "events": False}
"""The runs' own warnings on the terminal, and nothing of Dagster's."""
HomeOption = Annotated[Path, typer.Option(help="Folder of the embedded servers' data.")]
RowsOption = Annotated[int, typer.Option(min=1, help="Dashboard rows of the sample data a day; the rest in proportion.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Whose tables, where TENANTS_FILE names tenants.")]
COUNTS = ("read", "inserted", "updated", "unchanged", "deleted", "quarantined")


@app.callback(help="Keeps five PostgreSQL tables equal to BigQuery.")
def options(
    context: typer.Context,
    env_file: Annotated[
        Path | None, typer.Option(help="File of NAME=value lines that win over the environment; .env if not given.")
    ] = None,
) -> None:
    """Options of every command."""
    # The embedded default brings an environment of its own.
    if env_file is not None or context.invoked_subcommand not in ("run", "dev"):
        load_env_file(env_file)
    logs.configure()


def _instance() -> dg.DagsterInstance:
    """Dagster's instance, that of DAGSTER_HOME. Raises SettingsError."""
    try:
        return dg.DagsterInstance.get()
    except Exception as error:
        reason = str(error).partition("\n")[0].strip()
        raise SettingsError(f"Dagster: {reason}; check DAGSTER_HOME, the dagster.yaml in it and DAGSTER_POSTGRES_URL") from error


def _session(settings: Settings) -> Session:
    return Session(settings.database_url.get_secret_value(), "command line")


def _specs(names: Sequence[str], tables: Mapping[str, TableSpec]) -> list[TableSpec]:
    """The tables of these names, or all of them. Raises PlanError."""
    for name in names:
        if name not in tables:
            raise PlanError(f"unknown table {name}; known are {', '.join(tables)}")
    return [tables[name] for name in names or tables]


def refresh_tables(
    part: Deployed,
    names: Sequence[str],
    mode: Mode,
    *,
    days: int | None = None,
    start: date | None = None,
    end: date | None = None,
    force: bool = False,
    allow_shrink: bool = False,
    workers: int = 1,
) -> list[Outcome]:
    """Plans and runs each table, in chunks where it is many days, `workers` at a time; one that fails does not stop the others.

    Before any has run, raises PlanError, or BudgetExceeded unless `force`.
    """
    settings, tables = part
    specs = _specs(names, tables)
    now = datetime.now(UTC)
    with _session(settings).open() as conn:
        marks = Watermarks(settings.database_schema)
        marks.create(conn)
        states = marks.read(conn)
    if not force:
        DailyBudget.of(settings).today().admit()
    plans = plan_tables(settings, specs, states, mode, now, days=days, start=start, end=end, force=force)
    for plan in plans:
        console.print(f"{plan.table}: {plan.window or 'skipped'} ({plan.reason})", **PLAIN)
    # The report at the end tells people what became of each run; a machine that reads the log wants every line.
    logger = {"log_level": "INFO", "events": True} if logs.as_json() else QUIET
    todo = chains(tables, plans)
    parts: dict[str, list[Outcome]] = {plan.table: [] for plan in plans}
    seconds: dict[str, float] = {}
    expected = Counter(plan.table for chain in todo for plan in chain.plans)
    began = monotonic()

    def tell(outcome: Outcome) -> None:
        done = parts[outcome.table]
        done.append(outcome)
        seconds[outcome.table] = outcome.seconds if expected[outcome.table] == 1 else monotonic() - began
        if expected[outcome.table] > 1:
            found = "failed" if outcome.error else f"{outcome.counts.get('read', 0)} rows"
            place = f"{len(done)} of {expected[outcome.table]}"
            console.print(f"{outcome.table}: {outcome.window}: {found}, {outcome.seconds:.1f} s ({place})", **PLAIN)

    # What is wrong with Dagster's instance is told before anything runs.
    with _instance(), console.status("loading ..."):
        run_chunks(Launch(settings, tables, force, allow_shrink, logger), todo, min(workers, len(todo)), tell)
    return [whole(tables[plan.table], plan, parts[plan.table], seconds[plan.table]) for plan in plans]


def _show(table: Table) -> None:
    # A pipe has no width; the table must not be cut for it.
    Console(width=max(console.width, 150)).print(table)


def _report(outcomes: Sequence[Outcome]) -> None:
    table = Table("table", "partitions", *COUNTS, "seconds", "bytes billed", "cost USD", box=None)
    for outcome in outcomes:
        state = "failed" if outcome.error else str(outcome.window or "fresh")
        counts = [str(outcome.counts.get(name, "-")) for name in COUNTS]
        cost = f"{outcome.cost:.4f}"
        table.add_row(outcome.table, state, *counts, f"{outcome.seconds:.1f}", str(outcome.bytes_billed), cost)
    _show(table)
    for outcome in outcomes:
        if outcome.owed:
            console.print(
                f"{outcome.table}: the watermark stays; days still owed, which the next refresh reads: {outcome.owed}", **PLAIN
            )
        for text in outcome.warnings:
            console.print(f"warning: {outcome.table}: {text}", **PLAIN)
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        console.print(f"failed: {outcome.table}: {outcome.error}", **PLAIN)
    if failed:
        raise typer.Exit(1)


@app.command()
def refresh(
    tables: Annotated[list[str] | None, typer.Argument(help="Tables; all of them if none is named.")] = None,
    mode: Annotated[Mode, typer.Option(help="How the range is found.")] = Mode.INCREMENTAL,
    days: Annotated[int | None, typer.Option(help="Trailing days, with --mode sliding_window.")] = None,
    start: Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")] = None,
    end: Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Refresh fresh tables too.")] = False,
    allow_shrink: Annotated[bool, typer.Option("--allow-shrink", help="Let many rows be deleted.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Runs at a time, each in a process of its own if several.")] = 1,
    tenant: TenantOption = None,
) -> None:
    """Refreshes tables through Dagster, without its daemon; many days in chunks."""
    outcomes = refresh_tables(
        chosen(load_settings(), tenant),
        tables or [],
        mode,
        days=days,
        start=start.date() if start else None,
        end=end.date() if end else None,
        force=force,
        allow_shrink=allow_shrink,
        workers=workers,
    )
    _report(outcomes)


@app.command()
def status(tenant: TenantOption = None) -> None:
    """Shows how far and how fresh each table is."""
    (settings, tables), now = chosen(load_settings(), tenant), datetime.now(UTC)
    with _session(settings).open() as conn:
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
        fresh = None if age is None else "yes" if age < spec.refresh_every and state.lost is None else "no"
        seconds = None if state.seconds is None else f"{state.seconds:.1f}"
        row = (state.status, fresh, state.last_partition, age and str(age).split(".")[0], state.records, seconds)
        table.add_row(name, *("-" if value is None else str(value) for value in row))
    _show(table)
    for name, spec in tables.items():
        if name in states and (lost := states[name].lost) is not None:
            console.print(f"rows are missing: {name}: {lost}; load them again: {lost.command(spec)}", **PLAIN)
    for state in states.values():
        if state.error:
            console.print(f"failed: {state.table_name}: {scrub(state.error)}", **PLAIN)


@app.command()
def reconcile(
    tables: Annotated[list[str] | None, typer.Argument(help="Tables; all of them if none is named.")] = None,
    start: Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")] = None,
    end: Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day.")] = None,
    tenant: TenantOption = None,
) -> None:
    """Compares tables with BigQuery: rows and sums of each partition. Costs a query a table."""
    settings, known = chosen(load_settings(), tenant)
    specs = _specs(tables or [], known)
    if (start is None) != (end is None):
        raise PlanError("give both --from and --to, or neither")
    window = DayRange(start.date(), end.date()) if start and end else None
    defs = build_defs(settings, tables=known)
    shown = Table("table", "agrees", "partitions", "seconds", "bytes billed", "cost USD", "result", box=None)
    agree = True
    with _instance() as instance:
        for spec in specs:
            with console.status(f"{spec.name} ..."):
                found = run_reconciliation(defs, instance, spec, window, logger=QUIET)
            agree = agree and found.agrees is True
            verdict = {True: "yes", False: "no", None: "unknown"}[found.agrees]
            row = (found.partitions, f"{found.seconds:.1f}", str(found.bytes_billed), f"{found.cost:.4f}", found.text)
            shown.add_row(spec.name, verdict, *row)
    _show(shown)
    if not agree:
        raise typer.Exit(1)


@app.command()
def alert_test(tenant: TenantOption = None) -> None:
    """Sends a trial message to every channel of ALERT_URLS, or of the tenant's own."""
    deliveries = try_channels(chosen(load_settings(), tenant).settings, datetime.now(UTC))
    for delivery in deliveries:
        console.print(f"{'ok  ' if delivery.ok else 'FAIL'} {delivery.channel}: {delivery.text}", **PLAIN)
    if not deliveries:
        console.print("ALERT_URLS is not set: alerts are kept in PostgreSQL only", **PLAIN)
    if not all(delivery.ok for delivery in deliveries):
        raise typer.Exit(1)


@app.command()
def cleanup(tenant: TenantOption = None) -> None:
    """Ends attempts that died or run past their table's time-out, and says what it did; of all tenants without a name."""
    ended = 0
    with _instance() as instance:
        for settings, tables in select(load_settings(), tenant):
            with _session(settings).hold() as conn:
                for one in recover(conn, settings.database_schema, instance, tables, datetime.now(UTC)):
                    ended += 1
                    name = "/".join(filter(None, [settings.owner.tenant, one.table]))
                    console.print(f"{name} {one.window}: run {one.run_id} is marked as failed: {one.reason}", **PLAIN)
    console.print(f"{ended} attempt(s) ended", **PLAIN)


@app.command()
def retention(
    tables: Annotated[list[str] | None, typer.Argument(help="Tables; all of them if none is named.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Take the months off, and leave each as a table of its own.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Delete the months with their rows.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Shows the months that tables no longer keep; removes them only with --detach or --drop."""
    if detach and drop:
        raise PlanError("give either --detach or --drop")
    settings, known = chosen(load_settings(), tenant)
    schema, today = settings.database_schema, lima_day(datetime.now(UTC))
    months = 0
    with _session(settings).hold() as conn:
        for spec in _specs(tables or [], known):
            if spec.retention_months is None:
                console.print(f"{spec.name}: keeps every month (no retention_months)", **PLAIN)
                continue
            wait = settings.lock_timeout_seconds
            removing = detach or drop
            target = Target(conn, spec, schema)
            found = remove_expired(target, today, drop=drop, lock_timeout_seconds=wait) if removing else None
            console.print(f"{spec.name}: keeps days from {first_kept_day(spec, today)} on", **PLAIN)
            for one in expired(target, today) if found is None else found:
                months += 1
                done = "dropped" if drop else f"now the table {one.schema}.{one.name}" if detach else "would go"
                rows = "rows not counted yet" if one.rows is None else f"about {one.rows:,} rows"
                size = f"{rows}, {one.size / 2**20:.1f} MiB"
                console.print(
                    f"{spec.name}: {one.name}, {one.start or 'the beginning'} to before {one.end}, {size}: {done}", **PLAIN
                )
    untouched = months and not (detach or drop)
    console.print(f"{months} month(s)" + ("; nothing was done: --detach or --drop does it" if untouched else ""), **PLAIN)


@app.command("sql")
def show_sql(
    table: Annotated[str, typer.Argument(help="The table.")],
    tenant: TenantOption = None,
) -> None:
    """Prints the statements that a refresh of the table runs, on BigQuery and on PostgreSQL."""
    settings, tables = chosen(load_settings(), tenant)
    [spec] = _specs([table], tables)
    console.print(f"-- BigQuery\n{fill(spec.query, spec.source_tables(settings.sources()))}\n-- PostgreSQL", **PLAIN)
    for statement in statements_in_order(Statements(spec, settings.database_schema)):
        console.print(f"{statement.as_string()};", **PLAIN)


@app.command()
def doctor(tenant: TenantOption = None) -> None:
    """Checks settings, BigQuery, PostgreSQL and Dagster, a line each; of all tenants without a name."""
    healthy = True
    for finding in diagnose(tenant):
        healthy = healthy and finding.ok
        console.print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.part}: {finding.text}", **PLAIN)
    if not healthy:
        raise typer.Exit(1)


@app.command()
def ledger(tenant: TenantOption = None) -> None:
    """Prints the SQL that the ledger's tables lack. Loads run it by themselves where their role may create tables."""
    settings, _ = chosen(load_settings(), tenant)
    with _session(settings).open() as conn:
        found = migrations.state(conn, settings.database_schema)
        if found.unknown:
            raise found.too_new()
        if not found.pending:
            console.print("-- nothing: the ledger is up to date", **PLAIN)
            return
        lines = [statement.as_string(conn).strip() for statement in migrations.statements(settings.database_schema, found.pending)]
        console.print("\n".join(["BEGIN;", *lines, "COMMIT;"]), **PLAIN)


@app.command()
def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on; API_HOST if not given.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; API_PORT if not given.")] = None,
) -> None:
    """Serves the HTTP API and the status page, until Ctrl-C."""
    from pulso_etl.api.server import serve

    settings = load_settings(api_host=host, api_port=port)
    # Launches leave a line.
    logs.configure("INFO")
    serve(settings)


@app.command(context_settings={"help_option_names": ["--help"]})
def webserver(
    host: Annotated[str, typer.Option("--host", "-h", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port.")] = 3000,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="File of code locations.")] = Path("workspace.yaml"),
) -> None:
    """Serves Dagster's UI to those who have a token, until Ctrl-C. Never start Dagster's own: it lets everybody in."""
    from pulso_etl.api.door import serve

    settings = load_access_settings()
    logs.configure("INFO")
    serve(settings, host, port, workspace)


@app.command("code-server", context_settings={"help_option_names": ["--help"]})
def code_server(
    host: Annotated[str, typer.Option("--host", "-h", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port.")] = 4000,
    module: Annotated[str, typer.Option("--module-name", "-m", help="Module that has the definitions.")] = "pulso_etl.definitions",
) -> None:
    """Serves the definitions to Dagster's daemon and webserver, until Ctrl-C. Its runs start from imported code, within moments."""
    # Imported here: it is a second of Dagster's code that no other command has use for.
    from pulso_etl.instance.code_server import serve

    serve(host, port, module)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Whose token it is; the name stands in the log of launches.")],
    role: Annotated[str, typer.Argument(help="read, refresh or admin.")],
    tenant: Annotated[str, typer.Option(help="The only tenant whose routes it opens.")] = "",
    until: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The last day on which it opens anything.")] = None,
) -> None:
    """Makes a token for the HTTP API: the secret, and the entry that API_TOKENS keeps of it."""
    if role.upper() not in Role.__members__:
        raise SettingsError(f"unknown role {role}; known are {', '.join(known.name.lower() for known in Role)}")
    try:
        secret, entry = make_token(name, Role[role.upper()], tenant, until.date() if until else None)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    console.print(f"token, shown this once: {secret}\nentry of API_TOKENS:    {entry}", **PLAIN)


@app.command()
def tenants(
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL that makes their logins and schemas.")] = False,
) -> None:
    """Lists the tenants of TENANTS_FILE."""
    settings = load_settings()
    if settings.tenants_file is None:
        raise SettingsError("TENANTS_FILE is not set: there are no tenants")
    parts = deployed(settings)
    if sql:
        for statement in grants(parts):
            console.print(f"{statement.as_string()};", **PLAIN)
        for command in passwords(parts):
            console.print(f"-- in psql: {command}", **PLAIN)
        return
    shown = Table("tenant", "source", "schema", "role", "tables", box=None)
    for part in parts:
        source = f"{part.settings.bigquery_project_id}.{part.settings.bigquery_dataset}"
        shown.add_row(part.tenant, source, part.settings.database_schema, works_as(part), str(len(part.tables)))
    _show(shown)
    for tenant, others in sharing(parts).items():
        _say(f"tenant {tenant}: {risk(others)}")


@app.command()
def run(
    home: HomeOption = Path(".pulso"),
    rows_per_day: RowsOption = 170,
    revision: Annotated[int, typer.Option(min=0, help="Sample data with this many rounds of late corrections.")] = 0,
) -> None:
    """Refreshes all five tables on the embedded default: PostgreSQL, BigQuery emulator, sample data."""
    from pulso_etl.local.stack import local_stack

    try:
        with local_stack(home, revision=revision, rows_per_day=rows_per_day, say=_say):
            outcomes = refresh_tables(Deployed(load_settings(), TABLES), [], Mode.INCREMENTAL, force=True)
    except KeyboardInterrupt:
        _say("interrupted; everything is stopped")
        raise typer.Exit(130) from None
    _report(outcomes)


@app.command()
def dev(
    home: HomeOption = Path(".pulso"),
    rows_per_day: RowsOption = 170,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Dagster's UI on 127.0.0.1.")] = 3000,
    api_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page and the API on 127.0.0.1.")] = 8000,
) -> None:
    """Keeps the embedded default up, with Dagster's UI and daemon, the HTTP API and its page, until Ctrl-C."""
    from pulso_etl.local.stack import check_port, local_stack, serve

    check_port(port, "--port")
    check_port(api_port, "--api-port")
    with suppress(KeyboardInterrupt), local_stack(home, rows_per_day=rows_per_day, say=_say) as stack:
        serve(stack, port, api_port, _say)
    _say("everything is stopped")


def _say(text: str) -> None:
    console.print(text, **PLAIN)


def main() -> None:
    """Entry point: errors of ours are one line and exit code 2, never a trace."""
    try:
        app()
    except PulsoError as error:
        typer.echo(f"pulso-etl: {scrub(str(error))}", err=True)
        raise SystemExit(2) from None
    except psycopg.Error as error:
        typer.echo(f"pulso-etl: {scrub(str(meaning(error).tell(error)))}", err=True)
        raise SystemExit(2) from None
    except Exception as error:
        # Nobody has thought of it: its trace is shown, without secrets.
        clean(error)
        raise
