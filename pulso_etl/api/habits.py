"""What HTTP expects of every server: HEAD beside GET, redirects that hold behind a proxy, conditional requests, streams that
end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import TypeVar
from urllib.parse import urlsplit

import anyio
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*")')


class Habits:
    """ASGI middleware. HEAD is answered as GET is, without the body. A redirect to this server is relative: behind a proxy only the
    browser knows by which scheme and port it came."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        head, ended = scope["method"] == "HEAD", False

        async def answer(message: Message) -> None:
            nonlocal ended
            if ended:
                return
            if message["type"] == "http.response.start":
                _make_relative(MutableHeaders(raw=message["headers"]), Headers(scope=scope).get("host", ""))
            await send(message)
            if head:
                # A stream of events would have no end.
                ended = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self.app({**scope, "method": "GET"} if head else scope, receive, answer)


def unchanged(request: Request, tag: str) -> bool:
    """Whether the request knows the version `tag`: `If-None-Match` names it, in a list or not, weak or not, or any (`*`)."""
    given = ",".join(request.headers.getlist("if-none-match"))
    return given.strip() == "*" or ENTITY_TAG.sub(r"\1", tag) in ENTITY_TAG.findall(given)


async def until_stop(stop: anyio.Event, source: AsyncIterator[T]) -> AsyncIterator[T]:
    """What the source gives until `stop` is set, however long the source takes for the next."""
    stopped = asyncio.ensure_future(stop.wait())
    try:
        while True:
            following = asyncio.ensure_future(anext(source))
            try:
                await asyncio.wait((following, stopped), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    return
            finally:
                following.cancel()
            try:
                yield following.result()
            except StopAsyncIteration:
                return
    finally:
        stopped.cancel()


def _make_relative(headers: MutableHeaders, host: str) -> None:
    target = urlsplit(headers.get("location", ""))
    if not host or target.netloc != host:
        return
    # The router adds a slash or takes one away. Not the path alone: one that begins with // names another server.
    end = "/" if target.path.endswith("/") else ""
    last = target.path.rstrip("/").rpartition("/")[2]
    query = f"?{target.query}" if target.query else ""
    headers["location"] = f"{'./' if end else '../'}{last}{end}{query}"
