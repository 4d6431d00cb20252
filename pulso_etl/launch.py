"""Runs a refresh plan through Dagster in this process: one run per table, recorded in the instance like any other."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import dagster as dg

from pulso_etl.destination.io_manager import ALLOW_SHRINK_TAG
from pulso_etl.refresh import DayRange, RefreshPlan

RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"


@dataclass(frozen=True)
class Outcome:
    """What became of one table's run. Seconds are wall-clock; cost is in US dollars."""

    table: str
    window: DayRange | None
    reason: str
    run_id: str | None = None
    error: str | None = None
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    bytes_billed: int = 0
    cost: float = 0.0


def range_tags(window: DayRange, *, allow_shrink: bool) -> dict[str, str]:
    """The tags of a run that materializes a range of partitions."""
    tags = {RANGE_START_TAG: str(window.start), RANGE_END_TAG: str(window.end)}
    return tags | ({ALLOW_SHRINK_TAG: "true"} if allow_shrink else {})


def run_plan(defs: dg.Definitions, instance: dg.DagsterInstance, plan: RefreshPlan, *, allow_shrink: bool = False) -> Outcome:
    """Materializes the plan's window and waits. An error of the run is in the outcome, not raised."""
    if plan.window is None:
        return Outcome(plan.table, None, plan.reason)
    began = time.perf_counter()
    job = defs.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        asset_selection=[dg.AssetKey(plan.table)],
        tags={**range_tags(plan.window, allow_shrink=allow_shrink), "pulso_etl/table": plan.table},
        instance=instance,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )
    seconds = time.perf_counter() - began
    if not result.success:
        return Outcome(plan.table, plan.window, plan.reason, result.run_id, _first_error(result), seconds)
    counts: dict[str, int] = {}
    billed, cost = 0, 0.0
    for event in result.get_asset_materialization_events():
        metadata = {key: value.value for key, value in event.materialization.metadata.items()}
        for key, value in metadata.items():
            if key.startswith("rows_") and isinstance(value, int):
                counts[key] = counts.get(key, 0) + value
        # One query served all partitions: its bytes stand with each of them.
        billed, cost = _int(metadata.get("bytes_billed")), _float(metadata.get("estimated_cost_usd"))
    return Outcome(plan.table, plan.window, plan.reason, result.run_id, None, seconds, counts, billed, cost)


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _first_error(result: dg.ExecuteInProcessResult) -> str:
    failure = "the run failed; see its log"
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return data.user_failure_data.description
            if data.error is not None:
                cause = data.error
                while cause.cause is not None:
                    cause = cause.cause
                return cause.message.strip()
        if event.is_run_failure and event.message:
            failure = event.message
    return failure
