"""The shapes of what `preview` tells. Who shows them needs no client of BigQuery."""

from __future__ import annotations

from datetime import date
from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict

from pulso_etl.refreshing.budget import Period


class Ground(StrEnum):
    """Why a day would be read. The first that applies is told."""

    NEVER_LOADED = "never_loaded"
    ROWS_LOST = "rows_lost"
    CHANGED = "changed"
    OWED = "owed"
    LOOKBACK = "lookback"
    ASKED = "asked"


class DaysToRead(BaseModel):
    """Days in a row that would be read for the same reason; both ends are included."""

    model_config = ConfigDict(frozen=True)

    start: date
    end: date
    ground: Ground
    why: str
    """The reason for people."""


class TablePreview(BaseModel):
    """What would happen to one table. Nothing would be read if `days` is empty; `reason` tells why."""

    model_config = ConfigDict(frozen=True)

    table: str
    reason: str
    days: list[DaysToRead] = []
    days_to_read: int = 0
    days_verified: int = 0
    """Days of the range that need not be read, because the source reports that they have not changed."""
    bytes_read: int | None = None
    """By BigQuery's dry run of the statement; null if nothing would be read or BigQuery did not answer."""
    bytes_billed: int | None = None
    """At least 10 MiB for each table that the statement reads."""
    cost_usd: float | None = None
    """By the price on demand; null for an account that pays for slots, whose cost is known afterwards only."""
    fault: str | None = None
    """Why the load would fail, or why BigQuery told no size."""


class Limited(BaseModel):
    """A limit of the budget and what is used of it."""

    model_config = ConfigDict(frozen=True)

    period: Period
    text: str
    share: float


class Preview(BaseModel):
    """What an incremental refresh of the tables would do at the instant `at`."""

    model_config = ConfigDict(frozen=True)

    at: AwareDatetime
    tables: list[TablePreview]
    bytes_billed: int
    """The sum over the tables."""
    cost_usd: float | None
    budget: list[Limited] = []
