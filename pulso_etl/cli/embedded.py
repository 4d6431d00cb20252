"""Commands of the embedded default: PostgreSQL, the BigQuery emulator and sample data on this machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from pulso_etl import embedded
from pulso_etl.calls import refresh_tables
from pulso_etl.cli.refresh import report
from pulso_etl.cli.terminal import say
from pulso_etl.embedded import HOME
from pulso_etl.refreshing.request import Grants, RefreshRequest
from pulso_etl.settings import load_settings
from pulso_etl.sync.errors import SettingsError
from pulso_etl.tables import TABLES
from pulso_etl.tenancy.tenants import Deployed

HomeOption = Annotated[Path, typer.Option(help="Folder of the embedded servers' data.")]
RowsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Dashboard rows of the sample data per day; other tables in proportion. As the last time, or 170."),
]


def run(
    home: HomeOption = HOME,
    rows_per_day: RowsOption = None,
    revision: Annotated[
        int | None,
        typer.Option(min=0, help="Sample data with this many rounds of late corrections. As the last time, or 0."),
    ] = None,
) -> None:
    """Refreshes all five tables on the embedded default: PostgreSQL, BigQuery emulator, sample data."""
    stack = _stack()
    try:
        with stack.local_stack(home, stack.Sample(revision, rows_per_day), say=say) as started:
            started.leave_settings()
            request = RefreshRequest(grants=Grants(force=True), max_concurrent=1)
            outcomes = refresh_tables(Deployed(load_settings(), TABLES), request, say)
    except KeyboardInterrupt:
        say("interrupted; everything is stopped")
        raise typer.Exit(130) from None
    report(outcomes)


def dev(
    home: HomeOption = HOME,
    rows_per_day: RowsOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Dagster's UI on 127.0.0.1.")] = 3000,
    api_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page and the API on 127.0.0.1.")] = 8000,
) -> None:
    """Runs the embedded default with Dagster's UI and daemon, the HTTP API and its page, until Ctrl-C."""
    stack = _stack()
    # A second one in the same folder is told of the first, and not only of its port.
    first = embedded.holder(home)
    if first is None:
        stack.check_port(port, "--port")
        stack.check_port(api_port, "--api-port")
    with (
        suppress(KeyboardInterrupt),
        stack.local_stack(home, stack.Sample(None, rows_per_day), holds="dev", say=say) as started,
    ):
        stack.serve(started, port, api_port, say)
    say("everything is stopped")


def servers(
    home: HomeOption = HOME,
    rows_per_day: RowsOption = None,
    while_used: Annotated[bool, typer.Option("--while-used", help="Stop once no other command uses them.")] = False,
) -> None:
    """Runs only the servers of the embedded default, PostgreSQL and the BigQuery emulator, until Ctrl-C."""
    stack = _stack()
    holds = embedded.SERVERS_OF_COMMANDS if while_used else "servers"
    with (
        suppress(KeyboardInterrupt),
        stack.local_stack(home, stack.Sample(None, rows_per_day), holds=holds, say=say) as started,
    ):
        stack.keep(started, say, while_used=while_used)
    say("everything is stopped")


def _stack() -> ModuleType:
    """The module of the embedded default. Raises SettingsError where the packages that only it needs are not installed."""
    try:
        from pulso_etl.local import stack
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"the embedded default needs the package {error.name}, which is not installed: pip install 'pulso-etl[local]'"
        ) from None
    return stack
