"""The locks of the API's launches: whom they keep out, and who can't take them."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from pulso_etl.api.app import Deployment
from pulso_etl.api.dagster_client import DagsterUnavailable
from pulso_etl.refreshing.request import Grants, RefreshRequest
from pulso_etl.settings import Settings
from pulso_etl.tables import TABLES
from pulso_etl_tests.api.conftest import Target
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.api.test_events import Listener

NOWHERE = "http://127.0.0.1:1/graphql"


@pytest.fixture
def settings(server_url: str, schema: str) -> Settings:
    """The settings of an API without Dagster. A launch that gets past the lock says that Dagster is away."""
    return Settings(database_url=SecretStr(server_url), database_schema=schema, dagster_graphql_url=NOWHERE)


@pytest.fixture
def reader(conn: psycopg.Connection, server_url: str, schema: str) -> Iterator[psycopg.Connection]:
    """A login of the database that may only read our tables."""
    name = sql.Identifier(f"reader_{uuid.uuid4().hex[:12]}")
    conn.execute(sql.SQL("CREATE ROLE {0}; GRANT {0} TO CURRENT_USER").format(name))
    conn.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), name))
    alter = "ALTER DEFAULT PRIVILEGES IN SCHEMA {} GRANT SELECT ON TABLES TO {}"
    conn.execute(sql.SQL(alter).format(sql.Identifier(schema), name))
    with psycopg.connect(server_url) as session:
        session.execute(sql.SQL("SET ROLE {}").format(name))
        session.commit()
        yield session
    conn.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(name))


async def launch(settings: Settings, seconds: float) -> None:
    here = Deployment(settings, TABLES, discreet=False)
    await here.database.open()
    try:
        asked = RefreshRequest(("operation_data",), grants=Grants(force=True), asked_by="test")
        await asyncio.wait_for(here.refreshes.launch(asked), seconds)
    finally:
        await here.dagster.close()
        await here.database.close()


def test_who_may_only_read_holds_up_no_launch(settings: Settings, schema: str, reader: psycopg.Connection) -> None:
    with pytest.raises(DagsterUnavailable):
        asyncio.run(launch(settings, 20))
    name = sql.Identifier(schema, "etl_refreshes")
    for mode in ("SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute(sql.SQL("LOCK TABLE {} IN {} MODE").format(name, sql.SQL(mode)))
        reader.rollback()
    key = f"pulso_etl:refreshes:{schema}"
    reader.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (key,))
    reader.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(name))
    with pytest.raises(DagsterUnavailable):
        asyncio.run(launch(settings, 20))


def test_one_launch_goes_on_at_a_time(settings: Settings, schema: str, conn: psycopg.Connection) -> None:
    with pytest.raises(DagsterUnavailable):
        asyncio.run(launch(settings, 20))
    lock = sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(sql.Identifier(schema, "etl_refreshes"))
    with conn.transaction():
        conn.execute(lock)
        with pytest.raises(TimeoutError):
            asyncio.run(launch(settings, 0.7))


def test_a_forged_notification_changes_nothing_that_is_told(api: ApiServer, target: Target) -> None:
    before = api.call("GET", "/api/v1/etl/status").headers["etag"]
    forged = {
        "schema": target.schema,
        "table": "dashboard_data",
        "data_version": 10**6,
        "first": "2026-01-01",
        "last": "2026-01-02",
    }
    with Listener(api) as listener, psycopg.connect(target.conn.info.dsn, password=target.conn.info.password) as forger:
        forger.execute("SELECT pg_notify('pulso_etl_data', %s)", (json.dumps(forged),))
        forger.commit()
        # What is told of the tables is a second old at most.
        time.sleep(2.5)
    assert api.call("GET", "/api/v1/etl/status").headers["etag"] == before
    assert str(10**6) not in json.dumps(listener.events)
