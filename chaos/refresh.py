"""A refresh as in production, but with shorter waits: tenths of seconds instead of seconds."""

from __future__ import annotations

import dagster as dg

from pulso_etl.assets import RetryUnlessInterrupted
from pulso_etl.definitions import build_defs, build_resources
from pulso_etl.refreshing.execution import Outcome, run_plan
from pulso_etl.refreshing.plan import RefreshPlan
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.spec import TableSpec

PATIENCE = {"retry_initial_seconds": 0.02, "retry_timeout_seconds": 1.0, "request_timeout_seconds": 5.0}
SILENT = {"log_level": "CRITICAL", "events": False}


def refresh(settings: Settings, spec: TableSpec, window: DayRange, *, retries: int) -> Outcome:
    """Refreshes these days of the table through Dagster, with `retries` further attempts of the step."""
    source = build_resources(settings)["bigquery"]
    impatient = type(source)(**{**source.model_dump(), **PATIENCE})
    policy = RetryUnlessInterrupted(max_retries=retries, delay=0.05)
    defs = build_defs(settings, resource_overrides={"bigquery": impatient}, retries=policy)
    with dg.DagsterInstance.ephemeral() as instance:
        return run_plan(defs, instance, spec, RefreshPlan(spec.name, window, "chaos"), logger=SILENT)
