"""The shapes of what `preview` tells. Who shows them needs no client of BigQuery."""

from __future__ import annotations

from datetime import date

from pydantic import AwareDatetime, BaseModel, ConfigDict

from pulso_etl.refreshing.period import Period
from pulso_etl.sync.reasons import Ground, Reason


class DaysToRead(BaseModel):
    """Days in a row that would be read for the same reason; both ends are included."""

    model_config = ConfigDict(frozen=True)

    start: date
    end: date
    ground: Ground
    why: str
    """The reason for people."""

    @classmethod
    def of(cls, reason: Reason) -> DaysToRead:
        return cls(start=reason.days.start, end=reason.days.end, ground=reason.ground, why=reason.why)


class WhatIsRead(BaseModel):
    """What a refresh reads. Nothing is read if `days` is empty."""

    model_config = ConfigDict(frozen=True)

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
    reads_with: str | None = None
    """The table whose query gives these rows too, because one launch reads both. The bytes are counted there, and are 0 here."""


class RefreshOnChange(WhatIsRead):
    """A refresh that follows by itself though the table is not due, because its source has changed. The refresh sensor asks for it
    at its first look from `at` on, if the source does not change again."""

    at: AwareDatetime
    changed_at: AwareDatetime | None
    """The newest change at the source; null if the source does not tell."""
    settles_at: AwareDatetime | None
    """Until then the source must be quiet; null if it has been quiet for long enough."""
    least_interval_until: AwareDatetime | None
    """Until then the table's last load is too recent; null if it is not."""
    why: str
    """The same for people, in the time zone of the table."""


class TablePreview(WhatIsRead):
    """What would happen to one table now; `reason` tells why. Nothing would be read if `days` is empty."""

    table: str
    reason: str
    on_change: RefreshOnChange | None = None
    """What the refresh sensor will do about the table by itself; null if the table is due, or its source has not changed."""


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
