"""`python -m benchmarks.cost`: what refreshes bill over simulated days, with the product's own decisions and BigQuery's double.

The clock is simulated, the data are the sample's views over base tables. Each night at 01:00 the source's own jobs add the day that
is over, at 02:30 everything is re-checked, and on the last days of the run corrections arrive. Three ways to refresh run over the
same days. Nothing is loaded into PostgreSQL: only what BigQuery bills is counted.
"""

from __future__ import annotations

import io
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from google.cloud import bigquery

from benchmarks import page
from benchmarks.loads import ROOT
from pulso_etl.automation.looks import Looks
from pulso_etl.bigquery.source import BigQuerySource, days_of
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import DEFAULT_ROWS, PARTITIONED, SampleData, base_of
from pulso_etl.refreshing.due import BackOff, Rhythm, Standing, decide_due
from pulso_etl.refreshing.plan import Calendar, RefreshPlan, pieces, plan_refresh
from pulso_etl.refreshing.request import Mode, RefreshRequest
from pulso_etl.sync.days import DayRange, contiguous
from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.ledger.queries import Usage
from pulso_etl.sync.owed import Horizon, Watermark, settle
from pulso_etl.sync.source_state import KeptPartitions, PartitionStates, SourceState
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.zone import DEFAULT as LIMA
from pulso_etl.tables import TABLES

PAGE = ROOT / "docs" / "cost.md"
PROJECT = "mibot-222814"
FIRST = date(2026, 3, 2)
STEP = timedelta(minutes=10)
ARRIVES, RECHECKED = timedelta(hours=1), timedelta(hours=2, minutes=30)
CORRECTED = (timedelta(hours=11), timedelta(hours=16))
CORRECTIONS = {
    "dashboard_cobranzas": "cuentas_pdp = cuentas_pdp + 1",
    "asignaciones_clean": "deuda_actual = deuda_actual + 1",
    "gestiones_unificadas": "peso = peso + 1",
}
HAD_A_CLOCK = ("assignment_data", "operation_data", "productivity_data")
"""Tables whose statement called CURRENT_TIMESTAMP before the look, so that BigQuery's cache never answered it."""
CALENDAR = Calendar(FIRST - timedelta(days=31), 31)
"""The partitions begin with the sample's first day."""
MIB = 2**20


@dataclass
class Bill:
    """What one way billed: bytes and statements by kind, and bytes of each day between two re-checks (counted from 02:30)."""

    bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    runs: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    between: dict[date, int] = field(default_factory=lambda: defaultdict(int))
    tables: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    shared: int = 0
    """What reads would have billed that attached to the query of another table."""

    @property
    def total(self) -> int:
        return sum(self.bytes.values())


@dataclass
class Known:
    """What is known of a table, as the ledger has it."""

    standing: Standing = field(default_factory=Standing)
    kept: dict[str, KeptPartitions] = field(default_factory=dict)


@dataclass
class Found:
    """What the loads of a launch leave of a table: its days, and what the source was like."""

    held: dict[date, Day]
    source: SourceState | None

    def add(self, spec: TableSpec, days: DayRange, state: SourceState | None, now: datetime) -> None:
        digest = state.digest if state else None
        self.held |= {day: Day(now, day + timedelta(spec.schedule.lookback_days), now, rows=1, source=digest) for day in days}
        self.source = state or self.source


@dataclass(frozen=True)
class Reading:
    """What a read billed, the source's state before it, and what it would have billed if it had not shared another one's query."""

    billed: int
    state: SourceState | None = None
    shared: int = 0


class Way(Protocol):
    """A way to refresh: which days it reads, and what a read bills."""

    name: str

    def days(self, spec: TableSpec, window: DayRange, known: Known, now: datetime) -> Collection[date]: ...

    def read(self, spec: TableSpec, plan: RefreshPlan, known: Known, now: datetime) -> Reading: ...


def days_to_read(plan: RefreshPlan) -> DayRange:
    """The days of a plan that is launched."""
    assert plan.window is not None
    return plan.window


@dataclass
class EveryWindow:
    """Every refresh reads its whole window, and nothing is cached."""

    source: BigQuerySource
    name: str = "every refresh reads its window"
    uncached: Sequence[str] = tuple(TABLES)

    def days(self, spec: TableSpec, window: DayRange, known: Known, now: datetime) -> Collection[date]:
        return list(window)

    def read(self, spec: TableSpec, plan: RefreshPlan, known: Known, now: datetime) -> Reading:
        window = days_to_read(plan)
        config = bigquery.QueryJobConfig(query_parameters=days_of(window), use_query_cache=spec.name not in self.uncached)
        with self.source.get_client() as client:
            job = client.query(self.source.stream(spec, window, "cost").sql(), job_config=config)
            job.result()
            return Reading(int(job.total_bytes_billed or 0))


@dataclass
class DirectSources(EveryWindow):
    """The version before the look: it asks for the change times of the tables that the statement names, and a view has none."""

    name: str = "before the look through views"
    uncached: Sequence[str] = HAD_A_CLOCK

    def days(self, spec: TableSpec, window: DayRange, known: Known, now: datetime) -> Collection[date]:
        with self.source.get_client() as client:
            named = [client.get_table(name) for name in self.source.tables(spec).values()]
        last = known.standing.watermark.last_extracted_at if known.standing.watermark else None
        told = all(table.table_type == "TABLE" and table.modified is not None for table in named)
        unchanged = told and last is not None and all(table.modified < last for table in named)
        return [] if unchanged else list(window)


@dataclass
class ThroughViews:
    """The look of the product, and reads that tables share."""

    source: BigQuerySource
    bill: Bill
    name: str = "this version"
    ledger: dict[str, Known] = field(default_factory=dict)

    def days(self, spec: TableSpec, window: DayRange, known: Known, now: datetime) -> Collection[date]:
        self.ledger[spec.name] = known
        seen = Looks(self.source, _Notes(self.ledger, self.bill), time.monotonic() + 60).seen(spec, window, known.standing, now)
        if seen.state is not None:
            read = {day for day in window if day not in seen.days}
            days = {
                day: Day(now, one.open_until, one.loaded_at, one.rows, source=seen.state.digest) if day in read else one
                for day, one in known.standing.days.items()
            } | {day: Day(now, day + timedelta(spec.schedule.lookback_days), now, source=seen.state.digest) for day in seen.empty}
            known.standing = Standing(known.standing.watermark, days=days, source=seen.state)
            known.kept |= seen.state.kept_partitions(now)
        return seen.days

    def read(self, spec: TableSpec, plan: RefreshPlan, known: Known, now: datetime) -> Reading:
        stream = self.source.stream(spec, days_to_read(plan), "cost", shared=plan.shared)
        state = stream.look(known.kept)
        if state is not None:
            known.kept |= state.kept_partitions(now)
        with stream.open() as reader:
            for _ in reader:
                pass
        told = stream.metadata
        attached = plan.shared is not None and not told["bytes_billed"] and not told["cache_hit"]
        return Reading(int(told["bytes_billed"]), state, int(told["bytes_avoided"]) if attached else 0)


@dataclass
class _Notes:
    ledger: Mapping[str, Known]
    bill: Bill

    def partitions(self, table: str) -> Mapping[str, KeptPartitions]:
        return self.ledger[table].kept

    def known(self, facts: Mapping[str, Any]) -> PartitionStates:
        kept = [one for known in self.ledger.values() for one in known.kept.items()]
        return {base: one.states for base, one in kept if base in facts and one.facts == facts[base]}

    def asked(self, table: str, used: Usage) -> None:
        self.bill.bytes["questions about partitions"] += used.bytes_billed
        self.bill.tables[table] += used.bytes_billed


@dataclass
class Month:
    """One run over simulated days: what happens at the source, and what a way bills for it."""

    client: bigquery.Client
    names: Mapping[str, str]
    days: int
    corrected_days: int
    tables: Mapping[str, TableSpec] = field(default_factory=lambda: TABLES)
    rows_per_day: int = DEFAULT_ROWS

    @property
    def last(self) -> date:
        return FIRST + timedelta(days=self.days - 1)

    def run(self, way: Way, bill: Bill) -> Bill:
        """Refreshes as the sensor does, every ten minutes. The first loads are not counted."""
        self._sample(FIRST - timedelta(days=1), 31).seed_into(self.client)
        known = {name: Known() for name in self.tables}
        start = LIMA.begin(FIRST) + RECHECKED
        everything = list(self.tables)
        self._refresh(way, Bill(), known, start, {name: self._whole(name, known, start) for name in everything}, "first load")
        rhythm = Rhythm(CALENDAR, BackOff())
        now = start
        while now < LIMA.begin(self.last + timedelta(days=1)) + RECHECKED:
            now += STEP
            self._happen(now)
            if self._clock(now) == RECHECKED:
                self._refresh(way, bill, known, now, {name: self._whole(name, known, now) for name in everything}, "re-checks")
                continue
            decided = {name: decide_due(spec, known[name].standing, now, rhythm) for name, spec in self.tables.items()}
            due = {name: decision.window for name, decision in decided.items() if decision.window is not None}
            self._refresh(way, bill, known, now, due, "refreshes")
        return bill

    @property
    def _sources(self) -> set[str]:
        return {name for spec in self.tables.values() for name in spec.sources}

    def _sample(self, today: date, days: int) -> SampleData:
        return SampleData(dict(self.names), today, days, self.rows_per_day)

    def _whole(self, table: str, known: Mapping[str, Known], now: datetime) -> DayRange:
        """The window of the nightly re-check."""
        mark = known[table].standing.watermark
        return days_to_read(plan_refresh(self.tables[table], mark, RefreshRequest(mode=Mode.SLIDING_WINDOW), now, CALENDAR))

    def _clock(self, now: datetime) -> timedelta:
        return now - LIMA.begin(LIMA.day(now))

    def _happen(self, now: datetime) -> None:
        """What the source's own jobs do at that instant."""
        today, clock = LIMA.day(now), self._clock(now)
        if clock == ARRIVES:
            yesterday = today - timedelta(days=1)
            for name, table in self._sample(yesterday, 1).tables().items():
                if name in PARTITIONED and name in self._sources:
                    _append(self.client, base_of(self.names, name), table)
        if clock in CORRECTED and today > self.last - timedelta(days=self.corrected_days):
            for name, change in CORRECTIONS.items():
                if name not in self._sources:
                    continue
                days = ", ".join(f"'{today - timedelta(days=back)}'" for back in (1, 2))
                where = f"{PARTITIONED[name]} IN ({days})"
                self.client.query_and_wait(f"UPDATE `{base_of(self.names, name)}` SET {change} WHERE {where}")

    def _refresh(
        self, way: Way, bill: Bill, known: Mapping[str, Known], now: datetime, windows: Mapping[str, DayRange], kind: str
    ) -> None:
        """One launch of the tables over their windows. Re-checks read them whatever the source says."""
        ordinary = kind == "refreshes"
        days = {
            name: way.days(self.tables[name], window, known[name], now) if ordinary else list(window)
            for name, window in windows.items()
        }
        found = {name: Found(dict(known[name].standing.days), known[name].standing.source) for name in windows}
        plans = [RefreshPlan(name, part, kind) for name, some in days.items() for part in contiguous(some)]
        for plan in pieces(self.tables, plans):
            spec, one = self.tables[plan.table], found[plan.table]
            read = way.read(spec, plan, known[plan.table], now)
            bill.bytes[kind] += read.billed
            bill.shared += read.shared
            bill.runs[kind] += 1
            bill.tables[plan.table] += read.billed
            if ordinary:
                bill.between[LIMA.day(now - RECHECKED)] += read.billed
            one.add(spec, days_to_read(plan), read.state, now)
        for name, window in windows.items():
            if not days[name]:
                found[name].held |= {day: replace(found[name].held[day], at=now) for day in window if day in found[name].held}
            self._settle(self.tables[name], known[name], found[name], now)

    def _settle(self, spec: TableSpec, known: Known, found: Found, now: datetime) -> None:
        """Moves the watermark, as the ledger does after a load."""
        horizon, last = Horizon.of(spec, CALENDAR.first_day, LIMA.day(now)), known.standing.watermark
        mark = Watermark(last.last_extracted_at if last else None, last.last_partition if last else None, found.held)
        known.standing = Standing(settle(horizon, mark, now).watermark, days=found.held, source=found.source)


def _append(client: bigquery.Client, name: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    buffer.seek(0)
    config = bigquery.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_APPEND")
    client.load_table_from_file(buffer, name, job_config=config).result()


@dataclass(frozen=True)
class Outcome:
    """What each way billed over the same days, by its name. The last `corrected_days` of the `days` had corrections."""

    days: int
    corrected_days: int
    row_weight: int
    bills: Mapping[str, Bill]

    @property
    def quiet(self) -> set[date]:
        """The days, from re-check to re-check, without a change."""
        return {FIRST + timedelta(days=number) for number in range(self.days - self.corrected_days)}

    def billed_on_quiet_days(self, bill: Bill) -> int:
        """Bytes between two re-checks on the days without a change."""
        return sum(size for day, size in bill.between.items() if day in self.quiet)


def simulate(
    emulator: BigQueryEmulator,
    days: int,
    corrected_days: int,
    tables: Mapping[str, TableSpec] = TABLES,
    rows_per_day: int = DEFAULT_ROWS,
) -> Outcome:
    """Runs the three ways over the same days, each over tables of its own. `rows_per_day`: see `SampleData`."""
    bills = {}
    for number in range(3):
        names = {name: f"{PROJECT}.COST_{number}.{name}" for name in (*PARTITIONED, "agentes")}
        source = BigQuerySource(project=PROJECT, sources=names, emulator_host=emulator.rest_url)
        bill = Bill()
        ways: tuple[Way, ...] = (EveryWindow(source), DirectSources(source), ThroughViews(source, bill))
        bills[ways[number].name] = Month(emulator.client(), names, days, corrected_days, tables, rows_per_day).run(
            ways[number], bill
        )
    return Outcome(days, corrected_days, emulator.row_weight, bills)


KINDS = ("refreshes", "re-checks", "questions about partitions")


def _mib(size: int) -> str:
    return f"{size // MIB:,} MiB"


def as_markdown(outcome: Outcome) -> str:
    """The figures side by side, and how they stand to the targets."""
    bills = outcome.bills
    first, this = bills[EveryWindow.name], bills[ThroughViews.name]
    weight = outcome.row_weight
    return "\n\n".join(
        (
            f"{outcome.days} simulated days, with corrections on the last {outcome.corrected_days}; "
            + ("each row counts once." if weight == 1 else f"each row counts as {weight:,} rows."),
            page.table_of(
                ("way", *KINDS, "billed in all", "statements", "on days without change, between re-checks"),
                [
                    (
                        name,
                        *(_mib(bill.bytes[kind]) for kind in KINDS),
                        f"{_mib(bill.total)} ({bill.total / first.total:.0%})",
                        f"{bill.runs['refreshes']} refreshes, {bill.runs['re-checks']} re-checks",
                        _mib(outcome.billed_on_quiet_days(bill)),
                    )
                    for name, bill in bills.items()
                ],
            ),
            page.table_of(("target", "measured", "met"), targets(outcome)),
            page.table_of(
                ("billed for", *bills),
                [(f"`{name}`", *(_mib(bill.tables[name]) for bill in bills.values())) for name in TABLES if first.tables[name]],
            ),
            f"One read for `dashboard_data` and `evolution_data` saved {_mib(this.shared)} in this version, which would else have "
            f"billed {_mib(this.total + this.shared)} ({(this.total + this.shared) / first.total:.1%} of the first way).",
        )
    )


def targets(outcome: Outcome) -> list[tuple[str, str, str]]:
    """The targets of this version, what was measured, and whether it is met."""
    first, this = outcome.bills[EveryWindow.name], outcome.bills[ThroughViews.name]
    quiet = outcome.billed_on_quiet_days(this)
    rest, all_rest = (bill.total - bill.bytes["re-checks"] for bill in (this, first))
    return [
        (name, told, "yes" if met else "no")
        for name, told, met in (
            ("0 bytes on days without change, between two re-checks", f"{quiet:,} bytes", quiet == 0),
            ("at most a fifth of the first way", f"{this.total / first.total:.1%}", 5 * this.total <= first.total),
            ("the same without the re-checks of both", f"{rest / all_rest:.1%}", 5 * rest <= all_rest),
        )
    ]


def main(
    days: Annotated[int, typer.Option(min=2, help="Simulated days.")] = 30,
    corrected: Annotated[int, typer.Option(min=0, help="The last days, on which corrections arrive.")] = 2,
    weight: Annotated[list[int] | None, typer.Option(help="Each row counts as so many rows; a run for each.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the figures into docs/cost.md.")] = False,
) -> None:
    """Measures what refreshes bill."""
    found = []
    for row_weight in weight or (1, 1000):
        with TemporaryDirectory() as folder, BigQueryEmulator(Path(folder) / "emulator.log", row_weight=row_weight) as emulator:
            found.append(as_markdown(simulate(emulator, days, corrected)))
            typer.echo(found[-1])
    if write:
        page.write(PAGE, "cost", "\n\n".join(found))


if __name__ == "__main__":
    typer.run(main)
