"""The whole graph as it is, under review: a change to it shows in the snapshot. Renew it with `pytest --snapshot-update`."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
from dagster import deserialize_value, serialize_value
from pydantic import SecretStr
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.json import JSONSnapshotExtension

from pulso_etl.definitions import build_defs
from pulso_etl.settings import Settings


def graph() -> dict[str, Any]:
    """The definitions as people and programs see them, without the texts that are only for reading."""
    settings = Settings(_env_file=None, database_url=SecretStr("postgresql://nowhere/none"))
    repository = build_defs(settings).get_repository_def()
    assets = repository.asset_graph
    return {
        "assets": {key.to_user_string(): asset(assets.get(key)) for key in sorted(assets.get_all_asset_keys())},
        "checks": sorted(f"{key.asset_key.to_user_string()}: {key.name}" for key in assets.asset_check_keys),
        "jobs": {
            job.name: {
                "steps": sorted(node.name for node in job.nodes),
                "tags": dict(sorted(job.tags.items())),
            }
            for job in sorted(repository.get_all_jobs(), key=lambda job: job.name)
            if not job.name.startswith("__")
        },
        "sensors": {
            sensor.name: {
                "jobs": sorted(target.job_name for target in sensor.targets),
                "every_seconds": sensor.minimum_interval_seconds,
                "status": sensor.default_status.value,
            }
            for sensor in sorted(repository.sensor_defs, key=lambda sensor: sensor.name)
        },
        "schedules": {
            schedule.name: {
                "cron": schedule.cron_schedule,
                "zone": schedule.execution_timezone,
                "job": schedule.job_name,
                "status": schedule.default_status.value,
            }
            for schedule in sorted(repository.schedule_defs, key=lambda schedule: schedule.name)
        },
        "resources": sorted(repository.get_top_level_resources()),
    }


def read_back(policy: dg.BackfillPolicy) -> dg.BackfillPolicy:
    return deserialize_value(serialize_value(policy), dg.BackfillPolicy)


def asset(node: Any) -> dict[str, Any]:
    definition: dg.AssetsDefinition = node.assets_def
    spec = definition.get_asset_spec(node.key)
    partitions = node.partitions_def
    policy: Any = spec.freshness_policy
    retries = definition.op.retry_policy if definition.is_executable else None
    return {
        "group": node.group_name,
        "kinds": sorted(node.kinds),
        "owners": list(node.owners),
        "tags": dict(sorted(node.tags.items())),
        "upstream": sorted(key.to_user_string() for key in node.parent_keys),
        "partitions": None if partitions is None else f"{type(partitions).__name__}, {partitions.timezone}",
        # As webserver and daemon read it.
        "backfill": None if node.backfill_policy is None else str(read_back(node.backfill_policy).policy_type),
        "freshness_seconds": None
        if policy is None
        else [policy.warn_window.to_timedelta().total_seconds(), policy.fail_window.to_timedelta().total_seconds()],
        "attempts": None if retries is None else retries.max_retries + 1,
        "pools": sorted(definition.op.pools) if definition.is_executable else [],
        "io_manager": node.io_manager_key if definition.is_executable else None,
    }


@pytest.mark.usefixtures("lima")
def test_the_graph_is_the_reviewed_one(snapshot: SnapshotAssertion) -> None:
    assert graph() == snapshot(extension_class=JSONSnapshotExtension)
