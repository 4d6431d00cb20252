"""Which tables a run of Dagster refreshes, over which days, and for which tenant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TypeVar

from pulso_etl.refreshing.ranges import range_of
from pulso_etl.refreshing.request import RefreshRequest
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.spec import TableSpec, qualified
from pulso_etl.sync.tags import TABLE_TAG, TENANT_TAG
from pulso_etl.sync.zone import DEFAULT, Zone

if TYPE_CHECKING:
    from pulso_etl.refreshing.plan import RefreshPlan

ALL_JOB = "refresh_all"
RECONCILIATION_JOB = "reconcile_all"


class SomeRun(Protocol):
    """What this module needs of a run. `assets` are keys as text, or None if the run takes all assets of its job."""

    @property
    def run_id(self) -> str: ...
    @property
    def job(self) -> str: ...
    @property
    def tags(self) -> Mapping[str, str]: ...
    @property
    def assets(self) -> Sequence[str] | None: ...


class DatedRun(SomeRun, Protocol):
    """A run with the instant of its creation."""

    @property
    def created_at(self) -> datetime: ...


Found = TypeVar("Found", bound=DatedRun)


@dataclass(frozen=True)
class EndedRun:
    """A run that failed or was canceled. Instants carry a zone. `started_at` is None if it never began."""

    run_id: str
    tags: Mapping[str, str]
    canceled: bool
    started_at: datetime | None
    ended_at: datetime


def zone_of(tables: Mapping[str, TableSpec]) -> Zone:
    """The time zone of the tables' days; all tables of a tenant have the same."""
    return next((spec.zone for spec in tables.values()), DEFAULT)


def tenant_of(tables: Mapping[str, TableSpec]) -> str:
    """The tenant of the tables; empty without tenants."""
    return next((spec.tenant for spec in tables.values()), "")


def is_of(tags: Mapping[str, str], tenant: str) -> bool:
    """Whether a run with these tags is the tenant's. A run's id proves nothing: any tenant can write any id into its own tables."""
    return tags.get(TENANT_TAG, "") == tenant


REFRESH_SENSOR = "refresh_sensor"
"""The sensor that launches a run of each table that is due."""


def table_job(spec: TableSpec) -> str:
    """The name of the table's job."""
    return spec.qualify(f"refresh_{spec.name}")


def job_tables(tables: Mapping[str, TableSpec]) -> dict[str, tuple[str, ...]]:
    """The name of every job that refreshes, with its tables."""
    tenant = tenant_of(tables)
    jobs: dict[str, tuple[str, ...]] = {table_job(spec): (name,) for name, spec in tables.items()}
    for group in dict.fromkeys(spec.group for spec in tables.values()):
        jobs[qualified(tenant, f"refresh_{group}")] = tuple(name for name, spec in tables.items() if spec.group == group)
    return jobs | {qualified(tenant, ALL_JOB): tuple(tables)}


def refreshed_tables(run: SomeRun, tables: Mapping[str, TableSpec]) -> Sequence[str]:
    """The tables that a run refreshes, by its tags, its selection or its job; all tables if none of these says.

    A run of another tenant refreshes none of them.
    """
    tenant = tenant_of(tables)
    if run.tags.get(TENANT_TAG, tenant) != tenant or (TABLE_TAG in run.tags and run.tags.get(TENANT_TAG, "") != tenant):
        return ()
    if TABLE_TAG in run.tags:
        return [run.tags[TABLE_TAG]]
    if run.assets is not None:
        # Empty for a run that has only checks.
        prefix = f"{tenant}/" if tenant else ""
        return [asset.removeprefix(prefix) for asset in run.assets if asset.startswith(prefix)]
    return ({qualified(tenant, RECONCILIATION_JOB): ()} | job_tables(tables)).get(run.job, tuple(tables))


def in_flight(runs: Iterable[SomeRun], tables: Mapping[str, TableSpec]) -> dict[str, dict[str, DayRange | None]]:
    """The queued and running runs of each table that has some: the days of each run by its id, or None if it names no days."""
    found: dict[str, dict[str, DayRange | None]] = defaultdict(dict)
    for run in runs:
        for table in refreshed_tables(run, tables):
            found[table][run.run_id] = range_of(run.tags)
    return found


def run_over(runs: Mapping[str, DayRange | None], window: DayRange) -> str | None:
    """The id of a run that loads days of the window. A run without named days may load them, so it counts too."""
    return next((run for run, days in runs.items() if days is None or days.overlaps(window)), None)


def joinable(plan: RefreshPlan, runs: Iterable[Found], tables: Mapping[str, TableSpec]) -> Found | None:
    """The current run that already does the plan's work: it refreshes the table up to the same last day.

    A back-fill of older days does not do this, and a single chunk of several does not.
    """
    for run in sorted(runs, key=lambda run: run.created_at):
        window = range_of(run.tags)
        refreshes = plan.table in refreshed_tables(run, tables)
        if refreshes and plan.window is not None and window is not None and window.end >= plan.window.end:
            return run
    return None


def joined(
    request: RefreshRequest, plans: Iterable[RefreshPlan], runs: Sequence[Found], tables: Mapping[str, TableSpec]
) -> dict[str, Found]:
    """The current run of each table that already does the request's work. A request that is not plain joins no run."""
    if not request.is_plain:
        return {}
    return {plan.table: run for plan in plans if (run := joinable(plan, runs, tables)) is not None}
