"""Habits of a good HTTP server: HEAD beside GET, redirects that work behind a proxy, conditional requests, and streams that end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio
from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
TIMES = frozenset({"generated_at", "age_seconds", "daemon_seen_at"})
"""Fields that change with the time alone."""
ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*")')


class Habits:
    """ASGI middleware. It answers HEAD like GET, without the body. It makes redirects to this server relative: behind a proxy only
    the browser knows the scheme and the port."""

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
    """Whether the client has the version `tag`: `If-None-Match` is `*` or lists the tag, weak or strong."""
    given = ",".join(request.headers.getlist("if-none-match"))
    return given.strip() == "*" or ENTITY_TAG.sub(r"\1", tag) in ENTITY_TAG.findall(given)


def tag_of(shown: BaseModel) -> str:
    """The ETag of what an answer shows. It leaves out what changes with the time alone."""
    shown_json = json.dumps(_timeless(shown.model_dump(mode="json")), sort_keys=True)
    return f'W/"{hashlib.sha256(shown_json.encode()).hexdigest()[:32]}"'


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(part) for name, part in value.items() if name not in TIMES}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


async def until_stop(stop: anyio.Event, source: AsyncIterator[T]) -> AsyncIterator[T]:
    """The items of the source until `stop` is set, even while the source waits for its next item."""
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
    # The router adds or removes a final slash. The whole path will not do: a browser takes a path that begins with // for a host.
    end = "/" if target.path.endswith("/") else ""
    last = target.path.rstrip("/").rpartition("/")[2]
    query = f"?{target.query}" if target.query else ""
    headers["location"] = f"{'./' if end else '../'}{last}{end}{query}"
