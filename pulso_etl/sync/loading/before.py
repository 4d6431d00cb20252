"""What the table held of each day before a load.

The server needs a tenth of a second to look at a million rows. So a load does not wait: it begins to read its source, and the
server looks meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import date

from pulso_etl.sync.ledger.traces import Trace


@dataclass(frozen=True)
class Days:
    """`held`: how many rows the table holds of each day of the window, days without rows left out. `intact`: the traces of the days
    whose rows are as the load of the trace left them."""

    held: Mapping[date, int]
    intact: Mapping[date, Trace] = field(default_factory=dict)


class Before:
    """The days as a load found them. `ask` asks the server."""

    def __init__(self, ask: Callable[[], Days]) -> None:
        self._ask = ask
        self._answer: Future[Days] = Future()

    def days(self) -> Days:
        """The days; it asks the server the first time. Only the thread that uses the load's connection calls it."""
        if not self._answer.done():
            try:
                self._answer.set_result(self._ask())
            except BaseException as error:
                # Another thread may wait for the answer.
                self._answer.set_exception(error)
                raise
        return self._answer.result()

    def wait(self) -> Days:
        """The days, once the other thread has them. Raises that thread's error."""
        return self._answer.result()
