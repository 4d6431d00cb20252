"""HEAD, redirects behind a proxy, conditional requests, and how streams end with the server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import httpx
import pytest
from pydantic import SecretStr
from starlette.requests import Request

from pulso_etl.api.access import why_refused
from pulso_etl.api.app import create_app
from pulso_etl.api.dagster_client import Daemon
from pulso_etl.api.habits import tag_of, unchanged, until_stop
from pulso_etl.api.openapi import document
from pulso_etl.api.status import overall
from pulso_etl.settings import Settings
from pulso_etl_tests.api.conftest import SECRETS
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.dagster_stack import CHECKOUT

TAG = 'W/"dashboard_data=3"'


def test_head_answers_as_get_does_without_a_body(api: ApiServer) -> None:
    # The doctor and the plan take seconds. They stand behind the same door.
    slow = {"/api/v1/etl/doctor", "/api/v1/etl/plan"}
    paths = [path for path, methods in json.loads(document())["paths"].items() if "get" in methods and path not in slow]
    paths = [path.replace("{table_name}", "dashboard_data").replace("{pipeline_id}", "none") for path in paths]
    assert len(paths) >= 8
    with api.client() as client:
        for path in [*paths, "/", "/api/v1/openapi.json"]:
            told = client.head(path)
            with client.stream("GET", path) as whole:
                assert (told.status_code, told.content) == (whole.status_code, b""), path
                assert told.headers["content-type"] == whole.headers["content-type"], path
        assert client.head("/api/v1/etl/cleanup").status_code == 405


def ask(path: str, **headers: str) -> httpx.Response:
    """Sends a request to an application that was not started, with the host name that the proxy passes on."""
    settings = Settings(
        database_url=SecretStr("postgresql://nowhere/none"),
        api_tokens=SecretStr(str(SECRETS["read"][1])),
        api_cors_origins="https://dashboard.example.com",
    )

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://etl.example.com:8443") as client:
            return await client.request("OPTIONS" if "Access-Control-Request-Method" in headers else "GET", path, headers=headers)

    return asyncio.run(get())


@pytest.mark.parametrize(
    ("path", "reached"),
    [
        ("/api/v1/etl/status/", "https://etl.example.com:8443/api/v1/etl/status"),
        ("/api/v1/etl/status/?a=b%20c", "https://etl.example.com:8443/api/v1/etl/status?a=b%20c"),
        ("/metrics/", "https://etl.example.com:8443/metrics"),
        ("/api/v1/etl/status/table/x%3Ay/", "https://etl.example.com:8443/api/v1/etl/status/table/x:y"),
    ],
)
def test_a_trailing_slash_stays_with_the_scheme_and_the_port_of_the_browser(path: str, reached: str) -> None:
    answer = ask(path)
    assert answer.status_code == 307
    assert "//" not in answer.headers["location"]
    assert httpx.URL(f"https://etl.example.com:8443{path}").join(answer.headers["location"]) == httpx.URL(reached)


def test_a_page_may_send_if_none_match() -> None:
    asks = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,if-none-match"}
    answer = ask("/api/v1/etl/status", Origin="https://dashboard.example.com", **asks)
    assert answer.status_code == 200
    assert "if-none-match" in answer.headers["access-control-allow-headers"].lower()


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ([TAG], True),
        (['"dashboard_data=3"'], True),
        (['"a", W/"b,c" , ' + TAG], True),
        (['"a"', TAG], True),
        (["*"], True),
        ([" * "], True),
        ([], False),
        ([""], False),
        (['W/"dashboard_data=33"'], False),
        (["dashboard_data=3"], False),
        (['W/"x dashboard_data=3"'], False),
        (['"*"'], False),
    ],
)
def test_if_none_match_compares_weakly_and_takes_lists(given: list[str], known: bool) -> None:
    headers = [(b"if-none-match", value.encode()) for value in given]
    assert unchanged(Request({"type": "http", "headers": headers}), TAG) is known


def test_an_etag_follows_everything_that_is_shown_except_the_time() -> None:
    now = datetime(2026, 11, 25, 20, tzinfo=UTC)
    whole = overall([], [], now, dagster=True, daemon=Daemon({"SENSOR": now}))
    later = overall([], [], now + timedelta(seconds=20), dagster=True, daemon=Daemon({"SENSOR": now + timedelta(seconds=20)}))
    assert tag_of(whole) == tag_of(later)
    assert tag_of(whole) != tag_of(whole.model_copy(update={"failures": 1}))
    assert tag_of(whole) != tag_of(overall([], [], now, dagster=False))


def test_the_page_s_assets_are_compressed_and_kept_and_the_page_itself_is_asked_for_again() -> None:
    assets = sorted(file.name for file in (CHECKOUT / "pulso_etl" / "api" / "page" / "assets").iterdir())
    for path, cached in (("/", "no-cache"), *((f"/assets/{name}", "public, max-age=31536000, immutable") for name in assets)):
        packed, plain = ask(path), ask(path, **{"Accept-Encoding": "identity"})
        assert (packed.headers["content-encoding"], packed.content) == ("gzip", plain.content)
        assert "content-encoding" not in plain.headers
        assert packed.headers["content-type"] == plain.headers["content-type"]
        assert (packed.headers["cache-control"], "Accept-Encoding" in plain.headers["vary"]) == (cached, True)
    assert ask("/assets/none.js").status_code == 404


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("/api/v1/etl/status?tabel=dashboard_data", "query.tabel: unknown parameter; this route has none"),
        ("/api/v1/etl/health?live=true&deep=1", "query.deep: unknown parameter; this route has live"),
    ],
)
def test_an_unknown_parameter_of_the_address_is_refused(api: ApiServer, path: str, refused: str) -> None:
    answer = api.call("GET", path)
    assert (answer.status_code, answer.json()["failure"]["message"]) == (422, refused)


def test_a_page_behind_the_documented_proxy_is_served_on_another_port() -> None:
    text = (CHECKOUT / "docs" / "api.md").read_text(encoding="utf-8")
    [passed] = re.findall(r"proxy_set_header Host (\S+);", text)
    names = {"$http_host": "etl.example.com:8443", "$host": "etl.example.com"}
    headers = httpx.Headers({"host": names[passed], "origin": "https://etl.example.com:8443"})
    assert why_refused("127.0.0.1", headers, tokens=True, origins=()) is None  # type: ignore[arg-type]


def test_a_stream_ends_while_it_waits_for_what_comes_next() -> None:
    async def scenario() -> list[int]:
        stop, told = anyio.Event(), []

        async def source() -> AsyncIterator[int]:
            yield 1
            stop.set()
            await asyncio.sleep(60)
            yield 2

        async for one in until_stop(stop, source()):
            told.append(one)
        return told

    assert asyncio.run(asyncio.wait_for(scenario(), 10)) == [1]


@pytest.mark.usefixtures("processes")
def test_a_server_that_is_stopped_ends_its_streams_and_logs_no_error(tmp_path: Path) -> None:
    """PostgreSQL, Dagster and BigQuery are away. The stream exists all the same."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nowhere = "http://127.0.0.1:1"
    env = os.environ | {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "DAGSTER_GRAPHQL_URL": f"{nowhere}/graphql"}
    secret, token = SECRETS["read"]
    env |= {"API_TOKENS": str(token), "BIGQUERY_EMULATOR_HOST": nowhere, "PYTHONPATH": str(CHECKOUT), "DAGSTER_HOME": str(tmp_path)}
    log = tmp_path / "log"
    with (
        log.open("w") as out,
        subprocess.Popen(
            [sys.executable, "-m", "pulso_etl", "api", "--port", str(port)], env=env, cwd=tmp_path, stdout=out, stderr=out
        ) as server,
    ):
        try:
            wait_until(lambda: "running on" in log.read_text() or server.poll() is not None, 60)
            with (
                httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
                client.stream("GET", "/api/v1/etl/events", headers={"Authorization": f"Bearer {secret}"}) as stream,
            ):
                lines = stream.iter_lines()
                assert next(lines) == "event: unavailable"
                began = time.monotonic()
                server.send_signal(signal.SIGTERM)
                # Reads to the end that the server sends. A broken answer would raise.
                assert [line for line in lines if line.startswith("event")] == []
            server.wait(20)
            assert time.monotonic() - began < 10
        finally:
            server.kill()
    assert "Shutting down" in log.read_text()
    assert "ERROR" not in log.read_text()
    assert "Traceback" not in log.read_text()
