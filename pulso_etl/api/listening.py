"""How the API and the door of Dagster's UI listen. Both use one configuration, which limits what a client can occupy."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_SECONDS = 20.0
"""A complete request, headers and body, must arrive in this many seconds from the connection or from its first byte."""
CONNECTIONS = 1000
"""With this many connections, further requests get 503. The process may open more files than that."""
KEEP_ALIVE_SECONDS = 10
END_SECONDS = 3
"""How long open requests may take to end when the server stops."""
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class PunctualProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a time limit on each request. uvicorn alone waits for the rest of a request without limit."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        self._expect()
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # A request may begin in the same packet in which another one ends.
        self._expect()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._arrived()

    def handle_websocket_upgrade(self) -> None:
        self._arrived()
        super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def _expect(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(TOO_SLOW)
        self.transport.close()


def configuration(app: ASGIApp, host: str, port: int) -> uvicorn.Config:
    """The server's configuration for an application on an address."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=PunctualProtocol,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=END_SECONDS,
        log_config=None,
        access_log=False,
        # The caller's address is the peer's address. A client can forge the headers of a proxy.
        proxy_headers=False,
        server_header=False,
    )
