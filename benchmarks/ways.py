"""The ways of loading: each loads one file and gives its seconds. As a process of its own, one way prints its cost as JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pyarrow as pa
from psycopg import sql

from benchmarks.job import Job, Stopwatch, on_conflict, upsert
from benchmarks.rows import SPEC, WINDOW, reader
from benchmarks.tools import adbc, duckdb_postgres, ingestr, sling
from pulso_etl.sync.postgres.identifiers import listed
from pulso_etl.sync.tags import COMPARE_TAG, SPEC_KEY


def pulso(job: Job) -> float:
    """This project: a run of the asset through Dagster. Only the IO manager's part counts, watermark included."""
    return _pulso(job, {})


def pulso_compared(job: Job) -> float:
    """The same, with every day compared, as the nightly re-check and `--force` do."""
    return _pulso(job, {COMPARE_TAG: "true"})


def _pulso(job: Job, tags: dict[str, str]) -> float:
    import dagster as dg

    import pulso_etl.definitions  # noqa: F401  so that all of production's modules are in memory
    from pulso_etl.assets import daily_partitions
    from pulso_etl.sync.io_manager import PostgresUpsertIOManager

    watch = Stopwatch()

    class File:
        metadata: dict[str, Any] = {}

        @contextmanager
        def open(self) -> Iterator[pa.RecordBatchReader]:
            yield reader(Path(job.arrow))

    class TimedIOManager(PostgresUpsertIOManager):
        def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
            with watch:
                super().handle_output(context, obj)

    @dg.asset(
        name=SPEC.name,
        partitions_def=daily_partitions(WINDOW.start),
        backfill_policy=dg.BackfillPolicy.single_run(),
        io_manager_key="postgres",
        metadata={SPEC_KEY: SPEC.as_metadata()},
    )
    def table() -> Any:
        return File()

    destination = TimedIOManager(database_url=job.url, database_schema=job.schema)
    graph = dg.Definitions([table], resources={"postgres": destination}).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        graph.execute_in_process(
            instance=instance,
            tags={
                "dagster/asset_partition_range_start": job.start,
                "dagster/asset_partition_range_end": job.end,
                **tags,
            },
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    return watch.seconds


def copy_direct(job: Job) -> float:
    """The physical limit: the server reads a file in COPY's binary format straight into the keyed table."""
    with Stopwatch() as watch, psycopg.connect(job.url) as conn:
        conn.execute(_copy_from_file(job, job.target))
    return watch.seconds


def copy_upsert(job: Job) -> float:
    """An expert's own statement: the server reads the file into a temporary table and upserts the rows that differ."""
    stage = sql.Identifier("stage")
    columns = sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(c.type.value)) for c in SPEC.columns)
    with Stopwatch() as watch, psycopg.connect(job.url) as conn:
        conn.execute(sql.SQL("CREATE TEMP TABLE {} ({}) ON COMMIT DROP").format(stage, columns))
        conn.execute(_copy_from_file(job, stage))
        conn.execute(upsert(job, stage))
    return watch.seconds


def psycopg_executemany(job: Job) -> float:
    """psycopg's executemany of INSERT … ON CONFLICT DO UPDATE, a batch at a time, in one transaction."""
    places = sql.SQL(", ").join([sql.Placeholder()] * len(SPEC.columns))
    insert = sql.SQL("INSERT INTO {} ({}) VALUES ({}) {}").format(job.target, listed(SPEC.column_names), places, on_conflict())
    with Stopwatch() as watch, psycopg.connect(job.url) as conn, conn.cursor() as cursor:
        for batch in reader(Path(job.arrow)):
            cursor.executemany(insert, zip(*(column.to_pylist() for column in batch.columns), strict=True))
    return watch.seconds


def sqlalchemy_insert(job: Job) -> float:
    """SQLAlchemy Core's INSERT … ON CONFLICT DO UPDATE, a batch at a time, in one transaction.

    Over psycopg 3: its batches took a third of the time of psycopg2's statements of 1,000 rows.
    """
    from sqlalchemy import MetaData, Table, create_engine
    from sqlalchemy.dialects.postgresql import insert

    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(job.url))
    with Stopwatch() as watch, engine.begin() as conn:
        table = Table(SPEC.name, MetaData(), schema=job.schema, autoload_with=conn)
        statement = insert(table)
        statement = statement.on_conflict_do_update(
            index_elements=list(SPEC.primary_key), set_={name: statement.excluded[name] for name in SPEC.value_columns}
        )
        for batch in reader(Path(job.arrow)):
            conn.execute(statement, batch.to_pylist())
    return watch.seconds


def dlt_csv(job: Job) -> float:
    """dlt's merge by the key with its upsert strategy, fed with Arrow batches, as `dlt[postgres]` installs it: over CSV."""
    return _dlt(job, "csv")


def dlt_adbc(job: Job) -> float:
    """The same with dlt's fastest transport: Parquet, loaded by the ADBC driver."""
    import adbc_driver_postgresql  # noqa: F401  without it dlt would fall back to CSV

    return _dlt(job, "parquet")


def _dlt(job: Job, file_format: Any) -> float:
    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "ERROR"}
    import dlt
    from dlt.destinations import postgres

    merge: Any = {"disposition": "merge", "strategy": "upsert"}
    table = dlt.resource(
        iter(reader(Path(job.arrow))),
        name=SPEC.name,
        primary_key=SPEC.primary_key,
        write_disposition=merge,
        file_format=file_format,
    )
    server = psycopg.conninfo.conninfo_to_dict(job.url)
    credentials = {
        "database": server["dbname"],
        "username": server["user"],
        "password": server.get("password") or "none",
        "host": quote(str(server.get("host", "localhost")), safe=""),  # a Unix socket's folder has slashes
        "port": server.get("port", 5432),
    }
    pipeline = dlt.pipeline(
        job.schema, pipelines_dir=job.folder, destination=postgres(credentials=credentials), dataset_name=job.schema
    )
    with Stopwatch() as watch:
        pipeline.run(table).raise_on_failed_jobs()
    return watch.seconds


@dataclass(frozen=True)
class Way:
    """A way of loading: its name for people, and what it can do. `upserts`: it can load over rows that are there.

    `index`: one that the table has beside its key, as CREATE INDEX names it after ON the table.
    """

    title: str
    load: Callable[[Job], float]
    upserts: bool = True
    creates_table: bool = False
    index: str = ""


WAYS = {
    "pulso": Way("Pulso ETL", pulso),
    "pulso_compared": Way("Pulso ETL, every day compared", pulso_compared),
    "copy_direct": Way("COPY of a server-side file into the keyed table", copy_direct, upserts=False),
    "copy_upsert": Way("server-side COPY into a stage, INSERT … ON CONFLICT … WHERE IS DISTINCT FROM", copy_upsert),
    "psycopg": Way("psycopg executemany, INSERT … ON CONFLICT, batches of 10,000", psycopg_executemany),
    "sqlalchemy": Way("SQLAlchemy batched INSERT … ON CONFLICT, batches of 10,000", sqlalchemy_insert),
    "dlt": Way("dlt merge (upsert), over CSV", dlt_csv, creates_table=True),
    "dlt_adbc": Way("dlt merge (upsert), over Parquet and ADBC", dlt_adbc, creates_table=True),
    "sling": Way("Sling, incremental by the key, from CSV", sling),
    "ingestr": Way("ingestr, merge by the key, from Arrow", ingestr),
    "duckdb": Way("DuckDB's postgres extension, and the same statement", duckdb_postgres),
    "adbc": Way("ADBC's ingest, and the same statement", adbc),
    "pulso_indexed": Way("and (archivo, fecha_foto)", pulso, index="(archivo, fecha_foto)"),
    "pulso_covering": Way(
        "and (fecha_foto, cartera) INCLUDE (cuentas_gestionadas, recupero)",
        pulso,
        index="(fecha_foto, cartera) INCLUDE (cuentas_gestionadas, recupero)",
    ),
}


def peak_mb() -> float:
    """The largest resident memory that this process, or a program that it ran, ever had, in MB (10^6 bytes)."""
    unit = 1024 if sys.platform == "linux" else 1
    programs = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e6
    try:
        # getrusage also counts what the parent had when it started this process.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return max(programs, int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6)
    except OSError:
        return max(programs, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def _copy_from_file(job: Job, into: sql.Identifier) -> sql.Composed:
    return sql.SQL("COPY {} ({}) FROM {} (FORMAT BINARY)").format(into, listed(SPEC.column_names), sql.Literal(job.binary))


if __name__ == "__main__":
    # Google's client imports it if it is installed. The emulator needs it, and a deployment does not have it.
    sys.modules["fastavro"] = None  # type: ignore[assignment]
    if "--wait" in sys.argv:
        # A measurement of several at once starts its clock when all are ready.
        import pulso_etl.definitions  # noqa: F401

        print("ready", flush=True)
    given = json.loads(sys.stdin.readline())
    for job in [Job(**entry) for entry in (given if isinstance(given, list) else [given])]:
        print(json.dumps({"seconds": WAYS[job.way].load(job), "peak_mb": peak_mb()}))
