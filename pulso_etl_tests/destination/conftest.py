from __future__ import annotations

import psycopg
import pytest

from pulso_etl.destination.load import Plan
from pulso_etl_tests.destination.samples import Loads


@pytest.fixture
def loads(conn: psycopg.Connection, schema: str) -> Loads:
    return Loads(conn, schema)


@pytest.fixture(params=["direct", "merge"])
def plan(request: pytest.FixtureRequest) -> Plan:
    return request.param  # type: ignore[no-any-return]
