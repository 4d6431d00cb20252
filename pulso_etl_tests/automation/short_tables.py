"""Two tables of the deployment that are due every minute, for tests of the daemon."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from pulso_etl.definitions import build_defs
from pulso_etl.settings import load_settings
from pulso_etl.tables import TABLES
from pulso_etl_tests.declarations import altered

SHORT = {name: altered(TABLES[name], refresh_every=timedelta(minutes=1)) for name in ("dashboard_data", "productivity_data")}


@dg.definitions
def defs() -> dg.Definitions:
    return build_defs(load_settings(), tables=SHORT)
