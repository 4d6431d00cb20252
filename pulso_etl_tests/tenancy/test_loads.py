"""Each tenant's loads: from its own source, into its own schema, as its own role, whatever becomes of the other's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap

from pulso_etl.alerts.service import Alerts
from pulso_etl.api.dagster_client import DagsterClient
from pulso_etl.api.database import Database
from pulso_etl.api.status import StatusReader
from pulso_etl.automation.jobs import build_jobs
from pulso_etl.automation.recovery import recover
from pulso_etl.automation.sensors import Automation
from pulso_etl.definitions import UNUSED, build_defs, build_resources, defs
from pulso_etl.logs import run_fields
from pulso_etl.refreshing.execution import Outcome, run_plan
from pulso_etl.refreshing.plan import RefreshPlan
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger import locks
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl_tests.clock import TABLES, TODAY
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.tenancy.conftest import Tenancy

WINDOW = DayRange(TODAY - timedelta(days=4), TODAY)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def load(tenancy: Tenancy, instance: dg.DagsterInstance, tenant: str, table: str = "dashboard_data") -> Outcome:
    settings, tables = tenancy.parts[tenant]
    return run_plan(build_defs(settings, tables=tables), instance, tables[table], RefreshPlan(table, WINDOW, "asked for"))


def test_both_are_loaded_from_their_own_sources_and_neither_role_reads_the_other_s_schema(
    environment: Tenancy, instance: dg.DagsterInstance
) -> None:
    for tenant, rows in (("acme", 150), ("globex", 100)):
        outcome = load(environment, instance, tenant)
        assert outcome.error is None
        assert outcome.counts["read"] == rows
        run = instance.get_run_by_id(outcome.run_id or "")
        assert run is not None
        assert run.tags["pulso_etl/tenant"] == tenant
    for tenant, other in (("acme", "globex"), ("globex", "acme")):
        assert environment.loaded(tenant) == environment.source(tenant, WINDOW)
        role = environment.parts[tenant].settings.owner.database_role
        with psycopg.connect(environment.url(tenant), autocommit=True) as conn:
            assert conn.execute("SELECT current_user").fetchone() == (role,)
            owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = %s"
            assert conn.execute(owners, (environment.schema(tenant),)).fetchall() == [(role,)]
            own = conn.execute(f"SELECT count(*) FROM {environment.schema(tenant)}.dashboard_data".encode()).fetchone()
            assert own == (len(environment.loaded(tenant)),)
            for table in ("dashboard_data", "etl_watermarks"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for schema"):
                    conn.execute(f"SELECT * FROM {environment.schema(other)}.{table}".encode())


def test_a_source_that_is_broken_is_its_tenant_s_trouble_alone(environment: Tenancy, instance: dg.DagsterInstance) -> None:
    with environment.emulator.client() as client:
        client.delete_table(environment.data["globex"].names["gestiones_unificadas"])
        try:
            broken, well = (load(environment, instance, tenant, "operation_data") for tenant in ("globex", "acme"))
            now, told = datetime.now(UTC), {}
            for tenant, (settings, tables) in environment.parts.items():
                automation = Automation(settings, tables, build_jobs(tables))
                source = build_resources(settings)[f"{tenant}__bigquery"]
                told[tenant] = {request.job_name for request in automation.tick(instance, source, now).requests}
                automation.tell(instance, now, now - timedelta(hours=1))
                Alerts(settings).flush(now + timedelta(minutes=5))
        finally:
            environment.data["globex"].seed_into(client)
    assert "BigQuery does not know the table" in (broken.error or "")
    assert well.error is None
    assert environment.history("acme")[-1] == ("operation_data", "success")
    assert environment.history("globex")[-1] == ("operation_data", "failed")
    # One table is fresh, one waits for its next try, and the others were never loaded.
    assert all(f"{tenant}__refresh_operation_data" not in jobs for tenant, jobs in told.items())
    assert {f"{tenant}__refresh_assignment_data" for tenant in told} == {
        job for jobs in told.values() for job in jobs if job and "assig" in job
    }
    with psycopg.connect(environment.admin_url) as conn:
        messages = "SELECT title FROM {}.etl_alert_messages"
        titles = {t: conn.execute(messages.format(environment.schema(t)).encode()).fetchall() for t in told}
    assert titles["acme"] == []
    assert len(titles["globex"]) == 1
    assert titles["globex"][0][0].startswith("[Pulso globex] ")


def test_a_source_that_has_not_changed_is_told_of_the_tenant_s_own_asset(
    environment: Tenancy, instance: dg.DagsterInstance
) -> None:
    settings, tables = environment.parts["acme"]
    aware = settings.model_copy(update={"change_aware": True, "change_margin_seconds": 0})
    plan = RefreshPlan("operation_data", WINDOW, "asked for")
    assert run_plan(build_defs(aware, tables=tables), instance, tables["operation_data"], plan).error is None
    due = {"operation_data": altered(tables["operation_data"], refresh_every=timedelta(seconds=1))}
    later = datetime.now(UTC) + timedelta(seconds=2)
    ticked = Automation(aware, due, []).tick(instance, build_resources(aware)["acme__bigquery"], later)
    assert (ticked.requests, ["2 verified" in reason for reason in ticked.reasons]) == ([], [True])
    keys = [("acme", "operation_data"), ("operation_data",)]
    event, stranger = (instance.get_latest_materialization_event(dg.AssetKey(key)) for key in keys)
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["partitions_verified"].value == 2
    assert stranger is None


def test_a_role_ends_hung_sessions_of_its_loads_and_sees_how_far_they_are(
    environment: Tenancy, instance: dg.DagsterInstance
) -> None:
    settings, tables = environment.parts["acme"]
    now, marks = datetime.now(UTC), Watermarks(settings.database_schema)
    hung = RunningAttempt("evolution_data", WINDOW, "hung", 1, now - timedelta(hours=2))
    with (
        psycopg.connect(environment.url("acme"), autocommit=True) as load,
        psycopg.connect(environment.url("acme"), autocommit=True) as conn,
    ):
        with conn.transaction():
            marks.create(conn)
            marks.start(conn, hung)
        locks.take(load, [locks.table_lock(settings.database_schema, "evolution_data"), hung.lock(settings.database_schema)])
        load.execute("CREATE TEMP TABLE stage (n integer)")
        with load.cursor() as cursor, cursor.copy("COPY stage FROM STDIN") as copy:
            for n in range(100_000):
                copy.write_row((n,))
            assert asyncio.run(copied(environment, "acme")) > 10_000
        (ended,) = recover(conn, settings.database_schema, instance, tables, now)
        assert (ended.table, ended.run_id) == ("evolution_data", "hung")
        assert conn.execute("SELECT current_user").fetchone() == (settings.owner.database_role,)
        with pytest.raises(psycopg.OperationalError):
            load.execute("SELECT 1")


def test_lines_of_a_run_name_its_tenant_and_its_table() -> None:
    meta = {"run_id": "r1", "step_key": "acme__dashboard_data", "job_tags": {"pulso_etl/tenant": "acme"}}
    assert run_fields(logging.makeLogRecord({"dagster_meta": meta})) == {
        "run_id": "r1",
        "tenant": "acme",
        "table": "dashboard_data",
    }


async def copied(tenancy: Tenancy, tenant: str) -> int:
    """The rows of evolution_data that are being copied, as the API sees them."""
    settings, tables = tenancy.parts[tenant]
    reader = StatusReader(settings, Database(settings), DagsterClient("http://127.0.0.1:9"), tables)
    async with await psycopg.AsyncConnection.connect(tenancy.url(tenant), autocommit=True) as conn:
        for _ in range(100):
            if rows := (await reader.rows_copied(conn)).get("evolution_data", 0):
                return rows
            await asyncio.sleep(0.05)
    return 0


def test_names_are_each_tenant_s_own_and_show_no_secret(environment: Tenancy) -> None:
    repository = defs().get_repository_def()
    graph = repository.asset_graph
    assert {key.to_user_string() for key in graph.executable_asset_keys} == {
        f"{tenant}/{table}" for tenant in ("acme", "globex") for table in TABLES
    }
    for key in graph.executable_asset_keys:
        tenant, table = key.path
        node = graph.get(key)
        assert node.tags["pulso_etl/tenant"] == tenant
        assert node.assets_def.op.pools == {f"writer_{tenant}__{table}"}
        assert {parent.path[0] for parent in node.parent_keys} == {tenant}
        assert node.group_name == f"{tenant}__{TABLES[table].group}"
    named = [*(job.name for job in repository.get_all_jobs()), *repository.get_top_level_resources()]
    automatic: list[Any] = [*repository.sensor_defs, *repository.schedule_defs]
    named += [one.name for one in automatic]
    # Dagster's records of all tenants are kept for the same time.
    owned = {name for name in named if not name.startswith("__")} - UNUSED.keys() - {"retention_sensor"}
    assert {name.partition("__")[0] for name in owned} == {"acme", "globex"}
    for job in repository.get_all_jobs():
        assert job.name.startswith("__") or job.tags["pulso_etl/tenant"] == job.name.partition("__")[0]
    shown = dg.serialize_value(RepositorySnap.from_def(repository))
    assert environment.settings.database_url.get_secret_value() not in shown
