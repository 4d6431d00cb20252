"""What the API does on Dagster's own instance. Who asks for none of it has neither Dagster nor Arrow in memory: 60 MB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from pulso_etl.api.dagster_client import DagsterUnavailable
from pulso_etl.automation import announcements, recovery
from pulso_etl.refreshing import undoing
from pulso_etl.refreshing.keys import source_key
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import first_line
from pulso_etl.sync.ledger.undoings import Wish
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.undoing import Report


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


def undo(settings: Settings, spec: TableSpec, wish: Wish, *, dry_run: bool) -> Report:
    """Undoes a load, or only tells what that would do. Raises what `undoing.undo` raises."""
    return undoing.undo(settings, spec, wish, None if dry_run else dg.DagsterInstance.get)


@contextmanager
def _instance() -> Iterator[dg.DagsterInstance]:
    """Raises DagsterUnavailable."""
    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    except (dg.DagsterError, SQLAlchemyError) as error:
        raise DagsterUnavailable(f"Dagster's instance can't be used here: {first_line(error)}") from error
