"""A faulty proxy that also makes the pages of a query's rows short, and can hold a page back."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from types import TracebackType
from typing import Any

from pulso_etl_tests.faulty_proxy import Fault, FaultyProxy, Request, error

QUERY = r"^POST \S+/(jobs|queries)\b"
PAGE = re.compile(r"^(GET \S+[?&]maxResults=)[1-9]\d*")
JOB_OF_PAGE = re.compile(r"^GET \S+/queries/([^/?]+)")


def is_dry_run(request: Request) -> bool:
    """Whether the request asks only what a query would read."""
    return re.search(QUERY, request.line) is not None and bool(request.json.get("configuration", {}).get("dryRun"))


class HoldingProxy(FaultyProxy):
    """Passes requests on to `upstream`. A page of a query's rows holds `page_rows` rows, whatever the client asks for."""

    def __init__(self, upstream: str, page_rows: int = 25) -> None:
        super().__init__(upstream)
        self.page_rows = page_rows
        self.held = threading.Event()
        """Set when a page is held back."""
        self._hold_at = -1
        self._hold_of = ""
        self._pages = 0
        self._released = threading.Event()
        self._released.set()

    @property
    def queries(self) -> int:
        """How many queries clients sent, refused queries included. A dry run is none."""
        return sum(not is_dry_run(request) for request in self.seen(QUERY))

    def refuse_queries(self, count: int) -> None:
        """Answers the next `count` queries with a 503 that the client library does not retry by itself."""
        self.inject(QUERY, error(503, "outOfOrder", "out of order"), times=count)

    def hold_page(self, number: int, of: str = "") -> None:
        """Holds back the page of that number (from 0, counted from now) and every later page, until `release`.

        Counts and holds only the pages of queries that name `of`.
        """
        self.held.clear()
        self._released.clear()
        self._hold_at, self._hold_of, self._pages = number, of, 0

    def release(self) -> None:
        self._hold_at = -1
        self._released.set()

    def fault_for(self, request: Request) -> Fault | None:
        """The next injected fault for the request, or the answer for a page of rows. Dry runs are passed on."""
        if is_dry_run(request):
            self.requests.append(request)
            return None
        return super().fault_for(request) or (self._page if PAGE.search(request.line) else None)

    def _page(self, handler: Any, request: Request) -> None:
        if not self._hold_of or self._hold_of in self._query(request):
            number, self._pages = self._pages, self._pages + 1
            if 0 <= self._hold_at <= number:
                self.held.set()
                self._released.wait(150)
        handler.send(handler.ask_upstream(replace(request, line=PAGE.sub(rf"\g<1>{self.page_rows}", request.line))))

    def _query(self, request: Request) -> str:
        """The request that sent the query of the page."""
        job = JOB_OF_PAGE.search(request.line)
        sent = [body for asked in self.seen(QUERY) if job and job[1] in (body := asked.body.decode())]
        return sent[-1] if sent else ""

    def __enter__(self) -> HoldingProxy:
        super().__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
        super().__exit__(kind, error, trace)
