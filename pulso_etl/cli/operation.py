"""Commands for operators: they check the deployment, end what hangs, and test the alerts."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from pulso_etl import embedded
from pulso_etl.alerts.service import try_channels
from pulso_etl.automation.recovery import recover
from pulso_etl.calls import dagster_instance
from pulso_etl.cli.terminal import TenantOption, say, served_settings, session
from pulso_etl.doctor import diagnose
from pulso_etl.refreshing.planner import named_tables
from pulso_etl.sync.ledger import migrations
from pulso_etl.sync.ledger.preparing import grants, needed
from pulso_etl.tenancy.tenants import chosen, select


def alert_test(tenant: TenantOption = None) -> None:
    """Sends a test message to every channel of ALERT_URLS, or to the tenant's own channels."""
    deliveries = try_channels(chosen(served_settings(), tenant).settings, datetime.now(UTC))
    for delivery in deliveries:
        say(f"{'ok  ' if delivery.ok else 'FAIL'} {delivery.channel}: {delivery.text}")
    if not deliveries:
        say("ALERT_URLS is not set: alerts are kept in PostgreSQL only")
    if not all(delivery.ok for delivery in deliveries):
        raise typer.Exit(1)


def cleanup(tenant: TenantOption = None) -> None:
    """Ends attempts that died or run past their table's time-out, and prints them. Without --tenant, for all tenants."""
    ended = 0
    with dagster_instance() as instance:
        for settings, tables in select(served_settings(), tenant):
            with session(settings).hold() as conn:
                for one in recover(conn, settings.database_schema, instance, tables, datetime.now(UTC)):
                    ended += 1
                    name = "/".join(filter(None, [settings.owner.tenant, one.table]))
                    say(f"{name} {one.window}: run {one.run_id} is marked as failed: {one.reason}")
    say(f"{ended} attempt(s) ended")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: part, ok and text of each check.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Checks settings, BigQuery, PostgreSQL and Dagster, one line each. Without --tenant, for all tenants."""
    embedded.join(lambda text: typer.echo(text, err=True))
    findings = []
    for finding in diagnose(tenant):
        findings.append(finding)
        if not as_json:
            say(f"{'ok  ' if finding.ok else 'FAIL'} {finding.part}: {finding.text}")
    if as_json:
        say(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def ledger(tenant: TenantOption = None) -> None:
    """Prints the SQL that updates the ledger's tables. Loads run it by themselves if their role may create tables."""
    settings, _ = chosen(served_settings(), tenant)
    with session(settings).open() as conn:
        found = migrations.state(conn, settings.database_schema)
        if found.unknown:
            raise found.too_new()
        if not found.pending:
            say("-- nothing: the ledger is up to date")
            return
        lines = [statement.as_string(conn).strip() for statement in migrations.statements(settings.database_schema, found.pending)]
        say("\n".join(["BEGIN;", *lines, "COMMIT;"]))


def schema(
    tables: Annotated[list[str] | None, typer.Argument(help="Tables; all of them if none is named.")] = None,
    role: Annotated[str | None, typer.Option(help="The role that loads; the role of DATABASE_URL if not given.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Run the statements, in one transaction.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Prints the SQL that a first load or a migration needs, and the grants of the role that loads; runs it only with --apply."""
    settings, known = chosen(served_settings(), tenant)
    specs = named_tables(tables or [], known)
    with session(settings).open() as conn, conn.transaction():
        (own,) = conn.execute("SELECT current_user").fetchone() or ("",)
        where = settings.database_schema
        statements = [*needed(conn, where, specs), *grants(conn, where, specs, role or own)]
        if apply:
            for statement in statements:
                conn.execute(statement.encode())
    say("\n".join(["BEGIN;", *(f"{statement};" for statement in statements), "COMMIT;"]))
    say(f"-- {'done' if apply else 'nothing was changed'}; in PostgreSQL schema {where}, for the role {role or own}")
