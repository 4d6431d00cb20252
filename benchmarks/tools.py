"""Other tools that load the same rows: Sling, ingestr, DuckDB's postgres extension, and the ADBC driver.

Sling and ingestr are programs. Each reads a file of its own, which is written before its seconds begin: Sling a CSV, because its
other formats need a download, and ingestr a file of Arrow. DuckDB and ADBC only bring rows to PostgreSQL: into the table itself if
it is empty, else into a stage, from which a statement by hand writes the rows that differ.
"""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import files
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.csv
from psycopg import sql

from benchmarks.job import Job, Stopwatch, upsert
from benchmarks.rows import SPEC, reader

STAGE = "bench_stage"


def sling(job: Job) -> float:
    """Sling stages the rows, and updates and inserts by the key."""
    source = Path(job.folder, "rows.csv")
    with reader(Path(job.arrow)) as rows, pyarrow.csv.CSVWriter(source, rows.schema) as file:
        for batch in rows:
            file.write_batch(batch)
    command = [_program("sling-linux-amd64"), "run", "--src-stream", f"file://{source}", "--tgt-conn", "PULSO_BENCH"]
    command += ["--tgt-object", f"{job.schema}.{SPEC.name}", "--mode", "incremental", "--primary-key", ",".join(SPEC.primary_key)]
    return _seconds(command, {"PULSO_BENCH": job.url, "SLING_HOME_DIR": job.folder, "SLING_DISABLE_TELEMETRY": "TRUE"})


def ingestr(job: Job) -> float:
    """ingestr stages the rows and merges them by the key."""
    source = Path(job.folder, "rows.arrow")
    with reader(Path(job.arrow)) as rows, pa.ipc.new_file(source, rows.schema) as file:
        for batch in rows:
            file.write_batch(batch)
    command = [_program("ingestr"), "ingest", "--source-uri", f"mmap://{source}", "--source-table", SPEC.name, "--yes"]
    command += ["--dest-uri", job.url, "--dest-table", f"{job.schema}.{SPEC.name}", "--incremental-strategy", "merge"]
    command += [word for name in SPEC.primary_key for word in ("--primary-key", name)]
    return _seconds(command, {"HOME": job.folder, "INGESTR_DISABLE_TELEMETRY": "true"})


def duckdb_postgres(job: Job) -> float:
    """DuckDB reads the Arrow stream and writes it over its postgres extension."""
    import duckdb
    import duckdb_extensions

    duckdb_extensions.import_extension("postgres_scanner")
    with duckdb.connect() as duck, Stopwatch() as watch:
        duck.execute("LOAD postgres_scanner")
        duck.execute(f"ATTACH '{_words(job.url)}' AS pg (TYPE postgres)")
        duck.execute("BEGIN")
        rows = reader(Path(job.arrow))  # noqa: F841  DuckDB finds it by its name
        if _is_empty(job):
            duck.execute(f"INSERT INTO pg.{job.schema}.{SPEC.name} BY NAME SELECT * FROM rows")
        else:
            stage = sql.Identifier(job.schema, STAGE)
            duck.execute(f"CREATE TABLE pg.{job.schema}.{STAGE} AS SELECT * FROM rows")
            for statement in (upsert(job, stage), sql.SQL("DROP TABLE {}").format(stage)):
                duck.execute("CALL postgres_execute('pg', ?)", [statement.as_string()])
        duck.execute("COMMIT")
    return watch.seconds


def adbc(job: Job) -> float:
    """The ADBC driver copies the Arrow stream."""
    from adbc_driver_postgresql import dbapi

    with Stopwatch() as watch, dbapi.connect(job.url) as conn, conn.cursor() as cursor:
        rows = reader(Path(job.arrow))
        if _is_empty(job):
            cursor.adbc_ingest(SPEC.name, rows, mode="append", db_schema_name=job.schema)
        else:
            cursor.adbc_ingest(STAGE, rows, mode="create", temporary=True)
            cursor.execute(upsert(job, sql.Identifier(STAGE)).as_string())
        conn.commit()
    return watch.seconds


def _is_empty(job: Job) -> bool:
    with psycopg.connect(job.url) as conn:
        return conn.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(job.target)).fetchone() is None


def _words(url: str) -> str:
    """The address as libpq's words, which DuckDB takes."""
    return psycopg.conninfo.make_conninfo(url).replace("'", "''")


def _seconds(command: list[str], variables: dict[str, str]) -> float:
    """The seconds of the program, its start included. Raises RuntimeError with its last line if it fails."""
    with Stopwatch() as watch:
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        told = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{Path(command[0]).name}: {told[-1]}")
    return watch.seconds


def _program(name: str) -> str:
    """The program of that name, which a package of the same name brings. Raises PackageNotFoundError, or RuntimeError."""
    for file in files(name) or []:
        if file.name == name:
            path = Path(str(file.locate()))
            path.chmod(path.stat().st_mode | 0o100)
            return str(path)
    raise RuntimeError(f"the package {name} has no program for this machine")
