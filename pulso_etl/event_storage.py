"""Dagster's own storage in PostgreSQL, which takes the events of many days together; `dagster.yaml` names it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from dagster import DagsterEventType, EventLogEntry
from dagster._core.storage.event_log import SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage
from dagster_postgres.utils import get_token_provider_from_config, pg_url_from_config


class BatchingEventLogStorage(PostgresEventLogStorage):
    """Dagster's own, which stores the materializations that a launch plans in one statement, as it does those that a run makes."""

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Stores the events in their order."""
        for kind, group in groupby(events, lambda event: event.get_dagster_event().event_type):
            if kind is DagsterEventType.ASSET_MATERIALIZATION_PLANNED:
                self._store_planned(list(group))
            else:
                super().store_event_batch(list(group))

    def _store_planned(self, events: Sequence[EventLogEntry]) -> None:
        insert = self.prepare_insert_event_batch(events).returning(SqlEventLogStorageTable.c.id)
        with self._connect() as conn:
            ids = [int(row[0]) for row in conn.execute(insert)]
        last = {event.get_dagster_event().asset_key: (event, id) for event, id in zip(events, ids, strict=True)}
        for event, id in last.values():
            self.store_asset_event(event, id)


class BatchingPostgresStorage(DagsterPostgresStorage):
    """Dagster's own, configured alike, with these event logs."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: Any = None,
    ) -> None:
        super().__init__(postgres_url, should_autocreate_tables, inst_data, token_provider)
        self._event_log_storage = BatchingEventLogStorage(postgres_url, should_autocreate_tables, token_provider=token_provider)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> BatchingPostgresStorage:
        """What `dagster.yaml` configures."""
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )
