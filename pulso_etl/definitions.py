"""Puts everything together. `workspace.yaml` names `defs`. The import opens no connection."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import dagster as dg

from pulso_etl import embedded
from pulso_etl.assets import RETRIES, build_asset, build_sources, daily_partitions
from pulso_etl.automation.jobs import MOST_TABLES_WITH_JOBS, build_jobs
from pulso_etl.automation.schedules import build_schedules
from pulso_etl.automation.sensors import Automation
from pulso_etl.bigquery.source import build_source
from pulso_etl.checks.asset_checks import build_checks
from pulso_etl.instance import lines
from pulso_etl.instance.retention import Ledger, retention_sensor
from pulso_etl.refreshing.budget import QueryBudget
from pulso_etl.refreshing.keys import reconciliation_key, refresh_check_keys, up_to_date_key
from pulso_etl.refreshing.runs import table_job
from pulso_etl.settings import Settings, load_settings
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.resources import fixed
from pulso_etl.sync.shared_reads import check_hosts
from pulso_etl.sync.spec import TableSpec, qualified
from pulso_etl.tables import TABLES
from pulso_etl.tenancy.tenants import Deployed, deployed

# Definitions are many objects that stay for ever. Python's default collects garbage after every 700 new objects, which took a
# fifth of a code server's start with 1,000 tables.
gc.set_threshold(10_000)


def build_resources(settings: Settings) -> dict[str, Any]:
    """The source, the budget and the destination that the settings describe, under the names of their owner."""
    resources = {
        "bigquery": build_source(settings),
        "budget": QueryBudget.of(settings),
        "postgres": PostgresUpsertIOManager(
            # The settings already have the owner's role, if there is one.
            database_url=settings.database_url.get_secret_value(),
            database_schema=settings.database_schema,
            lock_timeout_seconds=settings.lock_timeout_seconds,
            work_mem_mb=settings.work_mem_mb,
        ),
    }
    return {qualified(settings.owner.tenant, name): resource for name, resource in resources.items()}


UNUSED = {"io_manager": fixed(dg.InMemoryIOManager())}  # type: ignore[no-untyped-call]
"""Replaces Dagster's own IO manager: no step needs it, and a launch could choose its folder."""


def build_defs(
    settings: Settings,
    *,
    tables: Mapping[str, TableSpec] = TABLES,
    tables_in_all: int | None = None,
    resource_overrides: Mapping[str, Any] | None = None,
    retries: dg.RetryPolicy = RETRIES,
) -> dg.Definitions:
    """New definitions of one tenant's tables, or of a deployment without tenants.

    `tables_in_all`: the number of tables of the deployment, if it has more. `resource_overrides` replaces resources by key.
    """
    tables = {name: spec.in_zone(settings.timezone) for name, spec in tables.items()}
    partitions = daily_partitions(settings.partitions_start, settings.zone)
    jobs = build_jobs(tables) if (tables_in_all or len(tables)) <= MOST_TABLES_WITH_JOBS else []
    # The alert about stale tables follows from the watermark itself.
    checks = [
        key
        for spec in tables.values()
        for key in (*refresh_check_keys(spec), reconciliation_key(spec))
        if key != up_to_date_key(spec)
    ]
    by_table = {table_job(spec) for spec in tables.values()}
    automation = Automation(settings, tables, [job for job in jobs if job.name in by_table], checks)
    return dg.Definitions(
        assets=[
            *build_sources(tables.values(), settings.sources(), linked=settings.bigquery_emulator_host is None),
            *(
                build_asset(spec, partitions, settings.initial_window_days, retries, page_url=settings.page_url, tables=tables)
                for spec in tables.values()
            ),
        ],
        asset_checks=[build_checks(spec) for spec in tables.values()],
        jobs=jobs,
        schedules=build_schedules(automation.planner, automation.watermarks, with_jobs=bool(jobs), running=settings.automation),
        # Dagster's past belongs to the deployment, and not to one of its tenants.
        sensors=[*automation.sensors(), *([] if settings.owner.tenant else [build_retention(settings, [settings])])],
        resources=UNUSED | {key: fixed(one) for key, one in {**build_resources(settings), **(resource_overrides or {})}.items()},
        # One process per run, because Python's start takes most of a small refresh's time.
        executor=dg.in_process_executor,
        loggers={"console": lines.run_logger},
    )


def build_table(spec: TableSpec) -> dg.Definitions:
    """The asset and the checks of one table for each tenant, with what they need, to be merged into definitions of others.

    Jobs, automation and the status page know only the tables of `pulso_etl/tables`. Raises SettingsError.
    """
    known = TABLES | {spec.name: spec}
    check_hosts(known)
    parts = deployed(load_settings(), known)
    return dg.Definitions.merge(*(_only(part, own) for part in parts if (own := part.tables.get(spec.name))))


def _only(part: Deployed, spec: TableSpec) -> dg.Definitions:
    settings = part.settings
    partitions = daily_partitions(settings.partitions_start, settings.zone)
    return dg.Definitions(
        assets=[build_asset(spec, partitions, settings.initial_window_days, page_url=settings.page_url, tables=part.tables)],
        asset_checks=[build_checks(spec)],
        resources=_shared_resources(settings.owner.tenant),
    )


@cache
def _shared_resources(tenant: str) -> dict[str, Any]:
    """The resources of the tenant in this process. Definitions with different resources of one name can't be merged."""
    [settings] = [part.settings for part in deployed(load_settings()) if part.tenant == tenant]
    return {key: fixed(resource) for key, resource in build_resources(settings).items()}


def build_retention(settings: Settings, owners: Iterable[Settings]) -> dg.SensorDefinition:
    """The sensor that deletes what Dagster and the owners' ledgers need not keep any more."""
    status = dg.DefaultSensorStatus.RUNNING if settings.automation else dg.DefaultSensorStatus.STOPPED
    return retention_sensor(settings.retention, [Ledger.of(one) for one in owners], status)


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions of this deployment. Raises SettingsError."""
    # Every process that runs a step loads the definitions.
    lines.take_over()
    # The tools of Dagster in a checkout load the definitions before, or without, an instance.
    embedded.adopt()
    settings = load_settings()
    parts = deployed(settings)
    tables = sum(len(part.tables) for part in parts)
    shared = dg.Definitions(sensors=[build_retention(settings, [part.settings for part in parts])] if settings.tenants_file else [])
    return dg.Definitions.merge(*(build_defs(part.settings, tables=part.tables, tables_in_all=tables) for part in parts), shared)
