"""A TCP gate in front of a server. A test can shut it: then the server refuses connections, never answers, or is slow."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from enum import StrEnum
from types import TracebackType
from urllib.parse import quote, urlsplit

from psycopg.conninfo import conninfo_to_dict

CHUNK = 65_536
Address = tuple[str, int] | str


class Way(StrEnum):
    """What happens to clients of the server behind the gate."""

    OPEN = "open"
    REFUSED = "refused"
    """Nobody listens, and existing connections are cut."""
    SILENT = "silent"
    """New connections are accepted, and existing connections stay, but nobody answers."""
    SLOW = "slow"
    """Data take `Gate.delay` seconds more, in each direction."""


class Gate:
    """Listens on a loopback port for clients of `target`: host and port, or the path of a Unix socket."""

    def __init__(self, target: Address, delay: float = 0.2) -> None:
        self.target = target
        self.delay = delay
        self.way = Way.OPEN
        self.met = 0
        """How often a shut gate has met a client."""
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = self._listen(0)
        self.port = int(self._listener.getsockname()[1])

    @classmethod
    def before_postgres(cls, url: str) -> Gate:
        """A gate in front of the server of that URL; `postgres_url` leads through it."""
        server = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
        host, port = server.get("host", "127.0.0.1"), int(server.get("port", "5432"))
        gate = cls(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port))
        who = quote(server["user"]) + (f":{quote(server['password'])}" if "password" in server else "")
        more = {name: value for name, value in server.items() if name not in ("host", "port", "user", "password", "dbname")}
        options = "&".join(
            f"{name}={quote(value)}" for name, value in {"sslmode": "disable", "gssencmode": "disable", **more}.items()
        )
        gate.postgres_url = f"postgresql://{who}@127.0.0.1:{gate.port}/{server['dbname']}?{options}"
        return gate

    postgres_url: str

    @classmethod
    def before_http(cls, url: str) -> Gate:
        """A gate in front of the server of that address; `http_url` leads through it."""
        parts = urlsplit(url)
        return cls((str(parts.hostname), int(parts.port or 80)))

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def turn(self, way: Way) -> None:
        """Sets what happens to clients from now on."""
        self.way, before = way, self.way
        if way is Way.REFUSED:
            # A thread that waits in `accept` would accept one more client.
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            for pair in list(self._pairs):
                self.met += 1
                self._end(pair)
        elif before is Way.REFUSED:
            self._listener = self._listen(self.port)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        if way is Way.OPEN:
            # A client that has waited may never send again, so its connection is cut.
            for pair in [pair for pair in self._pairs if before is Way.SILENT]:
                self._end(pair)

    def __enter__(self) -> Gate:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.turn(Way.REFUSED)

    def _listen(self, port: int) -> socket.socket:
        return socket.create_server(("127.0.0.1", port), backlog=64)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client, listener), daemon=True).start()

    def _serve(self, client: socket.socket, listener: socket.socket) -> None:
        try:
            if isinstance(self.target, str):
                server = socket.socket(socket.AF_UNIX)
                server.connect(self.target)
            else:
                server = socket.create_connection(self.target)
        except OSError:
            client.close()
            return
        pair = (client, server)
        self._pairs.add(pair)
        # The gate may have been shut while it connected to the server.
        if self.way is Way.REFUSED or listener is not self._listener:
            self._end(pair)
            return
        threading.Thread(target=self._pass, args=(pair, client, server), daemon=True).start()
        self._pass(pair, server, client)

    def _pass(self, pair: tuple[socket.socket, socket.socket], source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                self.met += self.way is not Way.OPEN
                if self.way is Way.SLOW:
                    time.sleep(self.delay)
                while self.way is Way.SILENT:
                    time.sleep(0.05)
                sink.sendall(data)
        self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.discard(pair)
        for side in pair:
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()
