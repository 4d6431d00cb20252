"""Measures the cost of many tables, as a process of its own: their definitions, the looks of the sensors, and their state for the
API. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pulso_etl.settings import Settings
    from pulso_etl.sync.spec import TableSpec

BEGAN = time.process_time()

import dagster as dg  # noqa: E402  the clock stands before it

IMPORTED = time.process_time()

HISTORY = """
INSERT INTO etl_extractions (table_name, extraction_id, attempt, partition_start, partition_end, status, records_extracted,
    extraction_duration_seconds, metadata, started_at, finished_at)
SELECT name, 'run-' || name || n, 1, current_date - 6, current_date, 'success', 1000, 2.5, '{"rows_read": 1000}',
    now() - n * interval '6 hours' - interval '1 minute', now() - n * interval '6 hours'
FROM unnest(%s::text[]) AS name, generate_series(0, 7) AS n
"""
DAYS = """
INSERT INTO etl_days (table_name, day, read_at, loaded_at, rows, extraction_id, open_until)
SELECT name, today - n, read_at, read_at, 1000, 'run-' || name || 0, today - n + 7
FROM unnest(%(names)s::text[]) AS name, generate_series(0, %(days)s) AS n,
    LATERAL (SELECT (now() AT TIME ZONE 'America/Lima')::date AS today,
        now() - interval '1 minute' - greatest(0, n - 7) * interval '1 day' AS read_at) AS t
ON CONFLICT DO NOTHING
"""
"""The days of the ledger: the last seven may still change, and were just read."""
MONTH = 30
MARKS = """
INSERT INTO etl_watermarks (table_name, last_extracted_at, last_partition, last_extraction_status, records_extracted, extraction_id)
SELECT name, now() - CASE WHEN place <= %(due)s THEN interval '2 days' ELSE interval '1 minute' END,
    (now() AT TIME ZONE 'America/Lima')::date, 'success', 1000, 'run-' || name || 0
FROM unnest(%(names)s::text[]) WITH ORDINALITY AS named (name, place)
"""
DUE = 10
"""How many tables a tick finds due."""
CHECKS = 7
"""Of a table, as four of the five have."""


def plain(tables: int) -> dg.Definitions:
    """The cost of a graph of this shape in Dagster alone: an asset and an op of checks a table, and no jobs of their own."""
    days = dg.DailyPartitionsDefinition("2024-01-01", timezone="America/Lima", end_offset=1)

    def asset(name: str) -> dg.AssetsDefinition:
        @dg.asset(name=name, partitions_def=days)
        def table() -> None: ...

        return table

    def checks(name: str) -> dg.AssetChecksDefinition:
        @dg.multi_asset_check(
            name=f"{name}_checks", specs=[dg.AssetCheckSpec(f"check_{n}", asset=name) for n in range(CHECKS)], can_subset=True
        )
        def pass_all() -> Iterator[dg.AssetCheckResult]:
            yield from (dg.AssetCheckResult(check_name=f"check_{n}", asset_key=name, passed=True) for n in range(CHECKS))

        return pass_all

    names = [f"table_{n}" for n in range(tables)]
    return dg.Definitions([asset(name) for name in names], asset_checks=[checks(name) for name in names])


def load(tables: int, *, ours: bool) -> dict[str, float]:
    """Processor time, in seconds, of each stage that a code server goes through before it is ready."""
    from dagster._core.remote_representation.external_data import RepositorySnap

    seconds: dict[str, float] = {"import dagster": IMPORTED - BEGAN}

    @contextmanager
    def clock(stage: str) -> Iterator[None]:
        began = time.process_time()
        yield
        seconds[stage] = time.process_time() - began

    if ours:
        with clock("import this project"):
            from benchmarks.specs import many
            from pulso_etl.definitions import build_defs
            from pulso_etl.settings import load_settings
        specs, settings = many(tables), load_settings()
    with clock("definitions"):
        defs = build_defs(settings, tables=specs) if ours else plain(tables)
    with clock("repository"):
        repository = defs.get_repository_def()
    with clock("jobs"):
        repository.get_all_jobs()
    with clock("snapshot"):
        RepositorySnap.from_def(repository, defer_snapshots=True)
    return seconds


def tick(tables: int) -> dict[str, float]:
    """Seconds that one evaluation of each sensor takes, and the API's reading of the state, with two days of history and runs of
    the tables in PostgreSQL, and a month of days."""
    from datetime import UTC, datetime

    from benchmarks.past_runs import add_past_runs
    from benchmarks.specs import many
    from pulso_etl.automation.recovery import recover
    from pulso_etl.automation.sensors import Automation
    from pulso_etl.definitions import build_resources
    from pulso_etl.refreshing.keys import reconciliation_key, refresh_check_keys
    from pulso_etl.settings import load_settings
    from pulso_etl.sync.ledger.watermarks import Watermarks

    settings, specs = load_settings(change_aware=False), many(tables)
    checks = [key for spec in specs.values() for key in (*refresh_check_keys(spec), reconciliation_key(spec))]
    automation = Automation(settings, specs, [], checks)
    found: dict[str, float] = {}
    with dg.DagsterInstance.get() as instance, automation.connect() as conn:
        Watermarks(settings.database_schema).create(conn)
        conn.execute("TRUNCATE etl_watermarks, etl_extractions, etl_running, etl_days")
        conn.execute(HISTORY, (list(specs),))
        conn.execute(DAYS, {"names": list(specs), "days": MONTH})
        conn.execute(MARKS, {"names": list(specs), "due": 0})
        conn.execute("ANALYZE etl_watermarks, etl_extractions, etl_days")
        add_past_runs(instance, os.environ["DAGSTER_POSTGRES_URL"], specs)
        source = build_resources(settings)["bigquery"]

        def evaluate(name: str, requests: int) -> None:
            began = time.perf_counter()
            asked = automation.tick(instance, source, datetime.now(UTC)).requests
            found[name] = time.perf_counter() - began
            assert len(asked) == requests

        evaluate("refresh sensor, first", 0)
        evaluate("refresh sensor, none due", 0)
        conn.execute("TRUNCATE etl_watermarks")
        conn.execute(MARKS, {"names": list(specs), "due": min(DUE, tables)})
        evaluate(f"refresh sensor, {DUE} due", min(DUE, tables))
        for name in ("alert sensor, first", "alert sensor"):
            began = time.perf_counter()
            now = datetime.now(UTC)
            automation.tell(instance, now, now)
            found[name] = time.perf_counter() - began
        began = time.perf_counter()
        list(recover(conn, settings.database_schema, instance, specs, datetime.now(UTC)))
        found["recovery sensor"] = time.perf_counter() - began
    return found | asyncio.run(read_state(settings, specs))


async def read_state(settings: Settings, specs: Mapping[str, TableSpec]) -> dict[str, float]:
    """Seconds that the API takes to read the state of all tables from PostgreSQL, without Dagster's runs."""
    from pulso_etl.api.dagster_client import DagsterClient
    from pulso_etl.api.database import Database
    from pulso_etl.api.status import StatusReader

    database, dagster = Database(settings), DagsterClient("http://127.0.0.1:9/graphql")
    reader, found = StatusReader(settings, database, dagster, specs), {}
    await database.open()
    try:
        for name in ("state for the API, first", "state for the API"):
            began = time.perf_counter()
            await reader.snapshot()
            found[name] = time.perf_counter() - began
    finally:
        await dagster.close()
        await database.close()
    return found


if __name__ == "__main__":
    what, count = sys.argv[1], int(sys.argv[2])
    from benchmarks.ways import peak_mb

    result = tick(count) if what == "tick" else load(count, ours=what == "ours")
    print(json.dumps({"seconds": result, "peak_mb": peak_mb()}))
