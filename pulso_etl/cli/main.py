"""The command line, `pulso-etl`: puts the commands together."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from pulso_etl import embedded, logs
from pulso_etl.cli.access import tenants, token
from pulso_etl.cli.embedded import dev, run, servers
from pulso_etl.cli.operation import alert_test, cleanup, doctor, ledger, schema
from pulso_etl.cli.plan import plan
from pulso_etl.cli.refresh import reconcile, refresh
from pulso_etl.cli.servers import api, code_server, daemon, webserver
from pulso_etl.cli.tables import check, retention, show_sql, status
from pulso_etl.settings import load_env_file
from pulso_etl.sync.errors import PulsoError
from pulso_etl.sync.postgres.server_errors import meaning
from pulso_etl.sync.redaction import clean, scrub

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
EMBEDDED = ("run", "dev", "servers")
"""The commands of the embedded default. They set their own environment."""


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


# `-h` means the host in these commands, as in Dagster's own servers.
HOST_OPTION = {"help_option_names": ["--help"]}
app.command()(refresh)
app.command()(plan)
app.command()(status)
app.command()(reconcile)
app.command()(alert_test)
app.command()(cleanup)
app.command()(retention)
app.command("sql")(show_sql)
app.command()(check)
app.command()(doctor)
app.command()(ledger)
app.command()(schema)
app.command()(api)
app.command(context_settings=HOST_OPTION)(webserver)
app.command()(daemon)
app.command("code-server", context_settings=HOST_OPTION)(code_server)
app.command()(token)
app.command()(tenants)
app.command()(run)
app.command()(dev)
app.command()(servers)


def main() -> None:
    """Entry point. The project's own errors give one line and exit code 2, without a trace."""
    try:
        app()
    except PulsoError as error:
        typer.echo(f"pulso-etl: {scrub(str(error))}", err=True)
        raise SystemExit(2) from None
    except psycopg.Error as error:
        typer.echo(f"pulso-etl: {scrub(str(meaning(error).tell(error)))}", err=True)
        raise SystemExit(2) from None
    except Exception as error:
        # An unexpected error: its trace is printed, without secrets.
        clean(error)
        raise
