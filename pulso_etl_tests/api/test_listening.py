"""What one who connects can take up of the server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import connect

from pulso_etl.api import listening

LIMIT = 1.5


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(await request.body())


async def chat(socket: WebSocket) -> None:
    await socket.accept()
    while True:
        await socket.send_text(await socket.receive_text())


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that listens as ours do, with shorter time-outs."""
    monkeypatch.setattr(listening, "REQUEST_SECONDS", LIMIT)
    app = Starlette(routes=[Route("/", echo, methods=["GET", "POST"]), WebSocketRoute("/chat", chat)])
    server = uvicorn.Server(listening.configuration(app, "127.0.0.1", 0))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(20)


@pytest.mark.parametrize(
    ("start", "drip"),
    [
        (b"", b""),
        (b"", b"\r\n"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X-a: b\r\n"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", b"x"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n", b"X-a: b\r\n"),
    ],
    ids=["silent", "empty lines", "headers", "body", "second request"],
)
def test_slow_requests_are_closed_in_time_while_others_go_on(port: int, start: bytes, drip: bytes) -> None:
    began, closed = time.monotonic(), 0
    with ExitStack() as stack, httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(50)]
        for one in slow:
            one.sendall(start)
            one.setblocking(False)
        while closed < len(slow):
            assert time.monotonic() - began < LIMIT + 15, f"{len(slow) - closed} slow connections are still open"
            assert client.post("/", content=b"quick").text == "quick"
            closed = sum(_is_closed(one, drip) for one in slow)
            time.sleep(0.1)
        assert client.post("/", content=b"quick").text == "quick"
    assert time.monotonic() - began > LIMIT / 2


def _is_closed(one: socket.socket, drip: bytes) -> bool:
    try:
        if drip:
            one.sendall(drip)
        while one.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def test_who_asks_in_time_is_not_cut_off(port: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", port))) as one, connect(f"ws://127.0.0.1:{port}/chat", proxy=None) as chat:
        for _ in range(6):
            # Two at once, on a connection that is kept.
            one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
            answer = b""
            while answer.count(b"HTTP/1.1 200 OK") < 2:
                piece = one.recv(4096)
                assert piece
                answer += piece
            chat.send("still here")
            assert chat.recv(5) == "still here"
            time.sleep(LIMIT / 3)
