"""Dagster's run queue where there are tenants: every run carries the tag of its tenant, however it was launched.

Jobs, sensors, schedules, the HTTP API and the command line tag their runs themselves. A launch of chosen assets, or a back-fill, in
Dagster's UI or GraphQL tags nothing: there the queue takes the tenant from the assets. `deploy/dagster.tenants.yaml` names this
class and sets the limits that go by its tags.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dagster import AssetKey, DagsterInvariantViolationError, DagsterRun
from dagster._core.definitions.assets.graph.remote_asset_graph import RemoteAssetGraph
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage.tags import BACKFILL_ID_TAG

TENANT_TAG = "pulso_etl/tenant"
"""Tag of a tenant's assets and runs."""
TENANT_BACKFILL_TAG = "pulso_etl/tenant_backfill"
"""Run tag: the tenant whose back-fill the run is part of."""
WHOLE_GRAPH = "__ASSET_JOB"
"""Dagster's own job, which holds every asset."""


class TenantRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue, which adds the tenant's tags to runs of its assets, and refuses runs over several tenants."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Raises DagsterInvariantViolationError, which Dagster shows to whoever launches, for a run over several tenants."""
        run = context.dagster_run
        tenant = run.tags.get(TENANT_TAG) or self._tenant(context)
        if tenant:
            tags = {TENANT_TAG: tenant} | ({TENANT_BACKFILL_TAG: tenant} if BACKFILL_ID_TAG in run.tags else {})
            self._instance.add_run_tags(run.run_id, tags)
        return super().submit_run(context)

    def _tenant(self, context: SubmitRunContext) -> str | None:
        run, graph = context.dagster_run, context.workspace.asset_graph
        chosen = {*(run.asset_selection or ()), *(check.asset_key for check in run.asset_check_selection or ())}
        if not chosen and run.job_name.startswith(WHOLE_GRAPH):
            chosen = set(graph.materializable_asset_keys)
        tenants = sorted(tenants_of(graph, chosen))
        if len(tenants) > 1:
            raise DagsterInvariantViolationError(f"a run is of one tenant; choose the assets of one of {', '.join(tenants)}")
        return tenants[0] if tenants else None


def tenants_of(graph: RemoteAssetGraph[Any], keys: Iterable[AssetKey]) -> set[str]:
    """The tenants whose assets these are."""
    return {tag for key in keys if graph.has(key) and (tag := graph.get(key).tags.get(TENANT_TAG))}
