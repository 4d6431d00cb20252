"""Dagster's run queue, named in `dagster.yaml`. Its order depends on age, and an outage ends no queued run and no back-fill.

With tenants, every run carries the tag of its tenant, however it was launched. Jobs, sensors, schedules, the HTTP API and the
command line tag their runs themselves. A launch of chosen assets, or a back-fill, in Dagster's UI or GraphQL tags nothing; then the
queue takes the tenant from the assets. `deploy/dagster.tenants.yaml` sets the limits for these tags.
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
from sqlalchemy.exc import DBAPIError

from pulso_etl.access.permits import WHOLE_GRAPH, fault_of_run
from pulso_etl.sync.tags import BACKFILL_ID_TAG, PRIORITY_TAG, QUEUED_TAG, SOURCE_TAG, TENANT_BACKFILL_TAG, TENANT_TAG

log = logging.getLogger(__name__)
Given = ParamSpec("Given")
Found = TypeVar("Found")
HEAD_START_SECONDS = 6
"""Each point of priority lets a run start before runs that came up to this much earlier."""
BACKFILL_LOOKS = 20
"""A back-fill fails after this many looks in a row, 30 seconds apart, that meet an outage."""
CODE_MISSING = (DagsterDefinitionChangedDeserializationError, DagsterAssetBackfillDataLoadError)
"""Dagster's look at a back-fill raises these while its assets are not known, for example while the code server is away."""
RETRY_WAIT_SECONDS = 5.0
"""Wait between two tries to launch a failed run again, while its code server or Dagster's storage is away."""
RETRY_TRIES = 720
"""Dagster gives up after this many tries: an hour."""
AWAY = (DagsterUserCodeUnreachableError, DagsterCodeLocationLoadError, DBAPIError, OSError)
"""The launch of a failed run raises these while code server or storage are away. Waiting does not help against other errors."""


class PulsoRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue, ordered by age and head start. So no run waits for ever behind runs of a higher priority."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _count_what_may_go()
        _let_runs_wait()
        _let_retries_wait()
        _let_backfills_wait()

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """The run once it is in the queue. Raises DagsterInvariantViolationError, which Dagster shows to the caller."""
        run = context.dagster_run
        parent = self._instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
        if (fault := fault_of_run(run.tags, run.run_config, parent.tags if parent else {})) is not None:
            raise DagsterInvariantViolationError(fault)
        # A launch by hand cannot give this tag, so the queue adds it.
        tags = {} if SOURCE_TAG in run.tags else {SOURCE_TAG: "bigquery"}
        if QUEUED_TAG not in run.tags:
            tags |= queue_tags(run.tags, int(time.time()))
        self._instance.add_run_tags(run.run_id, tags)
        return super().submit_run(context)


def queue_tags(tags: Mapping[str, str], now: int) -> dict[str, str]:
    """The tags that give a run its place in the queue. `now` is seconds since 1970.

    Dagster takes the highest priority first. To make age count, an earlier time gives a higher priority.
    """
    try:
        priority = int(tags.get(PRIORITY_TAG, "0"))
    except ValueError:
        # Dagster reads it the same way.
        priority = 0
    return {QUEUED_TAG: str(now), PRIORITY_TAG: str(priority * HEAD_START_SECONDS - now)}


def _count_what_may_go() -> None:
    """Stops a queued run that waits for its table's pool from taking a place of a tag's limit.

    Dagster counts such a run although it does not launch it. If the limit had one place left, the next run of a table that is being
    loaded would keep every other table waiting.
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

    queue.TagConcurrencyLimitsCounter = OurPlaces  # type: ignore[attr-defined,assignment]
    queue.GlobalOpConcurrencyLimitsCounter = OurPools  # type: ignore[attr-defined]


def _let_runs_wait() -> None:
    """Puts a run that could not be launched back into the queue, whatever the reason.

    Dagster does this only if the code server cannot be reached. Other errors make Dagster drop the run: a code server that is
    stopping or meets an outage of Dagster's storage, or a broker or cluster that is away. The queue tries each run
    `max_user_code_failure_retries` times, and then says why the run failed.
    """
    from dagster._daemon.run_coordinator import queued_run_coordinator_daemon as queue

    queue.DagsterCodeLocationLoadError = Exception  # type: ignore[attr-defined,assignment]


def _let_retries_wait() -> None:
    """Lets the new launch of a failed run wait for code server and storage. Dagster itself tries it only once."""
    from dagster._daemon.auto_run_reexecution import auto_run_reexecution as retries

    retries.should_retry = _patient(retries.should_retry)
    retries.retry_run = _patient(retries.retry_run)


def _patient(work: Callable[Given, Found]) -> Callable[Given, Found]:
    """Repeats the work until it succeeds; Dagster makes it safe to repeat. Raises the error of the last try."""
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
    """Lets the daemon's back-fills wait until their code is back.

    If a look at a back-fill cannot reach the code server, Dagster repeats it. But if a reload of the workspace found no code
    server, Dagster does not know the assets. It then takes them for deleted and fails the back-fill for good; no setting changes
    that.
    """
    # Imported here, because only the daemon and the webserver have the queue. Other processes save the seconds.
    from dagster._daemon import backfill

    os.environ.setdefault("DAGSTER_MAX_BACKFILL_RETRIES", str(BACKFILL_LOOKS))
    passes = backfill._is_retryable_backfill_error

    def waits(e: Exception) -> bool:
        return isinstance(e, CODE_MISSING) or passes(e)

    backfill._is_retryable_backfill_error = waits


class TenantRunCoordinator(PulsoRunCoordinator):
    """A queue that also adds the tenant's tags to runs of its assets, and refuses runs over several tenants."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Raises DagsterInvariantViolationError for a run over several tenants. Dagster shows it to the caller."""
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
            raise DagsterInvariantViolationError(f"a run belongs to one tenant; choose the assets of one of {', '.join(tenants)}")
        return tenants[0] if tenants else None


def tenants_of(graph: RemoteAssetGraph[Any], keys: Iterable[AssetKey]) -> set[str]:
    """The tenants that own these assets."""
    return {tag for key in keys if graph.has(key) and (tag := graph.get(key).tags.get(TENANT_TAG))}
