"""An HTTP proxy in front of the BigQuery emulator. It answers with the faults that BigQuery can have.

    with FaultyProxy(emulator.rest_url) as proxy:
        proxy.inject(r"POST .*/jobs", error(503, "backendError"), times=2)

Faults take turns in the order in which they were injected; requests that none takes go through to the emulator.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "accept-encoding"}


@dataclass(frozen=True)
class Request:
    """A request that came in. `line` is method, path and query."""

    line: str
    headers: Message
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


Fault = Callable[["_Handler", Request], None]


def error(status: int, reason: str, message: str = "injected") -> Fault:
    """BigQuery's JSON error with that status and reason, such as 403 `rateLimitExceeded` or 404 `notFound`."""
    fault = {"message": message, "domain": "global", "reason": reason}
    return answer(status, {"error": {"code": status, "message": message, "errors": [fault]}})


def answer(status: int, body: Any) -> Fault:
    """Always answers with that JSON."""
    content = Answer(status, {"Content-Type": "application/json"}, json.dumps(body).encode())
    return lambda handler, request: handler.send(content)


def page(status: int) -> Fault:
    """An HTML page, as a load balancer between client and BigQuery sends it."""
    content = Answer(status, {"Content-Type": "text/html"}, b"<html><body>That is an error.</body></html>")
    return lambda handler, request: handler.send(content)


def edited(change: Callable[[Any], Any]) -> Fault:
    """The emulator's JSON answer after `change`, which edits it in place or returns another one."""

    def fault(handler: _Handler, request: Request) -> None:
        given = handler.ask_upstream(request)
        body = json.loads(given.body)
        body = change(body) or body
        handler.send(Answer(given.status, given.headers, json.dumps(body).encode()))

    return fault


def job_failed(reason: str, message: str = "injected") -> Fault:
    """Reports the job that the emulator ran as a job that ended with that error."""

    def change(job: Any) -> None:
        fault = {"reason": reason, "message": message}
        job["status"] = {"state": "DONE", "errorResult": fault, "errors": [fault]}

    return edited(change)


def job_running(job: Any) -> None:
    """For `edited`: makes a job, or its result, look unfinished."""
    if "status" in job:
        job["status"] = {"state": "RUNNING"}
    else:
        job["jobComplete"] = False


def reset(handler: _Handler, request: Request) -> None:
    """A connection reset (TCP RST) instead of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    os.close(handler.connection.detach())


def truncated(handler: _Handler, request: Request) -> None:
    """Sends the emulator's answer with only the first half of the body."""
    given = handler.ask_upstream(request)
    handler.close_connection = True
    handler.send(given, length=len(given.body) // 2)


def delayed(seconds: float) -> Fault:
    """Sends the emulator's answer after that delay."""

    def fault(handler: _Handler, request: Request) -> None:
        time.sleep(seconds)
        handler.send(handler.ask_upstream(request))

    return fault


@dataclass
class _Injected:
    pattern: re.Pattern[str]
    fault: Fault
    times: int | None
    skip: int
    fired: bool = False

    def takes(self, line: str) -> bool:
        if self.times == 0 or not self.pattern.search(line):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        self.fired = True
        return True


class FaultyProxy:
    """Listens on a free loopback port. `requests` holds every request so far."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.requests: list[Request] = []
        self._injected: list[_Injected] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def inject(self, pattern: str, fault: Fault, *, times: int | None = 1, skip: int = 0) -> None:
        """Lets `fault` answer the requests whose `line` has the regular expression: `times` of them (None: all), after `skip`."""
        with self._lock:
            self._injected.append(_Injected(re.compile(pattern), fault, times, skip))

    def call_off(self) -> bool:
        """Stops injecting faults. Returns whether any fault has answered a request."""
        with self._lock:
            fired = any(injected.fired for injected in self._injected)
            self._injected.clear()
        return fired

    def seen(self, pattern: str) -> list[Request]:
        """The requests so far whose `line` has the regular expression."""
        return [request for request in self.requests if re.search(pattern, request.line)]

    def fault_for(self, request: Request) -> Fault | None:
        """The next injected fault for the request. Counts the request."""
        with self._lock:
            self.requests.append(request)
            return next((injected.fault for injected in self._injected if injected.takes(request.line)), None)

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    proxy: FaultyProxy
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that close the connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(f"{self.command} {self.path}", self.headers, body)
        fault = self.server.proxy.fault_for(request)
        if fault is None:
            self.send(self.ask_upstream(request))
        else:
            fault(self, request)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def ask_upstream(self, request: Request) -> Answer:
        method, path = request.line.split(" ", 1)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        connection = http.client.HTTPConnection(self.server.proxy.upstream, timeout=60)
        try:
            connection.request(method, path, request.body or None, headers)
            response = connection.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
            return Answer(response.status, kept, response.read())
        finally:
            connection.close()

    def send(self, given: Answer, length: int | None = None) -> None:
        """Sends the answer. With `length`, it sends only that many bytes of the body, and announces all."""
        self.send_response_only(given.status)
        for name, value in given.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(given.body)))
        self.end_headers()
        self.wfile.write(given.body[:length])

    def log_message(self, format: str, *args: Any) -> None:
        pass


def set_modified(proxy: FaultyProxy, table: str, at: datetime) -> None:
    """Another time of the table's last change, from now on."""
    change = edited(lambda body: body | {"lastModifiedTime": str(int(at.timestamp() * 1000))})
    proxy.inject(rf"^GET \S+/tables/{table}\?", change, times=None)
