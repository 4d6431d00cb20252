"""The stream of a source behind the budget."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import pyarrow as pa

from pulso_etl.refreshing.budget import QueryBudget
from pulso_etl.refreshing.request import NO_GRANTS, Grants
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.source_state import SourceState
from pulso_etl.sync.streams import ChangeStream, ObservedStream, PastStream


class SourceStream(ChangeStream, ObservedStream, PastStream, Protocol):
    """The kind of stream that a source yields."""


@dataclass(frozen=True)
class AdmittedStream:
    """A SourceStream that checks the budget before each query; a run with the grant `force` passes the check."""

    stream: SourceStream
    budget: QueryBudget
    grants: Grants = NO_GRANTS

    @property
    def metadata(self) -> dict[str, Any]:
        return self.stream.metadata

    @property
    def computed_at(self) -> datetime | None:
        return self.stream.computed_at

    def look(self, kept: Collection[str] = ()) -> SourceState | None:
        return self.stream.look(kept)

    def open(self) -> AbstractContextManager[pa.RecordBatchReader]:
        """Raises BudgetExceeded, or what the stream raises."""
        self.budget.admit(self.grants)
        return self.stream.open()

    def read_past(self, days: DayRange) -> AbstractContextManager[pa.RecordBatchReader]:
        """Raises BudgetExceeded, or what the stream raises."""
        self.budget.admit(self.grants)
        return self.stream.read_past(days)

    def capture(self, watermark: Watermark, written_at: datetime | None, now: datetime) -> datetime | None:
        """Raises BudgetExceeded, or what the stream raises."""
        self.budget.admit(self.grants)
        return self.stream.capture(watermark, written_at, now)

    def whole(self, reason: str) -> None:
        self.stream.whole(reason)
