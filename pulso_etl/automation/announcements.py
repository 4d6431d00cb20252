"""Announcements that a source was updated: Dagster's observations and materializations of the source's asset, by whomever."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain

import dagster as dg

from pulso_etl.automation.memory import Memory
from pulso_etl.refreshing.keys import source_key
from pulso_etl.sync.spec import TableSpec

UPDATED_AT = "updated_at"
"""Metadata of an observation or materialization: when the source was updated. Without it, the time of the event counts."""
SAID_BY = "said_by"
"""Metadata of an observation: who said it."""
REMEMBERED = 50
"""Among so many of the newest observations an announcement is looked for that says the same."""


@dataclass(frozen=True)
class Announcement:
    """An event of Dagster, by its number, that says: the source was updated at this instant."""

    event: int
    updated_at: datetime

    @classmethod
    def of(cls, record: dg.EventLogRecord) -> Announcement:
        """The announcement in an event. An instant that is in the future, or that is none, counts as the event's own."""
        at = datetime.fromtimestamp(record.timestamp, UTC)
        event = record.asset_observation or record.asset_materialization
        told = _instant(getattr(event.metadata.get(UPDATED_AT) if event else None, "value", None))
        return cls(record.storage_id, at if told is None else min(at, told))


def _instant(told: object) -> datetime | None:
    """The instant of so many seconds since 1970; None for what is no instant."""
    if not isinstance(told, int | float):
        return None
    try:
        return datetime.fromtimestamp(told, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def newest_announcement(instance: dg.DagsterInstance, source: str, tenant: str = "") -> Announcement | None:
    """The newest announcement of a source, by the placeholder that the `.sql` files use; None if there is none."""
    key = source_key(source, tenant)
    found = chain(instance.fetch_observations(key, limit=1).records, instance.fetch_materializations(key, limit=1).records)
    return max(map(Announcement.of, found), key=lambda one: one.event, default=None)


def listen(instance: dg.DagsterInstance, tables: Mapping[str, TableSpec], memory: Memory, now: datetime) -> None:
    """Remembers the newest announcement of each source of the tables, which are of one tenant."""
    readers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, spec in tables.items():
        for source in spec.sources:
            readers[source, spec.tenant].append(name)
    keys = {source_key(source, tenant): (source, tenant) for source, tenant in readers}
    # Hardly any source is ever announced. So one question for all of them comes first.
    for told in instance.get_asset_records(list(keys)):
        source, tenant = keys[told.asset_entry.asset_key]
        if (found := newest_announcement(instance, source, tenant)) is not None:
            memory.hear(source, found.event, found.updated_at, now, readers[source, tenant])
    memory.has_listened = True


def announce(instance: dg.DagsterInstance, source: str, updated_at: datetime, said_by: str, tenant: str = "") -> bool:
    """Records that the source was updated at that instant (with zone), unless this is recorded already. Returns whether it was
    recorded now."""
    key = source_key(source, tenant)
    if updated_at in _told(instance.fetch_observations(key, limit=REMEMBERED).records):
        return False
    instance.report_runless_asset_event(
        dg.AssetObservation(
            key,
            description=f"{said_by} says that the source was updated.",
            metadata={UPDATED_AT: dg.MetadataValue.timestamp(updated_at), SAID_BY: said_by},
        )
    )
    return True


def _told(records: Iterable[dg.EventLogRecord]) -> set[datetime]:
    return {Announcement.of(record).updated_at for record in records}
