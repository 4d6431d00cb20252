"""The measurements as Markdown tables, and their place in the documentation."""

from __future__ import annotations

import os
import platform
import re
import textwrap
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import psycopg

from benchmarks.changes import LOGGED, UNLOGGED, Reload, ways
from benchmarks.days import STORAGES, Run
from benchmarks.indexes import RUNS, Read
from benchmarks.launch import ALONE, FIVE, LAUNCHED, TABLE, Launch
from benchmarks.loads import CHANGED, FIRST, SCENARIOS, TWO_DAYS, UNCHANGED, Measurement
from benchmarks.many import CHECKS
from benchmarks.parallel import Throughput
from benchmarks.scale import Many, Past
from benchmarks.status import Readings
from benchmarks.ways import WAYS
from benchmarks.wire import Download

SETTINGS = ("shared_buffers", "max_wal_size", "checkpoint_timeout", "synchronous_commit", "fsync", "wal_level", "jit")
Row = Sequence[str]


def machine(conn: psycopg.Connection) -> str:
    """The machine of the measurement: cores, memory, versions, and the server settings that matter."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    settings = conn.execute("SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name", (list(SETTINGS),)).fetchall()
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores, {memory:.0f} GiB of memory, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"PostgreSQL {conn.info.parameter_status('server_version')} on the same machine "
        f"({', '.join(f'`{name}={value}`' for name, value in settings)})."
    )


def loads(measurements: Sequence[Measurement]) -> str:
    """Medians of each way and scenario, and how they compare."""
    rows = measurements[0].rows
    ways = list(dict.fromkeys(m.way for m in measurements))
    repeats = sum((m.way, m.scenario) == (ways[0], FIRST) for m in measurements)
    what = f"medians of {repeats}" if repeats > 1 else "single loads"
    seconds = {key: median(values) for key, values in _group(measurements).items()}
    table = []
    for way in ways:
        errors = [m.error for m in measurements if m.way == way and m.error]
        cells = [_speed(rows, seconds.get((way, scenario))) for scenario in SCENARIOS]
        peak = max((m.peak_mb for m in measurements if m.way == way and not m.error), default=0.0)
        table.append((WAYS[way].title, *cells, f"failed: {errors[0]}" if errors else f"{peak:.0f} MB"))
    return "\n\n".join(
        (
            f"{rows:,} rows in random key order; {what}, seconds and rows per second.",
            table_of(("way", *SCENARIOS, "peak memory"), table),
            table_of(("target", "measured", "met"), _load_targets(seconds, measurements)),
        )
    )


def _load_targets(seconds: dict[tuple[str, str], float], measurements: Sequence[Measurement]) -> list[Row]:
    def ratio(name: str, top: str, bottom: str, scenario: str, met: Callable[[float], bool] | None) -> list[Row]:
        if (top, scenario) not in seconds or (bottom, scenario) not in seconds:
            return []
        value = seconds[top, scenario] / seconds[bottom, scenario]
        return [(f"{scenario}: {name}", f"{value:.2f}", "-" if met is None else "yes" if met(value) else "no")]

    limit = "times the physical limit's seconds, at most 1.25"
    targets = ratio(limit, "pulso", "copy_direct", FIRST, lambda value: value <= 1.25)
    for scenario in (UNCHANGED, CHANGED):
        by_hand = "times the seconds of the upsert by hand, less than 1"
        targets += ratio(by_hand, "pulso", "copy_upsert", scenario, lambda value: value < 1)
        targets += ratio("times as fast as dlt over CSV, at least 8", "dlt", "pulso", scenario, lambda value: value >= 8)
        targets += ratio("times as fast as dlt over Parquet and ADBC", "dlt_adbc", "pulso", scenario, None)
    for scenario, most in ((UNCHANGED, 1.2), (TWO_DAYS, 1.5)):
        if ("pulso", scenario) in seconds and measurements[0].rows == 1_000_000:
            took = seconds["pulso", scenario]
            targets.append((f"{scenario}: at most {most} s", f"{took:.2f} s", "yes" if took <= most else "no"))
    compared = "times the seconds with every day compared, at most 1"
    targets += ratio(compared, "pulso", "pulso_compared", CHANGED, lambda value: value <= 1)
    peaks = [m.peak_mb for m in measurements if m.way == "pulso" and not m.error]
    if peaks:
        targets.append(("memory under 300 MB", f"{max(peaks):.0f} MB", "yes" if max(peaks) < 300 else "no"))
    return targets


def memory(measurements: Sequence[Measurement]) -> str:
    """Peak memory of the loading process by size."""
    return table_of(
        ("rows", "load", "peak memory", "seconds"),
        [
            (f"{m.rows:,}", m.scenario, f"{m.peak_mb:.0f} MB", f"{m.seconds:.1f}")
            if not m.error
            else (f"{m.rows:,}", m.scenario, m.error, "")
            for m in measurements
        ],
    )


def parallel(measured: Sequence[Throughput]) -> str:
    """Rows a second by the number of processes, and how many times those of one."""
    alone = {one.scenario: one.seconds for one in measured if one.workers == 1}
    scenarios = list(alone)
    found = {(one.workers, one.scenario): one for one in measured}
    table = []
    for workers in dict.fromkeys(one.workers for one in measured):
        cells = []
        for scenario in scenarios:
            one = found[workers, scenario]
            cells += [_speed(one.rows, one.seconds), f"{alone[scenario] / one.seconds:.2f}"]
        table.append((str(workers), *cells))
    head = [cell for scenario in scenarios for cell in (scenario, "times one process")]
    return table_of(("processes", *head), table)


def changes(measured: Sequence[Reload]) -> str:
    """Seconds of the re-loads with and without the change log."""
    table, processor = [], {}
    for way, found in ways(measured).items():
        processor[way] = median(one.client + one.server for one in found)
        seconds = sorted(one.seconds for one in found)
        cells = (median(one.client for one in found), median(one.server for one in found), processor[way])
        table.append((way, f"{seconds[0]:.2f} s, {median(seconds):.2f} s", *(f"{cell:.2f} s" for cell in cells)))
    more = processor[LOGGED] / processor[UNLOGGED] - 1
    head = ("re-load", "least and median seconds", "client's processor", "server's processor", "both")
    first = measured[0]
    rows = f"{first.rows:,} rows of which {first.changed:,} changed; medians of {len(measured) // 2} re-loads each, in turns."
    met = "yes" if more <= 0.15 else "no"
    target = table_of(("target", "measured", "met"), [("at most 15% more processor time", f"{more:.1%}", met)])
    return "\n\n".join((rows, table_of(head, table), target))


def indexes(reads: Sequence[Read], loaded: Sequence[Measurement]) -> str:
    """The queries with what each reads by index, and medians of the loads of a table with one more index."""
    queries = dict.fromkeys(read.query for read in reads)
    texts = "\n".join(f"-- {query.name}\n{textwrap.fill(query.text, 120)};" for query in queries)
    table = [
        (
            read.query.name,
            f"`{read.index}`, {read.index_mb:.1f} MB" if read.index else "primary key alone",
            ", ".join("the extra one" if name == "extra" else f"`{name}`" for name in read.used) or "none",
            f"{read.milliseconds:.1f} ms",
            f"{read.rows:,}",
            f"{read.blocks:,}",
        )
        for read in reads
    ]
    seconds = {key: median(values) for key, values in _group(loaded).items()}
    ways = list(dict.fromkeys(m.way for m in loaded))
    repeats = sum((m.way, m.scenario) == (ways[0], FIRST) for m in loaded)
    costs = [
        (
            WAYS[way].title if WAYS[way].index else "primary key alone",
            *(f"{seconds[way, scenario]:.1f} s" if (way, scenario) in seconds else "failed" for scenario in SCENARIOS),
        )
        for way in ways
    ]
    return "\n\n".join(
        (
            f"```sql\n{texts}\n```",
            f"Medians of {RUNS} warm runs. Rows are those that the scans gave or threw away, blocks pages of 8 KiB.",
            table_of(("query", "index", "the plan used", "time", "rows read", "blocks read"), table),
            f"Loads of {loaded[0].rows:,} rows of `dashboard_data` in random key order, medians of {repeats}.",
            table_of(("the table has", *SCENARIOS), costs),
        )
    )


def wire(measured: Sequence[Download]) -> str:
    """Bytes, and medians of the seconds, by compression."""
    groups: dict[str, list[Download]] = {}
    for one in measured:
        groups.setdefault(one.compression, []).append(one)
    plain = groups["none"][0].size
    table = [
        (
            compression,
            f"{found[0].size / 1e6:.1f} MB, {found[0].size / found[0].rows:.0f} a row",
            f"{plain / found[0].size:.2f}",
            f"{median(one.seconds for one in found):.2f} s",
            f"{median(one.processor for one in found):.2f} s",
        )
        for compression, found in groups.items()
    ]
    head = ("compression", "bytes of the rows", "times smaller", "seconds", "client's processor seconds")
    return f"{measured[0].rows:,} rows; medians of {len(groups['none'])}.\n\n{table_of(head, table)}"


def days(measured: Sequence[Run]) -> str:
    """Medians of the seconds of a run, by its days and by the storage."""
    seconds = {
        (run.storage, run.days): median(one.seconds for one in measured if (one.storage, one.days) == (run.storage, run.days))
        for run in measured
    }
    counts = dict.fromkeys(run.days for run in measured)
    table = [(f"{count:,}", *(f"{seconds[storage, count]:.1f} s" for storage in STORAGES)) for count in counts]
    repeats = len(measured) // len(seconds)
    return f"Medians of {repeats}, in turns.\n\n{table_of(('days', *STORAGES), table)}"


def launches(measured: Sequence[Launch]) -> str:
    """Medians of the seconds until success, and the ratio of a refresh to an empty asset's run."""
    groups: dict[tuple[str, str], list[Launch]] = {}
    for launch in measured:
        groups.setdefault((launch.how, launch.what), []).append(launch)
    hows = list(dict.fromkeys(how for how, _ in groups))
    seconds = {key: median(launch.seconds for launch in found) for key, found in groups.items()}
    rows = {launch.what: launch.rows for launch in measured}
    table = [(what, f"{rows[what]:,}", *(_seconds(seconds.get((how, what))) for how in hows)) for what in LAUNCHED]
    targets = []
    for how, most, most_of_five in (("GraphQL", 2.0, 6.0), ("command line", 10.0, 30.0)):
        one, five = seconds[how, TABLE], seconds[how, FIVE]
        targets += [
            (f"{how}: one table within {most:g} s", f"{one:.1f} s", one <= most),
            (f"{how}: five within {most_of_five:g} s", f"{five:.1f} s", five <= most_of_five),
        ]
    share = seconds["GraphQL", TABLE] / seconds["GraphQL", ALONE]
    targets.append((f"GraphQL: one table in at most 0.8 times {ALONE}", f"{share:.2f}", share <= 0.8))
    return "\n\n".join(
        (
            f"Seconds from launch to SUCCESS, medians of {len(measured) // len(groups)}; all servers are up.",
            table_of(("launched", "rows", *hows), table),
            table_of(("target", "measured", "met"), [(name, value, "yes" if met else "no") for name, value, met in targets]),
        )
    )


def presses(seconds: Sequence[float]) -> str:
    """Seconds from the press of the page's button to the page that shows the end, and the target."""
    middle = median(seconds)
    shown = (f"{len(seconds)}", f"{middle:.1f} s", f"{min(seconds):.1f} s", f"{max(seconds):.1f} s")
    met = "yes" if middle <= 3 else "no"
    return "\n\n".join(
        (
            table_of(("presses", "median", "least", "most"), [shown]),
            table_of(("target", "measured", "met"), [("median within 3 s", shown[1], met)]),
        )
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def status(readings: Readings) -> str:
    """Milliseconds of the answers, and the target."""
    shown = [f"{readings.percentile(percent):.1f} ms" for percent in (50, 95, 99)]
    counts = (f"{readings.readers}", f"{len(readings.milliseconds):,}", f"{readings.per_second:,.0f}/s", f"{readings.size:,} bytes")
    met = "yes" if readings.percentile(95) < 50 else "no"
    return "\n\n".join(
        (
            table_of(("readers", "answers", "rate", "size", "median", "95%", "99%"), [(*counts, *shown)]),
            table_of(("target", "measured", "met"), [("95% of the answers within 50 ms", shown[1], met)]),
        )
    )


def tables(measured: Sequence[Many]) -> str:
    """Seconds by stage and number of tables: of this project, of a graph of that shape in Dagster alone, and of the sensors."""
    found = {(one.what, one.tables): one for one in measured}
    counts = list(dict.fromkeys(one.tables for one in measured))
    most = counts[-1]

    def rows(what: str) -> list[Row]:
        stages = dict.fromkeys(stage for one in measured if one.what == what for stage in one.seconds)
        shown = [(stage, *(f"{found[what, count].seconds[stage]:.2f} s" for count in counts)) for stage in stages]
        return [*shown, ("peak memory", *(f"{found[what, count].peak_mb:.0f} MB" for count in counts))]

    def total(what: str, *left_out: str) -> float:
        return sum(seconds for stage, seconds in found[what, most].seconds.items() if stage not in left_out)

    lazy = ("jobs", "snapshot")
    beyond = total("ours", *lazy) - total("plain", *lazy)
    ready = total("ours") - total("plain")
    ticks = {stage: seconds for stage, seconds in found["tick", most].seconds.items() if stage.startswith("refresh")}
    slowest = max(ticks.values())
    targets = [
        (f"{most:,} tables: definitions and repository, at most 3 s more than Dagster alone", f"{beyond:.1f} s", beyond <= 3),
        (f"{most:,} tables: with every job and the snapshot, at most 3 s more than Dagster alone", f"{ready:.1f} s", ready <= 3),
        (f"{most:,} tables: the refresh sensor under 1 s", f"{slowest:.2f} s", slowest < 1),
    ]
    head = [f"{count:,} tables" for count in counts]
    return "\n\n".join(
        (
            table_of((f"Dagster alone: an asset and an op of {CHECKS} checks a table", *head), rows("plain")),
            table_of(("this project", *head), rows("ours")),
            table_of(("one evaluation", *head), rows("tick")),
            table_of(("target", "measured", "met"), [(name, value, "yes" if met else "no") for name, value, met in targets]),
        )
    )


def years(measured: Sequence[Past]) -> str:
    """Milliseconds of the answers by years of history."""
    shown = [
        (
            str(past.years),
            f"{past.extractions:,}",
            *(f"{readings.percentile(percent):.1f} ms" for readings in (past.status, past.detail) for percent in (50, 95)),
        )
        for past in measured
    ]
    return table_of(("years", "extractions", "state, median", "95%", "one table, median", "95%"), shown)


def write(page: Path, section: str, text: str) -> None:
    """Replaces the page's block of that section. Raises ValueError if the page has none."""
    start, end = f"<!-- measured: {section} -->", f"<!-- end: {section} -->"
    before = page.read_text(encoding="utf-8")
    after, count = re.subn(
        f"{re.escape(start)}.*?{re.escape(end)}", lambda _: f"{start}\n\n{text}\n\n{end}", before, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{page} has {count} blocks between {start} and {end}; one is needed")
    page.write_text(after, encoding="utf-8")


def _group(measurements: Sequence[Measurement]) -> dict[tuple[str, str], list[float]]:
    groups: dict[tuple[str, str], list[float]] = {}
    for m in measurements:
        if not m.error:
            groups.setdefault((m.way, m.scenario), []).append(m.seconds)
    return groups


def _speed(rows: int, seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s, {rows / seconds:,.0f}/s"


def table_of(head: Row, rows: Sequence[Row]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
