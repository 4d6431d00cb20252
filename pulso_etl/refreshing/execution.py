"""Runs in this process, for the command line. They are planned and recorded as all runs are, and the caller waits for them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.execution.plan.objects import ErrorSource

from pulso_etl.refreshing.keys import assets_of, checks_of
from pulso_etl.refreshing.launch import Launch
from pulso_etl.refreshing.plan import RefreshPlan
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.tags import PROCESS_TAG

DAGSTERS_OWN = ("Dagster", "RetryRequested")
"""Dagster wraps the error of a step in errors whose names begin like this."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one table's run. Seconds are wall-clock; cost is in US dollars.

    `owed` are the days that hold the watermark back; empty if it moved. `warnings` are the failed checks that did not stop the run,
    each with the reason.
    """

    table: str
    window: DayRange | None
    reason: str
    run_id: str | None = None
    error: str | None = None
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    bytes_billed: int = 0
    cost: float = 0.0
    owed: str = ""
    warnings: tuple[str, ...] = ()


def run_plan(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    spec: TableSpec,
    plan: RefreshPlan,
    process: str | None = None,
    logger: Mapping[str, Any] | None = None,
) -> Outcome:
    """Materializes the plan's window in one run, and waits. An error of the run is in the outcome, not raised.

    `process` is the name under which `presence` shows that this one lives.
    `logger` is the configuration of `lines.run_logger`. Raises KeyboardInterrupt if an interrupt or SIGTERM ended the run.
    """
    if plan.window is None:
        return Outcome(plan.table, None, plan.reason)
    began = time.perf_counter()
    launch = Launch.of(spec, plan, {PROCESS_TAG: process} if process else {})
    result = _execute(defs, instance, launch, logger)
    seconds = time.perf_counter() - began
    if not result.success:
        return Outcome(plan.table, plan.window, plan.reason, result.run_id, failure_reason(result), seconds)
    metadata: list[dict[str, Any]] = [
        {key: value.value for key, value in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
    ]
    return Outcome(
        plan.table,
        plan.window,
        plan.reason,
        result.run_id,
        None,
        seconds,
        _sums(metadata),
        # One query served all partitions, so each partition has the bytes of the whole query.
        max((int(m.get("bytes_billed") or 0) for m in metadata), default=0),
        max((float(m.get("estimated_cost_usd") or 0) for m in metadata), default=0.0),
        next((str(m["days_owed"]) for m in metadata if "days_owed" in m), ""),
        tuple(
            f"check {told.check_name} failed: {told.description or 'see its page in Dagster'}"
            for told in result.get_asset_check_evaluations()
            if not told.passed
        ),
    )


def _execute(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    launch: Launch,
    logger: Mapping[str, Any] | None,
) -> dg.ExecuteInProcessResult:
    # execute_in_process has an asset_selection of its own, which would add every check of the assets.
    job = defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection=set(assets_of(launch)), asset_check_selection=set(checks_of(launch))
    )
    config = {"loggers": {"console": {"config": logger or {}}}}
    result = job.execute_in_process(tags=launch.tags, instance=instance, run_config=config, raise_on_error=False)
    if any(event.is_step_failure and event.step_failure_data.error_source is ErrorSource.INTERRUPT for event in result.all_events):
        raise KeyboardInterrupt
    return result


def _sums(metadata: list[dict[str, Any]]) -> dict[str, int]:
    names = {name for entry in metadata for name in entry if name.startswith("rows_")}
    return {name.removeprefix("rows_"): sum(entry.get(name, 0) for entry in metadata) for name in names}


def failure_reason(result: dg.ExecuteInProcessResult) -> str:
    """The message of the error that ended the run."""
    reason = "the run failed; see its log"
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return data.user_failure_data.description
            cause = data.error
            # The cause under the project's own error is only for the log.
            while cause is not None and cause.cause is not None and (cause.cls_name or "").startswith(DAGSTERS_OWN):
                cause = cause.cause
            if cause is not None:
                return cause.message.strip().partition(f"{cause.cls_name}: ")[2] or cause.message.strip()
        if event.is_run_failure and event.message:
            reason = event.message
    return reason


@dataclass(frozen=True)
class Comparison:
    """The outcome of one table's reconciliation. `agrees` is None if the comparison failed; `text` then says why.

    `differences` have partition, column, measure, bigquery and postgresql, all text. Seconds are wall-clock, cost is US dollars.
    """

    table: str
    agrees: bool | None
    text: str
    partitions: str = ""
    differences: Sequence[Mapping[str, Any]] = ()
    run_id: str | None = None
    seconds: float = 0.0
    bytes_billed: int = 0
    cost: float = 0.0


def run_reconciliation(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    spec: TableSpec,
    window: DayRange | None = None,
    *,
    logger: Mapping[str, Any] | None = None,
) -> Comparison:
    """Compares the table with BigQuery and waits: the partitions of `window`, or the last complete and loaded ones.

    The result is recorded as the table's asset check. An error of the run is in the outcome, not raised.
    """
    began = time.perf_counter()
    result = _execute(defs, instance, Launch.of_reconciliation(spec, window), logger)
    seconds = time.perf_counter() - began
    if not result.success:
        return Comparison(spec.name, None, failure_reason(result), run_id=result.run_id, seconds=seconds)
    [evaluation] = result.get_asset_check_evaluations()
    metadata: dict[str, Any] = {name: value.value for name, value in evaluation.metadata.items()}
    differences = metadata.get("differences")
    return Comparison(
        spec.name,
        evaluation.passed,
        evaluation.description or "",
        metadata["partitions"],
        [record.data for record in differences.records] if differences else [],
        result.run_id,
        seconds,
        int(metadata.get("bytes_billed") or 0),
        float(metadata.get("estimated_cost_usd") or 0),
    )
