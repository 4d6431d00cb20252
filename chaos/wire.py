"""A TCP proxy before PostgreSQL that triggers an action after an exact number of bytes."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from psycopg.conninfo import conninfo_to_dict

CHUNK = 65_536
"""Bytes to read from a socket at once."""
Happening = Callable[["Connection"], None]


class Connection:
    """One client's connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server

    def reset(self) -> None:
        """Sends the client a TCP RST, and the server, over its Unix socket, the end of the stream."""
        with suppress(OSError):
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # A shutdown would first tell the client of an orderly end.
        self.client.close()
        self.close()

    def close(self) -> None:
        """Ends the stream for both sides, even in the middle of a message."""
        for side in (self.client, self.server):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()

    def stall(self, seconds: float) -> None:
        time.sleep(seconds)


class WireProxy:
    """Listens on a free loopback port for the clients of the server at `url`, which it reaches by its Unix socket.

    `passed` are the bytes of all connections since the last `arm`, in both directions.
    """

    def __init__(self, url: str) -> None:
        server = conninfo_to_dict(url)
        self._socket = str(Path(str(server["host"])) / f".s.PGSQL.{server.get('port', 5432)}")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = (
            f"postgresql://{server['user']}@127.0.0.1:{self._listener.getsockname()[1]}/{server['dbname']}"
            "?sslmode=disable&gssencmode=disable"
        )
        self.passed = 0
        self.happened = False
        self._at: int | None = None
        self._happening: Happening = Connection.reset
        self._lock = threading.Lock()

    def arm(self, at: int | None = None, happening: Happening = Connection.reset) -> None:
        """Triggers the action once, when `at` bytes have passed from now on. Never without `at`."""
        with self._lock:
            self.passed, self.happened, self._at, self._happening = 0, False, at, happening

    def _due(self, length: int) -> int | None:
        """How many of the next `length` bytes pass before the action. None if it does not happen."""
        with self._lock:
            before, self.passed = self.passed, self.passed + length
            if self._at is None or self.happened or self.passed < self._at:
                return None
            self.happened = True
            return self._at - before

    def __enter__(self) -> WireProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._socket)
        except OSError:
            client.close()
            return
        connection = Connection(client, server)
        with suppress(OSError, ValueError):
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    other, data = server if ready is client else client, ready.recv(CHUNK)
                    if not data:
                        return connection.close()
                    due = self._due(len(data))
                    if due is not None:
                        other.sendall(data[:due])
                        data = data[due:]
                        self._happening(connection)
                    other.sendall(data)
        connection.close()
