"""Sessions through a real pgbouncer: in session mode all goes well, in transaction mode nothing is begun."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from pydantic import SecretStr

from pulso_etl.automation.jobs import build_jobs
from pulso_etl.automation.sensors import Automation
from pulso_etl.definitions import build_resources
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import DestinationError
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.postgres.roles import as_role
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.tables import TABLES
from pulso_etl_tests.alerts.receivers import MakeSettings, Receiver
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.pooler import needs_pgbouncer, pooler
from pulso_etl_tests.sync.test_io_manager import failure
from pulso_etl_tests.sync.visits import materialize, visits

pytestmark = needs_pgbouncer
MINUTE = timedelta(minutes=1)
SHARED = r"gives one server session to several clients \(pool_mode=transaction"


@pytest.fixture(scope="module")
def session_mode(server_url: str) -> Iterator[str]:
    with pooler(server_url, "session", default_pool_size=2) as url:
        yield url


@pytest.fixture(scope="module")
def transaction_mode(server_url: str) -> Iterator[str]:
    with pooler(server_url, "transaction", default_pool_size=4) as url:
        yield url


def held_locks(conn: psycopg.Connection) -> list[tuple[object, ...]]:
    query = "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = %s)"
    return conn.execute(query, (conn.info.dbname,)).fetchall()


def test_loads_one_after_the_other_on_a_used_session_with_other_sizes(
    session_mode: str, schema: str, conn: psycopg.Connection, instance: dg.DagsterInstance
) -> None:
    asset = visits(lambda rows: rows)
    for megabytes in (4, 64, 64, 8):
        manager = PostgresUpsertIOManager(database_url=session_mode, database_schema=schema, work_mem_mb=megabytes)
        # This many rows are loaded twice, so that the load uses the stage.
        for _ in range(2):
            result = materialize(manager, instance, asset)
            assert result.success
    assert conn.execute("SELECT count(*) FROM visits").fetchone() == (4,)
    assert held_locks(conn) == []


def test_a_pool_of_one_session_is_waited_for_and_used(server_url: str) -> None:
    with pooler(server_url, "session", default_pool_size=1) as url, Session(url, "test").hold() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_role_is_taken_through_a_pooler_that_refuses_options(session_mode: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="options"):
        psycopg.connect(as_role(session_mode, "pg_monitor"))
    with Session(as_role(session_mode, "pg_monitor"), "test").open() as conn:
        assert conn.execute("SELECT current_user").fetchone() == ("pg_monitor",)


def test_a_load_in_transaction_mode_is_refused_before_anything_is_written(
    transaction_mode: str, schema: str, conn: psycopg.Connection, instance: dg.DagsterInstance
) -> None:
    manager = PostgresUpsertIOManager(database_url=transaction_mode, database_schema=schema)
    told = failure(materialize(manager, instance, visits(lambda rows: rows)))
    assert "gives one server session to several clients (pool_mode=transaction" in told
    assert told.count("\n") == 0
    assert conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,)).fetchall() == []
    assert held_locks(conn) == []


@pytest.fixture
def shared(transaction_mode: str, make_settings: MakeSettings, receiver: Receiver, tmp_path: Path) -> Settings:
    """A deployment that reaches PostgreSQL through a pooler in transaction mode."""
    return make_settings(
        f"json://127.0.0.1:{receiver.port}/hook",
        database_url=SecretStr(transaction_mode),
        dagster_graphql_url="http://127.0.0.1:1/graphql",
        dagster_home=tmp_path,
        alert_gather_seconds=0,
    )


def nothing_is_there(conn: psycopg.Connection, schema: str) -> bool:
    return conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,)).fetchall() == []


def test_the_api_refuses_transaction_mode_and_says_so_where_health_is_asked(
    shared: Settings, schema: str, conn: psycopg.Connection
) -> None:
    with ApiServer(shared) as api:
        for _ in range(2):
            health = api.call("GET", "/api/v1/etl/health")
            assert health.status_code == 503
            assert re.search(SHARED, health.json()["parts"]["postgresql"]["message"])
            for method, path in (("POST", "refresh/table/dashboard_data"), ("GET", "status"), ("POST", "cleanup")):
                answer = api.call(method, f"/api/v1/etl/{path}")
                assert answer.status_code == 503, path
                assert re.search(SHARED, answer.json()["detail"]), path
                assert "\n" not in answer.json()["detail"]
                assert int(answer.headers["Retry-After"]) > 0
    assert nothing_is_there(conn, schema)


def test_sensors_refuse_transaction_mode_and_people_are_told_why(
    shared: Settings, schema: str, conn: psycopg.Connection, receiver: Receiver, instance: dg.DagsterInstance
) -> None:
    tables = {"dashboard_data": TABLES["dashboard_data"]}
    for sensor in Automation(shared, tables, build_jobs(tables)).sensors():
        resources = {"bigquery": build_resources(shared)["bigquery"]} if sensor.name == "refresh_sensor" else {}
        context = dg.build_sensor_context(instance=instance, resources=resources)
        if sensor.name == "alert_sensor":
            assert "1 message(s) due" in (sensor.evaluate_tick(context).skip_message or "")
        else:
            with pytest.raises(DestinationError, match=SHARED):
                sensor.evaluate_tick(context)
    assert receiver.titles() == ["[Pulso] PostgreSQL no está disponible"]
    assert re.search(SHARED, receiver.posts[0][1]["message"])
    assert nothing_is_there(conn, schema)


def test_transaction_mode_is_noticed_while_others_are_busy_too(transaction_mode: str) -> None:
    with psycopg.connect(transaction_mode) as busy, psycopg.connect(transaction_mode) as other:
        busy.execute("SELECT 1")
        for _ in range(20):
            other.execute("SELECT 1")
            other.rollback()
            with pytest.raises(DestinationError, match=SHARED), Session(transaction_mode, "test").hold():
                pass


def test_a_server_without_a_pooler_is_asked_nothing_more(conn: psycopg.Connection, server_url: str) -> None:
    with Session(server_url, "alone").hold():
        named = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pulso-etl alone'"
        assert conn.execute(named).fetchone() == (1,)
