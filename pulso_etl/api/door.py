"""The door of Dagster's UI. Dagster's webserver knows no callers; the door adds the tokens and roles of the HTTP API.

A browser signs in with a token and then sends a cookie; a program sends its token. Readers see the pages. GraphQL passes the
gateway, as a POST of JSON. The web socket accepts only subscriptions. The API has a token of its own, because it has already
decided on its launches.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import uvicorn
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pulso_etl.access.tokens import Caller, Role, opening
from pulso_etl.api import graphql
from pulso_etl.api.access import NO_TOKENS, Gatekeeper, Refusals, is_loopback, why_refused
from pulso_etl.api.bodies import StrictRequest, parse
from pulso_etl.api.dagster_client import DagsterClient, DagsterUnavailable
from pulso_etl.api.faults import fault, fault_of
from pulso_etl.api.gateway import Gateway, as_document, documents_of
from pulso_etl.api.listening import configuration
from pulso_etl.api.sessions import Sessions
from pulso_etl.settings import AccessSettings
from pulso_etl.sync.errors import SettingsError

audit = logging.getLogger("pulso_etl.audit")
API = Caller("api", Role.ADMIN)
"""The HTTP API."""
GRAPHQL, SIGN_IN, SESSION, INFO = "/graphql", "/sign-in", "/sign-in/session", "/server_info"
MAXIMUM_BODY_BYTES = 2 * 1024 * 1024
MAXIMUM_TOKEN_BYTES = 4096
PAGE = (files("pulso_etl.api") / "sign_in.html").read_text(encoding="utf-8")
SCRIPT = base64.b64encode(hashlib.sha256(PAGE.partition("<script>")[2].partition("</script>")[0].encode()).digest()).decode()
PAGE_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src 'sha256-{SCRIPT}'; style-src 'unsafe-inline'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
HEADERS = [
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


@dataclass(frozen=True)
class Known:
    """The caller, and whether a cookie names it. A browser sends the cookie even if another site's page makes the request."""

    caller: Caller
    by_cookie: bool = False


class Door:
    """ASGI middleware around Dagster's webserver."""

    def __init__(self, dagster: ASGIApp, settings: AccessSettings) -> None:
        """Raises SettingsError if no caller could come in."""
        # With tenants, the UI shows the runs of all of them.
        lowest = Role.READ if settings.tenants_file is None else Role.ADMIN
        tokens = settings.keyring(lambda given: [token for token in opening(given, "") if token.caller.role >= lowest])
        secret = settings.dagster_graphql_token
        if not settings.guarded and secret is None:
            raise SettingsError(NO_TOKENS.format(door="Dagster's UI"))
        self.dagster = dagster
        self.origin = "{0.scheme}://{0.netloc}".format(urlsplit(settings.dagster_ui_url))
        self.hosts = {urlsplit(url).netloc.lower() for url in (settings.dagster_ui_url, settings.dagster_graphql_url)}
        self.secret = secret.get_secret_value() if secret else ""
        self.refusals = Refusals()
        self.sessions = Sessions(tokens, secure=self.origin.startswith("https"))
        inner = httpx.ASGITransport(dagster, raise_app_exceptions=False)
        gatekeeper = Gatekeeper(settings, tokens, local=False)
        self.gateway = Gateway(DagsterClient("http://localhost/graphql", transport=inner), gatekeeper, graphql.UI_LIMITS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                answer = await self._answer(StrictRequest(scope, receive))
            except HTTPException as error:
                answer = fault(error.status_code, error.detail, headers=error.headers)
            except DagsterUnavailable as error:
                answer = fault_of(503, error)
            await (answer or self.dagster)(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        else:
            await self.dagster(scope, receive, send)

    async def _answer(self, request: StrictRequest) -> Response | None:
        """The answer to a request, or None if Dagster should answer. Raises HTTPException and DagsterUnavailable."""
        path, method = request.scope["path"], "GET" if request.method == "HEAD" else request.method
        if (method, path) == ("GET", INFO):
            # Probes ask for these versions under any host name.
            return None
        if (reason := self._stranger(request.headers)) is not None:
            raise HTTPException(403, reason)
        if (method, path) == ("GET", SIGN_IN):
            return HTMLResponse(PAGE, headers=PAGE_HEADERS)
        if (method, path) == ("POST", SIGN_IN):
            return await self._sign_in(request)
        known = self._known(request.headers, _address(request.scope))
        if known is None:
            if method == "GET" and "text/html" in request.headers.get("accept", ""):
                return RedirectResponse(f"{SIGN_IN}?next={quote(path)}", 303)
            raise HTTPException(401, "sign in, or send a token as `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"})
        if (method, path) == ("GET", SESSION):
            return Response(status_code=204)
        if (method, path) == ("POST", GRAPHQL):
            return await self._graphql(request, known)
        if method != "GET" or path.rstrip("/") == GRAPHQL:
            raise HTTPException(405, "use GET for pages, and POST with JSON for GraphQL")
        return None

    def _stranger(self, headers: Headers) -> str | None:
        """The reason to refuse a request first of all: another site's page made it, or it names another host."""
        host = headers.get("host", "").lower()
        if host not in self.hosts and not is_loopback(host.rpartition(":")[0] or host):
            return "Dagster's UI has another name; DAGSTER_UI_URL says under which name people reach it"
        return why_refused(None, headers, tokens=True, origins=[self.origin])

    def _known(self, headers: Headers, address: str) -> Known | None:
        """The caller, or None without a token and a session. Raises HTTPException for an unknown token."""
        kind, _, secret = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            if self.secret and hmac.compare_digest(self.secret.encode(), secret.strip().encode()):
                return Known(API)
            return Known(self._by_token(secret, address))
        caller = self.sessions.by_cookie(headers.get("cookie", ""), datetime.now(UTC))
        return None if caller is None else Known(caller, by_cookie=True)

    def _by_token(self, secret: str, address: str) -> Caller:
        """Raises HTTPException."""
        caller = self.sessions.by_token(secret.strip())
        if caller is None:
            raise self.refusals.refuse(address, "Dagster's UI")
        return caller

    async def _sign_in(self, request: StrictRequest) -> Response:
        body = await _bounded(request, MAXIMUM_TOKEN_BYTES)
        (secret,) = parse_qs(body.decode(errors="replace")).get("token", [""])[:1]
        if request.headers.get("origin") is None:
            raise HTTPException(403, "a request from a page must have the header Origin")
        caller = self._by_token(secret, _address(request.scope))
        audit.info("Dagster's UI: %s signed in", caller.name)
        return Response(status_code=204, headers={"Set-Cookie": self.sessions.cookie(caller, datetime.now(UTC))})

    async def _graphql(self, request: StrictRequest, known: Known) -> Response:
        if known.by_cookie and request.headers.get("origin") is None:
            raise HTTPException(403, "a request from a page must have the header Origin")
        await _bounded(request, MAXIMUM_BODY_BYTES)
        if known.caller is API:
            documents, _ = await documents_of(request)
            answer = await self.gateway.dagster.post(documents[0])
            return Response(answer.content, answer.status_code, media_type="application/json")
        return await self.gateway.answer(request, known.caller)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        known = None
        if not self._stranger(headers):
            with suppress(HTTPException):
                known = self._known(headers, _address(scope))
        if known is None or (known.by_cookie and headers.get("origin") is None):
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "sign in first"})
            return

        async def checked() -> Message:
            message = await receive()
            if message["type"] != "websocket.receive" or (text := _subscription(message)) is None:
                if message["type"] == "websocket.receive":
                    await send({"type": "websocket.close", "code": 1008, "reason": "subscriptions only"})
                    return {"type": "websocket.disconnect", "code": 1008}
                return message
            return {"type": "websocket.receive", "text": text}

        await self.dagster(scope, checked, send)


def _subscription(message: Message) -> str | None:
    """The message, encoded again so that Dagster reads it the same way. None if it asks for more than a subscription."""
    try:
        given: Any = parse(message.get("text") or message.get("bytes") or b"")
        if not isinstance(given, dict):
            return None
        if given.get("type") == "start" and not graphql.is_subscription(as_document(given.get("payload"))["query"]):
            return None
    except (ValueError, RecursionError, HTTPException, graphql.DocumentRefused):
        return None
    return json.dumps(given)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


async def _bounded(request: StrictRequest, size: int) -> bytes:
    """The body, kept for the next reader. Raises HTTPException 413."""
    body = b""
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > size:
                raise HTTPException(413, f"the body is longer than {size} bytes")
    except ClientDisconnect:
        raise HTTPException(400, "the body is incomplete") from None
    request._body = body
    return body


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name for name, _ in HEADERS}
            message["headers"] = [*(one for one in message.get("headers", []) if one[0].lower() not in names), *HEADERS]
        await send(message)

    return sending


def serve(settings: AccessSettings, host: str, port: int, workspace: Path) -> None:
    """Serves Dagster's UI behind its door, until an interrupt or SIGTERM. Raises SettingsError."""
    from dagster import DagsterInstance
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.cli import DEFAULT_DB_STATEMENT_TIMEOUT, DEFAULT_POOL_MAX_OVERFLOW, DEFAULT_POOL_RECYCLE
    from dagster_webserver.version import __version__

    for chatty in ("alembic", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with DagsterInstance.get() as instance:
        instance.optimize_for_webserver(DEFAULT_DB_STATEMENT_TIMEOUT, DEFAULT_POOL_RECYCLE, DEFAULT_POOL_MAX_OVERFLOW)
        target = WorkspaceFileTarget([str(workspace)])
        with WorkspaceProcessContext(instance, version=__version__, workspace_load_target=target) as context:
            app = Door(create_app_from_workspace_process_context(context, live_data_poll_rate=2000), settings)
            uvicorn.Server(configuration(app, host, port)).run()
