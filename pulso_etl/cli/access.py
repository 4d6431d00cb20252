"""Commands about tokens and tenants."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from pulso_etl.access.tokens import make_token, role_named
from pulso_etl.cli.terminal import say, show
from pulso_etl.settings import load_access_settings, load_settings
from pulso_etl.sync.errors import SettingsError
from pulso_etl.tenancy.tenants import check_tenant, deployed, grants, passwords, risk, sharing, works_as


def token(
    name: Annotated[str, typer.Argument(help="The owner of the token; the log of launches shows this name.")],
    role: Annotated[str, typer.Argument(help="read, refresh or admin.")],
    tenant: Annotated[str, typer.Option(help="The only tenant whose routes it opens.")] = "",
    until: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The last day on which the token is valid.")] = None,
) -> None:
    """Makes a token for the HTTP API: the secret for its owner, and the entry for API_TOKENS."""
    known = role_named(role)
    if tenant:
        check_tenant(load_access_settings(), tenant)
    try:
        secret, entry = make_token(name, known, tenant, until.date() if until else None)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    say(f"token, shown only once: {secret}\nentry of API_TOKENS:    {entry}")


def tenants(
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL that creates their logins and schemas.")] = False,
) -> None:
    """Lists the tenants of TENANTS_FILE."""
    settings = load_settings()
    if settings.tenants_file is None:
        raise SettingsError("TENANTS_FILE is not set: there are no tenants")
    parts = deployed(settings)
    if sql:
        for statement in grants(parts):
            say(f"{statement.as_string()};")
        for command in passwords(parts):
            say(f"-- in psql: {command}")
        return
    shown = Table("tenant", "source", "schema", "role", "tables", box=None)
    for part in parts:
        source = f"{part.settings.bigquery_project_id}.{part.settings.bigquery_dataset}"
        shown.add_row(part.tenant, source, part.settings.database_schema, works_as(part), str(len(part.tables)))
    show(shown)
    for tenant, others in sharing(parts).items():
        say(f"tenant {tenant}: {risk(others)}")
