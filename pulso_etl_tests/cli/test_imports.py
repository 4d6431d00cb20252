"""What the servers have in memory: they import only what they need."""

from __future__ import annotations

import subprocess
import sys

import pytest

CLIENTS = {"google.cloud.bigquery", "google.cloud.bigquery_storage", "dagster_gcp", "sqlglot", "apprise"}
HEAVY = {"pandas", "pyarrow", "numpy", *CLIENTS}
"""Packages that only runs, sensors and some commands need. Together they take 130 MB."""
DEFINITIONS = {"pulso_etl.definitions", "pulso_etl.assets", "pulso_etl.checks.asset_checks"}
"""The code server has them. The others ask it over gRPC."""
OURS = {"psycopg", "pulso_etl.sync.ledger", "pulso_etl.sync.loading", "fastapi", "pulso_etl.api.models"}
"""What the tables and the HTTP API need. Dagster's servers have a client of PostgreSQL of their own."""
DAGSTERS = {"dagster", "sqlalchemy", "alembic", "grpc", "google.auth", "google.api_core", "requests"}
"""Packages of Dagster and of Google that the HTTP API does without, unless somebody asks for what needs them: 50 MB."""
API = """
import sys
from pulso_etl.cli.main import Commands
Commands().get_command(None, "api")
import pulso_etl.api.server
print(" ".join(sys.modules))
import pulso_etl.bigquery.credentials
print(" ".join(sys.modules))
"""
"""What the HTTP API imports, and after that what the state of BigQuery needs."""
SERVERS = """
import sys
from pulso_etl.cli.main import Commands
for server in ("webserver", "daemon"):
    Commands().get_command(None, server)
import pulso_etl.api.door, dagster_webserver.app, dagster_webserver.cli, dagster._daemon.cli
import pulso_etl.instance.lines, pulso_etl.instance.coordinator, pulso_etl.instance.event_storage
print(" ".join(sys.modules))
"""
"""What Dagster's webserver and its daemon import."""


def loaded(program: str) -> list[set[str]]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


@pytest.mark.usefixtures("processes")
def test_only_runs_and_the_code_server_have_their_code_in_memory() -> None:
    [found] = loaded(SERVERS)
    assert "dagster_postgres" in found
    assert found & (HEAVY | DEFINITIONS | OURS) == set()


@pytest.mark.usefixtures("processes")
def test_the_api_has_neither_dagster_nor_google_in_memory() -> None:
    found, asked = loaded(API)
    assert "pulso_etl.api.app" in found
    assert found & (HEAVY | DEFINITIONS | DAGSTERS) == set()
    assert asked & (HEAVY | DEFINITIONS | DAGSTERS) <= {"google.auth", "google.api_core", "requests", "grpc"}
