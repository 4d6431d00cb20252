"""A whole deployment with the API in front: PostgreSQL, the emulator, Dagster's webserver and daemon."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest
from pydantic import SecretStr

from pulso_etl.access.tokens import Role, make_token
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.schema.statements import Statements
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.clock import TABLES, ZONE
from pulso_etl_tests.conftest import running_stack
from pulso_etl_tests.dagster_stack import DagsterStack

SECRETS = {role.name.lower(): make_token(role.name.lower(), role) for role in Role}
TOKENS = SecretStr(" ".join(str(entry) for _, entry in SECRETS.values()))
"""The setting API_TOKENS with an entry for each of them."""


@pytest.fixture(scope="package")
def stack(server_url: str, emulator: BigQueryEmulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterStack]:
    """A deployment that only the tests of the API use."""
    with running_stack(server_url, emulator, tmp_path_factory.mktemp("api")) as stack:
        yield stack


def settings_of(stack: DagsterStack, **more: object) -> Settings:
    """The settings of an API in front of the deployment."""
    given = {
        "database_url": SecretStr(stack.env["DATABASE_URL"]),
        "database_schema": stack.schema,
        "bigquery_dataset": stack.env["BIGQUERY_DATASET"],
        "bigquery_emulator_host": stack.env["BIGQUERY_EMULATOR_HOST"],
        "dagster_graphql_url": f"{stack.url}/graphql",
        "dagster_ui_url": stack.url,
        "dagster_postgres_url": SecretStr(stack.env["DAGSTER_POSTGRES_URL"]),
        "timezone": stack.env["TIMEZONE"],
        "api_launch_limit": "10000/second",
    }
    return Settings.model_validate(given | more)


@pytest.fixture(scope="package")
def api(stack: DagsterStack) -> Iterator[ApiServer]:
    """The API without tokens: every client on this machine has all rights."""
    with ApiServer(settings_of(stack)) as server:
        yield server


@pytest.fixture(scope="package")
def guarded(stack: DagsterStack) -> Iterator[ApiServer]:
    """The API with a token for each role, and an origin that may use it."""
    origin = "https://dashboard.example.com"
    with ApiServer(settings_of(stack, api_tokens=TOKENS, api_cors_origins=origin)) as server:
        yield server


@dataclass
class Target:
    """The deployment's PostgreSQL. It has the ledger's tables, also before the first load."""

    conn: psycopg.Connection
    schema: str

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        return self.conn.execute(query.encode(), values).fetchall()


@pytest.fixture
def target(stack: DagsterStack) -> Iterator[Target]:
    with psycopg.connect(stack.env["DATABASE_URL"], autocommit=True) as conn:
        conn.execute(f"SET search_path = {stack.schema}")
        with conn.transaction():
            Watermarks(stack.schema).create(conn)
        yield Target(conn, stack.schema)


@dataclass
class Operation:
    """The table of attempts by hour in a schema of its own, which one load has filled: 17 of yesterday, none of today."""

    conn: psycopg.Connection
    settings: Settings
    today: date

    @property
    def yesterday(self) -> date:
        return self.today - timedelta(days=1)


@pytest.fixture
def operation(conn: psycopg.Connection, server_url: str, schema: str) -> Operation:
    """Its deployment has no Dagster."""
    given = Settings(
        database_url=SecretStr(server_url),
        database_schema=schema,
        dagster_graphql_url="http://127.0.0.1:9/graphql",
        timezone=ZONE.name,
        api_tokens=TOKENS,
    )
    now = datetime.now(UTC)
    found = Operation(conn, given, ZONE.day(now))
    history = Watermarks(schema)
    history.create(conn)
    for statement in Statements(TABLES["operation_data"], schema).create_table():
        conn.execute(statement)
    conn.execute(
        "INSERT INTO operation_data (fecha_foto, hora, canal, archivo, total_gestiones, contactos_efectivos, "
        "contactos_no_efectivos, total_pdp) VALUES (%s, 3, 'BOT', '=a', 10, 4, 6, 1), (%s, 23, 'BOT', 'a', 7, 2, 5, 0)",
        [found.yesterday] * 2,
    )
    began = RunningAttempt("operation_data", DayRange(found.yesterday, found.today), "r1", 1, now)
    history.start(conn, began)
    history.succeed(conn, began, Loaded(now, {found.yesterday: 2, found.today: 0}, 2, 1.0, changed=True))
    return found
