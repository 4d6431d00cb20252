"""What any process knows of the embedded default, without being part of it: where its settings are, who runs its servers, and how
to start them.

`make run` and `make dev` leave the settings of the embedded servers in `.pulso/env`. In a folder that has this file, a process
whose environment names no database uses the embedded servers: `pulso-etl`, `dagster` and `dg` alike. If nobody runs the servers,
`join` starts them for as long as any process uses them.

Two locks say who is there. Their holders' end frees them, even SIGKILL. Whoever runs the servers for others holds `running`. Each
process that has joined shares `users`.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dotenv import load_dotenv

from pulso_etl.sync.errors import LocalStackError

HOME = Path(".pulso")
"""The folder of the embedded default, in the working directory."""
VARIABLE = "PULSO_EMBEDDED_HOME"
"""Environment variable that the settings of the embedded servers carry: their folder."""
SETS = "PULSO_EMBEDDED_SETS"
"""Environment variable beside it: the names of the variables that the servers set. They are new after each start."""
START_SECONDS = 180.0
ENDING_SECONDS = 15.0
"""How long servers that nobody uses any more may take to end."""
_joined: list[IO[str]] = []
"""The lock of this process on `users`."""


@dataclass(frozen=True)
class Holder:
    """Who runs the embedded servers; `ready` once they answer."""

    command: str
    pid: int
    ready: bool = False

    def __str__(self) -> str:
        return f"`pulso-etl {self.command}` (process {self.pid})"


def settings_file(home: Path) -> Path:
    """The file that holds the settings of the embedded servers."""
    return home / "env"


def holder(home: Path) -> Holder | None:
    """Who runs the embedded servers of the folder now. None if nobody does."""
    try:
        with (home / "running").open(encoding="utf-8") as file:
            if _lock(file, fcntl.LOCK_SH):
                return None
            return Holder(**json.loads(file.read()))
    except FileNotFoundError:
        return None
    except ValueError:
        # The holder is about to write it.
        return Holder("…", 0)


@contextmanager
def holding(home: Path, command: str) -> Iterator[Callable[[], None]]:
    """Holds the embedded servers of the folder, and yields what is to be called once they are ready.

    Raises LocalStackError, which names the first holder, if another process holds them.
    """
    with (home / "running").open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + ENDING_SECONDS
        while not _lock(file, fcntl.LOCK_EX):
            first = holder(home)
            # Servers that were started for other commands end by themselves, unless a command still uses them.
            if first is not None and first.pid and (first.command != SERVERS_OF_COMMANDS or time.monotonic() > deadline):
                raise LocalStackError(f"{first} already runs the servers of {home}; stop it first, or give another --home")
            time.sleep(0.1)

        def write(ready: bool) -> None:
            file.truncate(0)
            file.write(json.dumps(Holder(command, os.getpid(), ready).__dict__))
            file.flush()

        write(False)
        yield lambda: write(True)


SERVERS_OF_COMMANDS = "servers --while-used"
"""The command that `join` starts."""


@contextmanager
def unused(home: Path) -> Iterator[Callable[[], bool]]:
    """Yields a question: whether no process uses the servers. Once it is so, none can join before the end of the block."""
    with (home / "users").open("a", encoding="utf-8") as file:
        yield lambda: _lock(file, fcntl.LOCK_EX)


def adopt() -> Path | None:
    """Takes the settings of the embedded default into the environment, if this names no database, neither that of the tables nor
    Dagster's. Variables that are set stay.

    Returns the folder of the embedded servers whose settings the environment has. None if it has others.
    """
    if os.environ.keys().isdisjoint(("DATABASE_URL", "DAGSTER_POSTGRES_URL")):
        load_dotenv(settings_file(HOME).absolute(), override=False)
    home = os.environ.get(VARIABLE)
    return Path(home) if home else None


def join(say: Callable[[str], None] = lambda _: None) -> None:
    """Adopts the settings, and makes sure that the embedded servers run until the end of this process.

    Starts them if nobody does, which takes about ten seconds. Without settings to adopt it does nothing. Raises LocalStackError.
    """
    home = adopt()
    if home is None or _joined or not settings_file(home).exists():
        return
    file = (home / "users").open("a", encoding="utf-8")
    # Servers that nobody uses hold it until they have ended.
    fcntl.flock(file, fcntl.LOCK_SH)
    _joined.append(file)
    if holder(home) is None:
        say(f"starting the embedded servers of {home}, for as long as they are used")
        _start(home)
    load_dotenv(settings_file(home), override=True)


def _start(home: Path) -> None:
    """Starts the servers in a process of their own, and waits until they are ready."""
    log = home / "servers.log"
    with log.open("ab") as out:
        child = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "pulso_etl", *SERVERS_OF_COMMANDS.split(), "--home", str(home)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if name not in (VARIABLE, SETS, *os.environ[SETS].split())},
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while not ((there := holder(home)) and there.ready):
        # Another command may have been quicker. Then the child gives way, and the servers of the other one are used.
        if (child.poll() is not None and there is None) or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
            raise LocalStackError(f"the embedded servers of {home} did not start; the end of {log}:\n{tail}")
        time.sleep(0.1)


def _lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
