"""The library stands by itself: without BigQuery, HTTP, the command line, the settings, or a table of the call centre."""

from __future__ import annotations

import os
import subprocess
import sys

import psycopg

from pulso_etl_tests.dagster_stack import CHECKOUT

ALONE = """
import sys

ABSENT = ("dagster_gcp", "dagster_webserver", "fastapi", "google.auth", "google.cloud", "pydantic_settings", "typer")

class Absent:
    def find_spec(self, name, path=None, target=None):
        own = name.startswith("pulso_etl.") and name.split(".")[1] not in ("memory", "sync")
        if own or any(name == absent or name.startswith(absent + ".") for absent in ABSENT):
            raise ModuleNotFoundError(f"{name} can't be imported here")

sys.meta_path.insert(0, Absent())
import pkgutil
import pulso_etl.sync
from importlib import import_module

names = [module.name for module in pkgutil.walk_packages(pulso_etl.sync.__path__, "pulso_etl.sync.")]
for name in names:
    import_module(name)

import dagster as dg
from weather.definitions import defs, weather_days

range_ = {"dagster/asset_partition_range_start": "2026-03-01", "dagster/asset_partition_range_end": "2026-03-03"}
loaded = dg.materialize([weather_days], tags=range_, resources=defs.resources)
print(len(names), loaded.success)
"""


def test_the_library_loads_the_table_of_another_project_where_nothing_else_can_be_imported(
    server_url: str, schema: str, conn: psycopg.Connection
) -> None:
    env = os.environ | {"DATABASE_URL": server_url, "DATABASE_SCHEMA": schema, "PYTHONPATH": str(CHECKOUT / "examples/weather")}
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", ALONE], env=env, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-2000:]
    modules, loaded = ended.stdout.split()[-2:]
    assert (int(modules) > 30, loaded) == (True, "True")
    assert conn.execute("SELECT count(*), count(DISTINCT day) FROM weather_days").fetchone() == (9, 3)
