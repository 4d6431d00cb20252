"""Trials: the source changes, a refresh meets a fault, and the result is compared with the state before and the source."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import dagster as dg
import psycopg
from google.cloud import bigquery

from chaos.days import DAYS, ROWS_PER_DAY, Clock, Source
from chaos.faults import Boundary, Kind, SmallDisk
from chaos.refresh import refresh
from chaos.wire import WireProxy
from pulso_etl.automation.recovery import recover
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.postgres import EmbeddedPostgres
from pulso_etl.local.sample_data import PARTITIONED, SampleData, base_of, load_table
from pulso_etl.refreshing.execution import Outcome
from pulso_etl.refreshing.planner import Planner, watermarks_of
from pulso_etl.refreshing.request import Grants, Mode, RefreshRequest
from pulso_etl.settings import load_settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.watermarks import TableState, Watermarks
from pulso_etl.sync.spec import fill
from pulso_etl.tenancy.tenants import Deployed, chosen
from pulso_etl_tests.holding_proxy import HoldingProxy

ROOT = Path(__file__).resolve().parents[1]
WORKER_SECONDS = 900
"""A process that is not killed starts and ends within this time, also on a busy machine."""
NEVER = datetime.min.replace(tzinfo=UTC)
Rows = Mapping[tuple[Any, ...], tuple[Any, ...]]
"""The rows of a table, by primary key, with every column that can mark a row as changed."""


class Broken(AssertionError):
    """Something was lost, half loaded, or reported wrong."""


@dataclass(frozen=True)
class Result:
    """The result of one trial. `survived`: the refresh succeeded all the same, so the table equals the source."""

    number: int
    kind: Kind
    table: str
    point: str
    happened: bool
    survived: bool
    error: str | None
    seconds: float


class World:
    """Real servers with proxies before them, and the five tables loaded."""

    def __init__(self, boundary: Boundary, deployed: Deployed, source: bigquery.Client) -> None:
        self.boundary, self.settings, self.source = boundary, deployed.settings, source
        self.tables = deployed.tables
        self.clock = Clock(boundary.conn, self.settings.zone)
        self.names = self.settings.sources()
        self.data = Source(self.names, self.clock)
        self.marks = Watermarks(self.settings.database_schema)
        self.sizes: dict[str, tuple[int, int]] = {}
        SampleData(self.names, self.today, DAYS, ROWS_PER_DAY).seed_into(source)
        for table in self.tables:
            self.fill_source(table)
            self.refresh_well(table)

    @property
    def conn(self) -> psycopg.Connection:
        return self.boundary.conn

    @property
    def today(self) -> date:
        return self.clock.today

    def fill_source(self, table: str) -> None:
        """Loads the current rows of the table's sources into BigQuery."""
        for name in self.tables[table].sources:
            load_table(self.source, base_of(self.names, name), self.data.table(name, self.today))

    def rows(self, table: str) -> Rows:
        """The rows in PostgreSQL."""
        spec = self.tables[table]
        columns = (*spec.primary_key, *spec.compared_columns)
        found = self.conn.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
        keys = len(spec.primary_key)
        return {row[:keys]: row[keys:] for row in found}

    def plan(self, table: str, mode: Mode = Mode.INCREMENTAL, **options: Any) -> DayRange:
        """The days that a launch takes, by this process's clock."""
        request = RefreshRequest((table,), mode, grants=Grants(force=True), **options)
        marks = watermarks_of(self.marks.read(self.conn))
        [planned] = Planner.of(self.settings, self.tables).plans(request, marks, datetime.now(UTC))
        assert planned.window is not None
        return planned.window

    def launched(self, table: str, random: Random) -> DayRange:
        """The days of some launch: of the refresh sensor, the nightly re-check, or one by hand."""
        by = random.choice(("sensor", "sensor", "sensor", "night", "days", "range"))
        days, back, more = random.randrange(1, 5), random.randrange(4), random.randrange(4)
        if by == "sensor":
            return self.plan(table)
        if by == "night":
            return self.plan(table, Mode.SLIDING_WINDOW)
        if by == "days":
            return self.plan(table, Mode.SLIDING_WINDOW, days=days)
        today = self.today
        return self.plan(table, start=today - timedelta(days=back + more), end=today - timedelta(days=back))

    def wanted(self, table: str, window: DayRange, before: Rows) -> Rows:
        """The rows that the table should hold after a load of the window. It asks BigQuery without a proxy or code of a load."""
        spec = self.tables[table]
        # The newest snapshot of a month may lie before the window.
        first = window.start - timedelta(days=400) if spec.snapshot_of else window.start
        config = bigquery.QueryJobConfig(
            query_parameters=[
                bigquery.ScalarQueryParameter("start", "DATE", first),
                bigquery.ScalarQueryParameter("end", "DATE", window.end),
            ]
        )
        query = fill(spec.source.query, self.names, spec.timezone)
        found = [dict(row) for row in self.source.query(query, job_config=config).result()]
        if not spec.snapshot_of:
            wanted = {tuple(row[k] for k in spec.primary_key): tuple(row[c] for c in spec.compared_columns) for row in found}
            day = spec.primary_key.index(spec.partition_column)
            return {key: row for key, row in before.items() if key[day] not in window} | wanted
        columns = (*spec.primary_key, *spec.compared_columns)
        held = [dict(zip(columns, (*key, *row), strict=True)) for key, row in before.items()]

        def days(rows: list[dict[str, Any]]) -> dict[Any, set[date]]:
            by_value: dict[Any, set[date]] = {}
            for row in rows:
                by_value.setdefault(tuple(row[c] for c in spec.snapshot_of), set()).add(row[spec.partition_column])
            return by_value

        there, here, rows = days(found), days(held), []
        for value in there.keys() | here.keys():
            known, newest = here.get(value, set()), max(there.get(value, set()), default=None)
            named = any(day in window for day in known | there.get(value, set()))
            loaded = named and max(known, default=date.min) <= window.end
            rows += [
                row
                for row in (found if loaded else held)
                if tuple(row[c] for c in spec.snapshot_of) == value and (not loaded or row[spec.partition_column] == newest)
            ]
        return {tuple(row[k] for k in spec.primary_key): tuple(row[c] for c in spec.compared_columns) for row in rows}

    def differing(self, table: str) -> list[date]:
        """Days that differ between PostgreSQL and the source, however long ago they were loaded.

        Not of a table whose keys live in several partitions: which of its rows are right is up to what was loaded before.
        """
        spec = self.tables[table]
        if not spec.partition_in_key:
            return []
        held, days = self.rows(table), self.data.days(self.today)
        day = spec.primary_key.index(spec.partition_column)
        right = self.wanted(table, days, {})
        return sorted({key[day] for key in held.keys() | right.keys() if key[day] in days and held.get(key) != right.get(key)})

    def state(self, table: str) -> TableState:
        return self.marks.read(self.conn, datetime.now(UTC) - timedelta(days=400))[table]

    def refresh_well(self, table: str) -> None:
        """A refresh without a fault. After it the table must equal the source."""
        self.boundary.bigquery.call_off()
        self.boundary.bigquery.requests.clear()
        self.boundary.postgres.arm()
        before = self.rows(table) if self.sizes.get(table) else {}
        began, window = self.clock.now, self.plan(table)
        outcome = refresh(self.settings, self.tables[table], window, retries=0)
        expect(outcome.error is None, f"a refresh without a fault failed: {outcome.error}")
        wanted = self.wanted(table, window, before)
        expect(self.rows(table) == wanted, "a refresh without a fault left other rows than the source has")
        expect(not (wrong := self.differing(table)), f"after an incremental refresh days are not as the source has them: {wrong}")
        told = self.state(table)
        expect((told.last_extracted_at or began) >= began, f"a refresh without a fault left the watermark at {told.watermark}")
        expect(told.status == "success", "a refresh without a fault did not end as a success")
        expect(told.last_partition == self.today, f"a refresh without a fault left the watermark at {told.last_partition}")
        self.sizes[table] = (len(self.boundary.bigquery.requests), self.boundary.postgres.passed)

    def trial(self, number: int, seed: int) -> Result:
        """Runs the trial with that number. The same seed gives the same faults at the same points. Raises Broken."""
        random = Random(f"{seed}/{number}")
        kinds = self.boundary.kinds()
        # The kinds take turns, so that chance leaves none out.
        kind, table = kinds[number % len(kinds)], random.choice(list(self.tables))
        began = time.monotonic()
        self.data.pass_time(timedelta(hours=random.choice((0.1, 1, 5, 12, 30, 70))), random)
        self.fill_source(table)
        others = {name: self.rows(name) for name in self.tables if name != table}
        before, mark = self.rows(table), self.state(table)
        with self.boundary.inject(kind, random, *self.sizes[table]) as injected:
            outcome = self._refresh(table, self.launched(table, random), kind, retries=random.choice((0, 1)))
        self._wait_for_sessions()
        # The recovery must find the rest of a dead process, as it does every minute.
        with dg.DagsterInstance.ephemeral() as instance:
            list(recover(self.conn, self.settings.database_schema, instance, self.tables, datetime.now(UTC)))
        told = self.state(table)
        new = told.attempts[len(mark.attempts) :]
        if kind is Kind.DISK_FULL:
            injected.happened = any("no disk left" in (text or "") for text in (outcome.error, *(one.error for one in new)))
        try:
            expect({name: self.rows(name) for name in others} == others, "another table has changed")
            self._judge(table, kind, outcome, before, mark, told)
            self.refresh_well(table)
        except Broken as error:
            raise Broken(f"{kind} {injected.point}, {table}: {outcome.error or 'success'}: {error}") from None
        loaded = any(attempt.succeeded for attempt in new)
        return Result(number, kind, table, injected.point, injected.happened, loaded, outcome.error, time.monotonic() - began)

    def _judge(self, table: str, kind: Kind, outcome: Outcome, before: Rows, mark: TableState, told: TableState) -> None:
        """Compares the rows, and the records about them, with the state before the refresh. Raises Broken."""
        assert outcome.window is not None
        new = told.attempts[len(mark.attempts) :]
        expect(not told.running, "an attempt is still marked as running")
        successes = [attempt for attempt in new if attempt.succeeded]
        left, after = self.rows(table), self.wanted(table, outcome.window, before)
        expect(left in (before, after), "the table is neither as it was nor as the source has it")
        expect(left == (after if successes else before), f"the history has {len(successes)} successes, the rows say otherwise")
        expect(told.data_version == mark.data_version + (left != before), f"the data version is {told.data_version}")
        expect(all(attempt.succeeded or attempt.error for attempt in new), "a failure has no reason")
        # If an answer is lost after the commit, the run fails although rows and watermark are there. The reverse must not happen.
        expect(outcome.error is not None or (bool(new) and new[-1].succeeded), "the run ended well, the history says otherwise")
        if not new:
            expect(told == mark, "the watermark has changed without an attempt in the history")
            return
        expect(told.status == ("success" if new[-1].succeeded else "failed"), f"the watermark says {told.status}")
        expect(bool(told.error) != new[-1].succeeded, f"the watermark gives the reason {told.error!r}")
        at = told.last_extracted_at
        expect(bool(successes) or told.watermark == mark.watermark, f"the watermark moved without a load, to {at}")
        expect(at is not None and at <= self.clock.now, f"the watermark is at {at}, which is to come")
        # The watermark says: at that instant every day up to the last one was equal to the source.
        changed = {
            day: max(self.data.changed[name].get(day, NEVER) for name in self.tables[table].sources if name in PARTITIONED)
            for day in self.differing(table)
        }
        last = told.last_partition or self.today
        missed = [day for day, instant in changed.items() if at is not None and instant < at and day <= last]
        expect(not missed, f"the watermark is at {at}, and days were missed that had changed before: {missed}")

    def _wait_for_sessions(self) -> None:
        """Checks that a session without its client ends within seconds, with its locks. Raises Broken."""
        others = (
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = current_database() "
            "AND pid <> pg_backend_pid()"
        )
        deadline = time.monotonic() + 20
        while self.conn.execute(others).fetchone() != (0,):
            expect(time.monotonic() < deadline, "a session of the refresh goes on at the server")
            time.sleep(0.02)

    def _refresh(self, table: str, window: DayRange, kind: Kind, retries: int) -> Outcome:
        if kind is not Kind.WORKER_KILLED:
            return refresh(self.settings, self.tables[table], window, retries=retries)
        days, shift = (str(window.start), str(window.end)), str(self.clock.shift.total_seconds())
        command = [sys.executable, "-m", "chaos.worker", table, *days, str(retries), shift]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.boundary.worker = subprocess.Popen(command, cwd=ROOT, **quiet)  # type: ignore[call-overload]
        try:
            code = self.boundary.worker.wait(WORKER_SECONDS)
        finally:
            self.boundary.worker.kill()
        return Outcome(table, window, "chaos", error=f"exit code {code}" if code else None)


def expect(condition: bool, text: str) -> None:
    """Raises Broken with the text unless the condition holds."""
    if not condition:
        raise Broken(text)


@contextmanager
def world(home: Path) -> Iterator[World]:
    """Runs its own servers in `home`. Inside the block, this process's environment names them."""
    before = dict(os.environ)
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres(home / "postgres"))
        emulator = stack.enter_context(BigQueryEmulator(home / "emulator.log"))
        url = server.create_database("chaos")
        wire = stack.enter_context(WireProxy(url))
        proxy = stack.enter_context(HoldingProxy(emulator.rest_url))
        conn = stack.enter_context(psycopg.connect(url, autocommit=True))
        conn.execute("SET TIME ZONE 'UTC'")
        boundary = Boundary(proxy, wire, conn)
        try:
            boundary.disk = SmallDisk(conn)
            stack.callback(boundary.disk.close)
        except OSError:
            boundary.disk = None
        stack.callback(os.environ.update, before)
        stack.callback(os.environ.clear)
        for name in ("TENANTS_FILE", "DATABASE_SCHEMA", "BIGQUERY_EMULATOR_STORAGE"):
            os.environ.pop(name, None)
        os.environ |= {
            "DATABASE_URL": wire.url,
            "BIGQUERY_EMULATOR_HOST": proxy.url,
            "BIGQUERY_DATASET": "CHAOS",
            "DAGSTER_HOME": str(home),
        }
        source = stack.enter_context(emulator.client())
        found = World(boundary, chosen(load_settings(), None), source)
        stack.callback(found.clock.stop)
        yield found
