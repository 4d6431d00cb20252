"""What a source was like at one instant, as far as it tells without giving rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from typing import Any

PartitionStates = Mapping[str, Mapping[str, str]]
"""The states of partitions, by base table and partition id. They are compared for equality only."""


@dataclass(frozen=True)
class KeptPartitions:
    """The states of the partitions of one base table by their ids, and the instant (with zone) after which they were asked for.

    They tell nothing about days that were read before that instant. `facts`: what the base table was like just before; None if
    nobody has written it down.
    """

    at: datetime
    states: Mapping[str, str]
    facts: Any = None

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> KeptPartitions:
        """From its JSON."""
        return cls(datetime.fromisoformat(kept["at"]), kept["states"], kept.get("facts"))

    @property
    def as_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"at": self.at.isoformat(), "states": dict(self.states), "facts": self.facts}


@dataclass(frozen=True)
class SourceState:
    """Facts about the source, as plain JSON, taken before its rows were read. `facts["tables"]` has those of each base table.

    Two states are compared for equality only: equal states mean that the source has the same rows. Which of two states is the
    older one is never asked. `partitions`: the states of base tables' partitions at the same instant, if they were asked for; they
    are no part of the comparison of the whole. `changed_at` (with zone): when the newest change that led to the state happened, by
    the source's clock; None if it does not tell.
    """

    facts: Mapping[str, Any]
    partitions: PartitionStates = field(default_factory=dict, compare=False)
    changed_at: datetime | None = field(default=None, compare=False)

    @cached_property
    def digest(self) -> str:
        """A short text that differs where the facts do."""
        return sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:32]

    def kept_partitions(self, at: datetime) -> dict[str, KeptPartitions]:
        """The states of partitions by base table, to be kept. They were asked for after the instant `at` (with zone)."""
        facts = self.facts.get("tables", {})
        return {table: KeptPartitions(at, states, facts.get(table)) for table, states in self.partitions.items()}
