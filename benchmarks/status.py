"""Measures how fast the API answers many readers at once, over HTTP, with PostgreSQL and Dagster behind it."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import quantiles

from benchmarks.launch import OWN, dagster_servers, refresh_by_command, without_variables
from benchmarks.loads import ROOT, Say
from pulso_etl.access.tokens import Role, make_token
from pulso_etl.local.stack import answers, local_stack
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.zone import DEFAULT
from pulso_etl.tables import TABLES

PATH = "/api/v1/etl/status"
SECRET, TOKEN = make_token("benchmark", Role.READ)
READERS = 100
SECONDS = 15.0
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Readings:
    """The answers of readers that ask again at once after each answer: the milliseconds of each, and the rate of all."""

    readers: int
    milliseconds: list[float]
    per_second: float
    size: int

    def percentile(self, percent: int) -> float:
        """The milliseconds within which this share of the answers came."""
        return quantiles(self.milliseconds, n=100)[percent - 1]


def measure_status(home: Path, *, timeout: float, say: Say) -> Readings:
    """Readers of the five tables' state. Raises RuntimeError for an answer that is not 200."""
    today = DEFAULT.day(datetime.now(UTC))
    with without_variables("DATABASE_URL", "DATABASE_SCHEMA", "DAGSTER_POSTGRES_URL", "API_TOKENS"), local_stack(home):
        say("status: loading the five tables, starting Dagster and the API")
        refresh_by_command(OWN, list(TABLES), DayRange(today - timedelta(days=5), today), timeout)
        with dagster_servers(home) as dagster, api_server(home, dagster.url, timeout) as port:
            asyncio.run(read_answers(port, 10, 1.0))
            readings = asyncio.run(read_answers(port, READERS, SECONDS))
    say(f"status: {len(readings.milliseconds):,} answers, 95% within {readings.percentile(95):.1f} ms")
    return readings


@contextmanager
def api_server(home: Path, graphql_url: str, timeout: float) -> Iterator[int]:
    """Runs the API as a process, and gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "pulso_etl", "api", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "api.log").open("wb") as log:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "DAGSTER_GRAPHQL_URL": graphql_url, "API_TOKENS": str(TOKEN)},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + timeout
        while not answers(f"http://127.0.0.1:{port}/api/v1/etl/health?live=true"):
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the API did not start:\n{(home / 'api.log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield port
    finally:
        child.terminate()
        child.wait(30)


async def read_answers(port: int, readers: int, seconds: float, path: str = PATH) -> Readings:
    """Reads for `seconds`, and returns the measurements. Raises RuntimeError for an answer that is not 200."""
    milliseconds: list[float] = []
    sizes: set[int] = set()
    began = time.perf_counter()

    async def reader() -> None:
        stream, out = await asyncio.open_connection("127.0.0.1", port)
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {SECRET}\r\n\r\n".encode()
        while time.perf_counter() - began < seconds:
            asked = time.perf_counter()
            out.write(request)
            head = await stream.readuntil(b"\r\n\r\n")
            length = LENGTH.search(head)
            if not head.startswith(b"HTTP/1.1 200 ") or length is None:
                raise RuntimeError(f"the API answers {head[:100]!r}")
            await stream.readexactly(int(length[1]))
            milliseconds.append((time.perf_counter() - asked) * 1000)
            sizes.add(int(length[1]))
        out.close()

    await asyncio.gather(*(reader() for _ in range(readers)))
    return Readings(readers, milliseconds, len(milliseconds) / (time.perf_counter() - began), max(sizes))
