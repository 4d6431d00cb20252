"""Dagster's run queue, as `dagster.yaml` names it: age counts in its order, and an outage ends no run in it and no back-fill.

Where there are tenants, every run carries the tag of its tenant, however it was launched. Jobs, sensors, schedules, the HTTP API
and the command line tag their runs themselves. A launch of chosen assets, or a back-fill, in Dagster's UI or GraphQL tags nothing:
there the queue takes the tenant from the assets. `deploy/dagster.tenants.yaml` sets the limits that go by its tags.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from dagster import AssetKey, DagsterInvariantViolationError, DagsterRun
from dagster._core.definitions.assets.graph.remote_asset_graph import RemoteAssetGraph
from dagster._core.errors import (
    DagsterAssetBackfillDataLoadError,
    DagsterCodeLocationLoadError,
    DagsterDefinitionChangedDeserializationError,
    DagsterUserCodeUnreachableError,
)
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage.tags import BACKFILL_ID_TAG, PRIORITY_TAG
from sqlalchemy.exc import DBAPIError

from pulso_etl.access.permits import WHOLE_GRAPH, fault_of_run
from pulso_etl.sync.tags import QUEUED_TAG, SOURCE_TAG, TENANT_BACKFILL_TAG, TENANT_TAG

log = logging.getLogger(__name__)
Given = ParamSpec("Given")
Found = TypeVar("Found")
HEAD_START_SECONDS = 6
"""A run leaves the queue before those of a priority lower by one that came so much earlier, and after all that came before them."""
BACKFILL_LOOKS = 20
"""Looks at a back-fill, 30 seconds apart, that may meet an outage in a row before it fails."""
CODE_MISSING = (DagsterDefinitionChangedDeserializationError, DagsterAssetBackfillDataLoadError)
"""What Dagster's look at a back-fill raises while its assets are not known, as when their code server can't be reached."""
RETRY_WAIT_SECONDS = 5.0
"""How long a failed run that is to be launched again waits for its code server, or for Dagster's storage, until the next try."""
RETRY_TRIES = 720
"""Tries of that before Dagster gives it up: an hour."""
AWAY = (DagsterUserCodeUnreachableError, DagsterCodeLocationLoadError, DBAPIError, OSError)
"""What the launch of a failed run raises while code server or storage are away; all else is no matter of waiting."""


class PulsoRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue, whose order goes by age and head start: no run waits for ever behind others of a greater priority."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _count_what_may_go()
        _let_runs_wait()
        _let_retries_wait()
        _let_backfills_wait()

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """The run once it is in the queue. Raises DagsterInvariantViolationError, which Dagster shows to whoever launches."""
        run = context.dagster_run
        parent = self._instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
        if (fault := fault_of_run(run.tags, run.run_config, parent.tags if parent else {})) is not None:
            raise DagsterInvariantViolationError(fault)
        # Who launches by hand can't tag a run as one that queries BigQuery.
        tags = {} if SOURCE_TAG in run.tags else {SOURCE_TAG: "bigquery"}
        if QUEUED_TAG not in run.tags:
            tags |= queue_tags(run.tags, int(time.time()))
        self._instance.add_run_tags(run.run_id, tags)
        return super().submit_run(context)


def queue_tags(tags: Mapping[str, str], now: int) -> dict[str, str]:
    """The tags that put a run in its place in the queue; `now` is seconds since 1970.

    Dagster takes the greatest priority first. So that age counts, it is that of a run's time: the earlier, the greater.
    """
    try:
        priority = int(tags.get(PRIORITY_TAG, "0"))
    except ValueError:
        # As Dagster reads it.
        priority = 0
    return {QUEUED_TAG: str(now), PRIORITY_TAG: str(priority * HEAD_START_SECONDS - now)}


def _count_what_may_go() -> None:
    """Lets a queued run that its table's pool keeps waiting take no place of those that a tag's limit gives.

    Dagster counts it, although it is not launched: while one table is loaded, its next run in the queue would keep every other
    table waiting, where the limit has one place left.
    """
    from dagster._core.op_concurrency_limits_counter import GlobalOpConcurrencyLimitsCounter as Pools
    from dagster._daemon.run_coordinator import queued_run_coordinator_daemon as queue
    from dagster._utils.tags import TagConcurrencyLimitsCounter as Places

    counting = threading.local()

    class OurPlaces(Places):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            counting.places = self

        def uncount(self, run: DagsterRun) -> None:
            for key, value in run.tags.items():
                if key in self._key_limits:
                    self._key_counts[key] -= 1
                if (key, value) in self._key_value_limits:
                    self._key_value_counts[key, value] -= 1
                if key in self._unique_value_limits:
                    self._unique_value_counts[key, value] -= 1

    class OurPools(Pools):
        def is_blocked(self, run: DagsterRun) -> bool:
            if blocked := super().is_blocked(run):
                counting.places.uncount(run)
            return bool(blocked)

    queue.TagConcurrencyLimitsCounter = OurPlaces  # type: ignore[attr-defined,misc,assignment]
    queue.GlobalOpConcurrencyLimitsCounter = OurPools  # type: ignore[attr-defined,misc,assignment]


def _let_runs_wait() -> None:
    """Lets a run that could not be launched go back into the queue, whatever kept it from that.

    Dagster does so where the code server can't be reached. A code server that is just stopping, one that meets an outage of
    Dagster's storage, and a broker or a cluster that is away raise other errors, and Dagster drops the run. The queue tries
    each run `max_user_code_failure_retries` times, and then says why it is failed.
    """
    from dagster._daemon.run_coordinator import queued_run_coordinator_daemon as queue

    queue.DagsterCodeLocationLoadError = Exception  # type: ignore[attr-defined,misc,assignment]


def _let_retries_wait() -> None:
    """Lets the launch of a failed run wait for what it needs; without it Dagster tries it once, and never again."""
    from dagster._daemon.auto_run_reexecution import auto_run_reexecution as retries

    retries.should_retry = _patient(retries.should_retry)
    retries.retry_run = _patient(retries.retry_run)


def _patient(work: Callable[Given, Found]) -> Callable[Given, Found]:
    """The work, which Dagster makes safe to repeat, tried until it succeeds. Raises what the last try raises."""
    if hasattr(work, "__wrapped__"):
        return work

    @wraps(work)
    def tried(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        for _ in range(RETRY_TRIES - 1):
            try:
                return work(*args, **kwargs)
            except AWAY as error:
                log.warning("%s: tried again in %g s: %s", work.__name__, RETRY_WAIT_SECONDS, type(error).__name__)
                time.sleep(RETRY_WAIT_SECONDS)
        return work(*args, **kwargs)

    return tried


def _let_backfills_wait() -> None:
    """Lets the daemon's back-fills wait until their code is there again.

    Dagster repeats a look at a back-fill that can't reach the code server. Where a reload of the workspace found no code server,
    the assets are not known at all. Dagster takes them for deleted then, and fails the back-fill for good; no setting changes that.
    """
    # Imported here: only the daemon and the webserver have the queue, and everything else is spared the seconds.
    from dagster._daemon import backfill

    os.environ.setdefault("DAGSTER_MAX_BACKFILL_RETRIES", str(BACKFILL_LOOKS))
    passes = backfill._is_retryable_backfill_error

    def waits(e: Exception) -> bool:
        return isinstance(e, CODE_MISSING) or passes(e)

    backfill._is_retryable_backfill_error = waits


class TenantRunCoordinator(PulsoRunCoordinator):
    """The queue, which also adds the tenant's tags to runs of its assets, and refuses runs over several tenants."""

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
