"""Why a run reads its days, as the planner told it: the run carries it in a tag, and its attempt keeps it in the history."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.tags import BACKFILL_ID_TAG, REASONS_TAG

MOST_BYTES = 1800
"""The longest tag. Dagster's storage has an index over tags, which takes at most 2,704 bytes in PostgreSQL."""
MOST_RANGES = 12
LONGEST = 300
"""Characters of one text."""


class Ground(StrEnum):
    """Why a day is read. The first that applies is told."""

    NEVER_LOADED = "never_loaded"
    ROWS_LOST = "rows_lost"
    CHANGED = "changed"
    OWED = "owed"
    LOOKBACK = "lookback"
    ASKED = "asked"


@dataclass(frozen=True)
class Reason:
    """Why these days are read: `ground` for programs, `why` for people."""

    days: DayRange
    ground: Ground
    why: str

    def as_dict(self) -> dict[str, str]:
        return {"start": str(self.days.start), "end": str(self.days.end), "ground": self.ground.value, "why": self.why}


@dataclass(frozen=True)
class Reasons:
    """Why a run reads its days: the planner's sentence, and each range of days with its own reason, oldest first."""

    plan: str
    days: tuple[Reason, ...] = ()

    def as_metadata(self) -> dict[str, Any]:
        """As an attempt keeps it in the history."""
        return {"reason": self.plan, "reasons": [one.as_dict() for one in self.days]}

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, Any]) -> Reasons | None:
        """The reasons of an attempt in the history; None if its release did not keep them."""
        if "reason" not in metadata:
            return None
        days = (Reason(DayRange.parse(one["start"], one["end"]), Ground(one["ground"]), one["why"]) for one in metadata["reasons"])
        return cls(metadata["reason"], tuple(days))

    def as_tag(self) -> str:
        """The same as JSON of at most MOST_BYTES: if there are too many ranges, the oldest are told together."""
        for count in range(min(MOST_RANGES, len(self.days)), 0, -1):
            told = Reasons(self.plan[:LONGEST], tuple(_newest(self.days, count)))
            if len(text := told._as_json()) <= MOST_BYTES:
                return text
        return Reasons(self.plan[:LONGEST])._as_json()

    def _as_json(self) -> str:
        # Only ASCII, so that each character is a byte.
        rows = [[str(one.days.start), str(one.days.end), one.ground.value, one.why[:LONGEST]] for one in self.days]
        return json.dumps([self.plan, rows], separators=(",", ":"))

    @classmethod
    def of_run(cls, tags: Mapping[str, str], window: DayRange) -> Reasons:
        """The reasons in a run's tags, of the days of the window. Somebody asked for the days by hand if no plan gave any."""
        by_hand = "asked for by a back-fill" if BACKFILL_ID_TAG in tags else "asked for by hand"
        try:
            plan, rows = json.loads(tags.get(REASONS_TAG, ""))
            days = [Reason(DayRange.parse(start, end), Ground(ground), str(why)) for start, end, ground, why in rows]
        except (ValueError, TypeError):
            return cls(by_hand, (Reason(window, Ground.ASKED, by_hand),))
        inside = (one for one in days if one.days.overlaps(window))
        return cls(str(plan), tuple(Reason(_within(one.days, window), one.ground, one.why) for one in inside))


def _within(days: DayRange, window: DayRange) -> DayRange:
    return DayRange(max(days.start, window.start), min(days.end, window.end))


def _newest(days: Sequence[Reason], count: int) -> list[Reason]:
    """At most `count` ranges: the newest, and one for all that are older."""
    if len(days) <= count:
        return list(days)
    older, newest = days[: len(days) - count + 1], days[len(days) - count + 1 :]
    grounds = ", ".join(dict.fromkeys(one.ground.value.replace("_", " ") for one in older))
    together = DayRange(_first(older), max(one.days.end for one in older))
    return [Reason(together, older[0].ground, f"{len(older)} ranges of days: {grounds}"), *newest]


def _first(days: Sequence[Reason]) -> date:
    return min(one.days.start for one in days)
