"""Decides what a launch may contain and which role it needs, for the gateway, Dagster's UI and the run queue alike.

A tag of a run is more than a label. Launchers read pods and queues from some tags. Dagster reads time-outs and places in the queue
from others. Loads read from our own tags what they may leave out. So a launch may give the tags that are named here, and no others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pulso_etl.access.tokens import Role
from pulso_etl.sync.errors import LaunchForbidden
from pulso_etl.sync.tags import (
    ALLOW_SHRINK_TAG,
    ANNOUNCED_TAG,
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    AVOIDED_TAG,
    CAPTURE_TAG,
    COMPARE_TAG,
    FORCE_TAG,
    PARTITION_NAME_TAG,
    PARTITION_SET_TAG,
    PIPELINE_TAG,
    SENSOR_NAME_TAG,
)

UI_TAGS = {"dagster/from_ui", PARTITION_SET_TAG}
"""Dagster's UI adds these tags to every launch. They have no effect on a load."""
TAGS = {
    Role.REFRESH: {
        ASSET_PARTITION_RANGE_START_TAG,
        ASSET_PARTITION_RANGE_END_TAG,
        PARTITION_NAME_TAG,
        FORCE_TAG,
        COMPARE_TAG,
        PIPELINE_TAG,
        *UI_TAGS,
    },
    Role.ADMIN: {ALLOW_SHRINK_TAG},
}
"""The tags that a launch may give, by the role that they need."""
SENSOR_TAGS = {CAPTURE_TAG, AVOIDED_TAG, ANNOUNCED_TAG}
"""Tags that only the refresh sensor gives, because it knows when they are right."""
WHOLE_GRAPH = "__ASSET_JOB"
"""Dagster's own job, which holds every asset."""
REFRESH_JOB = re.compile(r"(?:[a-z0-9_]+__)?refresh_[a-z0-9_]+")
RECONCILIATION = re.compile(r"(?:[a-z0-9_]+__)?reconcile_all")
PARTITION_SET_SUFFIX = "_partition_set"
"""The suffix of Dagster's name for a job's partitions."""
LAUNCHERS = re.compile(r"(dagster-[a-z0-9]+|ecs|docker)/")
"""The beginning of tags from which launchers read how to start a run's process."""


@dataclass(frozen=True)
class Undefined:
    """The value of a variable that was not given."""


UNDEFINED = Undefined()


def items(value: Any) -> Sequence[Any] | None:
    """The argument as GraphQL's list: a single value becomes a list of one. None if there is no value."""
    if value is None or isinstance(value, Undefined):
        return None
    return value if isinstance(value, list) else [value]


def texts(value: Any) -> tuple[str, ...]:
    """The texts of an argument that is a list."""
    return tuple(map(str, items(value) or ()))


def role_of_launch(params: Any) -> Role:
    """The role that Dagster's ExecutionParams need. Raises LaunchForbidden."""
    known = {"selector", "mode", "runConfigData", "executionMetadata", "stepKeys", "preset"}
    fields, roles = _fields(params), [Role.REFRESH]
    _refuse(fields, "stepKeys", "preset")
    selector, metadata = _fields(fields.get("selector")), _fields(fields.get("executionMetadata"))
    _refuse(selector, "solidSelection")
    _refuse(metadata, "rootRunId", "parentRunId")
    job = selector.get("jobName") or selector.get("pipelineName")
    if job is not None:
        roles.append(role_of_job(str(job), items(selector.get("assetSelection"))))
    roles += [role_of_config(fields.get("runConfigData")), role_of_tags(metadata.get("tags"))]
    return max(*roles, Role.ADMIN if fields.keys() - known else Role.REFRESH)


def role_of_backfill(params: Any) -> Role:
    """The role that Dagster's LaunchBackfillParams need. Raises LaunchForbidden."""
    plain = {"selector", "partitionNames", "partitionsByAssets", "assetSelection", "allPartitions", "title", "description"}
    fields, roles = _fields(params), [Role.REFRESH]
    _refuse(fields, "reexecutionSteps")
    if (name := _fields(fields.get("selector")).get("partitionSetName")) is not None:
        assets = items(fields.get("assetSelection"))
        roles.append(role_of_job(str(name).removesuffix(PARTITION_SET_SUFFIX), assets))
    roles += [role_of_config(fields.get("runConfigData")), role_of_tags(fields.get("tags"))]
    more = {name for name, given in fields.items() if given} - plain - {"runConfigData", "tags"}
    return max(*roles, Role.ADMIN if more else Role.REFRESH)


def role_of_reexecution(*params: Any) -> Role:
    """The role that a re-execution needs, by Dagster's ExecutionParams or ReexecutionParams. Raises LaunchForbidden."""
    for fields in map(_fields, params):
        _refuse(fields, "stepKeys", "preset")
        role_of_config(fields.get("runConfigData"))
        role_of_tags(fields.get("extraTags"))
        role_of_tags(_fields(fields.get("executionMetadata")).get("tags"))
    return Role.ADMIN


def role_of_job(job: str, assets: Sequence[Any] | None) -> Role:
    """The role that may launch, or end, a run of the job: a refresh, or any other job. Raises LaunchForbidden.

    `assets`: the chosen assets, if the job is Dagster's own job of all assets.
    """
    if REFRESH_JOB.fullmatch(job) or (job == WHOLE_GRAPH and assets):
        return Role.REFRESH
    if RECONCILIATION.fullmatch(job) or job == WHOLE_GRAPH:
        # Such a run may consist of checks only, and one check asks BigQuery, which bills for it.
        return Role.ADMIN
    raise LaunchForbidden(f"the job {job[:100]} neither refreshes nor reconciles")


def role_of_config(config: Any) -> Role:
    """The role that run configuration needs. Raises LaunchForbidden if it names a resource or cannot be read."""
    if isinstance(config, Undefined):
        return Role.ADMIN
    if isinstance(config, str):
        try:
            config = yaml.safe_load(config)
        except (yaml.YAMLError, RecursionError):
            raise LaunchForbidden("the run configuration is not YAML") from None
    if names_resources(config):
        raise LaunchForbidden("a run's configuration can't name resources: the deployment's settings configure them")
    return Role.ADMIN if config else Role.REFRESH


def names_resources(config: Any) -> bool:
    """Whether run configuration names a resource."""
    return isinstance(config, Mapping) and bool(config.get("resources"))


def role_of_tags(tags: Any) -> Role:
    """The role that a launch's tags need, as Dagster's list of ExecutionTag. Raises LaunchForbidden."""
    role = Role.REFRESH
    for tag in items(tags) or ():
        key = str(_fields(tag).get("key") or "")
        needed = next((one for one, known in TAGS.items() if key in known), None)
        if key and needed is None:
            allowed = ", ".join(sorted(set().union(*TAGS.values()) - UI_TAGS))
            raise LaunchForbidden(f"a launch can't give the tag {key[:100]}; it can give {allowed}")
        role = max(role, needed or role)
    return role


def fault_of_run(tags: Mapping[str, str], config: Any, inherited: Mapping[str, str]) -> str | None:
    """Why a run must not enter the queue, however it was launched. None if it may.

    `inherited`: the tags of the run that it repeats. They were checked when that run entered the queue.
    """
    own = {key for key, value in tags.items() if inherited.get(key) != value}
    for key in sorted(own):
        if LAUNCHERS.match(key):
            return f"a run can't have the tag {key}: the deployment decides what its process is"
        if key in SENSOR_TAGS and SENSOR_NAME_TAG not in tags:
            return f"a run can't have the tag {key} unless a sensor asks for it"
    if names_resources(config):
        return "a run's configuration can't name resources: the deployment's settings configure them"
    return None


def _fields(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _refuse(fields: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if fields.get(name):
            raise LaunchForbidden(f"a launch can't give {name}: a table is loaded as a whole")
