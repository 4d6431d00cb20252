"""What somebody wants undone, and the names of undoings in the history. Who asks for them does not need the code that undoes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

PREFIX = "undo-"
"""The beginning of the run id of an undoing, which is no run of Dagster."""

LONGEST_HOLD = 720
"""How many hours only people may refresh a table after an undoing, at most."""


@dataclass(frozen=True)
class Wish:
    """What somebody wants undone: the load of a number, or the last load that is not undone (None).

    `hold`: how long only people refresh the table afterwards; None for as long as its refresh frequency. `by`: who asked.
    """

    load_id: int | None = None
    hold: timedelta | None = None
    by: str = ""


def is_undoing(run_id: str | None) -> bool:
    """Whether the id is the one of an undoing, and not the one of a run of Dagster."""
    return run_id is not None and run_id.startswith(PREFIX)
