"""A whole Dagster deployment in child processes: webserver, daemon, code server and run workers, storage in PostgreSQL."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

import dagster as dg

from pulso_etl.local.sample_data import SampleData
from pulso_etl.refreshing.ranges import range_tags
from pulso_etl.sync.days import DayRange
from pulso_etl_tests.holding_proxy import HoldingProxy

CHECKOUT = Path(__file__).parents[1]
READY = """
{
  workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } }
  instance { daemonHealth { allDaemonStatuses { healthy } } }
}
"""
LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
BACKFILL = """
mutation ($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
LOGS = "query ($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events { ... on MessageEvent { message } } } } }"
TERMINATE = "mutation ($run: String!) { terminateRun(runId: $run) { __typename } }"
STATUS = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
RUNS = "{ runsOrError { ... on Runs { results { runId status } } } }"
FINAL = {"SUCCESS", "FAILURE", "CANCELED"}


class DagsterStack:
    """Webserver, daemon and code server as the project's services start them. Their logs are in `home`.

    `env` is the deployment's environment. BigQuery holds `data` and is behind `proxy`. The target tables are in the schema
    `schema`. `module` has the definitions. `instance_file` is the `dagster.yaml`. `python` runs them all.
    """

    def __init__(
        self,
        home: Path,
        env: dict[str, str],
        proxy: HoldingProxy,
        data: SampleData,
        module: str = "pulso_etl.definitions",
        instance_file: Path = CHECKOUT / "dagster.yaml",
        python: Path = Path(sys.executable),
    ) -> None:
        self.home = home
        self.module = module
        self.instance_file = instance_file
        self.python = python
        self.env = {**os.environ, **env, "BIGQUERY_EMULATOR_HOST": proxy.url, "DAGSTER_HOME": str(home)}
        self.proxy = proxy
        self.data = data
        self.schema = env["DATABASE_SCHEMA"]
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> DagsterStack:
        (self.home / "dagster.yaml").write_text(self.instance_file.read_text(encoding="utf-8"), encoding="utf-8")
        self._code_port = str(_free_port())
        served = {"grpc_server": {"host": "127.0.0.1", "port": int(self._code_port), "location_name": self.module}}
        # JSON is also YAML.
        (self.home / "workspace.yaml").write_text(json.dumps({"load_from": [served]}), encoding="utf-8")
        # Two processes of Dagster that make its tables at the same time can get in each other's way.
        with patch.dict(os.environ, self.env), dg.DagsterInstance.from_config(str(self.home)):
            pass
        self.start_code_server()
        self._start(
            "webserver",
            "pulso_etl_tests.quick_webserver",
            "-h",
            "127.0.0.1",
            "-p",
            self.url.rpartition(":")[2],
            "-w",
            "workspace.yaml",
        )
        self.start_daemon()
        deadline = time.monotonic() + 90
        while not self._ready():
            dead = [child.args for child in self._children if child.poll() is not None]
            if dead or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"Dagster did not start ({dead}); see the logs in {self.home}")
            time.sleep(0.2)
        return self

    def start_code_server(self) -> None:
        """Starts the code server that daemon and webserver share. An earlier code server has ended before."""
        self.code_server = self._start("code-server", "pulso_etl", "code-server", "-p", self._code_port, "-m", self.module)

    def start_daemon(self) -> None:
        """Starts a daemon. An earlier daemon has ended before."""
        self.daemon = self._start("daemon", "pulso_etl_tests.quick_daemon", "run", "-w", "workspace.yaml")

    def start_door(self, **env: str) -> str:
        """Starts Dagster's UI as people reach it; returns its address. `env` is added to the deployment's."""
        port = str(_free_port())
        self._start("door", "pulso_etl", "webserver", "-h", "127.0.0.1", "-p", port, "-w", "workspace.yaml", **env)
        return f"http://127.0.0.1:{port}"

    def start_api(self, **env: str) -> str:
        """Starts the HTTP API in front of this Dagster; returns its address. `env` is added to the deployment's."""
        port = str(_free_port())
        self._start("api", "pulso_etl", "api", "--port", port, DAGSTER_GRAPHQL_URL=f"{self.url}/graphql", **env)
        return f"http://127.0.0.1:{port}"

    def _start(self, name: str, *command: str, **env: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [self.python, "-m", *command],
                env=self.env | env,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def _ready(self) -> bool:
        try:
            data = self.graphql(READY)
        except OSError:
            return False
        # A location also counts as loaded if its loading ended with an error.
        loaded = [(entry["locationOrLoadError"] or {}).get("__typename") for entry in data["workspaceOrError"]["locationEntries"]]
        daemons = [daemon["healthy"] for daemon in data["instance"]["daemonHealth"]["allDaemonStatuses"]]
        return loaded == ["RepositoryLocation"] and bool(daemons) and all(daemons)

    def stop(self) -> None:
        """Kills the children and all processes that they started, because nothing needs them any more."""
        for child in self._children:
            # A code server is in the process group of its parent, and may live longer than its parent.
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def graphql(self, query: str, **variables: Any) -> Any:
        """The data of a GraphQL answer. Raises RuntimeError if it has errors."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", data=body, headers={"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.load(answer)
        if found.get("errors"):
            raise RuntimeError(f"GraphQL: {found['errors']}")
        return found["data"]

    def launch(self, table: str, window: DayRange | None, tags: dict[str, str] | None = None) -> str:
        """Launches one run of the table over the window, or without days if there is no window. Returns its id."""
        given = (range_tags(window) if window else {}) | (tags or {})
        params = {
            "selector": self.repository | {"jobName": "__ASSET_JOB", "assetSelection": [{"path": [table]}]},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in given.items()]},
            "mode": "default",
        }
        answer = self.graphql(LAUNCH, params=params)["launchPipelineExecution"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise RuntimeError(f"the run was not launched: {answer}")
        return str(answer["run"]["runId"])

    def backfill(self, table: str, partitions: Sequence[str]) -> str:
        """Launches a back-fill as the UI does. Returns its id. Dagster begins it within seconds: see `quick_daemon`."""
        params = {"assetSelection": [{"path": [table]}], "partitionNames": partitions}
        answer = self.graphql(BACKFILL, params=params)["launchPartitionBackfill"]
        if answer["__typename"] != "LaunchBackfillSuccess":
            raise RuntimeError(f"the back-fill was not launched: {answer}")
        return str(answer["backfillId"])

    @property
    def repository(self) -> dict[str, str]:
        """GraphQL's selector of the definitions."""
        return {"repositoryName": "__repository__", "repositoryLocationName": self.module}

    def status(self, run_id: str) -> str:
        return str(self.graphql(STATUS, run=run_id)["runOrError"]["status"])

    def worker(self, run_id: str) -> int | None:
        """The process of the run, if it has begun."""
        events = self.graphql(LOGS, run=run_id)["logsForRun"]["events"]
        found = {int(pid[1]) for event in events if (pid := re.search(r"\(pid: (\d+)\)", event.get("message", "")))}
        assert len(found) < 2
        return found.pop() if found else None

    def terminate(self, run_id: str) -> str:
        """Asks Dagster to terminate the run. Returns the type of the answer."""
        return str(self.graphql(TERMINATE, run=run_id)["terminateRun"]["__typename"])

    def end_all_runs(self) -> None:
        """Ends every waiting or running run, and waits until all have ended. Raises TimeoutError."""
        runs = self.graphql(RUNS)["runsOrError"]["results"]
        unfinished = [run["runId"] for run in runs if run["status"] not in FINAL]
        for run_id in unfinished:
            self.terminate(run_id)
        for run_id in unfinished:
            self.wait(run_id)

    def wait(self, run_id: str, seconds: float = 60) -> str:
        """The final status of the run. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while (status := self.status(run_id)) not in FINAL:
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {run_id} is {status} after {seconds:.0f} s; see the logs in {self.home}")
            time.sleep(0.2)
        return status


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
