"""Commands of the embedded default: PostgreSQL, the BigQuery emulator and sample data on this machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from pulso_etl.cli.refresh import refresh_tables, report
from pulso_etl.cli.terminal import say
from pulso_etl.refreshing.request import Grants, RefreshRequest
from pulso_etl.settings import load_settings
from pulso_etl.tables import TABLES
from pulso_etl.tenancy.tenants import Deployed

HomeOption = Annotated[Path, typer.Option(help="Folder of the embedded servers' data.")]
RowsOption = Annotated[int, typer.Option(min=1, help="Dashboard rows of the sample data per day; other tables in proportion.")]


def run(
    home: HomeOption = Path(".pulso"),
    rows_per_day: RowsOption = 170,
    revision: Annotated[int, typer.Option(min=0, help="Sample data with this many rounds of late corrections.")] = 0,
) -> None:
    """Refreshes all five tables on the embedded default: PostgreSQL, BigQuery emulator, sample data."""
    from pulso_etl.local.stack import local_stack

    try:
        with local_stack(home, revision=revision, rows_per_day=rows_per_day, say=say):
            outcomes = refresh_tables(
                Deployed(load_settings(), TABLES), RefreshRequest(grants=Grants(force=True), max_concurrent=1)
            )
    except KeyboardInterrupt:
        say("interrupted; everything is stopped")
        raise typer.Exit(130) from None
    report(outcomes)


def dev(
    home: HomeOption = Path(".pulso"),
    rows_per_day: RowsOption = 170,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Dagster's UI on 127.0.0.1.")] = 3000,
    api_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page and the API on 127.0.0.1.")] = 8000,
) -> None:
    """Runs the embedded default with Dagster's UI and daemon, the HTTP API and its page, until Ctrl-C."""
    from pulso_etl.local.stack import check_port, local_stack, serve

    check_port(port, "--port")
    check_port(api_port, "--api-port")
    with suppress(KeyboardInterrupt), local_stack(home, rows_per_day=rows_per_day, say=say) as stack:
        serve(stack, port, api_port, say)
    say("everything is stopped")
