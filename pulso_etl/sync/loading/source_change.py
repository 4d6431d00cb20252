"""When the source changed in a way that a load is the first to read: from then on the table's readers wait for fresh rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime

from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.source_state import SourceState


def source_change(before: Mapping[date, Day], state: SourceState | None, announced_at: datetime | None) -> datetime | None:
    """The instant (with zone) of the newest change that the load is the first to read; None if there is none, or none is known.

    `before` has the days of the window that were read before. The source's `state` tells the instant; without a signal, somebody
    may have announced it. A change counts if it is later than the last reading of a day that was in another state. Pure.
    """
    at = announced_at if state is None else state.changed_at
    if at is None:
        return None
    waited = [day for day in before.values() if day.at < at and (state is None or day.source != state.digest)]
    return at if waited else None
