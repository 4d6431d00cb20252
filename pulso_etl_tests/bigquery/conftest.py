"""A source with data of ten days before 2026-07-15, in a dataset of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest

from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SCHEMAS, SampleData
from pulso_etl.sync.days import DayRange
from pulso_etl_tests.bigquery.storage_server import StorageServer

DATA = SampleData(
    {name: f"mibot-222814.SOURCE_TESTS.{name}" for name in SCHEMAS}, date(2026, 7, 15), days=10, dashboard_rows_per_day=40
)
WINDOW = DayRange(date(2026, 7, 6), date(2026, 7, 15))
MakeSource = Callable[..., BigQuerySource]


@pytest.fixture(scope="session")
def data(emulator: BigQueryEmulator) -> SampleData:
    DATA.seed_into(emulator.client())
    return DATA


@pytest.fixture
def make_source(emulator: BigQueryEmulator, data: SampleData) -> MakeSource:
    """Sources of the emulator with the sample data. The keywords are fields of BigQuerySource. Retries do not wait."""

    def make(**fields: Any) -> BigQuerySource:
        given: dict[str, Any] = {
            "project": "mibot-222814",
            "sources": data.names,
            "emulator_host": emulator.rest_url,
            "retry_initial_seconds": 0.01,
        }
        return BigQuerySource(**(given | fields))

    return make


@pytest.fixture
def storage(emulator: BigQueryEmulator) -> Iterator[StorageServer]:
    with StorageServer(emulator.client()) as server:
        yield server
