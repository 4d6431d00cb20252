"""Bodies that are no JSON, or no whole ones: they are the caller's fault, and leave no trace of ours."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.types import Message

from pulso_etl.access.tokens import Role, make_token
from pulso_etl.api.door import Door
from pulso_etl.settings import AccessSettings, Settings
from pulso_etl_tests.api.server import ApiServer

NOWHERE = "http://127.0.0.1:1"
SECRET, TOKEN = make_token("engineer", Role.ADMIN)
ROUTES = ["/api/v1/etl/refresh/dashboard", "/graphql"]
BODIES = {
    "beyond a float": b'{"query": "{ version }", "max_concurrent": 1e999}',
    "NaN": b'{"query": "{ version }", "max_concurrent": NaN}',
    "Infinity": b'{"query": "{ version }", "variables": {"x": -Infinity}, "tables": -Infinity}',
    "surrogate": b'{"query": "{ version }", "variables": {"x": "\\ud800"}, "tables": ["\\ud800"]}',
    "surrogate as a name": b'{"query": "{ version }", "variables": {"\\udc00": 1}, "\\udc00": 1}',
    "bytes of no text": b'{"query": "\xff", "tables": ["\xff"]}',
    "surrogate in bytes": b'{"query": "\xed\xa0\x80", "tables": ["\xed\xa0\x80"]}',
    "UTF-16": '{"query": "{ version }"}'.encode("utf-16"),
    "deep": b"[" * 50_000,
    "long number": b'{"query": "{ version }", "max_concurrent": ' + b"9" * 5000 + b"}",
    "cut": b'{"query": ',
}


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    """An API without PostgreSQL and without Dagster. It can only refuse what it refuses before it asks them."""
    settings = Settings(
        database_url=SecretStr("postgresql://127.0.0.1:1/none"),
        dagster_graphql_url=f"{NOWHERE}/graphql",
        bigquery_emulator_host=NOWHERE,
        api_tokens=SecretStr(str(TOKEN)),
    )
    with ApiServer(settings) as server:
        yield server


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("route", ROUTES)
def test_what_is_no_json_is_the_caller_s_fault(api: ApiServer, route: str, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    answer = api.call("POST", route, SECRET, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert "JSON" in answer.json()["detail"]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("route", ROUTES)
def test_a_body_that_breaks_off_leaves_no_trace(api: ApiServer, route: str, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"POST {route} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Authorization: Bearer {SECRET}"]
    head = "\r\n".join([*lines, "Content-Length: 1000", "", ""]).encode()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", api.port)) as one:
            one.sendall(head + b'{"query": ')
            time.sleep(0.1)
    time.sleep(0.5)
    assert api.call("GET", "/api/v1/etl/health?live=true").status_code == 200
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


class Answer:
    """Sends a GraphQL request to the door without a server, and keeps the answer."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.status = 0
        headers = {"host": "127.0.0.1:3000", "content-type": "application/json", "authorization": f"Bearer {SECRET}"}
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/graphql",
            "query_string": b"",
            "client": ("127.0.0.1", 1),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        door = Door(None, AccessSettings(api_tokens=SecretStr(str(TOKEN))))  # type: ignore[arg-type]
        asyncio.run(door(scope, self.receive, self.send))

    async def receive(self) -> Message:
        return self.messages.pop(0)

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_door_of_dagster_s_ui_says_so_too(body: bytes, tmp_path: Path) -> None:
    assert Answer([{"type": "http.request", "body": body, "more_body": False}]).status == 400


def test_the_door_bears_a_body_that_breaks_off() -> None:
    assert Answer([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]).status == 400
