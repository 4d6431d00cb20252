"""Who is let in: by address, origin, token and role, and how often."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack

import httpx
import pytest
from pydantic import SecretStr
from starlette.datastructures import Headers

from pulso_etl.api.access import MAXIMUM_BODY_BYTES, REFUSAL_SECONDS, REFUSALS, Refusals, why_refused
from pulso_etl.api.app import create_app
from pulso_etl.api.server import serve
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import SettingsError
from pulso_etl_tests.api.conftest import SECRETS, TOKENS, settings_of
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.dagster_stack import DagsterStack

READ, REFRESH, ADMIN = (SECRETS[role][0] for role in ("read", "refresh", "admin"))


@pytest.mark.parametrize(
    ("client", "headers", "served"),
    [
        ("127.0.0.1", {"host": "127.0.0.1:8000"}, True),
        ("127.0.0.1", {"host": "localhost:8000"}, True),
        ("::1", {"host": "[::1]:8000"}, True),
        ("127.0.0.1", {"host": "localhost"}, False),
        ("127.0.0.1", {"host": "127.0.0.1:8001"}, False),
        ("127.0.0.1", {"host": "127.0.0.2:8000"}, False),
        ("10.0.0.5", {"host": "127.0.0.1:8000"}, False),
        (None, {"host": "127.0.0.1:8000"}, False),
        ("127.0.0.1", {"host": "evil.example.com:8000"}, False),
        ("127.0.0.1", {}, False),
        *(
            ("127.0.0.1", {"host": "localhost:8000", name: "x"}, False)
            for name in (
                "x-forwarded-for",
                "x-forwarded-proto",
                "x-forwarded-server",
                "x-real-ip",
                "x-client-ip",
                "via",
                "forwarded",
            )
        ),
        ("127.0.0.1", {"host": "localhost:8000", "true-client-ip": "10.0.0.5"}, False),
        ("127.0.0.1", {"host": "localhost:8000", "cf-connecting-ip": "10.0.0.5"}, False),
        ("127.0.0.1", {"host": "localhost:8000", "origin": "http://localhost:8000"}, True),
        ("127.0.0.1", {"host": "localhost:8000", "origin": "http://localhost:3000"}, False),
        ("127.0.0.1", {"host": "localhost:8000", "origin": "null"}, False),
    ],
)
def test_without_tokens_only_this_machine_and_its_own_page_are_served(
    client: str | None, headers: dict[str, str], served: bool
) -> None:
    assert (why_refused(client, Headers(headers), tokens=False, origins=(), port=8000) is None) is served


def test_the_api_does_not_start_without_tokens_and_says_how_to_make_one() -> None:
    settings = Settings(database_url=SecretStr("postgresql://nowhere/none"))
    with pytest.raises(SettingsError, match=r"API_TOKENS.*`pulso-etl token NAME ROLE`"):
        serve(settings)


@pytest.mark.parametrize("entries", ["", " , "])
def test_a_setting_without_an_entry_is_no_token(entries: str) -> None:
    settings = Settings(database_url=SecretStr("postgresql://nowhere/none"), api_tokens=SecretStr(entries))

    async def ask() -> int:
        transport = httpx.ASGITransport(create_app(settings), client=("10.0.0.5", 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as stranger:
            return (await stranger.get("/api/v1/etl/config/extraction-modes")).status_code

    assert asyncio.run(ask()) == 403


def test_with_tokens_other_machines_are_served_and_pages_of_known_origins() -> None:
    known = ["https://dashboard.example.com"]
    for origin, served in (("https://dashboard.example.com", True), ("https://evil.example.com", False)):
        headers = Headers({"host": "etl.example.com", "origin": origin, "x-forwarded-for": "10.0.0.5"})
        assert (why_refused("10.0.0.5", headers, tokens=True, origins=known) is None) is served


def test_a_token_is_needed_and_the_answer_does_not_quote_the_one_that_was_sent(guarded: ApiServer) -> None:
    for token in (None, "wrong-secret", SECRETS["read"][1].digest):
        answer = guarded.call("GET", "/api/v1/etl/status", token)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "wrong-secret" not in answer.text
    assert guarded.call("GET", "/api/v1/etl/status", READ).status_code == 200
    assert guarded.call("GET", "/api/v1/etl/health", None).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/v1/etl/status?tabel=dashboard_data", None),
        ("GET", "/api/v1/etl/refreshes?limit=nothing", None),
        ("POST", "/api/v1/etl/refresh/dashboard", b"{"),
        ("POST", "/graphql?x=1", b"{"),
    ],
)
def test_a_stranger_is_told_nothing_else_of_a_request_that_makes_no_sense(
    guarded: ApiServer, method: str, path: str, body: bytes | None
) -> None:
    assert guarded.call(method, path, None, content=body).status_code == 401
    assert guarded.call(method, path, REFRESH, content=body).status_code in (400, 415, 422)


def test_refused_tokens_are_logged_and_slowed_and_known_ones_are_not(stack: DagsterStack, caplog: pytest.LogCaptureFixture) -> None:
    with ApiServer(settings_of(stack, api_tokens=SecretStr(str(SECRETS["read"][1])))) as api:
        answers = [api.call("GET", "/api/v1/etl/config/tables", f"wrong-secret-{n}") for n in range(REFUSALS + 3)]
        assert [answer.status_code for answer in answers] == [401] * REFUSALS + [429] * 3
        assert 0 < int(answers[-1].headers["retry-after"]) <= REFUSAL_SECONDS
        assert api.call("GET", "/api/v1/etl/config/tables", READ).status_code == 200
        assert api.call("GET", "/api/v1/etl/config/tables").status_code == 401
    lines = [record.getMessage() for record in caplog.records if record.name == "pulso_etl.audit"]
    assert lines[0] == "HTTP API: an unknown token was refused, from 127.0.0.1"
    assert len(lines) == REFUSALS + 1
    assert "wrong-secret" not in caplog.text


def test_the_count_of_refusals_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pulso_etl.api.access.MAXIMUM_ADDRESSES", 50)
    refusals = Refusals()
    for address in range(150):
        refusals.refuse(str(address), "test")
    assert len(refusals._seen) == 50


def test_the_document_of_the_routes_is_for_those_who_may_use_some(guarded: ApiServer) -> None:
    assert guarded.call("GET", "/api/v1/openapi.json").status_code == 401
    assert "/api/v1/etl/status" in guarded.call("GET", "/api/v1/openapi.json", READ).json()["paths"]


def test_a_token_keeps_so_many_streams_open_and_no_more(stack: DagsterStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pulso_etl.api.access.MAXIMUM_STREAMS", 2)
    tokens = SecretStr(f"{SECRETS['read'][1]} {SECRETS['refresh'][1]}")
    with ApiServer(settings_of(stack, api_tokens=tokens)) as api, ExitStack() as open_ones:

        def stream(token: str) -> int:
            answer = open_ones.enter_context(open_ones.enter_context(api.client(token)).stream("GET", "/api/v1/etl/events"))
            return answer.status_code

        assert [stream(READ) for _ in range(3)] == [200, 200, 429]
        assert stream(REFRESH) == 200
        refused = api.call("GET", "/api/v1/etl/events", READ)
        assert refused.headers["retry-after"]
        assert "read keeps 2 streams of events open" in refused.json()["detail"]
        open_ones.close()
        # A stream that has ended makes room.
        with api.client(READ) as client:

            def again() -> bool:
                with client.stream("GET", "/api/v1/etl/events") as answer:
                    return answer.status_code == 200

            wait_until(again, seconds=30)


def test_each_role_reaches_as_far_as_it_should(guarded: ApiServer) -> None:
    launch = ("POST", "/api/v1/etl/refresh/table/nothing")
    cleanup = ("POST", "/api/v1/etl/cleanup")
    answers = {
        (path, role): guarded.call(method, path, token).status_code
        for method, path in (launch, ("GET", "/metrics"))
        for role, token in (("read", READ), ("refresh", REFRESH))
    }
    assert answers == {
        (launch[1], "read"): 403,
        (launch[1], "refresh"): 404,
        ("/metrics", "read"): 200,
        ("/metrics", "refresh"): 200,
    }
    assert guarded.call(*cleanup, REFRESH).status_code == 403
    told = guarded.call("GET", "/api/v1/etl/status", REFRESH)
    assert told.headers["pulso-role"] == "refresh"


def test_a_page_of_a_known_origin_may_ask_and_others_may_not(guarded: ApiServer) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    known = {"Origin": "https://dashboard.example.com"}
    preflight = guarded.call("OPTIONS", "/api/v1/etl/refresh/dashboard", headers=known | asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == known["Origin"]
    told = guarded.call("GET", "/api/v1/etl/status", READ, headers=known)
    assert told.headers["access-control-allow-origin"] == known["Origin"]
    for origin in ("https://evil.example.com", "http://127.0.0.1:1"):
        assert guarded.call("GET", "/api/v1/etl/status", READ, headers={"Origin": origin}).status_code == 403


def test_launches_are_limited_for_each_caller(stack: DagsterStack) -> None:
    route, asked = "/api/v1/etl/refresh/table/operation_data", {"from": "1999-01-01", "to": "1999-01-02"}
    with ApiServer(settings_of(stack, api_tokens=TOKENS, api_launch_limit="5/minute")) as api:
        codes = [api.call("POST", route, ADMIN, params=asked).status_code for _ in range(6)]
        assert codes == [422] * 5 + [429]
        last = api.call("POST", route, ADMIN, params=asked)
        assert 0 < int(last.headers["retry-after"]) <= 60
        assert api.call("GET", "/api/v1/etl/status", ADMIN).status_code == 200


@pytest.mark.parametrize("streamed", [False, True])
def test_a_body_that_is_too_long_is_refused(guarded: ApiServer, streamed: bool) -> None:
    body = json.dumps({"query": "{ version }", "variables": {"x": "y" * MAXIMUM_BODY_BYTES}}).encode()
    content = (body[at : at + 65536] for at in range(0, len(body), 65536)) if streamed else body
    answer = guarded.call("POST", "/graphql", READ, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_no_answer_is_kept_or_framed(api: ApiServer) -> None:
    headers = api.call("GET", "/").headers
    assert headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
