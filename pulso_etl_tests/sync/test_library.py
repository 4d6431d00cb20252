"""The library stands by itself: without BigQuery, HTTP, the command line, the settings, or a table of the call centre."""

from __future__ import annotations

import subprocess
import sys

import pytest

ALONE = """
import sys

ABSENT = ("dagster_gcp", "dagster_webserver", "fastapi", "google.auth", "google.cloud", "pydantic_settings", "typer")

class Absent:
    def find_spec(self, name, path=None, target=None):
        own = name.startswith("pulso_etl.") and name != "pulso_etl.sync" and not name.startswith("pulso_etl.sync.")
        if own or any(name == absent or name.startswith(absent + ".") for absent in ABSENT):
            raise ModuleNotFoundError(f"{name} can't be imported here")

sys.meta_path.insert(0, Absent())
import pkgutil
import pulso_etl.sync
from importlib import import_module

names = [module.name for module in pkgutil.walk_packages(pulso_etl.sync.__path__, "pulso_etl.sync.")]
for name in names:
    import_module(name)
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.spec import Column, ColumnType, TableSpec

print(len(names))
"""


@pytest.mark.usefixtures("processes")
def test_every_module_of_the_library_is_imported_where_nothing_else_can_be() -> None:
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", ALONE], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert int(ended.stdout) > 30
