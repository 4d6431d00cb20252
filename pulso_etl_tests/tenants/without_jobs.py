"""The deployment's definitions as they are with very many tables: all that is launched is a selection of Dagster's own job."""

from __future__ import annotations

from pulso_etl.automation import jobs

jobs.MOST_TABLES_WITH_JOBS = 0

from pulso_etl.definitions import defs as defs  # noqa: E402  built by the number above
