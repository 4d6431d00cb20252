"""Checks every part of a deployment and says, a line each, what to do where one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
import psycopg

from pulso_etl.definitions import build_resources
from pulso_etl.errors import PulsoError
from pulso_etl.refresh import DayRange, lima_day
from pulso_etl.settings import Settings, load_settings
from pulso_etl.source.bigquery import BigQuerySource
from pulso_etl.tables import TABLES
from pulso_etl.tables.spec import TableSpec


@dataclass(frozen=True)
class Finding:
    """What was found of one part."""

    part: str
    ok: bool
    text: str


def diagnose() -> Iterator[Finding]:
    """Findings, part by part; a part that needs an earlier one is left out where that failed."""
    try:
        settings = load_settings()
    except PulsoError as error:
        yield Finding("settings", False, str(error))
        return
    yield Finding("settings", True, f"schema {settings.database_schema}, dataset {settings.bigquery_dataset}")
    yield _check("PostgreSQL", lambda: _postgres(settings))
    source: BigQuerySource = build_resources(settings)["bigquery"]
    ping = _check("BigQuery", lambda: _ping(source))
    yield ping
    if ping.ok:
        for spec in TABLES.values():
            yield _check(f"source of {spec.name}", lambda spec=spec: _source(source, spec))  # type: ignore[misc]
    yield _check("Dagster storage", _dagster)


def _check(part: str, probe: Callable[[], str]) -> Finding:
    try:
        return Finding(part, True, probe())
    except Exception as error:
        return Finding(part, False, " ".join(str(error).split())[:300] or type(error).__name__)


def _postgres(settings: Settings) -> str:
    with psycopg.connect(settings.database_url.get_secret_value(), connect_timeout=10) as conn:
        version = conn.info.server_version // 10_000
        if version < 15:
            raise RuntimeError(f"version {version} is too old; 15 or newer is needed")
        row = conn.execute(
            "SELECT CASE WHEN to_regnamespace(quote_ident(%(schema)s)) IS NULL "
            "THEN has_database_privilege(current_database(), 'CREATE') "
            "ELSE has_schema_privilege(%(schema)s, 'CREATE') END",
            {"schema": settings.database_schema},
        ).fetchone()
        if row != (True,):
            raise RuntimeError(f"the role may not create tables; GRANT CREATE ON SCHEMA {settings.database_schema} to it")
        return f"version {version}, may create tables in schema {settings.database_schema}"


def _ping(source: BigQuerySource) -> str:
    with source.get_client() as client:
        list(client.query_and_wait("SELECT 1"))
        return f"project {client.project} answers"


def _source(source: BigQuerySource, spec: TableSpec) -> str:
    from pulso_etl.destination.contract import fit
    from pulso_etl.destination.schema import Table

    today = lima_day(datetime.now(UTC))
    window = DayRange(today, today)
    with source.stream(spec, window, "doctor").open() as reader:
        _, _, drift = fit(spec, reader.schema, Table({}), window)
    return "columns fit" + (f"; not loaded: {', '.join(drift.not_loaded)}" if drift.not_loaded else "")


def _dagster() -> str:
    with dg.DagsterInstance.get() as instance:
        instance.get_runs_count()
        return type(instance.run_storage).__name__
