"""The jobs that people and programs launch by name: one per table, one per group, one for all.

What a job refreshes is said at launch, by the range tags of `launch.run_tags`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import dagster as dg

from pulso_etl.checks import reconciliation_selection, refresh_selection
from pulso_etl.launch import TABLE_TAG, job_tags
from pulso_etl.tables.spec import TableSpec

RECONCILIATION_JOB = "reconcile_all"


def table_job(table: str) -> str:
    """The name of the table's job."""
    return f"refresh_{table}"


def job_tables(tables: Mapping[str, TableSpec]) -> dict[str, tuple[str, ...]]:
    """Every job's name with the tables that it refreshes."""
    jobs: dict[str, tuple[str, ...]] = {table_job(name): (name,) for name in tables}
    for group in dict.fromkeys(spec.group for spec in tables.values()):
        jobs[f"refresh_{group}"] = tuple(name for name, spec in tables.items() if spec.group == group)
    return jobs | {"refresh_all": tuple(tables)}


def refreshed_tables(
    tags: Mapping[str, str], assets: Iterable[str] | None, job: str, tables: Mapping[str, TableSpec]
) -> Sequence[str]:
    """The tables that a run refreshes, by its tag, its selection or its job; all of them where it does not say."""
    if TABLE_TAG in tags:
        return [tags[TABLE_TAG]]
    if assets is not None:
        # Empty for a run of checks alone.
        return list(assets)
    return ({RECONCILIATION_JOB: ()} | job_tables(tables)).get(job, tuple(tables))


def build_jobs(tables: Mapping[str, TableSpec]) -> list[dg.UnresolvedAssetJobDefinition]:
    """The jobs of `job_tables`, with each one's time-out and place in the queue."""
    return [_job(name, [tables[table] for table in members]) for name, members in job_tables(tables).items()]


def build_reconciliation_job(tables: Mapping[str, TableSpec]) -> dg.UnresolvedAssetJobDefinition:
    """The job that compares every table with BigQuery, over the partitions that are over."""
    return dg.define_asset_job(
        RECONCILIATION_JOB,
        selection=reconciliation_selection(tables.values()),
        description="Compares every table with BigQuery: rows and sums of each partition.",
        tags=job_tags(list(tables.values())),
    )


def _job(name: str, specs: Sequence[TableSpec]) -> dg.UnresolvedAssetJobDefinition:
    return dg.define_asset_job(
        name,
        selection=refresh_selection(specs),
        description=f"Refreshes {', '.join(spec.name for spec in specs)} over the range of partitions given at launch.",
        tags=job_tags(specs),
    )
