"""The API as it is served, in a thread of the tests' process, so that what it logs can be read."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

import httpx
import uvicorn

from pulso_etl.api.listening import configuration
from pulso_etl.api.tenants import application
from pulso_etl.settings import Settings


class ApiServer:
    """Listens on a port of 127.0.0.1; 0 takes a free port. `call` sends a request, with a token or without one."""

    def __init__(self, settings: Settings, port: int = 0) -> None:
        self.settings = settings
        self._server = uvicorn.Server(configuration(application(settings), "127.0.0.1", port))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> ApiServer:
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert self._thread.is_alive(), "the API has ended"
            assert time.monotonic() < deadline, "the API did not start"
            time.sleep(0.02)
        self.port = int(self._server.servers[0].sockets[0].getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join(20)

    def client(self, token: str | None = None, **headers: str) -> httpx.Client:
        given = headers | ({"Authorization": f"Bearer {token}"} if token else {})
        # Plain HTTP needs no certificates. To read the known ones takes 20 ms for each client.
        return httpx.Client(base_url=self.url, headers=given, timeout=30, trust_env=False, verify=False)

    def call(self, method: str, path: str, token: str | None = None, **options: Any) -> httpx.Response:
        with self.client(token) as client:
            return client.request(method, path, **options)
