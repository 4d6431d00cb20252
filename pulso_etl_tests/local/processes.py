"""The running processes, for tests that must leave none behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil


def belonging_to(home: Path) -> list[str]:
    """The living processes that name the folder in their command line or environment, without this process."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            command, settings = process.cmdline(), process.environ().values()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if any(str(home) in word for word in [*command, *settings]):
            found.append(f"{process.pid} {' '.join(command)[:200]}")
    return found


def nothing_left(home: Path, seconds: float = 0) -> bool:
    """Whether no process belongs to the folder, within so many seconds."""
    deadline = time.monotonic() + seconds
    while left := belonging_to(home):
        if time.monotonic() >= deadline:
            print("left:", *left, sep="\n")
            return False
        time.sleep(0.2)
    return True


class Command:
    """`pulso-etl ARGS` in a new session, whose output is read line by line. A terminal would send signals to its process group."""

    def __init__(self, args: Sequence[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pulso_etl", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
        self.output = ""

    def wait_for(self, text: str) -> str:
        """Reads until a line holds the text; returns that line. Raises AssertionError with the output if none does."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return line
        raise AssertionError(f"{text!r} was not said, exit code {self.process.wait(10)}:\n{self.output}")

    def signal_group(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self, timeout: float = 60) -> int:
        """Reads to the end; returns the exit code."""
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        return self.process.wait(timeout)
