"""How long we wait: work that is given up, and connections that are cut, after some seconds."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from threading import Thread, Timer
from typing import TypeVar

import psycopg

Found = TypeVar("Found")
TICK_SECONDS = 8.0
"""A tick ends after so long, whatever is away: Dagster gives it a minute, and then says nothing but that the time is over."""
CONNECT_SECONDS = 3
"""What a tick gives PostgreSQL to take a connection."""


def within(seconds: float, work: Callable[[], Found]) -> Found:
    """What the work returns. Raises what it raises, and TimeoutError after so many seconds; the work then goes on unheard."""
    outcome: Future[Found] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True, name=f"within {seconds:g} s").start()
    return outcome.result(seconds)


@contextmanager
def cut_after(seconds: float, conn: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """The connection, cut after so many seconds if the block has not ended: then what waits in it raises OperationalError.

    A server that takes what it is sent, and never answers, is found out by nothing else: the time-outs of its own are the server's.
    """

    def cut() -> None:
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.fileno())) as wire:
            wire.shutdown(socket.SHUT_RDWR)

    timer = Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield conn
    finally:
        timer.cancel()
