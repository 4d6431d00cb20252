"""The jobs that people and programs launch by name: one per table, one per group, one for all, and one that compares all.

What a job refreshes is said at launch, by the range tags of `launch.run_tags`. A deployment of more tables than
MOST_TABLES_WITH_JOBS has none, for each costs Dagster a look at the whole graph when a code server starts: what is launched is then
a selection of Dagster's own job of all assets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import dagster as dg

from pulso_etl.assets import asset_key
from pulso_etl.checks.asset_checks import reconciliation_key, reconciliation_selection, refresh_check_keys, refresh_selection
from pulso_etl.refreshing.launch import job_tags, refresh_tags, run_tags
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.spec import TableSpec, qualified
from pulso_etl.sync.tags import TABLE_TAG, TENANT_TAG

ALL_JOB = "refresh_all"
RECONCILIATION_JOB = "reconcile_all"
MOST_TABLES_WITH_JOBS = 50
"""Of all tenants together: the jobs of one look at the tables, and the resources, of all."""


def tenant_of(tables: Mapping[str, TableSpec]) -> str:
    """Whose tables these are; empty where there are no tenants."""
    return next((spec.tenant for spec in tables.values()), "")


def is_of(tags: Mapping[str, str], tenant: str) -> bool:
    """Whether a run with the tags is the tenant's. An id may stand in tables that any tenant's role writes to: it says nothing."""
    return tags.get(TENANT_TAG, "") == tenant


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


def refresh_request(spec: TableSpec, run_key: str, window: DayRange, job: str | None = None, **granted: bool) -> dg.RunRequest:
    """A request for a run that refreshes the table with its checks; for `granted` see `run_tags`. A schedule's has no `job`."""
    return dg.RunRequest(
        run_key,
        job_name=job,
        tags=run_tags(spec, window, **granted),
        asset_selection=[asset_key(spec)],
        asset_check_keys=refresh_check_keys(spec),
    )


def reconciliation_request(spec: TableSpec, run_key: str) -> dg.RunRequest:
    """A schedule's request for a run that compares the table with its source."""
    return dg.RunRequest(run_key, tags=job_tags([spec]), asset_selection=[], asset_check_keys=[reconciliation_key(spec)])


def refreshed_tables(
    tags: Mapping[str, str], assets: Iterable[str] | None, job: str, tables: Mapping[str, TableSpec]
) -> Sequence[str]:
    """The tables that a run refreshes, by its tags, its selection or its job; all of them where it does not say.

    `assets` are keys as text. Nothing of a run that is another tenant's.
    """
    tenant = tenant_of(tables)
    if tags.get(TENANT_TAG, tenant) != tenant or (TABLE_TAG in tags and tags.get(TENANT_TAG, "") != tenant):
        return ()
    if TABLE_TAG in tags:
        return [tags[TABLE_TAG]]
    if assets is not None:
        # Empty for a run of checks alone.
        prefix = f"{tenant}/" if tenant else ""
        return [asset.removeprefix(prefix) for asset in assets if asset.startswith(prefix)]
    return ({qualified(tenant, RECONCILIATION_JOB): ()} | job_tables(tables)).get(job, tuple(tables))


def build_jobs(tables: Mapping[str, TableSpec]) -> list[dg.UnresolvedAssetJobDefinition]:
    """The jobs of `job_tables`, with each one's time-out and place in the queue, and the one that compares."""
    return [
        *(_job(name, [tables[table] for table in members]) for name, members in job_tables(tables).items()),
        dg.define_asset_job(
            qualified(tenant_of(tables), RECONCILIATION_JOB),
            selection=reconciliation_selection(tables.values()),
            description="Compares every table with BigQuery: rows and sums of each partition.",
            tags=job_tags(list(tables.values())),
        ),
    ]


def _job(name: str, specs: Sequence[TableSpec]) -> dg.UnresolvedAssetJobDefinition:
    return dg.define_asset_job(
        name,
        selection=refresh_selection(specs),
        description=f"Refreshes {', '.join(spec.name for spec in specs)} over the range of partitions given at launch.",
        tags=refresh_tags(specs),
    )
