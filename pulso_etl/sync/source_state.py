"""What a source was like at one instant, as far as it tells without giving rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any


@dataclass(frozen=True)
class SourceState:
    """Facts about the source, as plain JSON, taken before its rows were read.

    Two states are compared for equality only: equal states mean that the source has the same rows. Which of two states is the
    older one is never asked.
    """

    facts: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """A short text that differs where the facts do."""
        return sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:32]
