"""What the commands share: the terminal, and the connections to PostgreSQL and Dagster."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pulso_etl import embedded
from pulso_etl.settings import Settings, load_settings
from pulso_etl.sync.postgres.sessions import Session

console = Console()
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
TenantOption = Annotated[str | None, typer.Option("--tenant", help="The tenant, if TENANTS_FILE names tenants.")]


def say(text: str) -> None:
    """Prints a line unchanged."""
    console.print(text, **PLAIN)


def served_settings(**given: Any) -> Settings:
    """The settings of a command that needs the servers. The servers are those of the embedded default if its settings were adopted.

    Values in `given` that are not None win. Raises SettingsError and LocalStackError.
    """
    embedded.join(lambda text: typer.echo(text, err=True))
    return load_settings(**given)


def show(table: Table) -> None:
    """Prints a table."""
    # A pipe has no width, so the table is printed in full.
    Console(width=max(console.width, 150)).print(table)


def session(settings: Settings) -> Session:
    """A session with the PostgreSQL server of the tables."""
    return Session(settings.database_url.get_secret_value(), "command line")
