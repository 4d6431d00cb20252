"""What the API does on Dagster's own instance. Until somebody asks for it, the API has no Dagster in memory, which takes 40 MB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from pulso_etl.api.dagster_client import DagsterUnavailable
from pulso_etl.automation import announcements, recovery
from pulso_etl.refreshing.keys import source_key
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import first_line
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.spec import TableSpec


def recover(settings: Settings, tables: Mapping[str, TableSpec]) -> list[recovery.EndedAttempt]:
    """Ends the attempts that died or hang. Raises DagsterUnavailable, DestinationError and psycopg.Error."""
    url, schema = settings.database_url.get_secret_value(), settings.database_schema
    with Session(url, "api", connect_seconds=5).hold() as conn, _instance() as instance:
        return list(recovery.recover(conn, schema, instance, tables, datetime.now(UTC)))


def announce(settings: Settings, source: str, updated_at: datetime, said_by: str) -> tuple[str, bool]:
    """Records that the source was updated. Returns the name of its asset, and whether this is new. Raises DagsterUnavailable."""
    tenant = settings.owner.tenant
    with _instance() as instance:
        recorded = announcements.announce(instance, source, updated_at, said_by, tenant)
    return source_key(source, tenant).to_user_string(), recorded


@contextmanager
def _instance() -> Iterator[dg.DagsterInstance]:
    """Raises DagsterUnavailable."""
    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    except (dg.DagsterError, SQLAlchemyError) as error:
        raise DagsterUnavailable(f"Dagster's instance can't be used here: {first_line(error)}") from error
