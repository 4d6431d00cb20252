"""Seconds of one run over many days, with Dagster's storage and with the project's, which stores the events of days together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pyarrow as pa
import yaml

from benchmarks.loads import ROOT, Say
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.spec import Column, ColumnType, TableSpec
from pulso_etl.sync.tags import SPEC_KEY

FIRST = date(2021, 1, 1)
COUNTS = (366, 1_827)
"""Days of one run: a year, and five."""
ROWS_A_DAY = 10
SPEC = TableSpec(
    name="meters",
    description="For measuring.",
    primary_key=("day", "meter"),
    partition_column="day",
    columns=(
        Column(name="day", type=ColumnType.DATE),
        Column(name="meter", type=ColumnType.INTEGER),
        Column(name="value", type=ColumnType.DOUBLE),
    ),
)
STORAGES = {
    "events one by one": ({"postgres": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}}, "0"),
    "in batches": (
        {
            "custom": {
                "module": "pulso_etl.instance.event_storage",
                "class": "BatchingPostgresStorage",
                "config": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}},
            }
        },
        "500",
    ),
}
"""The storage of Dagster's instance, and DAGSTER_EVENT_BATCH_SIZE."""


@dataclass(frozen=True)
class Run:
    """Wall-clock seconds of one run over `days` days, without the start of its process."""

    storage: str
    days: int
    seconds: float


def measure_days(url: str, home: Path, repeats: int, *, timeout: float, say: Say) -> list[Run]:
    """Runs over each number of days, the storages in turn. Raises RuntimeError if a run does not succeed."""
    runs = []
    for repeat in range(repeats):
        for days in COUNTS:
            for storage in STORAGES:
                seconds = _one(url, home, storage, days, timeout)
                runs.append(Run(storage, days, seconds))
                say(f"{repeat + 1} of {repeats}, {days} days, {storage}: {seconds:.2f} s")
    return runs


def _one(url: str, home: Path, storage: str, days: int, timeout: float) -> float:
    """The seconds of a run in a process of its own, with an empty storage."""
    schema = "bench_days"
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        conn.execute(f"CREATE SCHEMA {schema}")
        try:
            config, batch = STORAGES[storage]
            folder = home / "days"
            folder.mkdir(exist_ok=True)
            instance = {"storage": config, "telemetry": {"enabled": False}}
            (folder / "dagster.yaml").write_text(yaml.safe_dump(instance), encoding="utf-8")
            separator = "&" if "?" in url else "?"
            env = os.environ | {
                "DATABASE_URL": url,
                "DATABASE_SCHEMA": schema,
                "DAGSTER_HOME": str(folder),
                "DAGSTER_POSTGRES_URL": f"{url}{separator}options=-csearch_path%3D{schema}",
                "DAGSTER_EVENT_BATCH_SIZE": batch,
            }
            command = [sys.executable, "-m", "benchmarks.days", str(days)]
            child = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
            if child.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{child.stdout[-2000:]}{child.stderr[-2000:]}")
            return float(child.stdout.split()[-1])
        finally:
            conn.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@dg.asset(
    partitions_def=dg.DailyPartitionsDefinition(str(FIRST), timezone="America/Lima", end_offset=1),
    backfill_policy=dg.BackfillPolicy.single_run(),
    io_manager_key="postgres",
    metadata={SPEC_KEY: SPEC},
)
def meters() -> pa.Table:
    """Ten rows a day."""
    keys = [date.fromisoformat(key) for key in dg.AssetExecutionContext.get().partition_keys]
    rows = [{"day": day, "meter": meter, "value": meter / 7} for day in keys for meter in range(ROWS_A_DAY)]
    return pa.Table.from_pylist(rows, pa.schema([("day", pa.date32()), ("meter", pa.int64()), ("value", pa.float64())]))


def main(days: int) -> None:
    """Loads the days in one run in this process, and prints its seconds."""
    tags = {
        "dagster/asset_partition_range_start": str(FIRST),
        "dagster/asset_partition_range_end": str(FIRST + timedelta(days=days - 1)),
    }
    manager = PostgresUpsertIOManager(database_url=os.environ["DATABASE_URL"], database_schema=os.environ["DATABASE_SCHEMA"])
    with dg.DagsterInstance.get() as instance:
        # The first run of a process and of a storage prepares things that do not depend on the days, so it is not measured.
        dg.materialize([meters], tags=dict.fromkeys(tags, str(FIRST)), resources={"postgres": manager}, instance=instance)
        began = time.perf_counter()
        dg.materialize([meters], tags=tags, resources={"postgres": manager}, instance=instance)
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main(int(sys.argv[1]))
