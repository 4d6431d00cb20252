"""The runs that refresh a table: their assets, checks and tags. Sensors, schedules, command line and API launch these runs.

The API launches over HTTP, so this module does not import Dagster. `keys` says the same in Dagster's types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from pulso_etl.refreshing.plan import RefreshPlan, pieces
from pulso_etl.refreshing.ranges import range_tags
from pulso_etl.refreshing.request import NO_GRANTS, Grants
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.loading.rules import Check, refresh_checks
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.tags import (
    ANNOUNCED_TAG,
    CALLER_TAG,
    MAX_RUNTIME_SECONDS_TAG,
    PIPELINE_TAG,
    PRIORITY_TAG,
    REASONS_TAG,
    SLOT_TAG,
    SOURCE_TAG,
    TABLE_TAG,
    TENANT_TAG,
)


def job_tags(specs: Sequence[TableSpec]) -> dict[str, str]:
    """The tags of every run of these tables, which are of one tenant: time-out (seconds), place in the queue, source, tenant."""
    tags = {
        MAX_RUNTIME_SECONDS_TAG: str(sum(int(spec.loading.timeout.total_seconds()) for spec in specs)),
        PRIORITY_TAG: str(max(spec.schedule.priority for spec in specs)),
        SOURCE_TAG: "bigquery",
    }
    return tags | ({TENANT_TAG: specs[0].tenant} if specs[0].tenant else {})


def refresh_tags(specs: Sequence[TableSpec]) -> dict[str, str]:
    """The tags of a run that refreshes these tables, which are of one tenant. A single table has a tag of its own."""
    return job_tags(specs) | ({TABLE_TAG: specs[0].name} if len(specs) == 1 else {})


def run_tags(spec: TableSpec, window: DayRange, grants: Grants = NO_GRANTS) -> dict[str, str]:
    """The tags of a run that refreshes the window of the table."""
    return refresh_tags([spec]) | range_tags(window) | grants.tags


def checks_of_refresh(spec: TableSpec) -> list[Check]:
    """The checks that are part of every refresh of the table.

    `up_to_date` also changes without a refresh. It is among them because Dagster's UI shows a check that is older than the last
    materialization as not evaluated.
    """
    return [*refresh_checks(spec), Check.UP_TO_DATE]


@dataclass(frozen=True)
class Launch:
    """One run of a table in Dagster's terms: the paths of its assets, the checks of the table's asset, and its tags.

    `window` has its days, or None if the run names no days.
    """

    spec: TableSpec
    window: DayRange | None
    tags: Mapping[str, str]
    assets: Sequence[Sequence[str]]
    checks: Sequence[Check]

    @classmethod
    def of(cls, spec: TableSpec, plan: RefreshPlan, more: Mapping[str, str] | None = None) -> Launch:
        """The run that refreshes the plan's window, with its checks and with `more` tags."""
        assert plan.window is not None
        asked_by = {CALLER_TAG: plan.asked_by} if plan.asked_by else {}
        announced = {ANNOUNCED_TAG: plan.announced_at.isoformat()} if plan.announced_at else {}
        why = {REASONS_TAG: plan.reasons.as_tag()} if plan.reasons else {}
        shared = plan.shared.tags if plan.shared else {}
        tags = run_tags(spec, plan.window, plan.grants) | asked_by | announced | why | shared | dict(more or {})
        return cls(spec, plan.window, tags, (spec.asset_path,), checks_of_refresh(spec))

    @classmethod
    def of_reconciliation(cls, spec: TableSpec, window: DayRange | None = None) -> Launch:
        """The run that compares the table with its source over the window, or over the last complete and loaded days."""
        tags = job_tags([spec]) | (range_tags(window) if window else {})
        return cls(spec, window, tags, (), (Check.RECONCILIATION,))


def launches(tables: Mapping[str, TableSpec], plans: Iterable[RefreshPlan]) -> list[Launch]:
    """The runs that refresh the windows of the plans, which are launched together: one for each of their `pieces`."""
    return [Launch.of(tables[piece.table], piece) for piece in pieces(tables, plans)]


def in_slots(wanted: Sequence[Launch], pipeline_id: str, max_concurrent: int) -> list[Launch]:
    """The launches as parts of one refresh. Each takes a slot; there are as many slots as runs that may go on at the same time."""
    slots = cycle(range(max_concurrent))
    return [
        replace(one, tags={**one.tags, PIPELINE_TAG: pipeline_id, SLOT_TAG: f"{pipeline_id}/{slot}"})
        for one, slot in zip(wanted, slots, strict=False)
    ]
