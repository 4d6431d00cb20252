"""Child processes that never outlive this process, and the signals that end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 10.0
"""Seconds for a child to end by itself, before it is killed."""
AGAIN_SECONDS = 0.05
"""Seconds until an interrupt that Python has dropped comes again, as SIGALRM."""
REACHABLE = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""A shell makes the background jobs of a script ignore SIGINT, and children inherit that. Then Dagster ignores SIGTERM, too."""
END_GROUP = """
kill -TERM "-$1"
n=0
while kill -0 "-$1" && [ $n -lt 50 ]; do sleep 0.2; n=$((n + 1)); done
kill -KILL "-$1"
"""


def program(imports: str) -> str:
    """The code of a program that imports its `main` so.

    The garbage collector begins after the imports: it would only look at what stays, which takes a quarter of a start.
    """
    return f"import gc\ngc.disable()\n{imports}\ngc.freeze()\ngc.enable()\nmain()\n"


class Afterwards:
    """A shell script that runs when this process is gone, unless it is called off. It works because even SIGKILL closes a pipe."""

    def __init__(self, script: str, *args: str) -> None:
        self._shell = subprocess.Popen(  # noqa: S603 - our own commands
            ["sh", "-c", f"read -r _\n{script}", "sh", *args],  # noqa: S607 - the system's shell, whatever its place
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def call_off(self) -> None:
        self._shell.kill()
        self._shell.communicate()

    def bring_about(self) -> None:
        """Runs the script now, and waits for its end."""
        self._shell.communicate()


class Child:
    """A Python program in a session of its own, which Ctrl-C does not reach. Its output goes to a file.

    `env` is added to this process's environment.
    """

    def __init__(
        self,
        name: str,
        code: str,
        args: Sequence[str],
        log_file: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log_file = log_file
        self._command = [sys.executable, "-c", REACHABLE + code, *args]
        self._env = env or {}
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._afterwards: Afterwards | None = None
        self._left_behind: list[Afterwards] = []

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """The exit code once the program has ended, else None."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Starts the program with an empty log."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file.write_bytes(b"")
        self._spawn()

    def revive(self) -> None:
        """Starts the ended program again. Processes that it had started go on until `stop`."""
        if self._afterwards is not None:
            self._left_behind.append(self._afterwards)
        self._spawn()

    def _spawn(self) -> None:
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._env},
                cwd=self._cwd,
                start_new_session=True,
            )
        self._afterwards = Afterwards(END_GROUP, str(self._process.pid))

    def stop(self) -> None:
        """Ends the program and all processes that it has started, by force after `GRACE` seconds."""
        if self._process is None:
            return
        deadline = time.monotonic() + GRACE
        offspring = _group(self._process.pid)
        # The signal goes to the whole group, so a run of one of the servers can still report that it was interrupted.
        self._signal_group(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        while any(living(pid) for pid in offspring) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._signal_group(signal.SIGKILL)
        self._process.wait()
        self._process = None
        if self._afterwards is not None:
            self._afterwards.call_off()
            self._afterwards = None
        while self._left_behind:
            self._left_behind.pop().bring_about()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the program's log."""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def _signal_group(self, number: int) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def __enter__(self) -> Child:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def living(pid: int) -> psutil.Process | None:
    """The process with that number, unless it has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _group(number: int) -> list[int]:
    found = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            if pid and os.getpgid(pid) == number:
                found.append(pid)
    return found


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal (SIGHUP) raise KeyboardInterrupt, as Ctrl-C does.

    Python drops an exception that is raised in a destructor or in a callback, and imports have such callbacks. A dropped
    KeyboardInterrupt is raised again a moment later.
    """
    before = sys.unraisablehook
    alarms: list[Any] = []

    def look(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            alarms.append(signal.signal(signal.SIGALRM, signal.default_int_handler))
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        else:
            before(dropped)

    with _handlers(SIGNALS, signal.default_int_handler):
        sys.unraisablehook = look
        try:
            yield
        finally:
            sys.unraisablehook = before
            if alarms:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, alarms[0])


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds back the signals that interrupt until the end of the block, so servers start and stop completely."""
    held: list[int] = []
    with _handlers((*SIGNALS, signal.SIGALRM), lambda number, frame: held.append(number)):
        yield
    if held:
        signal.raise_signal(held[0])


@contextmanager
def _handlers(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Ignored signals (nohup) stay ignored.
    caught = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in caught}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
