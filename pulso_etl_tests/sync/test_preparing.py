"""What an administrator runs before the first load, so that a role that may create nothing can load."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import dagster as dg
import psycopg
import pytest

from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.ledger.preparing import grants, needed
from pulso_etl.sync.spec import Column, ColumnType
from pulso_etl_tests.sync.visits import SPEC, materialize, visits


@pytest.fixture
def role(conn: psycopg.Connection) -> Iterator[str]:
    """A role without any right."""
    name = f"loads_{uuid.uuid4().hex[:8]}"
    conn.execute(f"CREATE ROLE {name}")
    yield name
    conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_role_that_may_create_nothing_loads_after_the_statements(
    server_url: str, schema: str, conn: psycopg.Connection, role: str, instance: dg.DagsterInstance
) -> None:
    manager = PostgresUpsertIOManager(database_url=server_url, database_schema=schema, database_role=role)
    asset = visits(lambda rows: rows)
    assert not materialize(manager, instance, asset).success
    for statement in (*needed(conn, schema, [SPEC]), *grants(conn, schema, [SPEC], role)):
        conn.execute(statement.encode())
    assert needed(conn, schema, [SPEC]) == []
    assert not conn.execute("SELECT has_schema_privilege(%s, %s, 'CREATE')", (role, schema)).fetchone()[0]  # type: ignore[index]
    for _ in range(2):
        assert materialize(manager, instance, asset).success
    assert conn.execute("SELECT count(*) FROM visits").fetchone() == (4,)


def test_a_migration_is_told_and_changes_nothing(schema: str, conn: psycopg.Connection) -> None:
    for statement in needed(conn, schema, [SPEC]):
        conn.execute(statement.encode())
    wider = SPEC.model_copy(update={"columns": (*SPEC.columns, Column(name="note", type=ColumnType.TEXT))})
    (statement,) = needed(conn, schema, [wider])
    assert statement.startswith(f'ALTER TABLE "{schema}"."visits" ADD COLUMN')
    assert needed(conn, schema, [wider]) == [statement]
