"""The IO manager on the test's schema, and a Dagster instance in memory."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from pulso_etl.destination.io_manager import PostgresUpsertIOManager


@pytest.fixture
def manager(server_url: str, schema: str) -> PostgresUpsertIOManager:
    return PostgresUpsertIOManager(database_url=server_url, database_schema=schema)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance
