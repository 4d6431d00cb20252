"""Measures seconds from launch to SUCCESS: by GraphQL with a running webserver and daemon, and by the command line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.loads import ROOT, Say
from pulso_etl.local.stack import local_stack
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.zone import DEFAULT
from pulso_etl.tables import TABLES

TABLE, NOTHING = "dashboard_data", "empty"
DAYS = 6
"""Trailing days of one refresh: about 1,000 rows of the sample data."""
OWN, COLD, EMPTY, BESIDE = "pulso_etl.definitions", "benchmarks.cold", "benchmarks.empty", "benchmarks.beside"
LOCATIONS = (OWN, COLD, EMPTY, BESIDE)
"""The code locations: the project's own code server serves the first, code servers of Dagster's own serve the others."""
ALONE, LOADED_MODULES, FIVE = "an empty asset, Dagster alone", "an empty asset, this project's modules loaded", "all five tables"
LAUNCHED = {
    ALONE: (EMPTY, [NOTHING]),
    LOADED_MODULES: (BESIDE, [NOTHING]),
    TABLE: (OWN, [TABLE]),
    FIVE: (OWN, list(TABLES)),
    f"{TABLE}, each run a new Python": (COLD, [TABLE]),
    f"{FIVE}, each run a new Python": (COLD, list(TABLES)),
}
"""The launches: code location and assets."""
POLL_SECONDS = 0.05
LAUNCH = """
mutation($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on InvalidSubsetError { message }
  }
}
"""
STATUS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
LOADED = """
query { workspaceOrError { ... on Workspace { locationEntries {
  name loadStatus locationOrLoadError { __typename ... on PythonError { message } } } } } }
"""


@dataclass(frozen=True)
class Launch:
    """One launch: how, of what, how many rows it read in all, and seconds of wall-clock until its last run's success."""

    how: str
    what: str
    rows: int
    seconds: float


def measure_launches(home: Path, repeats: int, *, timeout: float, say: Say) -> list[Launch]:
    """Launches, in turn: an empty asset, one table, all five; by either way. Raises RuntimeError if one does not succeed."""
    launches: list[Launch] = []
    today = DEFAULT.day(datetime.now(UTC))
    window = DayRange(today - timedelta(days=DAYS - 1), today)
    say("starting PostgreSQL, the BigQuery emulator, Dagster's webserver and daemon")
    with without_variables("DATABASE_URL", "DATABASE_SCHEMA", "DAGSTER_POSTGRES_URL"), local_stack(home):
        refresh_by_command(OWN, list(TABLES), window, timeout)
        with dagster_servers(home) as dagster:
            for location, assets in LAUNCHED.values():
                dagster.run(location, assets[:1], window, timeout)  # the daemon loads a code location at its first run
            for repeat in range(repeats):
                for what, (location, assets) in LAUNCHED.items():
                    ways = {"GraphQL": dagster.run} | ({} if location == COLD else {"command line": refresh_by_command})
                    for how, launch in ways.items():
                        began = time.perf_counter()
                        launch(location, assets, window, timeout)
                        seconds = time.perf_counter() - began
                        launches.append(Launch(how, what, _rows_read(assets), seconds))
                        say(f"{repeat + 1} of {repeats}, {how}, {what}: {seconds:.2f} s")
    return launches


def refresh_by_command(location: str, assets: Sequence[str], window: DayRange, timeout: float) -> None:
    if location == OWN:
        command = ["-m", "pulso_etl", "refresh", *assets, "--from", str(window.start), "--to", str(window.end)]
    else:
        command = ["-m", location, str(window.start), str(window.end)]
    child = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{child.stdout[-2000:]}{child.stderr[-2000:]}")


def _rows_read(assets: Sequence[str]) -> int:
    with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
        query = "SELECT coalesce(sum(records_extracted), 0)::bigint FROM etl_watermarks WHERE table_name = ANY(%s)"
        row = conn.execute(query, (list(assets),)).fetchone()
    assert row is not None
    return int(row[0])


class Dagster:
    """A running webserver's GraphQL API."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/graphql"

    def query(self, text: str, **variables: Any) -> Any:
        """The `data` of the answer. Raises RuntimeError for errors in it, OSError if nobody answers."""
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        if answer.get("errors"):
            raise RuntimeError(f"GraphQL: {answer['errors']}")
        return answer["data"]

    def wait_until_loaded(self, locations: set[str], timeout: float) -> None:
        """Raises RuntimeError if the code locations do not load in `timeout` seconds."""
        deadline, seen = time.monotonic() + timeout, "no answer"
        while time.monotonic() < deadline:
            try:
                entries = self.query(LOADED)["workspaceOrError"]["locationEntries"]
            except OSError as error:
                seen = str(error)
            else:
                seen = str(entries)
                loaded = {
                    entry["name"]
                    for entry in entries
                    if (entry["locationOrLoadError"] or {}).get("__typename") == "RepositoryLocation"
                }
                if loaded >= locations:
                    return
            time.sleep(0.5)
        raise RuntimeError(f"Dagster's code locations did not load within {timeout:.0f} s: {seen}")

    def run(self, location: str, assets: Sequence[str], window: DayRange, timeout: float) -> None:
        """One run for each asset, all launched at once; returns when the last has succeeded. Raises RuntimeError."""
        pending = {asset: self._launch(location, asset, window) for asset in assets}
        deadline = time.monotonic() + timeout
        while pending:
            time.sleep(POLL_SECONDS)
            asset, run_id = next(iter(pending.items()))
            status = self.query(STATUS, id=run_id)["runOrError"]["status"]
            if status == "SUCCESS":
                del pending[asset]
            elif status in ("FAILURE", "CANCELED") or time.monotonic() > deadline:
                raise RuntimeError(f"the run of {asset} is {status}")

    def _launch(self, location: str, asset: str, window: DayRange) -> str:
        tags = {
            "dagster/asset_partition_range_start": str(window.start),
            "dagster/asset_partition_range_end": str(window.end),
        }
        answer = self.query(
            LAUNCH,
            params={
                "selector": {
                    "repositoryLocationName": location,
                    "repositoryName": "__repository__",
                    "jobName": "__ASSET_JOB",
                    "assetSelection": [{"path": [asset]}],
                },
                "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
            },
        )["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise RuntimeError(f"launching {asset}: {answer}")
        return str(answer["run"]["runId"])


@contextmanager
def dagster_servers(home: Path) -> Iterator[Dagster]:
    """Webserver and daemon with this project's instance settings, and a code server for each code location."""
    workspace = home / "workspace.yaml"
    port, *code_ports = free_ports(1 + len(LOCATIONS))
    served = [
        {"grpc_server": {"host": "127.0.0.1", "port": number, "location_name": name}}
        for name, number in zip(LOCATIONS, code_ports, strict=True)
    ]
    workspace.write_text(json.dumps({"load_from": served}), encoding="utf-8")  # YAML too
    commands = {
        name: ["-m", "dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(number), "-m", name, "--location-name", name]
        for name, number in zip(LOCATIONS, code_ports, strict=True)
    } | {
        OWN: ["-m", "pulso_etl", "code-server", "-p", str(code_ports[0]), "-m", OWN],
        "webserver": ["-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port), "-w", str(workspace)],
        "daemon": ["-m", "dagster._daemon", "run", "-w", str(workspace)],
    }
    children = []
    try:
        for name, command in commands.items():
            with (home / f"{name}.log").open("wb") as log:
                children.append(subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=log, stderr=log))
        dagster = Dagster(port)
        dagster.wait_until_loaded(set(LOCATIONS), 180)
        yield dagster
    finally:
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()


def free_ports(count: int) -> list[int]:
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


@contextmanager
def without_variables(*names: str) -> Iterator[None]:
    """The environment without these variables."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
