"""`python -m chaos`: runs refreshes with faults, one after the other, prints the results, and writes them with `--write`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks import page
from chaos.faults import Kind
from chaos.share import end_on_sigterm, run_share, say
from chaos.trial import ROOT, Broken, Result

PAGE = ROOT / "docs" / "faults.md"


def chaos(
    refreshes: Annotated[int, typer.Option(min=1, help="Refreshes that meet a fault.")] = 220,
    seed: Annotated[int, typer.Option(help="Chooses tables and points; the same seed gives the same ones.")] = 1,
    only: Annotated[int | None, typer.Option(min=0, help="The refresh of that number alone.")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="No further refresh is begun after so long.")] = 30,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share them, each with servers of its own.")] = 2,
    write: Annotated[bool, typer.Option("--write", help=f"Write the table into {PAGE.relative_to(ROOT)} as well.")] = False,
) -> None:
    """Runs refreshes with faults on their own servers. Ends with code 1 if anything was lost, half loaded or reported wrong."""
    began = time.monotonic()
    numbers = [only] if only is not None else list(range(refreshes))
    workers = min(workers, len(numbers))
    with TemporaryDirectory(prefix="pulso-chaos-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        shares = [(home / str(n), numbers[n::workers], seed, began + 60 * minutes) for n in range(workers)]
        # Each share is a process, because a trial changes the clock and the environment of its process.
        with get_context("spawn").Pool(workers, end_on_sigterm) as pool:
            try:
                results = [result for share in pool.starmap(run_share, shares, chunksize=1) for result in share]
            except Broken as error:
                print(f"BROKEN: {error}", flush=True)
                raise typer.Exit(1) from None
    if len(results) < len(numbers):
        say(f"{minutes:g} minutes are over")
    text = report(results, seed, time.monotonic() - began)
    print(text)
    if write:
        page.write(PAGE, "faults", text)


def report(results: Sequence[Result], seed: int, seconds: float) -> str:
    """The counts by kind, as Markdown."""
    rows: list[tuple[str, list[int]]] = []
    for kind in Kind:
        found = [result for result in results if result.kind is kind]
        hit = [result for result in found if result.happened]
        survived = sum(result.survived for result in hit)
        if found:
            rows.append((kind.value, [len(found), len(hit), len(hit) - survived, survived, len(found)]))
    totals = [sum(column) for column in zip(*(counts for _, counts in rows), strict=True)]
    lines = [f"| {name} | {' | '.join(map(str, counts))} |" for name, counts in [*rows, ("all", totals)]]
    head = ("fault", "refreshes", "met it", "left the table as it was", "loaded it all the same", "next refresh healed")
    return "\n".join(
        (
            f"{datetime.now(UTC):%Y-%m-%d}, seed {seed}: {len(results)} refreshes in {seconds / 60:.0f} minutes, "
            f"{totals[1]} of which met their fault. No row was lost, none half loaded, and no watermark told otherwise.",
            "",
            f"| {' | '.join(head)} |",
            f"| {' | '.join(['---'] * len(head))} |",
            *lines,
        )
    )


if __name__ == "__main__":
    end_on_sigterm()
    typer.run(chaos)
