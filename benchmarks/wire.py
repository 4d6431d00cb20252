"""Measures rows over the Storage Read API by compression: bytes, seconds, and the client's processor time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import types

from benchmarks.loads import ROOT, Say
from benchmarks.rows import SPEC, WINDOW, reader, write_inputs
from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.bigquery.storage_read import Compression
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl_tests.bigquery.storage_server import StorageServer

CHECKED = "cuentas"
"""The sum of this column shows that all rows have arrived."""


@dataclass(frozen=True)
class Download:
    """One reading of all rows: bytes of the messages that hold them, seconds of wall-clock and of the client's processor."""

    compression: str
    rows: int
    size: int
    seconds: float
    processor: float


class RowsServer(StorageServer):
    """Gives every session the same rows, with each message compressed once. Counts the bytes of the sent messages."""

    def __init__(self, jobs: bigquery.Client, rows: pa.Table) -> None:
        super().__init__(jobs, batch_rows=SPEC.source.batch_rows)
        self.sent = 0
        self._counting = Lock()
        self._rows = rows
        self._made: dict[tuple[int, str, int], types.ReadRowsResponse] = {}

    def result(self, table_id: str) -> pa.Table:
        return self._rows

    def batch(self, stream: str, position: int) -> types.ReadRowsResponse:
        place = (self.codec(stream), stream.rsplit("/", 1)[1], position)
        if place not in self._made:
            self._made[place] = super().batch(stream, position)
        response = self._made[place]
        size = len(response.arrow_record_batch.serialized_record_batch)
        with self._counting:
            self.sent += size
        return response


def measure_wire(folder: Path, rows: int, repeats: int, *, timeout: float, say: Say) -> list[Download]:
    """Reads the rows with each compression in turn. Raises RuntimeError if some do not arrive."""
    table = reader(write_inputs(folder, rows).arrow).read_all()
    expected = (rows, pc.sum(table[CHECKED]).as_py())
    measured = []
    with BigQueryEmulator(folder / "log") as emulator, RowsServer(emulator.client(), table) as server:
        for repeat in range(repeats):
            for compression in get_args(Compression):
                job = {"rest": emulator.rest_url, "storage": server.address, "compression": compression, "rows": rows}
                before = server.sent
                child = subprocess.run(
                    [sys.executable, "-m", "benchmarks.wire"],
                    input=json.dumps(job),
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    timeout=timeout,
                )
                if child.returncode:
                    raise RuntimeError(f"{compression}: {child.stderr.strip().splitlines()[-1]}")
                told = json.loads(child.stdout.splitlines()[-1])
                if (told["rows"], told["sum"]) != expected:
                    raise RuntimeError(f"{compression}: the rows that arrived are not those that were sent")
                # Each reads them twice.
                one = Download(compression, rows, (server.sent - before) // 2, told["seconds"], told["processor"])
                measured.append(one)
                say(
                    f"{rows:,} rows, {repeat + 1} of {repeats}, {compression}: "
                    f"{one.size / 1e6:.1f} MB, {one.seconds:.2f} s, processor {one.processor:.2f} s"
                )
    return measured


def read(rest: str, storage: str, compression: Compression, rows: int) -> dict[str, Any]:
    """Reads the rows twice, and measures the second time. Then the query is done, and the server has prepared its messages."""
    source = BigQuerySource(
        project="benchmark", sources={}, emulator_host=rest, emulator_storage=storage, wire_compression=compression
    )
    # The server gives its own rows. The emulator only has to say how many there are.
    query = f"SELECT n FROM UNNEST(GENERATE_ARRAY(1, {rows})) AS n WHERE @start <= @end"
    stream = source.stream(SPEC.with_query(query), WINDOW, "benchmark")
    for _ in range(2):
        began, processor, count, total = time.perf_counter(), time.process_time(), 0, 0
        with stream.open() as batches:
            for batch in batches:
                count += batch.num_rows
                total += pc.sum(batch.column(CHECKED)).as_py()
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
    if stream.metadata["transport"] != "storage":
        raise RuntimeError("the rows came over REST")
    return {"rows": count, "sum": total, "seconds": seconds, "processor": processor}


if __name__ == "__main__":
    print(json.dumps(read(**json.loads(sys.stdin.read()))))
