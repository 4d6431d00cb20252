"""Two tenants on one PostgreSQL and one emulator. Each has its own dataset. The administrators' SQL makes roles and schemas."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import yaml
from google.cloud import bigquery
from pydantic import SecretStr
from sqlalchemy import make_url

from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SampleData
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.tenancy.tenants import Deployed, deployed, grants
from pulso_etl_tests.clock import TODAY

COLUMNS = "fecha_foto, archivo, cartera, servicio, cuentas, deuda_asig, recupero, pct_cober, inten, fecha_procesamiento"


@dataclass
class Tenancy:
    """The tenants acme and globex: parts, source data and schemas by name. The login is not a superuser and owns nothing."""

    settings: Settings
    parts: Mapping[str, Deployed]
    data: Mapping[str, SampleData]
    admin_url: str
    emulator: BigQueryEmulator

    def schema(self, tenant: str) -> str:
        return self.parts[tenant].settings.database_schema

    def url(self, tenant: str) -> str:
        """The URL with which the tenant connects."""
        return self.parts[tenant].settings.database_url.get_secret_value()

    def loaded(self, tenant: str) -> set[tuple[object, ...]]:
        """The tenant's rows of dashboard_data, as an administrator sees them."""
        with psycopg.connect(self.admin_url) as conn:
            conn.execute("SET TIME ZONE 'UTC'")
            return set(conn.execute(f"SELECT {COLUMNS} FROM {self.schema(tenant)}.dashboard_data".encode()).fetchall())

    def source(self, tenant: str, window: DayRange) -> set[tuple[object, ...]]:
        """The rows of the tenant's source."""
        query = f"SELECT {COLUMNS} FROM `{self.data[tenant].names['dashboard_cobranzas']}` WHERE fecha_foto BETWEEN @start AND @end"
        bounds = [bigquery.ScalarQueryParameter(name, "DATE", getattr(window, name)) for name in ("start", "end")]
        with self.emulator.client() as client:
            rows = client.query(query, job_config=bigquery.QueryJobConfig(query_parameters=bounds)).result()
            return {tuple(row) for row in rows}

    def history(self, tenant: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.admin_url) as conn:
            query = f"SELECT table_name, status FROM {self.schema(tenant)}.etl_extractions ORDER BY id"
            return conn.execute(query.encode()).fetchall()


@pytest.fixture(scope="module")
def tenancy(server_url: str, emulator: BigQueryEmulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenancy]:
    mark = uuid.uuid4().hex[:8]
    login, password = f"pulso_{mark}", uuid.uuid4().hex
    url = make_url(server_url).set(username=login, password=password).render_as_string(hide_password=False)
    file = tmp_path_factory.mktemp("tenants") / "tenants.yaml"
    declared = [
        {
            "name": name,
            "bigquery_dataset": f"{name.upper()}_{mark}",
            "database_schema": f"{name}_{mark}",
            "database_role": f"pulso_{name}_{mark}",
        }
        for name in ("acme", "globex")
    ]
    file.write_text(yaml.safe_dump({"tenants": declared}), encoding="utf-8")
    settings = Settings(
        database_url=SecretStr(url),
        database_schema=f"nobody_{mark}",
        bigquery_emulator_host=emulator.rest_url,
        bigquery_emulator_storage=None,
        tenants_file=file,
        automation=False,
        change_aware=False,
    )
    parts = {part.tenant: part for part in deployed(settings)}
    data = {
        name: SampleData(part.settings.sources(), TODAY, days=5, dashboard_rows_per_day=rows)
        for (name, part), rows in zip(parts.items(), (30, 20), strict=True)
    }
    for one in data.values():
        one.seed_into(emulator.client())
    roles = ", ".join(str(one["database_role"]) for one in declared)
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {login} LOGIN PASSWORD '{password}'".encode())
        for statement in grants(list(parts.values())):
            admin.execute(statement)
        try:
            yield Tenancy(settings, parts, data, server_url, emulator)
        finally:
            admin.execute(f"DROP OWNED BY {roles} CASCADE".encode())
            admin.execute(f"DROP ROLE {roles}, {login}".encode())


@pytest.fixture
def environment(tenancy: Tenancy, dagster_home: Path, monkeypatch: pytest.MonkeyPatch) -> Tenancy:
    """The tenants, with the environment of their deployment in this process."""
    for name in ("database_url", "database_schema", "bigquery_emulator_host", "tenants_file", "automation", "change_aware"):
        value = getattr(tenancy.settings, name)
        monkeypatch.setenv(name.upper(), value.get_secret_value() if isinstance(value, SecretStr) else str(value))
    monkeypatch.setenv("DAGSTER_HOME", str(dagster_home))
    return tenancy
