"""Runs the ways side by side on one server, each load in a process of its own, and checks what each left in its table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import psycopg
from psycopg import errors as pg
from psycopg import sql

from benchmarks.job import Job
from benchmarks.rows import SPEC, Edition, Inputs, write_inputs
from benchmarks.ways import WAYS
from pulso_etl.sync.schema.statements import Statements

FIRST, UNCHANGED, TWO_DAYS, CHANGED = "first load", "unchanged re-load", "re-load, 2 of 100 days changed", "re-load, 1% changed"
SCENARIOS = (FIRST, UNCHANGED, TWO_DAYS, CHANGED)
EDITIONS = {FIRST: Edition.BASE, UNCHANGED: Edition.BASE, TWO_DAYS: Edition.TWO_DAYS, CHANGED: Edition.SPREAD}
"""What each load reads. Loads run in the order of SCENARIOS, so each differs from the one before it by its own changes."""
ROOT = Path(__file__).resolve().parents[1]
Say = Callable[[str], None]
Checksum = tuple[int, int]
"""Rows, and the sum of a hash of each row."""
VACUUMS = "SELECT FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'"
SETTLE_SECONDS = 120
IDLE_PERCENT = 5


@dataclass(frozen=True)
class Measurement:
    """One load: wall-clock `seconds` and the process's peak memory in MB, or the error."""

    way: str
    scenario: str
    rows: int
    seconds: float = 0.0
    peak_mb: float = 0.0
    error: str | None = None


class LoadBench:
    """Loads `rows` rows by each way: fresh, unchanged and changed, `repeats` times over, the ways in turn.

    `timeout` bounds one load, in seconds. A way that fails sits its re-loads out. Files stay in `folder` until its end.
    """

    def __init__(self, url: str, folder: Path, rows: int, *, timeout: float, say: Say) -> None:
        self.url, self.folder, self.rows, self.timeout, self.say = url, folder, rows, timeout, say

    def measure(self, ways: Sequence[str], repeats: int, scenarios: Sequence[str] = SCENARIOS) -> list[Measurement]:
        """Every load's measurement, in the order in which they ran."""
        measurements: list[Measurement] = []
        with psycopg.connect(self.url, autocommit=True) as conn:
            inputs, expected = self._inputs(conn, scenarios)
            for repeat in range(repeats):
                failed: set[str] = set()
                turn = repeat % len(ways)
                for scenario in scenarios:
                    for way in (*ways[turn:], *ways[:turn]):
                        if way in failed or (scenario != FIRST and not WAYS[way].upserts):
                            continue
                        result = self._load(conn, way, scenario, inputs[scenario], expected[scenario])
                        measurements.append(result)
                        if result.error:
                            failed.add(way)
                        figures = result.error or f"{result.seconds:.2f} s, {result.peak_mb:.0f} MB"
                        self.say(f"{self.rows:,} rows, {repeat + 1} of {repeats}, {scenario}, {way}: {figures}")
                for way in ways:
                    drop(conn, schema_of(way))
        return measurements

    def _inputs(self, conn: psycopg.Connection, scenarios: Sequence[str]) -> tuple[dict[str, Inputs], dict[str, Checksum]]:
        self.say(f"making {self.rows:,} rows")
        # The server also reads the files, as another user.
        self.folder.chmod(0o755)
        editions = {edition: write_inputs(self.folder, self.rows, edition) for edition in {EDITIONS[name] for name in scenarios}}
        sums = {edition: _expected(conn, inputs) for edition, inputs in editions.items()}
        return {name: editions[EDITIONS[name]] for name in scenarios}, {name: sums[EDITIONS[name]] for name in scenarios}

    def _load(self, conn: psycopg.Connection, way: str, scenario: str, inputs: Inputs, expected: Checksum) -> Measurement:
        schema = schema_of(way)
        own_files = self.folder / way
        if scenario == FIRST:
            shutil.rmtree(own_files, ignore_errors=True)
            own_files.mkdir()
            drop(conn, schema)
            conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            if not WAYS[way].creates_table:
                create_table(conn, schema)
            if WAYS[way].index:
                conn.execute(sql.SQL("CREATE INDEX ON {} ").format(sql.Identifier(schema, SPEC.name)) + sql.SQL(WAYS[way].index))
        settle(conn)
        warm(conn, schema, inputs)
        job = Job(way, self.url, schema, str(inputs.arrow), str(inputs.binary), str(own_files))
        try:
            child = subprocess.run(
                [sys.executable, "-m", "benchmarks.ways"],
                input=json.dumps(asdict(job)),
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=self.timeout,
            )
        except subprocess.TimeoutExpired:
            return Measurement(way, scenario, self.rows, error=f"took longer than {self.timeout:.0f} s")
        if child.returncode:
            reason = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
            return Measurement(way, scenario, self.rows, error=reason[-1])
        target = sql.Identifier(schema, SPEC.name)
        if checksum(conn, target) != expected:
            return Measurement(way, scenario, self.rows, error="the table does not hold the rows that were given")
        clean_up(conn, schema)
        return Measurement(way, scenario, self.rows, **json.loads(child.stdout.splitlines()[-1]))


def settle(conn: psycopg.Connection) -> None:
    """Cleans up and writes out the rest of earlier loads, so that the next load does not pay for it."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while conn.execute(VACUUMS).fetchone() is not None and time.monotonic() < deadline:
        time.sleep(0.2)
    with suppress(pg.InsufficientPrivilege):
        conn.execute("CHECKPOINT")
    os.sync()
    while psutil.cpu_percent(interval=2) > IDLE_PERCENT and time.monotonic() < deadline:
        pass


def clean_up(conn: psycopg.Connection, schema: str) -> None:
    """Does the work of autovacuum after a load of that schema. Otherwise autovacuum would do it during another load."""
    for name in _schemas(schema):
        for (table,) in conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (name,)).fetchall():
            conn.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(name, table)))


def warm(conn: psycopg.Connection, schema: str, inputs: Inputs) -> None:
    """Reads files and tables of the next load into the system's memory, so that no load waits for a cold disk."""
    for path in (inputs.arrow, inputs.binary):
        with path.open("rb") as file:
            while file.read(2**20):
                pass
    with suppress(pg.InsufficientPrivilege, pg.UndefinedFile, pg.FeatureNotSupported):
        conn.execute("CREATE EXTENSION IF NOT EXISTS pg_prewarm")
        conn.execute(
            "SELECT pg_prewarm(oid, 'read') FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'i')",
            (schema,),
        )


def checksum(conn: psycopg.Connection, table: sql.Identifier) -> Checksum:
    """Rows and contents of a table with the columns of the rows, whatever their order and however it was filled."""
    values = sql.SQL(", ").join(sql.SQL("{}::{}").format(sql.Identifier(c.name), sql.SQL(c.type.value)) for c in SPEC.columns)
    row = conn.execute(
        sql.SQL("SELECT count(*), coalesce(sum(hash_record_extended(ROW({}), 0)), 0) FROM {}").format(values, table)
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _expected(conn: psycopg.Connection, inputs: Inputs) -> Checksum:
    schema = schema_of("expected")
    drop(conn, schema)
    conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    create_table(conn, schema)
    statements = Statements(SPEC, schema)
    with inputs.binary.open("rb") as file, conn.cursor() as cursor, cursor.copy(statements.copy(statements.target)) as copy:
        while data := file.read(2**20):
            copy.write(data)
    result = checksum(conn, statements.target)
    drop(conn, schema)
    return result


def schema_of(name: str) -> str:
    """The schema of that way."""
    return f"bench_{name}"


def create_table(conn: psycopg.Connection, schema: str) -> None:
    """The table as production makes it."""
    for statement in Statements(SPEC, schema).create_table():
        conn.execute(statement)


def drop(conn: psycopg.Connection, schema: str) -> None:
    """Drops the schema, and dlt's beside it."""
    for name in _schemas(schema):
        conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


def _schemas(schema: str) -> tuple[str, str]:
    return schema, f"{schema}_staging"  # the second is dlt's
