"""Who is let in: by address, by origin, by token, and how often; and how many streams each keeps open."""

from __future__ import annotations

import ipaddress
import logging
import math
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import Annotated

from fastapi import HTTPException, Request, Security
from fastapi.security import HTTPBearer
from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pulso_etl.access.tokens import Caller, Role, Token, find_caller
from pulso_etl.api.faults import fault
from pulso_etl.settings import AccessSettings

MAXIMUM_BODY_BYTES = 256 * 1024
TOO_LONG = f"the body is longer than {MAXIMUM_BODY_BYTES} bytes"
MAXIMUM_STREAMS = 100
"""How many streams of events the holders of one token keep open at the same time."""
REFUSALS, REFUSAL_SECONDS = 20, 60
"""So many tokens that are not known an address may send in so many seconds before it is told to wait."""
MAXIMUM_ADDRESSES = 10_000
"""Of so many addresses the refusals are counted; the one that was quiet for longest is forgotten for a further one."""
NO_TOKENS = "{door} needs API_TOKENS: make an entry with `pulso-etl token NAME ROLE` (`pulso-etl dev` makes its own)"
audit = logging.getLogger("pulso_etl.audit")
LOCAL = Caller("local", Role.ADMIN)
"""Who asks from this machine where no token is configured."""
PROXIED = re.compile(
    r"forwarded|via|x-(forwarded|real|original|client|cluster|envoy|proxy)\b.*|(true|cf|fastly|fly)-(client|connecting).*|proxy-.*"
)
"""Headers by which some proxy says for whom it asks. A plain one says nothing: `pulso-etl api` does not start without tokens."""
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
    """Why a request must not even be looked at; None where it may. `port`: where the server listens.

    Without tokens only this machine is served: neither a proxy on it, nor a page whose name was made to point to it. A page
    of another origin is served only where that is allowed, since a browser would send its requests without asking.
    """
    if not tokens:
        if not is_loopback(client) or any(PROXIED.fullmatch(name) for name in headers):
            return "without API_TOKENS only this machine is served, and no proxy on it"
        own = [name if port in (None, 80) else f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")]
        if headers.getlist("host") not in [[name] for name in own]:
            return f"without API_TOKENS only the server's own names are served: {', '.join(own)}"
    origin = headers.get("origin")
    if origin is not None and origin not in origins and origin.partition("://")[2] != headers.get("host"):
        return f"pages of {origin[:200]} are not served; API_CORS_ORIGINS names those that are"
    return None


class Guard:
    """ASGI middleware before all else: `refusal`, the size of bodies, and headers that a page should have."""

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
    """Counts the tokens that are refused, by the address that sends them, and slows down who sends many.

    A token that is known is never kept waiting: behind a proxy everybody has its address.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def refuse(self, address: str, what: str) -> HTTPException:
        """The answer to a token that is not known: 401, and 429 once there were many. `what` was asked for."""
        now = time.monotonic()
        since, count = self._seen.pop(address, (now, 0))
        if now - since >= REFUSAL_SECONDS:
            since, count = now, 0
        self._seen[address] = since, count + 1
        if len(self._seen) > MAXIMUM_ADDRESSES:
            self._seen.popitem(last=False)
        wait = math.ceil(since + REFUSAL_SECONDS - now)
        if count < REFUSALS:
            audit.warning("%s: a token that is not known was refused, from %s", what, address)
            return HTTPException(401, "this token is not known, or its last day is over", {"WWW-Authenticate": "Bearer"})
        if count == REFUSALS:
            audit.warning("%s: further tokens from %s are refused without a line, for %d s", what, address, wait)
        told = "too many tokens that are not known came from this address; try again later"
        return HTTPException(429, told, {"Retry-After": str(wait)})


class Gatekeeper:
    """Knows the tokens that open its routes, and counts the launches and the streams of events."""

    def __init__(self, settings: AccessSettings, tokens: Iterable[Token], *, local: bool) -> None:
        """`local`: the deployment has no tokens at all, and so serves this machine alone, with every right."""
        self.tokens = tokens
        self.local = local
        self.streams: Counter[str] = Counter()
        self._refusals = Refusals()
        self.limit: RateLimitItem = parse(settings.api_launch_limit)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def caller(self, secret: str | None, address: str) -> Caller:
        """Who asks, from an address. Raises HTTPException 401, and 429 after many tokens that are not known."""
        if self.local:
            return LOCAL
        if secret is None:
            raise HTTPException(401, "a token is needed: send it as `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"})
        found = find_caller(self.tokens, secret)
        if found is None:
            raise self._refusals.refuse(address, "HTTP API")
        return found

    def admit_stream(self, caller: Caller) -> None:
        """Raises HTTPException 429 where the caller keeps too many streams open."""
        if self.streams[caller.name] >= MAXIMUM_STREAMS:
            told = f"{caller.name} keeps {MAXIMUM_STREAMS} streams of events open; close some, or ask for the status instead"
            raise HTTPException(429, told, {"Retry-After": "30"})

    async def count_launches(self, caller: Caller, launches: int = 1) -> None:
        """Raises HTTPException 429 where the caller launches too much."""
        if not await self._limiter.hit(self.limit, caller.name, cost=launches):
            stats = await self._limiter.get_window_stats(self.limit, caller.name)
            wait = max(1, math.ceil(stats.reset_time - time.time()))
            raise HTTPException(429, f"{caller.name} may launch {self.limit}; try again later", {"Retry-After": str(wait)})


def demand(caller: Caller, role: Role) -> None:
    """Raises HTTPException 403 where the caller's role does not reach so far."""
    if caller.role < role:
        raise HTTPException(403, f"{caller.name} has the role {caller.role.name.lower()}; {role.name.lower()} is needed")


class Needs(HTTPBearer):
    """A dependency that gives the caller, who has that role; also how the OpenAPI document tells of tokens."""

    def __init__(self, role: Role) -> None:
        super().__init__(scheme_name="token", auto_error=False, description="A token that `pulso-etl token NAME ROLE` made.")
        self.role = role

    # The base class gives what the header holds; the routes get whose it is.
    async def __call__(self, request: Request) -> Caller:  # type: ignore[override]
        """Raises HTTPException 401 and 403."""
        given = await super().__call__(request)
        gatekeeper: Gatekeeper = request.app.state.gatekeeper
        caller = gatekeeper.caller(given.credentials if given else None, request.client.host if request.client else "")
        demand(caller, self.role)
        return caller


Reader = Annotated[Caller, Security(Needs(Role.READ))]
Refresher = Annotated[Caller, Security(Needs(Role.REFRESH))]
Admin = Annotated[Caller, Security(Needs(Role.ADMIN))]
