"""The days of an asset's partitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from typing import Any

from dagster import PartitionsDefinition, TimeWindowPartitionsDefinition

from pulso_etl.sync.days import DayRange, contiguous
from pulso_etl.sync.errors import ContractError

SHORTEST_DAY = timedelta(hours=23)
"""The day on which the clocks go forward."""


def partition_days(table: str, definition: PartitionsDefinition[Any] | None, keys: Iterable[str]) -> dict[str, DayRange]:
    """The days of each partition, by its key: from the day on which it begins to the day before its end.

    A partition of one day has that date, whatever zone and format the definition uses. A week or a month has all its days.
    Raises ContractError for a partition shorter than a day, and for a definition without time windows.
    """
    found = list(keys)
    if not isinstance(definition, TimeWindowPartitionsDefinition):
        named = f"{table}, partition {', '.join(found[:3])}" if found else table
        has = "no partitions" if definition is None else f"a {type(definition).__name__}"
        raise ContractError(f"{named}: the asset has {has}; it needs daily partitions, or longer ones, such as weekly")
    days = {}
    for key in found:
        window = definition.time_window_for_partition_key(key)
        if window.end - window.start < SHORTEST_DAY:
            raise ContractError(
                f"{table}, partition {key}: it is shorter than a day, and a load makes whole days equal to the source; the asset "
                "needs daily partitions, or longer ones"
            )
        days[key] = DayRange(window.start.date(), window.end.date() - timedelta(days=1))
    return days


def one_range(table: str, partitions: Mapping[str, DayRange]) -> DayRange:
    """The days of all the partitions. Raises ContractError unless they are one range."""
    ranges = ranges_of(partitions)
    if len(ranges) != 1:
        whole = DayRange(ranges[0].start, ranges[-1].end) if ranges else "of the run"
        raise ContractError(f"{table}: the partitions {whole} are not one contiguous range; launch each range alone")
    return ranges[0]


def ranges_of(partitions: Mapping[str, DayRange]) -> list[DayRange]:
    """The days of the partitions as ranges without gaps, oldest first."""
    return contiguous(day for days in partitions.values() for day in days)


def first_day(definition: PartitionsDefinition[Any]) -> date:
    """The first day of an asset whose partitions are days (see `partition_days`); `date.min` if none has begun."""
    assert isinstance(definition, TimeWindowPartitionsDefinition)
    window = definition.get_first_partition_window()
    return date.min if window is None else window.start.date()


def last_day(definition: PartitionsDefinition[Any]) -> date:
    """The last day of the newest partition that exists now; `date.max` if none has begun."""
    assert isinstance(definition, TimeWindowPartitionsDefinition)
    window = definition.get_last_partition_window()
    return date.max if window is None else window.end.date() - timedelta(days=1)
