"""Limits of waiting: gives up work, and cuts connections, after some seconds."""

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
"""A tick ends after this time, even if a server does not answer. After a minute, Dagster would report only a time-out."""
CONNECT_SECONDS = 3
"""Seconds that a tick gives PostgreSQL to accept a connection."""


def within(seconds: float, work: Callable[[], Found]) -> Found:
    """The result of the work. Raises its errors, and TimeoutError after `seconds`; the work goes on, but its result is lost."""
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
    """Cuts the connection after `seconds` if the block has not ended. A statement that waits in it then raises OperationalError.

    Only this helps against a server that accepts requests and never answers: the other time-outs run on that server itself.
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
