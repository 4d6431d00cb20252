"""The code server whose runs are forks: nothing is open before the fork, and without a fork server runs start as ever."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test
from dagster._grpc.client import DagsterGrpcClient

from pulso_etl.instance.code_server import Forked, Spawned, WarmApiServer
from pulso_etl.instance.preload import NO_THREADS
from pulso_etl_tests.conftest import wait_until

pytestmark = pytest.mark.usefixtures("processes")

BEFORE_THE_FORK = """
import os, pulso_etl.instance.preload
pulso_etl.instance.preload.preload("pulso_etl.definitions")
files = [os.readlink(entry) for number in os.listdir("/proc/self/fd") if os.path.lexists(entry := f"/proc/self/fd/{number}")]
print(len(os.listdir("/proc/self/task")), [file for file in files if file.startswith("socket")])
"""
NOWHERE = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}


def test_no_thread_and_no_socket_is_open_before_the_fork() -> None:
    env = os.environ | NO_THREADS | NOWHERE
    found = subprocess.run([sys.executable, "-c", BEFORE_THE_FORK], env=env, capture_output=True, text=True, timeout=120)
    assert (found.stdout, found.stderr) == ("1 []\n", "")


def test_without_a_fork_server_the_code_is_served_all_the_same_and_the_log_says_it(tmp_path: Path) -> None:
    # The address of a fork server is a path in this folder, and this one is longer than an address can be.
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    log = tmp_path / "log"
    command = [sys.executable, "-m", "pulso_etl", "code-server", "--port", port]
    with log.open("wb") as output:
        env = os.environ | NOWHERE | {"TMPDIR": str(folder), "DAGSTER_HOME": str(tmp_path)}
        server = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        wait_until(lambda: "the fork server does not work" in log.read_text(), 90)
        client = DagsterGrpcClient(port=int(port))
        wait_until(lambda: client.health_check_query() == "SERVING", 60)
    finally:
        server.terminate()
        server.wait(30)


def wait_for(event: Event, waits: Event) -> None:
    """A run's process, which waits to be terminated."""
    waits.set()
    event.wait()


@pytest.mark.parametrize("context", [Spawned(), Forked()], ids=["a new Python", "a fork"])
def test_a_run_whose_process_was_killed_is_terminated_without_waiting_for_it(context: Forked | Spawned) -> None:
    event, waits = context.Event(), context.Event()
    process = context.Process(target=wait_for, args=(event, waits))
    process.start()
    assert waits.wait(30)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(10)
    setter = threading.Thread(target=event.set, daemon=True)
    setter.start()
    setter.join(10)
    assert not setter.is_alive()
    assert event.is_set()


@pytest.mark.parametrize("context", [Spawned(), Forked()], ids=["a new Python", "a fork"])
def test_a_run_that_goes_on_is_terminated(context: Forked | Spawned) -> None:
    event, waits = context.Event(), context.Event()
    process = context.Process(target=wait_for, args=(event, waits))
    process.start()
    assert waits.wait(30)
    assert not event.wait(0.05)
    event.set()
    process.join(10)
    assert process.exitcode == 0


def test_the_end_of_a_run_is_told_once_the_storage_is_there_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n", encoding="utf-8")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        run = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED)
        ref = instance.get_ref()
    process: Any = multiprocessing.get_context("spawn").Process(target=sys.exit, args=(3,))
    process.start()
    process.join(30)

    server = WarmApiServer.__new__(WarmApiServer)
    server._execution_lock, server._logger = threading.Lock(), logging.getLogger("dagster.code_server")
    server._executions, server._termination_events, server._termination_times = {run.run_id: (process, ref)}, {}, {}
    server._termination_events[run.run_id] = Spawned().Event()
    server._shutdown_once_executions_finish_event = server._server_termination_event = threading.Event()

    home.rename(away)
    home.write_text("no folder")
    server._check_for_orphaned_runs()
    assert list(server._executions) == [run.run_id]
    assert "its end cannot be reported yet" in caplog.text

    home.unlink()
    away.rename(home)
    server._check_for_orphaned_runs()
    assert server._executions == {}
    with dg.DagsterInstance.from_config(str(home)) as instance:
        told = instance.get_run_by_id(run.run_id)
    assert told is not None
    assert told.status is dg.DagsterRunStatus.FAILURE
