"""One process's share of the refreshes. It is a module of its own, because a new process cannot import the command's module."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from chaos.faults import Kind
from chaos.trial import Broken, Result, world


def run_share(home: Path, numbers: Sequence[int], seed: int, until: float) -> list[Result]:
    """Runs the refreshes with these numbers, on servers in `home`. Starts none after `until` (monotonic clock). Raises Broken."""
    home.mkdir()
    results: list[Result] = []
    with world(home) as found:
        if found.boundary.disk is None:
            say(f"left out, as no small file system can be mounted here: {Kind.DISK_FULL}")
        for number in numbers:
            if time.monotonic() > until:
                break
            try:
                result = found.trial(number, seed)
            except Broken as error:
                raise Broken(f"refresh {number} (again: --seed {seed} --only {number}): {error}") from None
            results.append(result)
            outcome = "as the source has it" if result.survived else "as it was"
            hit = "" if result.happened else " (not reached)"
            say(f"{number}: {result.kind} {result.point}{hit}, {result.table}: {outcome}, healed; {result.seconds:.1f} s")
    return results


def end_on_sigterm() -> None:
    """Ends the process, so that the servers stop and the files are removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
