"""The jobs that people and programs launch by name: one per table, one per group, one for all, and one that compares all.

A launch names the days of a job with the tags of `ranges.range_tags`. Without these tags, the run plans its days. A deployment
with more tables than MOST_TABLES_WITH_JOBS has no jobs, because Dagster reads the whole graph for each job when a code server
starts. Launches then select assets of Dagster's own job of all assets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dagster as dg

from pulso_etl.checks.asset_checks import reconciliation_selection, refresh_selection
from pulso_etl.refreshing.launch import job_tags, refresh_tags
from pulso_etl.refreshing.runs import RECONCILIATION_JOB, job_tables, tenant_of
from pulso_etl.sync.spec import TableSpec, qualified

MOST_TABLES_WITH_JOBS = 50
"""The limit counts the tables of all tenants together, because each job reads the graph and the resources of all."""


def build_jobs(tables: Mapping[str, TableSpec]) -> list[dg.UnresolvedAssetJobDefinition]:
    """The jobs of `job_tables`, each with its time-out and its place in the queue, and the job that compares."""
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
