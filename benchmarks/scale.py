"""Measures definitions, sensors and the API's answers as tables and years grow."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.launch import OWN, dagster_servers, refresh_by_command, without_variables
from benchmarks.loads import ROOT, Say
from benchmarks.status import PATH, Readings, api_server, read_answers
from pulso_etl.local.postgres import EmbeddedPostgres
from pulso_etl.local.stack import local_stack
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.zone import DEFAULT
from pulso_etl.tables import TABLES

TABLE_COUNTS = (5, 100, 1_000)
YEARS = (0, 1, 5)
READERS, SECONDS = 10, 5.0
DETAIL = f"{PATH}/table/dashboard_data"
HISTORY = """
INSERT INTO etl_extractions (table_name, extraction_id, attempt, partition_start, partition_end, status, records_extracted,
    extraction_duration_seconds, metadata, started_at, finished_at)
SELECT name, 'past-' || n, 1, (at - interval '6 days')::date, at::date, 'success', 1000, 2.5, '{"rows_read": 1000}', at, at
FROM unnest(%s::text[]) AS name, generate_series(4 * 365 * %s, 1, -1) AS n,
    LATERAL (SELECT now() - n * interval '6 hours' AS at) AS t
"""
"""Four extractions a day of each table, for the given number of years."""
DAYS = """
INSERT INTO etl_days (table_name, day, read_at, loaded_at, rows, extraction_id, open_until)
SELECT name, at::date, at, at, 1000, 'past-' || n, at::date
FROM unnest(%s::text[]) AS name, generate_series(365 * %s, 31, -1) AS n, LATERAL (SELECT now() - n * interval '1 day' AS at) AS t
ON CONFLICT DO NOTHING
"""
"""The days of these years in the ledger."""


@dataclass(frozen=True)
class Many:
    """What processes measured (`ours`, `plain` or `tick`) with so many tables: the median of the seconds by stage, and the greatest
    peak memory in MB."""

    what: str
    tables: int
    seconds: Mapping[str, float]
    peak_mb: float


@dataclass(frozen=True)
class Past:
    """Answers of the API with so many years of history in PostgreSQL: those of the whole state, and of one table."""

    years: int
    extractions: int
    status: Readings
    detail: Readings


def measure_tables(home: Path, repeats: int, *, timeout: float, say: Say) -> list[Many]:
    """Definitions by the number of tables, `repeats` times over and in turns, and once the sensors; each in a process of its own.

    Raises CalledProcessError.
    """
    found: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    with _storage(home) as env:

        def measure(what: str, tables: int) -> None:
            command = [sys.executable, "-m", "benchmarks.many", what, str(tables)]
            ended = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, timeout=timeout, check=True)
            found[what, tables].append(json.loads(ended.stdout.splitlines()[-1]))
            say(f"{what}, {tables:,} tables: {sum(found[what, tables][-1]['seconds'].values()):.2f} s in all")

        for tables in TABLE_COUNTS:
            for _ in range(repeats):
                measure("plain", tables)
                measure("ours", tables)
        for tables in TABLE_COUNTS:
            measure("tick", tables)
    return [
        Many(
            *which,
            {stage: median(run["seconds"][stage] for run in runs) for stage in runs[0]["seconds"]},
            max(run["peak_mb"] for run in runs),
        )
        for which, runs in found.items()
    ]


def measure_years(home: Path, *, timeout: float, say: Say) -> list[Past]:
    """Answers of the API as the history grows."""
    today = DEFAULT.day(datetime.now(UTC))
    measured = []
    with without_variables("DATABASE_URL", "DATABASE_SCHEMA", "DAGSTER_POSTGRES_URL", "API_TOKENS"), local_stack(home):
        say("years: loading the five tables, starting Dagster and the API")
        refresh_by_command(OWN, list(TABLES), DayRange(today - timedelta(days=5), today), timeout)
        with (
            dagster_servers(home) as dagster,
            api_server(home, dagster.url, timeout) as port,
            psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn,
        ):
            for years in YEARS:
                for table, past in (("etl_extractions", HISTORY), ("etl_days", DAYS)):
                    conn.execute(sql.SQL("DELETE FROM {} WHERE extraction_id LIKE 'past-%%'").format(sql.Identifier(table)), ())
                    conn.execute(past, (list(TABLES), years))
                    conn.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(table)))
                held = conn.execute("SELECT count(*) FROM etl_extractions").fetchone()
                assert held is not None
                asyncio.run(read_answers(port, 2, 1.0, DETAIL))
                status, detail = (asyncio.run(read_answers(port, READERS, SECONDS, path)) for path in (PATH, DETAIL))
                measured.append(Past(years, held[0], status, detail))
                say(f"years: {years}: status 95% {status.percentile(95):.1f} ms, one table {detail.percentile(95):.1f} ms")
    return measured


@contextmanager
def _storage(home: Path) -> Iterator[dict[str, str]]:
    """An environment with its own PostgreSQL, for the tables and for Dagster's storage."""
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    with without_variables("DATABASE_SCHEMA", "TENANTS_FILE"), EmbeddedPostgres(home / "postgres") as server:
        yield {
            **os.environ,
            "DATABASE_URL": server.create_database("pulso"),
            "DAGSTER_POSTGRES_URL": server.create_database("dagster"),
            "DAGSTER_HOME": str(home),
        }
