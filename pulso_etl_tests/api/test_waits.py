"""How long the tables' readers wait for changes of the source, as status and metrics tell it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import psycopg
from pydantic import SecretStr

from pulso_etl.api.metrics import _waits
from pulso_etl.api.models import SourceToFresh
from pulso_etl.api.status import Beside, Look, status_of
from pulso_etl.api.waits import Waits
from pulso_etl.refreshing.due import Rhythm
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.tables import TABLES
from pulso_etl_tests.clock import TODAY

TABLE = "operation_data"
MINUTE = timedelta(minutes=1)


def test_median_and_95_of_100_of_the_loads_that_brought_a_change(conn: psycopg.Connection, server_url: str, schema: str) -> None:
    marks = Watermarks(schema)
    marks.create(conn)
    waits = Waits(marks)

    def load(run_id: str, waited: timedelta | None) -> None:
        now = datetime.now(UTC)
        began = RunningAttempt(TABLE, DayRange(TODAY, TODAY), run_id, 1, now)
        marks.start(conn, began)
        changed_at = now - waited if waited is not None else None
        marks.succeed(conn, began, Loaded(now, {TODAY: 1}, 1, 1.0, changed=True, source_changed_at=changed_at))

    def read() -> Mapping[str, SourceToFresh]:
        async def ask() -> Mapping[str, SourceToFresh]:
            async with await psycopg.AsyncConnection.connect(server_url, autocommit=True) as own:
                return await waits.read(own, marks.read(conn))

        return asyncio.run(ask())

    load("first", None)
    assert read() == {}
    for minutes in range(1, 22):
        load(f"r{minutes}", minutes * MINUTE)
    # A clock of the source that is ahead makes no wait shorter than none.
    load("ahead", -MINUTE)
    found = read()[TABLE]
    assert (found.days, found.loads) == (7, 22)
    assert abs(found.median_seconds - 10.5 * 60) < 30
    assert abs(found.p95_seconds - 19.95 * 60) < 30


def test_status_and_metrics_tell_the_waits() -> None:
    settings = Settings(database_url=SecretStr("postgresql://nowhere/none"))
    spec, look = TABLES[TABLE], Look(datetime.now(UTC), Rhythm.of(settings), "http://dagster")
    waits = SourceToFresh(days=7, loads=3, median_seconds=200.0, p95_seconds=600.0)
    told = [status_of(spec, None, None, None, look, Beside(waits=one)) for one in (waits, None)]
    assert told[0].source_to_fresh == waits
    seconds, loads = _waits(told)
    assert [(sample.labels["quantile"], sample.value) for sample in seconds.samples[:2]] == [("0.5", 200.0), ("0.95", 600.0)]
    assert all(math.isnan(sample.value) for sample in seconds.samples[2:])
    assert [sample.value for sample in loads.samples] == [3, 0]
