"""How long a change at the source takes to the row while a deployment has more to do than it can, `python -m chaos.starvation`.

Back-fills and refreshes of every table are asked for all the time. Meanwhile the source changes again and again, and a refresh of
two small tables is asked for: what counts is when their rows are those of the source.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import dagster as dg
import psycopg
import typer

from chaos.share import end_on_sigterm, say
from chaos.soak import Callers, Deployment, wait_for, wanted
from pulso_etl.tables import TABLES

WATCHED = ("operation_data", "dashboard_data")
QUEUE = 8
"""At least this many runs wait, besides the watched ones."""
PATIENCE_SECONDS = 900


def keep_busy(deployment: Deployment, callers: Callers, random: Random) -> int:
    """Asks for back-fills and refreshes until the queue is long. Returns its length."""
    with deployment.instance() as instance:
        queued = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])
        while (waiting := instance.get_runs_count(queued)) < QUEUE:
            callers.backfill(random)
            for _ in range(QUEUE - waiting):
                callers.graphql(random)
        return waiting


def seconds_to_the_row(deployment: Deployment, callers: Callers, random: Random) -> dict[str, float]:
    """Changes the source, asks for the tables, and waits until each equals the source. The queue stays long meanwhile."""
    deployment.change_source()
    began, found = time.monotonic(), dict[str, float]()
    for table in WATCHED:
        status, told = deployment.ask("POST", f"/api/v1/etl/refresh/table/{table}?force=true")
        assert status == 202, told
    rows = {table: wanted(deployment, table) for table in WATCHED}
    while len(found) < len(WATCHED):
        if time.monotonic() - began > PATIENCE_SECONDS:
            return found | {table: float("inf") for table in WATCHED if table not in found}
        keep_busy(deployment, callers, random)
        with psycopg.connect(deployment.url, autocommit=True) as conn:
            conn.execute("SET TIME ZONE 'UTC'")
            for table in WATCHED:
                spec = TABLES[table]
                columns, keys = (*spec.primary_key, *spec.compared_columns), len(spec.primary_key)
                there = conn.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
                if table not in found and {row[:keys]: row[keys:] for row in there} == rows[table]:
                    found[table] = time.monotonic() - began
        time.sleep(1)
    return found


def main(
    changes: Annotated[int, typer.Option(min=1, help="How often the source changes.")] = 3,
    seed: Annotated[int, typer.Option(help="Chooses tables and days of the other work.")] = 1,
) -> None:
    """Prints the seconds from each change to the row."""
    random, found = Random(seed), list[dict[str, float]]()
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="pulso-starvation-", ignore_cleanup_errors=True)))
        home.chmod(0o755)
        deployment = Deployment(home, stack)
        callers = Callers(deployment, seed)
        wait_for(deployment.ready, 300, "the deployment did not start")
        for _ in range(changes):
            waiting = keep_busy(deployment, callers, random)
            found.append(seconds_to_the_row(deployment, callers, random))
            say(f"{waiting} runs waited; " + ", ".join(f"{table} {seconds:.0f} s" for table, seconds in found[-1].items()))
    for table in WATCHED:
        took = sorted(one[table] for one in found)
        print(f"{table}: {', '.join(f'{one:.0f}' for one in took)} s from the change to the row, median {median(took):.0f} s")


if __name__ == "__main__":
    end_on_sigterm()
    typer.run(main)
