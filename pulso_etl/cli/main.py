"""The command line, `pulso-etl`: puts the commands together."""

from __future__ import annotations

import gc
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pulso_etl import embedded, logs
from pulso_etl.settings import load_env_file
from pulso_etl.sync.errors import PulsoError
from pulso_etl.sync.redaction import clean, scrub

EMBEDDED = ("run", "dev", "servers")
"""The commands of the embedded default. They set their own environment."""
COMMANDS = {
    "refresh": "refresh:refresh",
    "plan": "plan:plan",
    "status": "tables:status",
    "reconcile": "refresh:reconcile",
    "changes": "changes:changes",
    "undo": "changes:undo",
    "alert-test": "operation:alert_test",
    "cleanup": "operation:cleanup",
    "retention": "tables:retention",
    "sql": "tables:show_sql",
    "check": "tables:check",
    "doctor": "operation:doctor",
    "verify-source": "verify:verify_source",
    "ledger": "operation:ledger",
    "schema": "operation:schema",
    "api": "servers:api",
    "webserver": "servers:webserver",
    "daemon": "servers:daemon",
    "mcp": "assistant:mcp",
    "code-server": "servers:code_server",
    "token": "access:token",
    "tenants": "access:tenants",
    "run": "embedded:run",
    "dev": "embedded:dev",
    "servers": "embedded:servers",
}
"""The commands in the order of the help, each with its module and its function."""
# `-h` means the host in these commands, as in Dagster's own servers.
HOST_OPTION = {"help_option_names": ["--help"]}
CONTEXTS = {"webserver": HOST_OPTION, "code-server": HOST_OPTION}


class Commands(TyperGroup):
    """The commands. Each is imported when it is called, so that a server has in memory only what it needs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].partition(":")
        # The imports make up to half a million objects that stay. To look for garbage among them takes a quarter of a start.
        gc.disable()
        found = getattr(import_module(f"pulso_etl.cli.{module}"), function)
        gc.freeze()
        gc.enable()
        alone = typer.Typer(add_completion=False)
        alone.command(cmd_name, context_settings=CONTEXTS.get(cmd_name))(found)
        return typer.main.get_command(alone)


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"pulso-etl {version('pulso-etl')}")
        raise typer.Exit


@app.callback(help="Keeps five PostgreSQL tables equal to BigQuery.", context_settings={"help_option_names": ["-h", "--help"]})
def options(
    context: typer.Context,
    _: Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")] = False,
    env_file: Annotated[
        Path | None, typer.Option(help="File of NAME=value lines that override the environment; .env if not given.")
    ] = None,
) -> None:
    """Options of every command."""
    if env_file is not None or context.invoked_subcommand not in EMBEDDED:
        load_env_file(env_file)
        embedded.adopt()
    logs.configure()


def main() -> None:
    """Entry point. The project's own errors give one line and exit code 2, without a trace."""
    try:
        app()
    except PulsoError as error:
        typer.echo(f"pulso-etl: {scrub(str(error))}", err=True)
        raise SystemExit(2) from None
    except Exception as error:
        if (told := _of_postgresql(error)) is not None:
            typer.echo(f"pulso-etl: {scrub(told)}", err=True)
            raise SystemExit(2) from None
        # An unexpected error: its trace is printed, without secrets.
        clean(error)
        raise


def _of_postgresql(error: Exception) -> str | None:
    """What an error of PostgreSQL's client says; None for another error."""
    # Imported here: Dagster's servers have no need of this client.
    import psycopg

    from pulso_etl.sync.postgres.server_errors import meaning

    return str(meaning(error).tell(error)) if isinstance(error, psycopg.Error) else None
