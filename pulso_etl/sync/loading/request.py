"""The request for a load: its days, its source and its writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal

import pyarrow as pa

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.changes import Changes
from pulso_etl.sync.ledger.traces import Trace
from pulso_etl.sync.source_state import SourceState

PlanName = Literal["direct", "merge", "changes"]
Open = Callable[[], AbstractContextManager[pa.RecordBatchReader]]


@dataclass(frozen=True)
class Past:
    """The days before those of a load.

    `first_day` is the first day that the source is asked for. `read` reads such days; it is None if the source can't read them.
    """

    first_day: date = date.min
    read: Callable[[DayRange], AbstractContextManager[pa.RecordBatchReader]] | None = None


NO_PAST = Past()


@dataclass(frozen=True)
class Source:
    """Where the rows of a load come from.

    `open` opens the stream of rows. `repeatable`: the stream can be opened again, so a fault that a direct copy finds is
    reported in full, or quarantined, by a merge. `captured`: the stream holds only the rows that changed, with the column
    DELETED; rows of other keys stay as they are. `past`: the days before the window, for a table with `snapshot_of` whose newest
    snapshot may be there. `read_at`: the instant (with zone) at which the rows were read; None if the load reads them itself.
    `state`: what the source was like just before; None if it does not tell all changes. `announced_at`: when the source was updated
    (with zone), if somebody has announced it.
    """

    open: Open
    repeatable: bool = True
    captured: bool = False
    past: Past = NO_PAST
    read_at: datetime | None = None
    state: SourceState | None = None
    announced_at: datetime | None = None


@dataclass(frozen=True)
class Writer:
    """Who writes.

    `run_id` is stored with the rows that the load quarantines. `work_mem_mb` is the server's work memory in MiB. `sole`: this
    writer keeps every other writer out of the table. If it is false, this writer has locked the window's days, and other writers
    may load other days. `changes`: the log that records what the load changes; None records nothing.
    """

    run_id: str = ""
    work_mem_mb: int = 256
    sole: bool = True
    changes: Changes | None = None


@dataclass(frozen=True)
class LoadRequest:
    """A load of the days of `window`. `last`: the traces of earlier loads; a day without a trace is compared with the table.

    `allow_shrink` allows the load to delete more rows than the table's guard allows. `plan` names the plan to use; None leaves
    the choice to the load.
    """

    window: DayRange
    source: Source
    writer: Writer = field(default_factory=Writer)
    allow_shrink: bool = False
    plan: PlanName | None = None
    last: Mapping[date, Trace] = field(default_factory=dict)

    @property
    def bounds(self) -> dict[str, date]:
        """The first and the last day, as the parameters of the load's statements."""
        return {"start": self.window.start, "end": self.window.end}
