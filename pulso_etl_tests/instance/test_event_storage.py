"""What a run over many days costs in Dagster's own storage: statements that do not grow with the days, and every event is there."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pyarrow as pa
import pytest
import sqlalchemy as sa
import yaml
from dagster._core.instance.ref import InstanceRef
from sqlalchemy import make_url

from pulso_etl.instance.event_storage import BatchingPostgresStorage, settings_of
from pulso_etl.sync.errors import SettingsError
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl_tests.dagster_stack import CHECKOUT
from pulso_etl_tests.databases import ENVIRONMENT, database, otherwise
from pulso_etl_tests.pooler import needs_pgbouncer, pooler
from pulso_etl_tests.sync.visits import SCHEMA, visits

FIRST = date(2026, 2, 1)


@contextmanager
def opened(url: str | None, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """An instance with the storage that `dagster.yaml` says."""
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url or "")
    if url is None:
        monkeypatch.delenv("DAGSTER_POSTGRES_URL")
    config = {"storage": yaml.safe_load((CHECKOUT / "dagster.yaml").read_text(encoding="utf-8"))["storage"]}
    (home / "dagster.yaml").write_text(yaml.safe_dump(config | {"telemetry": {"enabled": False}}), encoding="utf-8")
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance:
        yield instance


@pytest.fixture
def instance(server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """Such an instance in a schema of its own."""
    storage = f"d_{uuid.uuid4().hex[:12]}"
    separator = "&" if "?" in server_url else "?"
    url = f"{server_url}{separator}options=-csearch_path%3D{storage}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA {storage}")
        try:
            with opened(url, tmp_path, monkeypatch) as instance:
                yield instance
        finally:
            conn.execute(f"DROP SCHEMA {storage} CASCADE")


Load = Callable[[int], dg.ExecuteInProcessResult]


@pytest.fixture
def load(manager: PostgresUpsertIOManager, instance: dg.DagsterInstance) -> Load:
    """Loads that many days in one run. No day has a row."""
    asset = visits(lambda _: pa.Table.from_pylist([], schema=SCHEMA))

    def run(days: int) -> dg.ExecuteInProcessResult:
        tags = {
            "dagster/asset_partition_range_start": str(FIRST),
            "dagster/asset_partition_range_end": str(FIRST + timedelta(days=days - 1)),
        }
        return dg.materialize([asset], tags=tags, resources={"postgres": manager}, instance=instance)

    return run


@pytest.fixture
def manager(server_url: str, schema: str) -> PostgresUpsertIOManager:
    return PostgresUpsertIOManager(database_url=server_url, database_schema=schema)


@contextmanager
def statements() -> Iterator[list[str]]:
    """The statements that SQLAlchemy sends in this block. Dagster's storage sends them."""
    sent: list[str] = []

    def keep(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", keep)
    try:
        yield sent
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", keep)


def test_the_statements_of_a_run_do_not_grow_with_its_days(load: Load) -> None:
    load(2)
    with statements() as few:
        load(3)
    with statements() as many:
        load(60)
    assert len(few) > 10
    assert len(many) <= len(few)


def test_a_storage_looks_up_once_which_tables_and_columns_it_has(load: Load, instance: dg.DagsterInstance) -> None:
    def act() -> None:
        load(2)
        instance.get_run_records(limit=1)
        instance.get_asset_records([dg.AssetKey("visits")])
        told = dg.AssetCheckEvaluation(check_name="c", passed=True, asset_key=dg.AssetKey("visits"), metadata={})
        instance.report_runless_asset_event(told)
        assert instance.all_instigator_state() == []

    act()
    with statements() as sent:
        act()
    assert len(sent) > 20
    assert [statement for statement in sent if "pg_catalog" in statement] == []


def test_every_day_has_its_events_and_its_own_metadata(load: Load, instance: dg.DagsterInstance) -> None:
    result = load(40)
    days = {(FIRST + timedelta(days=n)).isoformat() for n in range(40)}
    for kind in (dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, dg.DagsterEventType.ASSET_MATERIALIZATION):
        records = instance.get_records_for_run(result.run_id, of_type=kind).records
        assert Counter(record.partition_key for record in records) == Counter(days)
        assert len({record.storage_id for record in records}) == 40
    assert instance.get_materialized_partitions(dg.AssetKey("visits")) == days
    latest = instance.get_latest_materialization_event(dg.AssetKey("visits"))
    assert latest is not None
    assert latest.asset_materialization is not None
    assert latest.asset_materialization.metadata["rows_read"].value == 0
    (record,) = instance.get_asset_records([dg.AssetKey("visits")])
    assert record.asset_entry.last_run_id == result.run_id


def test_planned_events_of_two_assets_enter_the_catalogue_of_both(
    instance: dg.DagsterInstance, manager: PostgresUpsertIOManager
) -> None:
    def other(visits: pa.Table) -> None:
        raise ValueError("never materialized")

    options: dict[str, Any] = {"partitions_def": dg.DailyPartitionsDefinition(str(FIRST)), "name": "other"}
    asset = dg.asset(**options, backfill_policy=dg.BackfillPolicy.single_run())(other)
    first = visits(lambda _: pa.Table.from_pylist([], schema=SCHEMA), partitions_def=options["partitions_def"])
    tags = {"dagster/asset_partition_range_start": str(FIRST), "dagster/asset_partition_range_end": "2026-02-03"}
    result = dg.materialize([first, asset], tags=tags, resources={"postgres": manager}, instance=instance, raise_on_error=False)
    assert not result.success
    records = instance.get_asset_records([dg.AssetKey("visits"), dg.AssetKey("other")])
    assert {record.asset_entry.last_run_id for record in records} == {result.run_id}
    assert instance.get_materialized_partitions(dg.AssetKey("other")) == set()


@pytest.mark.parametrize("days", [1, 30])
def test_a_check_of_a_run_is_planned_once_and_its_evaluation_finds_the_row(
    instance: dg.DagsterInstance, manager: PostgresUpsertIOManager, days: int
) -> None:
    @dg.asset_check(asset="visits")
    def evaluated() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    @dg.multi_asset_check(specs=[dg.AssetCheckSpec("skipped", asset="visits")], can_subset=True)
    def skips() -> Iterator[dg.AssetCheckResult]:
        yield from ()

    asset = visits(lambda _: pa.Table.from_pylist([], schema=SCHEMA))
    end = FIRST + timedelta(days=days - 1)
    tags = {"dagster/asset_partition_range_start": str(FIRST), "dagster/asset_partition_range_end": str(end)}
    result = dg.materialize([asset, evaluated, skips], tags=tags, resources={"postgres": manager}, instance=instance)
    assert result.success
    query = sa.text("SELECT check_name, execution_status FROM asset_check_executions ORDER BY check_name")
    with instance.event_log_storage.index_connection() as conn:  # type: ignore[attr-defined]
        assert conn.execute(query).fetchall() == [("evaluated", "SUCCEEDED"), ("skipped", "PLANNED")]


TEXT = "José 日本 \\ 'x' \\n"


def test_nothing_depends_on_the_settings_of_the_server_or_the_shell(
    server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database(server_url) as url, otherwise(url, "DATABASE"):
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        # The deployment chooses the schema of its tables.
        url = make_url(url).update_query_dict({"options": "-csearch_path=public"}).render_as_string(hide_password=False)
        with opened(url, tmp_path, monkeypatch) as instance:
            _keeps_what_it_is_given(instance)
            # The webserver does the same with other connections.
            parts: list[Any] = [instance.run_storage, instance.event_log_storage, instance.schedule_storage]
            for part in parts:
                part.optimize_for_webserver(statement_timeout=5000, pool_recycle=60, max_overflow=2)
            _keeps_what_it_is_given(instance)
            assert parts[2].alembic_version() == instance.run_storage.alembic_version()


def _keeps_what_it_is_given(instance: dg.DagsterInstance) -> None:
    began = datetime.now(UTC)
    run = instance.add_run(dg.DagsterRun("refresh", tags={"text": TEXT}))
    instance.report_engine_event(TEXT, run)
    [record] = instance.get_run_records(dg.RunsFilter(created_after=began - timedelta(minutes=1)), limit=1)
    assert abs(record.create_timestamp - began) < timedelta(minutes=1)
    assert record.dagster_run.tags["text"] == TEXT
    [event] = instance.get_records_for_run(run.run_id).records
    assert event.event_log_entry.dagster_event is not None
    assert event.event_log_entry.dagster_event.message == TEXT


def test_each_storage_keeps_one_session_and_takes_another_after_its_end_or_a_fork(
    instance: dg.DagsterInstance, server_url: str
) -> None:
    storages: list[Any] = [instance.run_storage, instance.event_log_storage, instance.schedule_storage]
    for storage in storages:

        def session(storage: Any = storage) -> int:
            opened = getattr(storage, "index_connection", None) or storage.connect
            with opened() as conn:
                return int(conn.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())

        first = session()
        assert session() == first
        with psycopg.connect(server_url, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
        second = session()
        assert second != first
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.write(write, str(session()).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert int(os.read(read, 20)) not in (first, second)
        assert session() == second
        storage.dispose()
        assert session() != second


def test_a_missing_address_of_the_storage_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "PULSO_EMBEDDED_HOME"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(SettingsError, match=r"DAGSTER_POSTGRES_URL is not set; set it in \.env"),
        opened(None, tmp_path, monkeypatch),
    ):
        pass


def test_the_options_of_a_url_are_settings() -> None:
    assert settings_of("-csearch_path=dagster") == ({"search_path": "dagster"}, "")
    assert settings_of("-c search_path=a -c statement_timeout=5 -B 16") == ({"search_path": "a", "statement_timeout": "5"}, "-B 16")
    assert settings_of("") == ({}, "")


@needs_pgbouncer
def test_a_schema_for_dagster_is_used_through_a_pooler_that_refuses_options(
    server_url: str, schema: str, conn: psycopg.Connection
) -> None:
    with pooler(server_url, "session", default_pool_size=8) as url:
        given = f"{url}?options=-csearch_path%3D{schema}"
        with pytest.raises(psycopg.OperationalError, match="options"):
            psycopg.connect(given)
        storage: Any = BatchingPostgresStorage(given)
        try:
            assert storage.run_storage.get_runs() == []
            # The webserver's sessions have options of their own.
            storage.event_log_storage.optimize_for_webserver(statement_timeout=5000, pool_recycle=60, max_overflow=4)
            assert storage.event_log_storage.has_table("event_logs")
        finally:
            storage.run_storage.dispose()
    found = conn.execute("SELECT to_regclass(%s), to_regclass(%s)", (f"{schema}.runs", f"{schema}.event_logs")).fetchone()
    assert found is not None
    assert None not in found
