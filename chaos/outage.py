"""Sends a full queue through outages, `python -m chaos.outage --seconds 300`. No run and no back-fill may be lost.

A whole deployment is given more runs and back-fills than it can begin at once. Then PostgreSQL goes away, with Dagster's storage;
then the code server is killed again and again; then both at once. After each, all that was asked for has to come to a good end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Annotated

import dagster as dg
import typer
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from chaos.share import end_on_sigterm, say
from chaos.soak import Callers, Deployment, wait_for
from pulso_etl_tests.gate import Way

KILLS, PAUSE_SECONDS = 3, 15
PATIENCE_SECONDS = 900
GOOD_BACKFILLS = {BulkActionStatus.COMPLETED_SUCCESS, BulkActionStatus.COMPLETED}
ENDED_BACKFILLS = GOOD_BACKFILLS | {
    BulkActionStatus.FAILED,
    BulkActionStatus.COMPLETED_FAILED,
    BulkActionStatus.CANCELED,
}


@dataclass
class Outcome:
    """The results of the requests before one outage. `dropped` are runs that failed before they began."""

    name: str
    runs: Counter[str] = field(default_factory=Counter)
    backfills: Counter[BulkActionStatus] = field(default_factory=Counter)
    waiting: int = 0
    dropped: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def broken(self) -> list[str]:
        """The lines that report faults."""
        failed = {name: count for name, count in self.backfills.items() if name not in GOOD_BACKFILLS}
        return [
            *(f"{self.name}: run {run_id} failed without having begun" for run_id in self.dropped),
            *(f"{self.name}: run {run_id} was promised, and is not known" for run_id in self.lost),
            *(f"{self.name}: {count} back-fills ended as {name}" for name, count in failed.items()),
        ]


def fill_the_queue(deployment: Deployment, callers: Callers, random: Random, queue: int) -> tuple[set[str], set[str]]:
    """Asks for runs and half as many back-fills, and waits until some of each have begun. Returns the ids of both."""
    runs, backfills = set(callers.asked.runs), set(callers.asked.backfills)
    for _ in range(queue // 2):
        callers.backfill(random)
    for _ in range(queue):
        callers.graphql(random)
    wanted = set(callers.asked.runs) - runs
    with deployment.instance() as instance:

        def begun() -> bool:
            going = dg.RunsFilter(run_ids=list(wanted), statuses=[dg.DagsterRunStatus.STARTED])
            return instance.get_runs_count(going) > 0 and any("dagster/backfill" in run.tags for run in instance.get_runs())

        wait_for(begun, PATIENCE_SECONDS, "no run has begun")
    return wanted, set(callers.asked.backfills) - backfills


def outcome(deployment: Deployment, name: str, runs: set[str], backfills: set[str], waiting: int) -> Outcome:
    """Waits for the end of all requests, and counts the results."""
    found, began = Outcome(name, waiting=waiting), time.monotonic()
    with deployment.instance() as instance:

        def of_ours(run: dg.DagsterRun) -> bool:
            return bool({run.run_id, run.root_run_id} & runs or run.tags.get("dagster/backfill") in backfills)

        def over() -> bool:
            going = [run for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)) if of_ours(run)]
            ended = all(one.status in ENDED_BACKFILLS for one in instance.get_backfills() if one.backfill_id in backfills)
            return ended and not going and deployment.ready()

        wait_for(over, PATIENCE_SECONDS, f"{name}: not all came to an end")
        # Dagster's daemon launches a run again within its next look.
        time.sleep(PAUSE_SECONDS)
        wait_for(over, PATIENCE_SECONDS, f"{name}: not all came to an end")
        records = [record for record in instance.get_run_records() if of_ours(record.dagster_run)]
        found.seconds = time.monotonic() - began
        for one in instance.get_backfills():
            if one.backfill_id in backfills:
                found.backfills[one.status] += 1
    for record in records:
        found.runs[record.dagster_run.status.value] += 1
        # A run that had begun before the outage fails, and the refresh sensor then loads its table.
        if record.dagster_run.status is dg.DagsterRunStatus.FAILURE and record.start_time is None:
            found.dropped.append(record.dagster_run.run_id)
    found.lost = sorted(runs - {record.dagster_run.run_id for record in records})
    return found


def outages(deployment: Deployment, seconds: float, way: Way) -> dict[str, Callable[[], None]]:
    """Each outage by its name. It is over when the call returns."""
    code = deployment.services["code server"]

    def kill() -> None:
        for _ in range(KILLS):
            code.kill()
            time.sleep(PAUSE_SECONDS)

    def away(meanwhile: Callable[[], None]) -> None:
        ends = time.monotonic() + seconds
        deployment.postgres.turn(way)
        meanwhile()
        time.sleep(max(0.0, ends - time.monotonic()))
        deployment.postgres.turn(Way.OPEN)

    return {
        f"PostgreSQL {way} for {seconds:g} s": lambda: away(lambda: None),
        f"code server killed {KILLS} times": kill,
        f"PostgreSQL {way} for {seconds:g} s, code server killed {KILLS} times meanwhile": lambda: away(kill),
    }


def main(
    seconds: Annotated[float, typer.Option(min=1, help="How long PostgreSQL is away.")] = 20,
    way: Annotated[Way, typer.Option(help="How PostgreSQL is away.")] = Way.REFUSED,
    queue: Annotated[
        int, typer.Option(min=2, help="How many runs are asked for before each outage, and half as many back-fills.")
    ] = 6,
    only: Annotated[list[int] | None, typer.Option(help="1: PostgreSQL, 2: the code server, 3: both at once.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses tables and days.")] = 1,
    keep: Annotated[Path | None, typer.Option(help="Folder for the logs, which stay there.")] = None,
) -> None:
    """Sends a full queue through outages. Ends with code 1 if a run or a back-fill was lost."""
    random, found = Random(seed), list[Outcome]()
    with ExitStack() as stack:
        home = keep or Path(stack.enter_context(TemporaryDirectory(prefix="pulso-outage-", ignore_cleanup_errors=True)))
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o755)
        deployment = Deployment(home, stack)
        callers = Callers(deployment, seed)
        for number, (name, happens) in enumerate(outages(deployment, seconds, way).items(), 1):
            if only and number not in only:
                continue
            wait_for(deployment.ready, 300, "the deployment is not ready")
            asked = fill_the_queue(deployment, callers, random, queue)
            with deployment.instance() as instance:
                waiting = instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]))
            say(f"{name}; {waiting} runs are queued")
            happens()
            say("over")
            found.append(outcome(deployment, name, *asked, waiting))
            say(report(found[-1:]).splitlines()[-1])
    print(report(found))
    for line in (broken := [line for one in found for line in one.broken]):
        print(f"BROKEN: {line}", flush=True)
    if broken:
        raise typer.Exit(1)


def report(found: list[Outcome]) -> str:
    """The figures, as Markdown."""

    def counted(counts: Counter[str]) -> str:
        return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"

    head = ("outage", "queued as it began", "runs, by their end", "failed without having begun", "back-fills", "seconds to the end")
    lines = [
        f"| {one.name} | {one.waiting} | {counted(one.runs)} | {len(one.dropped)} | "
        f"{counted(Counter({name.value: count for name, count in one.backfills.items()}))} | {one.seconds:.0f} |"
        for one in found
    ]
    return "\n".join((f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |", *lines))


if __name__ == "__main__":
    end_on_sigterm()
    typer.run(main)
