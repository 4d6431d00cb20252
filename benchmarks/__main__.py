"""`python -m benchmarks`: measures, prints Markdown, and writes it into the documentation with `--write`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import psycopg
import typer

from benchmarks import page
from benchmarks.changes import measure_changes, postmaster
from benchmarks.days import measure_days
from benchmarks.indexes import measure_indexes
from benchmarks.launch import measure_launches
from benchmarks.loads import FIRST, ROOT, SCENARIOS, UNCHANGED, LoadBench, Measurement
from benchmarks.parallel import measure_parallel
from benchmarks.pressed import measure_presses
from benchmarks.scale import measure_tables, measure_years
from benchmarks.status import measure_status
from benchmarks.ways import WAYS
from benchmarks.wire import measure_wire
from pulso_etl.local.postgres import EmbeddedPostgres

PAGE = ROOT / "docs" / "performance.md"
INDEX_PAGE = ROOT / "docs" / "indexes.md"
PROGRAMS = ("pulso", "sling", "ingestr", "duckdb", "adbc")
"""Other programs and drivers. They take minutes, so each load is measured once."""
INDEXED = ("pulso", *(name for name, way in WAYS.items() if way.index))
MEMORY_ROWS = (100_000, 1_000_000, 5_000_000, 10_000_000)


class Section(StrEnum):
    """The parts of the benchmark."""

    LOADS = "loads"
    PROGRAMS = "programs"
    MEMORY = "memory"
    PARALLEL = "parallel"
    CHANGES = "changes"
    DAYS = "days"
    INDEXES = "indexes"
    WIRE = "wire"
    LAUNCHES = "launches"
    PRESSES = "presses"
    STATUS = "status"
    TABLES = "tables"
    YEARS = "years"


Way = StrEnum("Way", {name: name for name in WAYS})  # type: ignore[misc]


def bench(
    rows: Annotated[int, typer.Option(min=1_000, help="Rows of each load.")] = 1_000_000,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each load, launch and start is measured; medians are shown.")] = 3,
    way: Annotated[
        list[Way] | None, typer.Option(help="Ways of loading; without other programs and another index, if none is named.")
    ] = None,
    section: Annotated[list[Section] | None, typer.Option(help="Parts to measure; all of them if none is named.")] = None,
    memory_rows: Annotated[list[int] | None, typer.Option(min=1_000, help="Sizes at which memory is measured.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds after which one load or launch is given up.")] = 300,
    write: Annotated[bool, typer.Option("--write", help="Write the tables into the pages in docs/ as well.")] = False,
) -> None:
    """Measures the load path beside other ways on one server, its memory, the time from launch to SUCCESS and from a press of the
    page's button to fresh rows, and the API's answers.

    On the server that DATABASE_URL names, in schemas `bench_…` of its database; on an embedded one otherwise. Launches and answers
    always use the embedded default. Server-side COPY needs files that the server can read, so the same machine.
    """
    sections = section or list(Section)
    ways = [name.value for name in way or Way if way or not (WAYS[name].index or name in PROGRAMS[1:])]
    with TemporaryDirectory(prefix="pulso-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        if {
            Section.LOADS,
            Section.PROGRAMS,
            Section.MEMORY,
            Section.PARALLEL,
            Section.CHANGES,
            Section.DAYS,
            Section.INDEXES,
        } & set(sections):
            with _server(home) as url:
                with psycopg.connect(url) as conn:
                    where = page.machine(conn)
                if Section.LOADS in sections:
                    measured = _measure(url, home, rows, timeout, ways, repeats)
                    _publish(Section.LOADS, f"{where}\n\n{page.loads(measured)}", write)
                if Section.PROGRAMS in sections:
                    measured = _measure(url, home, rows, timeout, PROGRAMS, 1)
                    _publish(Section.PROGRAMS, f"{where}\n\n{page.loads(measured)}", write)
                if Section.MEMORY in sections:
                    measured = []
                    for size in memory_rows or MEMORY_ROWS:
                        measured += _measure(url, home, size, 4 * timeout, ["pulso"], 1, (FIRST, UNCHANGED))
                    _publish(Section.MEMORY, f"{where}\n\n{page.memory(measured)}", write)
                if Section.PARALLEL in sections:
                    with TemporaryDirectory(dir=home) as files:
                        throughput = measure_parallel(url, Path(files), rows, timeout=timeout, say=_say)
                    _publish(Section.PARALLEL, f"{where}\n\n{page.parallel(throughput)}", write)
                if Section.CHANGES in sections:
                    with TemporaryDirectory(dir=home) as files, psycopg.connect(url) as conn:
                        reloads = measure_changes(url, postmaster(conn), Path(files), rows, repeats, _say)
                    _publish(Section.CHANGES, f"{where}\n\n{page.changes(reloads)}", write)
                if Section.DAYS in sections:
                    runs = measure_days(url, home, repeats, timeout=timeout, say=_say)
                    _publish(Section.DAYS, f"{where}\n\n{page.days(runs)}", write)
                if Section.INDEXES in sections:
                    reads = measure_indexes(url, say=_say)
                    measured = _measure(url, home, rows, timeout, INDEXED, repeats)
                    _publish(Section.INDEXES, f"{where}\n\n{page.indexes(reads, measured)}", write, INDEX_PAGE)
        if Section.WIRE in sections:
            with TemporaryDirectory(dir=home) as files:
                downloads = measure_wire(Path(files), rows, repeats, timeout=timeout, say=_say)
            _publish(Section.WIRE, page.wire(downloads), write)
        if Section.LAUNCHES in sections:
            launches = measure_launches(home / "launches", repeats, timeout=timeout, say=_say)
            _publish(Section.LAUNCHES, page.launches(launches), write)
        if Section.PRESSES in sections:
            presses = measure_presses(home / "presses", repeats, timeout=timeout, say=_say)
            _publish(Section.PRESSES, page.presses(presses), write)
        if Section.STATUS in sections:
            readings = measure_status(home / "status", timeout=timeout, say=_say)
            _publish(Section.STATUS, page.status(readings), write)
        if Section.TABLES in sections:
            many = measure_tables(home / "tables", repeats, timeout=timeout, say=_say)
            _publish(Section.TABLES, page.tables(many), write)
        if Section.YEARS in sections:
            past = measure_years(home / "years", timeout=timeout, say=_say)
            _publish(Section.YEARS, page.years(past), write)


def _measure(
    url: str, home: Path, rows: int, timeout: float, ways: Sequence[str], repeats: int, scenarios: Sequence[str] = SCENARIOS
) -> list[Measurement]:
    with TemporaryDirectory(dir=home) as files:
        return LoadBench(url, Path(files), rows, timeout=timeout, say=_say).measure(ways, repeats, scenarios)


@contextmanager
def _server(home: Path) -> Iterator[str]:
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    with EmbeddedPostgres(home / "postgres") as server:
        yield server.create_database("bench")


def _publish(section: Section, text: str, write: bool, into: Path = PAGE) -> None:
    print(f"## {section}\n\n{text}\n", flush=True)
    if write:
        page.write(into, section.value, text)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an end that stops the servers and removes the files
    typer.run(bench)
