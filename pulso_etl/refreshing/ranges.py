"""The days of a run in its tags: how the project writes and reads these tags."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
    SCHEDULE_NAME_TAG,
    SENSOR_NAME_TAG,
)

DAY_TAGS = (PARTITION_NAME_TAG, ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)


def range_tags(window: DayRange) -> dict[str, str]:
    """The tags that give a run its range of partitions."""
    return {ASSET_PARTITION_RANGE_START_TAG: str(window.start), ASSET_PARTITION_RANGE_END_TAG: str(window.end)}


def names_days(tags: Mapping[str, str]) -> bool:
    """Whether the launch chose the days of the run. If not, the run plans them itself."""
    return any(tag in tags for tag in DAY_TAGS)


def is_automatic(tags: Mapping[str, str]) -> bool:
    """Whether a sensor or a schedule launched the run, and no person."""
    return SENSOR_NAME_TAG in tags or SCHEDULE_NAME_TAG in tags


def tagged_range(tags: Mapping[str, str]) -> DayRange | None:
    """The days that the tags of a run name, a range or a partition; None if they name none.

    Raises PlanError if they are not a range.
    """
    partition = tags.get(PARTITION_NAME_TAG)
    start, end = (tags.get(tag, partition) for tag in (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG))
    if start is None or end is None:
        return None
    try:
        return DayRange.parse(start, end)
    except ValueError as error:
        raise PlanError(f"{start}..{end} are not days such as 2026-11-25: {error}") from error


def range_of(tags: Mapping[str, str]) -> DayRange | None:
    """The days that the tags of a run name; None if they name no days, or something that is not a range."""
    try:
        return tagged_range(tags)
    except PlanError:
        return None


def launched_range(spec: TableSpec, tags: Mapping[str, str], first_day: date, today: date) -> DayRange:
    """The days that the tags of a run name. Raises PlanError if they name no days, or days without a partition."""
    try:
        window = tagged_range(tags)
    except PlanError as error:
        raise PlanError(f"{spec.name}: {error}") from error
    if window is None:
        raise PlanError(
            f"{spec.name}: the launch names no days; give the run both tags, {ASSET_PARTITION_RANGE_START_TAG} and "
            f"{ASSET_PARTITION_RANGE_END_TAG}, days such as {today}; or none of them, and the run plans its days"
        )
    if window.start < first_day or window.end > today:
        raise PlanError(
            f"{spec.name}: {window} is not within the partitions {first_day}..{today}; launch it over days of this range"
        )
    return window
