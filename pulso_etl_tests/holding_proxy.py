"""A proxy between the BigQuery client and the emulator that can fail, cut pages short, and hold one back."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

HOP_BY_HOP = {"host", "content-length", "accept-encoding", "connection", "transfer-encoding"}


class HoldingProxy:
    """Passes requests on to `target`. A page of a query's rows holds `page_rows` rows, whatever the client asks for."""

    def __init__(self, target: str, page_rows: int = 25) -> None:
        self.target = target
        self.page_rows = page_rows
        self.queries = 0
        """How many queries were asked for, refused ones included."""
        self.held = threading.Event()
        """Set once a page is held back."""
        self._refusals = 0
        self._hold_at = -1
        self._pages = 0
        self._released = threading.Event()
        self._released.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def refuse_queries(self, count: int) -> None:
        """Answers the next `count` queries with a 503 that the client library does not retry by itself."""
        self._refusals, self.queries = count, 0

    def hold_page(self, number: int) -> None:
        """Holds the page of that number (from 0, counted from now) back until `release`, and every later one."""
        self.held.clear()
        self._released.clear()
        self._hold_at, self._pages = number, 0

    def release(self) -> None:
        self._hold_at = -1
        self._released.set()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                status, kind, answer = proxy._pass_on(self.command, self.path, dict(self.headers), body)
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

            def handle(self) -> None:
                with suppress(ConnectionError):  # the client was killed
                    super().handle()

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _pass_on(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        if method == "POST" and re.search(r"/(jobs|queries)\b", path):
            self.queries += 1
            if self._refusals:
                self._refusals -= 1
                fault = {"code": 503, "message": "out of order", "errors": [{"reason": "outOfOrder", "message": "out of order"}]}
                return 503, "application/json", json.dumps({"error": fault}).encode()
        if method == "GET" and re.search(r"[?&]maxResults=[1-9]", path):
            path = re.sub(r"([?&]maxResults=)\d+", rf"\g<1>{self.page_rows}", path)
            number, self._pages = self._pages, self._pages + 1
            if 0 <= self._hold_at <= number:
                self.held.set()
                self._released.wait(60)
        wanted = {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}
        request = urllib.request.Request(f"{self.target}{path}", data=body or None, method=method, headers=wanted)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers.get("content-type", "application/json"), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers.get("content-type", "application/json"), error.read()

    def __enter__(self) -> HoldingProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
