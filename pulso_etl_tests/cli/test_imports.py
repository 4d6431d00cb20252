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
SERVERS = """
import sys
from pulso_etl.cli.main import Commands
for server in ("api", "webserver", "daemon"):
    Commands().get_command(None, server)
import pulso_etl.api.server
import pulso_etl.api.door, dagster_webserver.app, dagster_webserver.cli, dagster._daemon.cli
import pulso_etl.instance.coordinator, pulso_etl.instance.event_storage
print(" ".join(sys.modules))
"""
"""What the API, Dagster's webserver and its daemon import."""


@pytest.mark.usefixtures("processes")
def test_only_runs_and_the_code_server_have_their_code_in_memory() -> None:
    done = subprocess.run([sys.executable, "-c", SERVERS], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(done.stdout.split())
    assert "dagster_postgres" in loaded
    assert loaded & (HEAVY | DEFINITIONS) == set()
