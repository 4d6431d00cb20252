"""Decides who may come in: by address, origin and token. Limits how often a caller launches and how many streams it keeps open."""

from __future__ import annotations

import ipaddress
import logging
import math
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pulso_etl.access.tokens import Caller, Role, Token, find_caller
from pulso_etl.api.faults import fault
from pulso_etl.settings import AccessSettings

MAXIMUM_BODY_BYTES = 256 * 1024
TOO_LONG = f"the body is longer than {MAXIMUM_BODY_BYTES} bytes"
MAXIMUM_STREAMS = 100
"""Streams of events that the holders of one token may keep open at the same time."""
REFUSALS, REFUSAL_SECONDS = 20, 60
"""An address may send this many unknown tokens in this many seconds. After that it has to wait."""
MAXIMUM_ADDRESSES = 10_000
"""Refusals are counted for at most this many addresses. A further one replaces the address that was quiet for longest."""
NO_TOKENS = "{door} needs API_TOKENS: make an entry with `pulso-etl token NAME ROLE` (`pulso-etl dev` makes its own)"
audit = logging.getLogger("pulso_etl.audit")
LOCAL = Caller("local", Role.ADMIN)
"""The caller on this machine where no token is configured."""
PROXIED = re.compile(
    r"forwarded|via|x-(forwarded|real|original|client|cluster|envoy|proxy)\b.*|(true|cf|fastly|fly)-(client|connecting).*|proxy-.*"
)
"""Headers in which a proxy names its client. Some proxies send none; therefore `pulso-etl api` does not start without tokens."""
PAGE_HEADERS = {
    b"content-security-policy": b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}


def is_loopback(host: str | None) -> bool:
    """Whether a host, without its port, is this machine."""
    if host is None:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def why_refused(
    client: str | None, headers: Headers, *, tokens: bool, origins: Sequence[str], port: int | None = None
) -> str | None:
    """The reason to refuse a request before anything else is done; None if there is no reason. The server listens on `port`.

    Without tokens the server answers this machine alone. It refuses a proxy on this machine, and a page whose host name
    somebody pointed at this machine. A page of another origin needs permission, because a browser sends its requests unasked.
    """
    if not tokens:
        if not is_loopback(client) or any(PROXIED.fullmatch(name) for name in headers):
            return "without API_TOKENS the server answers only this machine, and no proxy on it"
        own = [name if port in (None, 80) else f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")]
        if headers.getlist("host") not in [[name] for name in own]:
            return f"without API_TOKENS the server answers only to its own names: {', '.join(own)}"
    origin = headers.get("origin")
    if origin is not None and origin not in origins and origin.partition("://")[2] != headers.get("host"):
        return f"pages of {origin[:200]} are not allowed; API_CORS_ORIGINS lists the pages that are"
    return None


class Guard:
    """ASGI middleware that runs first: `refusal`, the limit on a body's size, and the security headers of pages."""

    def __init__(self, app: ASGIApp, *, tokens: bool, origins: Sequence[str]) -> None:
        self.app = app
        self.tokens = tokens
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client = scope["client"][0] if scope.get("client") else None
        port = scope["server"][1] if scope.get("server") else None
        reason = why_refused(client, headers, tokens=self.tokens, origins=self.origins, port=port)
        if reason is not None:
            await fault(403, reason)(scope, receive, send)
            return
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAXIMUM_BODY_BYTES:
            await fault(413, TOO_LONG)(scope, receive, send)
            return
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAXIMUM_BODY_BYTES:
                raise HTTPException(413, TOO_LONG)
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *PAGE_HEADERS.items()]
            await send(message)

        await self.app(scope, bounded, with_headers)


class Refusals:
    """Counts refused tokens by the address that sends them, and makes an address wait that sends many.

    A known token never waits: behind a proxy all callers have the same address.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def refuse(self, address: str, what: str) -> HTTPException:
        """The answer to an unknown token: 401, or 429 after many of them. `what`: the request, for the log."""
        now = time.monotonic()
        since, count = self._seen.pop(address, (now, 0))
        if now - since >= REFUSAL_SECONDS:
            since, count = now, 0
        self._seen[address] = since, count + 1
        if len(self._seen) > MAXIMUM_ADDRESSES:
            self._seen.popitem(last=False)
        wait = math.ceil(since + REFUSAL_SECONDS - now)
        if count < REFUSALS:
            audit.warning("%s: an unknown token was refused, from %s", what, address)
            return HTTPException(401, "this token is not known, or its last day is over", {"WWW-Authenticate": "Bearer"})
        if count == REFUSALS:
            audit.warning("%s: further tokens from %s are refused without a log line, for %d s", what, address, wait)
        told = "too many unknown tokens came from this address; try again later"
        return HTTPException(429, told, {"Retry-After": str(wait)})


class Gatekeeper:
    """Knows the valid tokens, and counts launches and streams of events."""

    def __init__(self, settings: AccessSettings, tokens: Iterable[Token], *, local: bool) -> None:
        """`local`: the deployment has no tokens; every caller is on this machine and has every right."""
        self.tokens = tokens
        self.local = local
        self.streams: Counter[str] = Counter()
        self._refusals = Refusals()
        self.limit: RateLimitItem = parse(settings.api_launch_limit)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def caller(self, secret: str | None, address: str) -> Caller:
        """The caller who holds the token `secret`. Raises HTTPException 401, or 429 after many unknown tokens from the address."""
        if self.local:
            return LOCAL
        if secret is None:
            raise HTTPException(401, "a token is needed: send it as `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"})
        found = find_caller(self.tokens, secret)
        if found is None:
            raise self._refusals.refuse(address, "HTTP API")
        return found

    def admit_stream(self, caller: Caller) -> None:
        """Raises HTTPException 429 if the caller keeps too many streams open."""
        if self.streams[caller.name] >= MAXIMUM_STREAMS:
            told = f"{caller.name} keeps {MAXIMUM_STREAMS} streams of events open; close some, or ask for the status instead"
            raise HTTPException(429, told, {"Retry-After": "30"})

    async def count_launches(self, caller: Caller, launches: int = 1) -> None:
        """Raises HTTPException 429 if the caller launches too often."""
        if not await self._limiter.hit(self.limit, caller.name, cost=launches):
            stats = await self._limiter.get_window_stats(self.limit, caller.name)
            wait = max(1, math.ceil(stats.reset_time - time.time()))
            raise HTTPException(429, f"{caller.name} may launch {self.limit}; try again later", {"Retry-After": str(wait)})


def demand(caller: Caller, role: Role) -> None:
    """Raises HTTPException 403 if the caller's role is lower than `role`."""
    if caller.role < role:
        raise HTTPException(403, f"{caller.name} has the role {caller.role.name.lower()}; {role.name.lower()} is needed")
