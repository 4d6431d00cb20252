"""A table's asset, its checks and its launches in Dagster's types. The code of the runs is not needed for them."""

from __future__ import annotations

import dagster as dg

from pulso_etl.refreshing.launch import Launch, checks_of_refresh
from pulso_etl.sync.loading.rules import Check
from pulso_etl.sync.spec import TableSpec


def asset_key(spec: TableSpec) -> dg.AssetKey:
    """The key of the table's asset."""
    return dg.AssetKey(spec.asset_path)


def source_key(name: str, tenant: str = "") -> dg.AssetKey:
    """The key of the asset of a source table or view, by the placeholder that the `.sql` files use."""
    return dg.AssetKey([*filter(None, [tenant]), "bigquery", name])


def refresh_check_keys(spec: TableSpec) -> list[dg.AssetCheckKey]:
    """The checks that are part of every refresh of the table."""
    return [dg.AssetCheckKey(asset_key(spec), check.value) for check in checks_of_refresh(spec)]


def reconciliation_key(spec: TableSpec) -> dg.AssetCheckKey:
    """The check that compares the table with its source."""
    return dg.AssetCheckKey(asset_key(spec), Check.RECONCILIATION.value)


def up_to_date_key(spec: TableSpec) -> dg.AssetCheckKey:
    """The check that the table is not stale."""
    return dg.AssetCheckKey(asset_key(spec), Check.UP_TO_DATE.value)


def assets_of(launch: Launch) -> list[dg.AssetKey]:
    """The assets that the run materializes."""
    return list(map(dg.AssetKey, launch.assets))


def checks_of(launch: Launch) -> list[dg.AssetCheckKey]:
    """The checks that the run carries out."""
    return [dg.AssetCheckKey(asset_key(launch.spec), check.value) for check in launch.checks]


def run_request(launch: Launch, run_key: str, job: str | None = None) -> dg.RunRequest:
    """The launch as the request of a sensor, or of a schedule, which names no `job`. Dagster launches each `run_key` once."""
    return dg.RunRequest(
        run_key, job_name=job, tags=launch.tags, asset_selection=assets_of(launch), asset_check_keys=checks_of(launch)
    )
