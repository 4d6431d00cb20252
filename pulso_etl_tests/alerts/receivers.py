"""Receivers of alerts on loopback: an SMTP server and an HTTP server, both real."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from pydantic import SecretStr

from pulso_etl.settings import Settings
from pulso_etl_tests.serving import serving


@dataclass
class Inbox:
    """The messages that an SMTP server received. It refuses all recipients while `refuse` is true."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    refuse: bool = False

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if self.refuse:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.recipients += envelope.rcpt_tos
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 OK"


@dataclass
class Receiver:
    """The requests that an HTTP server received, as (path, JSON body). `status` and `delay` (seconds) say how it answers."""

    port: int = 0
    posts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    status: int = 200
    delay: float = 0
    before_answer: Callable[[], None] = lambda: None

    def titles(self) -> list[str]:
        return [body["title"] for _, body in self.posts]


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        inbox = Inbox(probe.getsockname()[1])
    controller = Controller(inbox, hostname="127.0.0.1", port=inbox.port)
    controller.start()
    yield inbox
    controller.stop()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.posts.append((self.path, json.loads(body)))
            receiver.before_answer()
            time.sleep(receiver.delay)
            # The sender may have given up and closed the connection.
            with suppress(ConnectionError):
                self.send_response(receiver.status)
                self.end_headers()
                self.wfile.write(b"ok")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.port = server.server_port
    with serving(server):
        yield receiver


MakeSettings = Callable[..., Settings]


@pytest.fixture
def make_settings(server_url: str, schema: str) -> MakeSettings:
    """Settings on the session's PostgreSQL, with the given ALERT_URLS and other given fields."""

    def make(urls: str = "", **others: Any) -> Settings:
        given: dict[str, Any] = {"database_url": SecretStr(server_url), "database_schema": schema, "alert_urls": SecretStr(urls)}
        return Settings(**(given | others))

    return make
