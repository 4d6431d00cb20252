"""The code server whose runs are forks: nothing is open before the fork, and without a fork server runs start as ever."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pulso_etl.instance.code_server import NO_THREADS
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
        health = [sys.executable, "-m", "dagster", "api", "grpc-health-check", "--port", port]
        wait_until(lambda: subprocess.run(health, capture_output=True, timeout=60).returncode == 0, 60)
    finally:
        server.terminate()
        server.wait(30)
