"""Dagster's own storage in PostgreSQL, with three changes: it stores the events of many days together, its sessions state their
settings, and it remembers which tables and columns exist. `dagster.yaml` names it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import wraps
from itertools import groupby
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterEventType, EventLogEntry
from dagster._config import UserConfigSchema
from dagster._config.config_type import ScalarUnion
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log import SqlEventLogStorageTable
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, AssetEventTagsTable
from dagster._core.storage.runs.schema import RunsTable
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage, PostgresRunStorage, PostgresScheduleStorage
from dagster_postgres.utils import create_pg_engine, get_token_provider_from_config, pg_url_from_config
from dagster_shared.record import replace

from pulso_etl import embedded
from pulso_etl.instance import lines
from pulso_etl.sync.errors import SettingsError
from pulso_etl.sync.postgres.session_settings import STATED, STATING, UNLIMITED

# Dagster connects with psycopg2, which checks only once how strings are quoted.
SETTINGS = {name: value for name, value in STATED.items() if name != "standard_conforming_strings"} | UNLIMITED.settings()
"""The settings of Dagster's sessions. For example, Dagster reads the server's local time as UTC, whatever the server's zone is."""
STATEMENT = STATING.format(", ".join(["(%s, %s)"] * len(SETTINGS)))
OPTION = re.compile(r"(?:^|\s)-c\s*(\w+)=(\S+)")
"""A setting in the `options` of a connection."""


KEPT: dict[str, Any] = {"pool_size": 1, "max_overflow": -1, "pool_recycle": 300, "pool_pre_ping": True}
"""The pool of an engine: it keeps one session, for 300 seconds at most, and asks before each use whether it still lives."""


class Stating:
    """A mix-in for Dagster's storages: the sessions of each engine, also in the webserver, state SETTINGS.

    Outside the webserver, Dagster opens a session for each statement, more than a hundred for a run. Here each storage of a
    process keeps one session and opens others only at the same time.
    """

    postgres_url: str
    _token_provider: Any
    _stating_engine: sa.Engine

    def __init__(self, *arguments: Any, **given: Any) -> None:
        self._there: set[tuple[str, ...]] = set()
        super().__init__(*arguments, **given)
        self._engine = create_pg_engine(self.postgres_url, self._token_provider, isolation_level="AUTOCOMMIT", **KEPT)

    def dispose(self) -> None:
        super().dispose()  # type: ignore[misc]
        self._engine.dispose()

    @property
    def _engine(self) -> sa.Engine:
        return self._stating_engine

    @_engine.setter
    def _engine(self, engine: sa.Engine) -> None:
        sa.event.listen(engine, "do_connect", _connect)
        sa.event.listen(engine, "connect", _remember_process)
        sa.event.listen(engine, "checkout", _refuse_other_process)
        self._stating_engine = engine


def _until_yes(ask: Callable[..., bool]) -> Callable[..., bool]:
    """A question to the server's catalog, such as whether a column exists. Dagster asks before many statements. Its migrations add
    tables, columns and indexes, and remove none, so nobody asks again after a yes."""

    @wraps(ask)
    def asked(storage: Stating, *given: Any) -> bool:
        question = (ask.__name__, *(one for one in given if isinstance(one, str)))
        if question not in storage._there and ask(storage, *given):
            storage._there.add(question)
        return question in storage._there

    return asked


def settings_of(options: str) -> tuple[dict[str, str], str]:
    """The settings in the `options` of a connection by name, and what is left of the options."""
    return dict(OPTION.findall(options)), OPTION.sub("", options).strip()


def _connect(dialect: Any, _record: object, arguments: Any, parameters: dict[str, Any]) -> Any:
    """A session that states its settings. Those of the URL, such as `search_path`, are set after connecting, because a pooler may
    refuse `options`."""
    given, left = settings_of(parameters.get("options", ""))
    own = {name: value for name, value in parameters.items() if name != "options"} | ({"options": left} if left else {})
    connection = dialect.connect(*arguments, **own)
    # Inside a transaction, a limit of the server could end the session before the settings apply.
    before, connection.autocommit = connection.autocommit, True
    connection.set_client_encoding("UTF8")
    with connection.cursor() as cursor:
        # A pooler may hand us a session that had another one.
        cursor.execute("RESET search_path")
        for name, value in given.items():
            cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
        cursor.execute(STATEMENT, [text for pair in SETTINGS.items() for text in pair])
    connection.autocommit = before
    return connection


def _remember_process(_connection: Any, record: Any) -> None:
    record.info["process"] = os.getpid()


def _refuse_other_process(_connection: Any, record: Any, proxy: Any) -> None:
    """After a fork, both processes would use one session. The child opens a new one, and leaves this one to its parent."""
    if record.info["process"] != os.getpid():
        record.dbapi_connection = proxy.dbapi_connection = None
        raise sa.exc.DisconnectionError(f"the session belongs to process {record.info['process']}")


class StatingRunStorage(Stating, PostgresRunStorage):
    """Dagster's own class, but its sessions state their settings."""

    has_run_stats_index_cols = _until_yes(PostgresRunStorage.has_run_stats_index_cols)
    has_backfill_id_column = _until_yes(PostgresRunStorage.has_backfill_id_column)
    has_backfill_tags_table = _until_yes(PostgresRunStorage.has_backfill_tags_table)
    has_bulk_actions_selector_cols = _until_yes(PostgresRunStorage.has_bulk_actions_selector_cols)
    has_bulk_action_job_name_column = _until_yes(PostgresRunStorage.has_bulk_action_job_name_column)

    def forget(self, run_ids: Sequence[str]) -> None:
        """Deletes the runs and their tags, as `delete_run` does with one; see `BatchingEventLogStorage.forget` for their events."""
        with self.connect() as conn:
            conn.execute(RunsTable.delete().where(RunsTable.c.run_id.in_(run_ids)))


class StatingScheduleStorage(Stating, PostgresScheduleStorage):
    """Dagster's own class, but its sessions state their settings."""

    has_built_index = _until_yes(PostgresScheduleStorage.has_built_index)
    has_secondary_index_table = _until_yes(PostgresScheduleStorage.has_secondary_index_table)
    _has_instigators_table = _until_yes(PostgresScheduleStorage._has_instigators_table)
    _has_asset_daemon_asset_evaluations_table = _until_yes(PostgresScheduleStorage._has_asset_daemon_asset_evaluations_table)


OF_THE_PAST = "(x.run_id = ANY(:runs) OR x.run_id = '' AND {at} < :before)"
FORGET_EVENTS = f"""
DELETE FROM event_logs x WHERE {OF_THE_PAST.format(at='x."timestamp"')} AND NOT (
  x.dagster_event_type = 'ASSET_MATERIALIZATION' AND (
    NOT EXISTS (
      SELECT FROM event_logs n WHERE n.asset_key = x.asset_key AND n.dagster_event_type = x.dagster_event_type
      AND n.partition = x.partition AND n.id > x.id
    ) AND x.partition IS NOT NULL
    OR NOT EXISTS (
      SELECT FROM event_logs n WHERE n.asset_key = x.asset_key AND n.dagster_event_type = x.dagster_event_type AND n.id > x.id
    )
  )
) RETURNING x.id
"""  # noqa: S608 - made of constants
FORGET_CHECKS = f"""
DELETE FROM asset_check_executions x WHERE {OF_THE_PAST.format(at="x.evaluation_event_timestamp")} AND NOT (
  x.execution_status <> 'PLANNED' AND NOT EXISTS (
    SELECT FROM asset_check_executions n WHERE n.asset_key = x.asset_key AND n.check_name = x.check_name
    AND n.partition IS NOT DISTINCT FROM x.partition AND n.execution_status <> 'PLANNED' AND n.id > x.id
  )
)
"""  # noqa: S608 - made of constants


class BatchingEventLogStorage(Stating, PostgresEventLogStorage):
    """Dagster's own class, but one statement stores all materializations that a launch plans, as for those that a run makes, and a
    check that is evaluated once is planned once."""

    has_table = _until_yes(PostgresEventLogStorage.has_table)
    _has_asset_key_col_on_connection = _until_yes(PostgresEventLogStorage._has_asset_key_col_on_connection)

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

    def forget(self, run_ids: Sequence[str], before: datetime) -> None:
        """Deletes the events and the checks of ended runs, and older ones that belong to no run.

        The last materialization of each partition and of each asset, and the last evaluation of each check, stay.
        """
        with self._connect() as conn:
            given = {"runs": list(run_ids), "before": before.astimezone(UTC).replace(tzinfo=None)}
            gone = [row[0] for row in conn.execute(sa.text(FORGET_EVENTS), given)]
            conn.execute(AssetEventTagsTable.delete().where(AssetEventTagsTable.c.event_id.in_(gone)))
            conn.execute(sa.text(FORGET_CHECKS), given)

    def _store_asset_check_evaluation_planned(self, event: EventLogEntry, event_id: int | None) -> None:
        """Stores one row for a check that a run over several partitions plans, because Dagster evaluates it once.

        Dagster itself stores a row for each partition. The evaluation finds none of them, and they stay planned for ever.
        """
        planned = event.get_dagster_event().asset_check_planned_data
        if planned.partitions_subset is not None and len(planned.partitions_subset) > 1:
            whole = replace(planned, partitions_subset=None)
            event = event._replace(dagster_event=event.get_dagster_event()._replace(event_specific_data=whole))
        super()._store_asset_check_evaluation_planned(event, event_id)

    def _update_asset_check_evaluation(self, event: EventLogEntry, event_id: int | None) -> None:
        """Stores the evaluation in the planned row, which Dagster makes for the partition if the run has only one."""
        evaluation = event.get_dagster_event().asset_check_evaluation_data
        if evaluation.partition is None:
            rows = AssetCheckExecutionsTable.c
            with self.index_connection() as conn:
                conn.execute(
                    AssetCheckExecutionsTable.update()
                    .where(
                        rows.asset_key == evaluation.asset_key.to_string(),
                        rows.check_name == evaluation.check_name,
                        rows.run_id == event.run_id,
                        rows.execution_status == AssetCheckExecutionRecordStatus.PLANNED.value,
                        rows.partition.is_not(None),
                    )
                    .values(partition=None)
                )
        super()._update_asset_check_evaluation(event, event_id)


SELECTOR: Any = dg.Selector({"env": str})  # type: ignore[no-untyped-call]
UNRESOLVED = ScalarUnion(scalar_type=str, non_scalar_schema=SELECTOR, _key="UnresolvedStringSource")
"""A text, or the variable of the environment that has it. Dagster's own type looks it up before any code of ours runs."""


def _of_environment(name: str) -> str:
    if name not in os.environ:
        raise SettingsError(f"{name} is not set; set it in .env (see .env.example), or run `make run` for embedded servers")
    return os.environ[name]


class BatchingPostgresStorage(DagsterPostgresStorage):
    """Dagster's own class, with the same configuration, made of these three storages."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: Any = None,
    ) -> None:
        # This skips Dagster's own constructor, which would make its own three storages.
        super(DagsterPostgresStorage, self).__init__()  # type: ignore[no-untyped-call]
        self.postgres_url = postgres_url
        self.should_autocreate_tables = should_autocreate_tables
        self._inst_data = inst_data
        how = {"should_autocreate_tables": should_autocreate_tables, "token_provider": token_provider}
        self._run_storage = StatingRunStorage(postgres_url, **how)
        self._event_log_storage = BatchingEventLogStorage(postgres_url, **how)
        self._schedule_storage = StatingScheduleStorage(postgres_url, **how)

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """As of Dagster's own class, but this class looks the variable of the URL up by itself."""
        fields: Any = DagsterPostgresStorage.config_type()
        return {**fields, "postgres_url": dg.Field(UNRESOLVED, is_required=False)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> BatchingPostgresStorage:
        """The storage that `dagster.yaml` configures. In a folder with the settings of the embedded default, its servers run
        from now on. Raises SettingsError and LocalStackError."""
        lines.tell_once()
        url = config_value.get("postgres_url")
        if isinstance(url, dict):
            embedded.join()
            config_value = {**config_value, "postgres_url": _of_environment(url["env"])}
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )
