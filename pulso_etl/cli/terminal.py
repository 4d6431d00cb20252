"""What the commands have in common: the terminal, and their ways to PostgreSQL and to Dagster."""

from __future__ import annotations

from typing import Annotated, Any

import dagster as dg
import typer
from rich.console import Console
from rich.table import Table

from pulso_etl.settings import Settings
from pulso_etl.sync.errors import SettingsError
from pulso_etl.sync.postgres.sessions import Session

console = Console()
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Whose tables, where TENANTS_FILE names tenants.")]


def say(text: str) -> None:
    """Prints a line as it is."""
    console.print(text, **PLAIN)


def show(table: Table) -> None:
    """Prints a table."""
    # A pipe has no width; the table must not be cut for it.
    Console(width=max(console.width, 150)).print(table)


def dagster_instance() -> dg.DagsterInstance:
    """Dagster's instance, that of DAGSTER_HOME. Raises SettingsError."""
    try:
        return dg.DagsterInstance.get()
    except Exception as error:
        reason = str(error).partition("\n")[0].strip()
        raise SettingsError(f"Dagster: {reason}; check DAGSTER_HOME, the dagster.yaml in it and DAGSTER_POSTGRES_URL") from error


def session(settings: Settings) -> Session:
    """A session with the PostgreSQL of the tables."""
    return Session(settings.database_url.get_secret_value(), "command line")
