"""The names of a table's asset and checks in Dagster. Who launches runs needs only these, and not the code of the runs."""

from __future__ import annotations

import dagster as dg

from pulso_etl.sync.loading.rules import Check, refresh_checks
from pulso_etl.sync.spec import TableSpec


def asset_key(spec: TableSpec) -> dg.AssetKey:
    """The key of the table's asset."""
    return dg.AssetKey(spec.asset_path)


def source_key(name: str, tenant: str = "") -> dg.AssetKey:
    """The key of the asset of a source table or view, by the placeholder that the `.sql` files use."""
    return dg.AssetKey([*filter(None, [tenant]), "bigquery", name])


def refresh_check_keys(spec: TableSpec) -> list[dg.AssetCheckKey]:
    """The checks that are part of every refresh of the table.

    `up_to_date` also changes without a refresh. It is among them because Dagster's UI shows a check that is older than the last
    materialization as not evaluated.
    """
    return [dg.AssetCheckKey(asset_key(spec), check.value) for check in (*refresh_checks(spec), Check.UP_TO_DATE)]


def reconciliation_key(spec: TableSpec) -> dg.AssetCheckKey:
    """The check that compares the table with its source."""
    return dg.AssetCheckKey(asset_key(spec), Check.RECONCILIATION.value)


def up_to_date_key(spec: TableSpec) -> dg.AssetCheckKey:
    """The check that the table is not stale."""
    return dg.AssetCheckKey(asset_key(spec), Check.UP_TO_DATE.value)
