"""Commands that serve until Ctrl-C: the HTTP API, Dagster's UI and Dagster's code server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pulso_etl import logs
from pulso_etl.settings import load_access_settings


def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on; API_HOST if not given.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; API_PORT if not given.")] = None,
) -> None:
    """Serves the HTTP API and the status page, until Ctrl-C."""
    from pulso_etl.api.server import serve
    from pulso_etl.cli.terminal import served_settings

    settings = served_settings(api_host=host, api_port=port)
    # The log gets a line for each launch.
    logs.configure("INFO")
    serve(settings)


def webserver(
    host: Annotated[str, typer.Option("--host", "-h", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port.")] = 3000,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="File of code locations.")] = Path("workspace.yaml"),
) -> None:
    """Serves Dagster's UI to callers with a token, until Ctrl-C. Never start Dagster's own webserver: it lets everybody in."""
    from pulso_etl.api.door import serve

    settings = load_access_settings()
    logs.configure("INFO")
    serve(settings, host, port, workspace)


def daemon(
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="File of code locations.")] = Path("workspace.yaml"),
) -> None:
    """Runs Dagster's daemon until Ctrl-C: sensors, schedules, the queue and the watch over runs. Run only one."""
    from dagster._daemon.cli import run_command

    from pulso_etl.instance import lines

    lines.serve("INFO")
    run_command.main(["--workspace", str(workspace)], standalone_mode=False)


def code_server(
    host: Annotated[str, typer.Option("--host", "-h", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port.")] = 4000,
    module: Annotated[str, typer.Option("--module-name", "-m", help="Module that has the definitions.")] = "pulso_etl.definitions",
) -> None:
    """Serves the definitions to Dagster's daemon and webserver, until Ctrl-C. Runs start fast: the code is already imported."""
    # Imported here because the import takes a second, and no other command needs it.
    from pulso_etl.instance.code_server import serve

    serve(host, port, module)
