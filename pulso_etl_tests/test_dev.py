"""`pulso-etl dev`: the embedded default with Dagster's webserver and daemon, up, used beside, and down again."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from dotenv import dotenv_values

from pulso_etl.tables import TABLES
from pulso_etl_tests.cli.conftest import Pulso, pulso
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.dagster_stack import LAUNCH
from pulso_etl_tests.lima import lima_day
from pulso_etl_tests.local.processes import Command, nothing_left

__all__ = ["pulso"]

pytestmark = [
    pytest.mark.usefixtures("processes"),
    pytest.mark.timeout(300),
]  # servers start and stop, which a busy machine does slowly
SELECTOR = {
    "repositoryLocationName": "pulso_etl.definitions",
    "repositoryName": "__repository__",
    "pipelineName": "__ASSET_JOB",
    "assetCheckSelection": [],
}
RUN = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
DAEMONS = "{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } } }"


class Dev:
    """A running `pulso-etl dev`."""

    def __init__(self, home: Path, rows: int = 20) -> None:
        with socket.socket() as one, socket.socket() as other:
            for probe in (one, other):
                probe.bind(("127.0.0.1", 0))
            self.port, api_port = (int(probe.getsockname()[1]) for probe in (one, other))
        self.home = home
        self.api = f"http://127.0.0.1:{api_port}"
        ports = ["--port", str(self.port), "--api-port", str(api_port)]
        self.command = Command(
            ["dev", "--home", str(home), *ports, "--rows-per-day", str(rows)], cwd=home.parent, env={"PULSO_LOG_FORMAT": "json"}
        )
        self.command.wait_for(f"Page and API: {self.api}")
        self.command.wait_for(f"Dagster: http://127.0.0.1:{self.port}")
        self.token = (home / "token").read_text(encoding="utf-8")
        self.client = httpx.Client(base_url=self.api, headers={"Authorization": f"Bearer {self.token}"}, timeout=30)

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        token = dotenv_values(self.home / "env")["DAGSTER_GRAPHQL_TOKEN"]
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/graphql", body, headers, method="POST")
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        return answer["data"]

    def launch(self, table: str, day: str) -> str:
        """Launches a run of one partition; returns its id."""
        tags = [{"key": f"dagster/asset_partition_range_{end}", "value": day} for end in ("start", "end")]
        params = {
            "selector": {**SELECTOR, "assetSelection": [{"path": [table]}]},
            "runConfigData": {},
            "mode": "default",
            "executionMetadata": {"tags": tags},
        }
        launched = self.ask(LAUNCH, params=params)["launchPipelineExecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def wait_for_run(self, run_id: str, *statuses: str, seconds: float = 60) -> str:
        deadline = time.monotonic() + seconds
        while (status := self.ask(RUN, id=run_id)["runOrError"]["status"]) not in statuses:
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
        return str(status)

    def child(self, words: str) -> psutil.Process:
        """The child process whose command line holds the words."""
        (child,) = [p for p in psutil.Process(self.command.process.pid).children() if words in " ".join(p.cmdline())]
        return child


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "DATABASE_SCHEMA", "DAGSTER_POSTGRES_URL", "DAGSTER_HOME", "BIGQUERY_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.pulso` beside a `.env` of a deployment. No command may read that `.env`."""
    folder = tmp_path_factory.mktemp("dev")
    (folder / ".env").write_text("DATABASE_URL=postgresql://nobody@127.0.0.1:9/production\n", encoding="utf-8")
    return folder / ".pulso"


@pytest.fixture
def dev(home: Path) -> Iterator[Dev]:
    started = Dev(home)
    yield started
    started.command.process.terminate()
    started.command.end()


def test_up_used_beside_and_down_with_ctrl_c(dev: Dev, pulso: Pulso) -> None:
    # Neither another page in the browser nor another user of the machine has the links that were printed, nor the file.
    ui = f"http://127.0.0.1:{dev.port}"
    (secret,) = re.findall(r"/sign-in#(\S+)", dev.command.output)
    assert re.findall(r"/#token=(\S+)", dev.command.output) == [secret] == [dev.token]
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (dev.home, dev.home / "token", dev.home / "env")]
    assert modes == [0o711 if os.geteuid() == 0 else 0o700, 0o600, 0o600]
    assert httpx.get(f"{dev.api}/api/v1/etl/status").status_code == 401
    assert httpx.get(f"{dev.api}/api/v1/etl/status", headers={"X-Forwarded-For": "10.0.0.5"}).status_code == 401
    assert httpx.get(f"{ui}/graphql?query={{version}}").status_code == 401
    assert httpx.post(f"{ui}/graphql", json={"query": "{ version }"}).status_code == 401
    assert httpx.post(f"{ui}/sign-in", data={"token": secret}, headers={"Origin": ui}).status_code == 204

    assets = dev.ask("{ assetNodes { assetKey { path } } }")["assetNodes"]
    assert set(TABLES) <= {asset["assetKey"]["path"][0] for asset in assets}

    deadline = time.monotonic() + 60
    while not all(daemon["healthy"] for daemon in daemons(dev)):
        assert time.monotonic() < deadline, daemons(dev)
        time.sleep(0.5)
    assert {"SENSOR", "SCHEDULER", "QUEUED_RUN_COORDINATOR", "MONITORING"} <= {daemon["daemonType"] for daemon in daemons(dev)}

    day = lima_day(datetime.now(UTC)).isoformat()
    assert dev.wait_for_run(dev.launch("operation_data", day), "SUCCESS", "FAILURE") == "SUCCESS"

    file = dev.home / "env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    by_shell = subprocess.run(
        ["sh", "-c", f"set -a; . {file}; set +a; exec env"], capture_output=True, text=True, check=True, env={}
    ).stdout
    values = dotenv_values(file)
    assert {"DATABASE_URL", "DAGSTER_HOME", "DAGSTER_POSTGRES_URL", "BIGQUERY_EMULATOR_HOST"} <= set(values)
    assert {f"{name}={value}" for name, value in values.items()} <= set(by_shell.splitlines())
    beside = subprocess.run(
        [sys.executable, "-m", "pulso_etl", "doctor"],
        env={**os.environ, **{name: value for name, value in values.items() if value}},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert beside.returncode == 0, beside.stdout
    assert "Dagster daemon: 8 healthy" in beside.stdout

    second = pulso("dev", "--home", str(dev.home), "--port", str(dev.port))
    assert second.code == 2
    first = f"pulso-etl: `pulso-etl dev` (process {dev.command.process.pid}) already runs the servers of {dev.home}"
    assert (second.out + second.err).startswith(first), second

    assert "Pulso" in httpx.get(dev.api).text
    launched = dev.client.post("/api/v1/etl/refresh/table/dashboard_data?force=true").json()
    run_id = launched["runs"]["dashboard_data"]["run_id"]
    assert launched["runs"]["dashboard_data"]["run_url"] == f"http://127.0.0.1:{dev.port}/runs/{run_id}"
    assert dev.wait_for_run(run_id, "SUCCESS", "FAILURE") == "SUCCESS"
    assert dev.client.get(launched["status_url"]).json()["status"] == "success"
    assert httpx.get(f"{dev.api}/api/v1/etl/health").status_code == 200
    assert dev.client.post("/api/v1/etl/cleanup").status_code == 200
    # The log says who asked for what. It shows no secret.
    logged = (dev.home / "api.log").read_text()
    assert f"dev asked for incremental of dashboard_data: {run_id}" in logged
    assert "Traceback" not in logged

    for name in ("webserver.log", "daemon.log", "emulator.log"):
        assert (dev.home / name).stat().st_size > 0
    for name in ("api", "code-server", "daemon", "webserver"):
        lines = (dev.home / f"{name}.log").read_text().splitlines()
        assert [line for line in lines if not line.startswith('{"time": ')] == []
    assert "Loaded environment variables from .env" not in (dev.home / "daemon.log").read_text()

    dev.command.signal_group(signal.SIGINT)
    assert dev.command.end() == 0, dev.command.output
    assert dev.command.output.splitlines()[-1] == "everything is stopped"
    assert nothing_left(dev.home)
    assert not (dev.home / "postgres" / "postmaster.pid").exists()
    # The settings stay for commands that come later. They start the servers again.
    assert {"DATABASE_URL", "PULSO_EMBEDDED_HOME"} <= set(dotenv_values(file))
    assert len(dev.command.output.splitlines()) < 12, dev.command.output


def daemons(dev: Dev) -> list[dict[str, Any]]:
    statuses: list[dict[str, Any]] = dev.ask(DAEMONS)["instance"]["daemonHealth"]["allDaemonStatuses"]
    return [status for status in statuses if status["required"]]


def test_what_is_killed_is_started_again_or_ends_the_rest_and_the_next_start_ends_its_runs(home: Path) -> None:
    first = Dev(home)
    a_killed_code_server_is_started_again_and_until_then_no_launch_is_taken(first)
    run_id = first.launch("dashboard_data", lima_day(datetime.now(UTC)).isoformat())
    first.wait_for_run(run_id, "STARTED", "SUCCESS")
    first.command.process.kill()
    first.command.end()
    assert nothing_left(home, seconds=20)

    second = Dev(home)
    # The old link still signs in.
    assert second.token == first.token
    assert second.wait_for_run(run_id, "FAILURE", "SUCCESS", seconds=30) in ("FAILURE", "SUCCESS")
    a_server_that_dies_is_reported_with_its_log_and_ends_the_rest(second)


def a_killed_code_server_is_started_again_and_until_then_no_launch_is_taken(dev: Dev) -> None:
    refresh = "/api/v1/etl/refresh/table/operation_data?force=true"
    dev.child("code-server").kill()
    refused = dev.client.post(refresh)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert "code server does not answer" in refused.json()["detail"]
    assert "gRPC" not in refused.text
    health = httpx.get(f"{dev.api}/api/v1/etl/health", timeout=30).json()
    assert (health["ready"], health["parts"]["code"]["state"]) == (False, "failing")
    assert "gRPC" not in health["parts"]["code"]["message"]
    wait_until(lambda: httpx.get(f"{dev.api}/api/v1/etl/health", timeout=30).status_code == 200, 120)
    assert dev.client.post(refresh).status_code == 202


def a_server_that_dies_is_reported_with_its_log_and_ends_the_rest(dev: Dev) -> None:
    dev.child(" daemon ").kill()
    assert dev.command.end() == 2, dev.command.output
    assert f"pulso-etl: the Dagster daemon has ended; the end of {dev.home / 'daemon.log'}:\n" in dev.command.output
    assert "dagster.daemon" in dev.command.output
    # A record of the daemon's log may hold one, for example if a run was killed after its last step.
    assert "\nTraceback" not in dev.command.output
    assert nothing_left(dev.home)


def test_a_port_in_use_is_one_clear_line_before_anything_is_started(tmp_path: Path, pulso: Pulso) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = pulso("dev", "--home", str(tmp_path / "p"), "--port", str(port))
    assert ended.code == 2
    assert ended.out + ended.err == f"pulso-etl: port {port} can't be used (Address already in use); choose another with --port\n"
    assert not (tmp_path / "p").exists()
