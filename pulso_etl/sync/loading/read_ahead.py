"""Makes the next items of a stream while others take the earlier ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from queue import Empty, Queue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _End:
    error: BaseException | None = None


@contextmanager
def read_ahead(items: Iterator[Item], ahead: int) -> Iterator[Iterator[Item]]:
    """Makes the next items while others take the earlier ones. At most `ahead` items wait."""
    with in_turns(items, ahead, 1) as turns:
        yield chain.from_iterable(turns)


@contextmanager
def in_turns(items: Iterator[Item], ahead: int, at_once: int) -> Iterator[Iterator[list[Item]]]:
    """Each turn has the items that are ready, at least one and `at_once` at most. At most `ahead` of them wait.

    A thread makes the items. Nobody waits for that thread, because an interrupt must not wait for the source. An error of the
    thread is raised after the items before it.
    """
    ready: Queue[Item | _End] = Queue(ahead)
    wanted = True

    def make() -> None:
        try:
            for item in items:
                ready.put(item)
                if not wanted:
                    return
            ready.put(_End())
        except BaseException as error:
            ready.put(_End(error))

    def take() -> Iterator[list[Item]]:
        end: _End | None = None
        while end is None:
            turn, end = _turn(ready, at_once)
            if turn:
                yield turn
        if end.error is not None:
            raise end.error

    Thread(target=make, daemon=True).start()
    try:
        yield take()
    finally:
        wanted = False
        # The thread may wait for room in the queue. It gets room here, and ends.
        with suppress(Empty):
            while True:
                ready.get_nowait()


def _turn(ready: Queue[Item | _End], at_once: int) -> tuple[list[Item], _End | None]:
    """Takes what is ready. Nothing comes after the end."""
    turn: list[Item] = []
    with suppress(Empty):
        found = ready.get()
        while not isinstance(found, _End):
            turn.append(found)
            if len(turn) == at_once:
                return turn, None
            found = ready.get_nowait()
        return turn, found
    return turn, None
