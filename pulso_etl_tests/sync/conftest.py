"""Loads and the IO manager on the test's schema, and a Dagster instance in memory."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import psycopg
import pytest

from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.ledger.migrations import migrate
from pulso_etl.sync.loading.request import PlanName
from pulso_etl_tests.sync.places import Place
from pulso_etl_tests.sync.samples import Loads


@pytest.fixture
def loads(conn: psycopg.Connection, schema: str) -> Loads:
    return Loads(conn, schema)


@pytest.fixture(params=["direct", "merge"])
def plan(request: pytest.FixtureRequest) -> PlanName:
    return request.param


@pytest.fixture
def manager(server_url: str, schema: str) -> PostgresUpsertIOManager:
    return PostgresUpsertIOManager(database_url=server_url, database_schema=schema)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def place(conn: psycopg.Connection, schema: str) -> Place:
    migrate(conn, schema)
    return Place(conn, schema)


@pytest.fixture
def plain(place: Place) -> Iterator[Place]:
    """A second schema. Its loads compare every day with the table."""
    schema = f"{place.schema}_plain"
    migrate(place.conn, schema)
    yield Place(place.conn, schema, skips=False)
    place.conn.execute(f"DROP SCHEMA {schema} CASCADE".encode())
