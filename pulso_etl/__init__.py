"""Pulso ETL: five PostgreSQL tables kept equal to what BigQuery says, as a Dagster asset graph."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pulso_etl.memory import return_what_is_freed

if TYPE_CHECKING:
    from pulso_etl.calls import TableStatus, plan, query, read, refresh, status
    from pulso_etl.components import SyncedTable
    from pulso_etl.refreshing.execution import Outcome

__all__ = ["Outcome", "SyncedTable", "TableStatus", "plan", "query", "read", "refresh", "status"]

# A run makes an event a day, and Dagster stores them one by one unless this says how many together. It reads nothing else.
os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "500")
return_what_is_freed()


def __getattr__(name: str) -> Any:
    # Every process imports this package, and only callers of these names need what they import.
    if name == "SyncedTable":
        from pulso_etl.components import SyncedTable

        return SyncedTable
    if name in __all__:
        from pulso_etl import calls

        return getattr(calls, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # Dagster's tools look for components among these names, and import what they find.
    return sorted({*globals(), "SyncedTable"})
