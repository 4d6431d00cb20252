"""The five tables, due every four minutes, and a nightly re-check every three minutes."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from pulso_etl.automation import schedules
from pulso_etl.definitions import build_defs
from pulso_etl.settings import load_settings
from pulso_etl.tables import TABLES

SHORT = {
    name: spec.model_copy(update={"schedule": spec.schedule.model_copy(update={"refresh_every": timedelta(minutes=4)})})
    for name, spec in TABLES.items()
}
schedules.NIGHTLY = "*/3 * * * *"


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions of the soak."""
    return build_defs(load_settings(), tables=SHORT)
