"""Measures rows a second of a long range in chunks, as more processes load at the same time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from benchmarks.job import Job
from benchmarks.loads import FIRST, ROOT, UNCHANGED, Say, checksum, clean_up, create_table, drop, schema_of, settle
from benchmarks.rows import SPEC, WINDOW, reader, write_inputs
from pulso_etl.sync.days import DayRange

CHUNK_DAYS = 25
"""Four chunks of the rows' hundred days."""
WORKERS = (1, 2, 4)
SCENARIOS = (FIRST, UNCHANGED)


@dataclass(frozen=True)
class Throughput:
    """One load of all chunks by so many processes at a time, in seconds of wall-clock; the server's share is in its processor
    seconds."""

    workers: int
    scenario: str
    rows: int
    seconds: float


def measure_parallel(url: str, folder: Path, rows: int, *, timeout: float, say: Say) -> list[Throughput]:
    """Loads the rows chunk by chunk with each number of processes, first and again, and compares what they left.

    The processes are up, with all modules loaded, before the clock starts. Raises RuntimeError where rows are not as given.
    """
    measured = []
    with psycopg.connect(url, autocommit=True) as conn:
        chunks = _write_chunks(folder, rows)
        expected = None
        for workers in WORKERS:
            schema = schema_of(f"parallel_{workers}")
            drop(conn, schema)
            conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            create_table(conn, schema)
            for scenario in SCENARIOS:
                settle(conn)
                seconds = _load(url, schema, chunks, workers, timeout)
                found = checksum(conn, sql.Identifier(schema, SPEC.name))
                expected = expected or found
                if found != expected or found[0] != rows:
                    raise RuntimeError(f"{workers} processes, {scenario}: the table does not hold the rows that were given")
                clean_up(conn, schema)
                measured.append(Throughput(workers, scenario, rows, seconds))
                say(f"{rows:,} rows in {len(chunks)} chunks, {workers} at a time, {scenario}: {seconds:.2f} s")
            drop(conn, schema)
    return measured


def _write_chunks(folder: Path, rows: int) -> list[tuple[DayRange, Path]]:
    """Each chunk's rows as an Arrow file."""
    whole = reader(write_inputs(folder, rows).arrow)
    chunks = [(window, folder / f"chunk-{window.start}.arrow") for window in WINDOW.chunks(CHUNK_DAYS)]
    streams = [pa.ipc.new_stream(pa.OSFile(str(path), "wb"), whole.schema) for _, path in chunks]
    for batch in whole:
        day = batch.column(SPEC.partition_column)
        for (window, _), stream in zip(chunks, streams, strict=True):
            stream.write_batch(batch.filter(pc.and_(pc.greater_equal(day, window.start), pc.less_equal(day, window.end))))
    for stream in streams:
        stream.close()
    return chunks


def _load(url: str, schema: str, chunks: Sequence[tuple[DayRange, Path]], workers: int, timeout: float) -> float:
    """Seconds for the processes to load every chunk. Each process takes the next chunk when it has finished one."""
    shares = [chunks[place::workers] for place in range(workers)]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.ways", "--wait"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in shares
    ]
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        began = time.perf_counter()
        for child, share in zip(children, shares, strict=True):
            assert child.stdin is not None
            jobs = [
                asdict(Job("pulso", url, schema, str(path), "", "", str(window.start), str(window.end))) for window, path in share
            ]
            child.stdin.write(json.dumps(jobs) + "\n")
            child.stdin.flush()
        for child in children:
            child.communicate(timeout=timeout)
            if child.returncode:
                raise RuntimeError(f"a load ended with exit code {child.returncode}")
        return time.perf_counter() - began
    finally:
        for child in children:
            child.kill()
