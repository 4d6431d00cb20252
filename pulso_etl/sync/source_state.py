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

    They tell nothing about days that were read before that instant.
    """

    at: datetime
    states: Mapping[str, str]

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> KeptPartitions:
        """From its JSON."""
        return cls(datetime.fromisoformat(kept["at"]), kept["states"])


def partitions_as_json(states: PartitionStates, at: datetime) -> dict[str, Any]:
    """The states as JSON, by base table; see `KeptPartitions`."""
    return {table: {"at": at.isoformat(), "states": dict(found)} for table, found in states.items()}


@dataclass(frozen=True)
class SourceState:
    """Facts about the source, as plain JSON, taken before its rows were read.

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
