"""The request to refresh tables. All callers use this form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any

from pulso_etl.sync.tags import ALLOW_SHRINK_TAG, CAPTURE_TAG, COMPARE_TAG, FORCE_TAG


class Mode(StrEnum):
    """How the range of a refresh is found."""

    INCREMENTAL = "incremental"
    SLIDING_WINDOW = "sliding_window"
    FULL_REFRESH = "full_refresh"


@dataclass(frozen=True)
class Grants:
    """Permissions that a request gives to its refresh.

    `force`: it refreshes fresh tables too, goes on when the day's budget is spent, and compares every day with the table.
    `allow_shrink`: it may delete more rows than the table's guard allows. `capture`: it may read only the changes instead of the
    whole window. `compare`: it compares every day with the table, also a day that is as it was at its last load.
    """

    force: bool = False
    allow_shrink: bool = False
    capture: bool = False
    compare: bool = False

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> Grants:
        """What the tags of a run grant it."""
        return cls(*(tags.get(tag) == "true" for tag in (FORCE_TAG, ALLOW_SHRINK_TAG, CAPTURE_TAG, COMPARE_TAG)))

    @property
    def tags(self) -> dict[str, str]:
        """The tags that grant it to a run."""
        granted = {
            FORCE_TAG: self.force,
            ALLOW_SHRINK_TAG: self.allow_shrink,
            CAPTURE_TAG: self.capture,
            COMPARE_TAG: self.compare,
        }
        return {tag: "true" for tag, given in granted.items() if given}


NO_GRANTS = Grants()


@dataclass(frozen=True)
class RefreshRequest:
    """Which tables to refresh, over which days, with which grants, and who asks.

    The days follow from `start` and `end` if one is given, else from the `mode`; `days` is how many days a sliding window has.
    `announced_at`: when the source was updated (with zone), if the request follows from such an announcement.
    `max_concurrent` is how many of the runs may go on at the same time. `asked_by` is a name for people; empty if no person asks.
    """

    tables: tuple[str, ...] = ()
    mode: Mode = Mode.INCREMENTAL
    days: int | None = None
    start: date | None = None
    end: date | None = None
    grants: Grants = NO_GRANTS
    max_concurrent: int = 2
    asked_by: str = ""
    announced_at: datetime | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it only asks for up-to-date tables. A run that goes on may already do this."""
        return self.mode is Mode.INCREMENTAL and not (self.grants.force or self.start or self.end)

    def as_json(self) -> dict[str, Any]:
        """The request without who asks, as types of JSON."""
        return {
            "tables": list(self.tables),
            "mode": str(self.mode),
            "force": self.grants.force,
            "days": self.days,
            "start": str(self.start) if self.start else None,
            "end": str(self.end) if self.end else None,
            "max_concurrent": self.max_concurrent,
        }

    @property
    def fingerprint(self) -> str:
        """A text that is equal for equal requests. The order of tables does not matter."""
        told = json.dumps(self.as_json() | {"tables": sorted(self.tables)}, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()
