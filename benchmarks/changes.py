"""Measures what the change log costs: re-loads in which one row in a hundred has changed, in turns with and without the log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import psycopg
import pyarrow as pa

from benchmarks.loads import Say, create_table, drop, schema_of, settle
from benchmarks.rows import SPEC, WINDOW, Edition, reader, write_inputs
from pulso_etl.sync.ledger.changes import Changes
from pulso_etl.sync.ledger.migrations import migrate
from pulso_etl.sync.ledger.traces import Traces
from pulso_etl.sync.loading.load import load
from pulso_etl.sync.loading.request import LoadRequest, Source, Writer
from pulso_etl.sync.loading.verify import verify
from pulso_etl.sync.target import Target

LOGGED, UNLOGGED = "with the change log", "without"


@dataclass(frozen=True)
class Reload:
    """One re-load of `rows` rows: seconds of wall-clock, and of the processors of client and server."""

    way: str
    rows: int
    changed: int
    seconds: float
    client: float
    server: float


def measure_changes(url: str, server: psutil.Process, folder: Path, rows: int, repeats: int, say: Say) -> list[Reload]:
    """Loads two states of the source in turns; each re-load changes one row in a hundred, over all days alike."""
    schema, measured = schema_of("changes"), []
    states = [write_inputs(folder, rows, edition).arrow for edition in (Edition.TWO_DAYS, Edition.SPREAD)]
    with psycopg.connect(url, autocommit=True) as conn:
        drop(conn, schema)
        migrate(conn, schema)
        create_table(conn, schema)
        _reload(conn, schema, states[0], None)
        for turn in range(2 * repeats):
            way = (LOGGED, UNLOGGED)[(turn + turn // 2) % 2]
            conn.execute(f"VACUUM (ANALYZE) {schema}.{SPEC.name}".encode())
            settle(conn)
            began, client, served = time.perf_counter(), time.process_time(), _processor(server)
            changed = _reload(conn, schema, states[(turn + 1) % 2], Changes(schema) if way == LOGGED else None)
            one = Reload(
                *(way, rows, changed),
                seconds=time.perf_counter() - began,
                client=time.process_time() - client,
                server=_processor(server) - served,
            )
            measured.append(one)
            say(f"{rows:,} rows, {changed:,} changed, {way}: {one.seconds:.2f} s, processor {one.client:.2f} + {one.server:.2f} s")
        drop(conn, schema)
    return measured


def _reload(conn: psycopg.Connection, schema: str, arrow: Path, changes: Changes | None) -> int:
    """Loads as the IO manager does, in one transaction. Returns how many rows changed."""

    @contextmanager
    def rows() -> Iterator[pa.RecordBatchReader]:
        yield reader(arrow)

    target, traces = Target(conn, SPEC, schema), Traces(schema)
    request = LoadRequest(WINDOW, Source(rows), Writer("bench", changes=changes), last=traces.read(conn, SPEC.name, WINDOW))
    with conn.transaction():
        result = load(target, request)
        if changes is not None:
            changes.prune(conn, SPEC.name, timedelta(days=SPEC.change_log.changes_kept_days))
        traces.write(conn, SPEC.name, verify(target, request, result).traces)
    return result.total.written


def _processor(server: psutil.Process) -> float:
    """The processor seconds that the server's processes have used, those that ended included."""
    found = server.cpu_times()
    total = found.user + found.system + found.children_user + found.children_system
    for child in server.children():
        with_children = child.cpu_times()
        total += with_children.user + with_children.system
    return float(total)


def postmaster(conn: psycopg.Connection) -> psutil.Process:
    """The server's main process, on this machine."""
    backend = psutil.Process(conn.info.backend_pid)
    found = backend.parent()
    assert found is not None
    return found


def ways(measured: Sequence[Reload]) -> dict[str, list[Reload]]:
    """The re-loads by way."""
    return {way: [one for one in measured if one.way == way] for way in (LOGGED, UNLOGGED)}
