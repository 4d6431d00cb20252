"""Children that do not outlive their parent, and signals that are held back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dotenv import dotenv_values

from pulso_etl.local import child
from pulso_etl.local.child import Child, interruptible, uninterrupted
from pulso_etl.local.stack import _write_environment
from pulso_etl_tests.local.processes import nothing_left

pytestmark = pytest.mark.usefixtures("processes")

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; print('grandchild', flush=True); time.sleep(600)", sys.argv[1]])
time.sleep(600)
"""


def wait_for_grandchild(log: Path) -> None:
    deadline = time.monotonic() + 30
    while "grandchild" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stubborn_child_and_its_offspring_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GRACE", 0.5)
    with Child("stubborn", STUBBORN, [str(tmp_path)], tmp_path / "log"):
        wait_for_grandchild(tmp_path / "log")
    assert nothing_left(tmp_path)


def test_offspring_whose_parent_is_dead_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GRACE", 0.5)
    with Child("child", STUBBORN, [str(tmp_path)], tmp_path / "log") as started:
        wait_for_grandchild(tmp_path / "log")
        assert started.pid is not None
        os.kill(started.pid, signal.SIGKILL)
    assert nothing_left(tmp_path)


def test_a_killed_parent_takes_even_stubborn_offspring_along(tmp_path: Path) -> None:
    code = (
        "import os, sys, time, pathlib; from pulso_etl.local.child import Child; log = pathlib.Path(sys.argv[2]) / 'log';"
        "Child('stubborn', sys.argv[1], [sys.argv[2]], log).start()\n"
        "while 'grandchild' not in log.read_text(): time.sleep(0.05)\n"
        "os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, STUBBORN, str(tmp_path)], timeout=60)
    assert ended.returncode == -9
    assert nothing_left(tmp_path, seconds=30)


OF_DAGSTER = """
import time
from dagster._utils.interrupts import setup_interrupt_handlers
setup_interrupt_handlers()
print("grandchild", flush=True)
try:
    time.sleep(600)
except KeyboardInterrupt:
    print("asked to end", flush=True)
"""


def test_a_child_of_a_background_job_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Child("dagster", OF_DAGSTER, [], tmp_path / "log"):
            wait_for_grandchild(tmp_path / "log")
    finally:
        signal.signal(signal.SIGINT, before)
    assert "asked to end" in (tmp_path / "log").read_text()


def test_a_signal_is_held_until_the_block_is_over() -> None:
    done = []

    def work() -> None:
        with interruptible():
            with uninterrupted():
                signal.raise_signal(signal.SIGTERM)
                done.append("block")
            done.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["block"]


DROPPED = """
import signal, time
from pulso_etl.local.child import interruptible, uninterrupted

class Held:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

try:
    with interruptible():
        held = Held()
        del held
        print("dropped", flush=True)
        with uninterrupted():
            time.sleep(0.3)
            print("whole", flush=True)
        time.sleep(30)
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGALRM) is signal.SIG_DFL, flush=True)
"""


def test_an_interrupt_that_python_drops_comes_again() -> None:
    ended = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, timeout=60)
    assert (ended.stdout.splitlines(), ended.stderr) == (["dropped", "whole", "interrupted True"], "")


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_environment_file_means_the_same_to_a_shell_and_to_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://ñandú:a'b$c${HOME}`\"\\#d@h/d?options=-cx%3D1 -cy%3D2")
    monkeypatch.setenv("DATABASE_SCHEMA", "other")
    _write_environment(tmp_path / "env", {"PULSO_EMBEDDED_HOME": "/a/b"})
    values = {name: value for name, value in dotenv_values(tmp_path / "env").items() if value}
    shell = ["sh", "-c", "set -a; . ./env; set +a; exec env"]
    told = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, check=True, env={}).stdout.splitlines()
    assert {f"{name}={value}" for name, value in values.items()} <= set(told)
    assert values["DATABASE_URL"] == 'postgresql://ñandú:a%27b%24c%24{HOME}`"\\#d@h/d?options=-cx%3D1 -cy%3D2'
    assert values["DATABASE_SCHEMA"] == "other"
    assert values["PULSO_EMBEDDED_HOME"] == "/a/b"
