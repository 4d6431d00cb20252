"""dagster-gcp's resource is imported without the rest of its package, and whoever wants the package has it whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROCESS = """
import sys
from pulso_etl.bigquery.source import BigQuerySource
unneeded = ("googleapiclient", "google.cloud.storage", "google.cloud.dataproc_v1", "dagster_pandas", "dagster_gcp")
print([name for name in unneeded if name in sys.modules])
import dagster_gcp
print(issubclass(BigQuerySource, dagster_gcp.BigQueryResource), hasattr(dagster_gcp, "GCSResource"))
"""


@pytest.mark.usefixtures("processes")
def test_only_the_resource_of_dagster_gcp_is_imported() -> None:
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", PROCESS], capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.splitlines() == ["[]", "True True"]
