"""The Spanish texts for supervisors: one file, `words.json`, which alerts, the API and the page share.

It has an entry for each cause of a failure (`pulso_etl.sync.errors.Cause`), and an entry for each other state that alerts report
(`pulso_etl.alerts.incidents.State`). The page includes the file when it is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from json import loads
from typing import Literal

from pulso_etl.sync.errors import Cause

Severity = Literal["info", "success", "warning", "failure"]


@dataclass(frozen=True)
class Words:
    """The texts of a cause or state: its title, the title of its end, what happened, what happens next by itself, and what to do.

    `what` has whole sentences. `next` and `todo` continue a sentence after a colon.
    """

    title: str
    recovered: str
    what: str
    next: str
    todo: str
    severity: Severity = "failure"


def _read(section: str) -> Mapping[str, Words]:
    found = loads((files(__name__) / "words.json").read_text(encoding="utf-8"))[section]
    return {key: Words(**entry) for key, entry in found.items()}


CAUSES = _read("causes")
"""By `Cause`."""
STATES = _read("states")
"""By `alerts.incidents.State`."""


PLACES: Mapping[str, str] = loads((files(__name__) / "words.json").read_text(encoding="utf-8"))["places"]
"""Names of cities that are not written as in the name of their time zone."""


def place(timezone: str) -> str:
    """The place of a time zone for a Spanish sentence: "de Lima", "de Bogotá"; "UTC"."""
    city = timezone.rpartition("/")[2].replace("_", " ")
    return f"de {PLACES.get(city, city)}" if "/" in timezone else timezone


def title_of(cause: Cause) -> str:
    """The title of a failure with this cause."""
    return CAUSES[cause].title
