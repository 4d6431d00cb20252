"""Which days the partitions of an asset stand for, of every kind that Dagster has."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from functools import partial
from typing import Any

import dagster as dg
import psycopg
import pyarrow as pa
import pytest

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import ContractError
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.partitions import first_day, partition_days
from pulso_etl_tests.clock import TODAY, ZONE
from pulso_etl_tests.sync.test_io_manager import failure, stored, wanted
from pulso_etl_tests.sync.visits import ALL, Rows, materialize, table, visits

Run = Callable[..., dg.ExecuteInProcessResult]
DAILY, WEEKLY, MONTHLY = dg.DailyPartitionsDefinition, dg.WeeklyPartitionsDefinition, dg.MonthlyPartitionsDefinition


@pytest.fixture
def run(manager: PostgresUpsertIOManager, instance: dg.DagsterInstance) -> Run:
    return partial(materialize, manager, instance)


@pytest.mark.parametrize(
    ("definition", "key", "days"),
    [
        (DAILY("2026-02-01", timezone="America/Lima"), "2026-02-28", "2026-02-28"),
        (DAILY("2026-02-01"), "2026-02-28", "2026-02-28"),
        (DAILY("2026-02-01", timezone="Pacific/Auckland"), "2026-02-28", "2026-02-28"),
        (DAILY("20260201", fmt="%Y%m%d", timezone="America/Lima"), "20260228", "2026-02-28"),
        (DAILY("01/02/2026", fmt="%d/%m/%Y"), "28/02/2026", "2026-02-28"),
        (DAILY("2026-02-01", hour_offset=6), "2026-02-28", "2026-02-28"),
        (DAILY("2026-02-01", timezone="Europe/Madrid"), "2026-03-29", "2026-03-29"),
        (WEEKLY("2026-02-01", day_offset=1, timezone="America/Lima"), "2026-02-02", "2026-02-02..2026-02-08"),
        (MONTHLY("2026-01-01"), "2026-02-01", "2026-02-01..2026-02-28"),
        (MONTHLY("202601", fmt="%Y%m", timezone="America/Lima"), "202602", "2026-02-01..2026-02-28"),
        (
            dg.TimeWindowPartitionsDefinition(start="2026-02-02", fmt="%Y-%m-%d", cron_schedule="0 0 * * 1-5"),
            "2026-02-06",
            "2026-02-06..2026-02-08",
        ),
        (
            dg.TimeWindowPartitionsDefinition(
                start="2026-02-01", fmt="%Y-%m-%d", cron_schedule="0 0 * * *", exclusions=["0 0 28 2 *"]
            ),
            "2026-02-27",
            "2026-02-27",
        ),
    ],
)
def test_a_partition_is_the_days_from_its_begin_to_before_its_end(
    definition: dg.PartitionsDefinition[Any], key: str, days: str
) -> None:
    assert {key: str(found) for key, found in partition_days("t", definition, [key]).items()} == {key: days}


def test_the_first_day_is_that_of_the_first_partition() -> None:
    assert first_day(WEEKLY("2026-02-01", day_offset=1)) == date(2026, 2, 2)
    assert first_day(DAILY("20260201", fmt="%Y%m%d")) == date(2026, 2, 1)
    assert first_day(DAILY("2999-01-01")) == date.min


def test_five_years_of_days_take_no_time() -> None:
    definition = DAILY("2015-01-01", timezone="America/Lima")
    keys = definition.get_partition_keys()[:1827]
    days = partition_days("t", definition, keys)
    assert days[keys[0]] == DayRange(date(2015, 1, 1), date(2015, 1, 1))
    assert days[keys[-1]] == DayRange(date(2020, 1, 1), date(2020, 1, 1))


STATIC = dg.StaticPartitionsDefinition(["2026-02-27"])
REFUSED = [
    (None, [], "t: the asset has no partitions"),
    (STATIC, ["2026-02-27"], "t, partition 2026-02-27: the asset has a StaticPartitionsDefinition"),
    (dg.DynamicPartitionsDefinition(name="days"), ["2026-02-27"], "has a DynamicPartitionsDefinition"),
    (
        dg.MultiPartitionsDefinition({"day": DAILY("2026-02-01"), "site": STATIC}),
        [dg.MultiPartitionKey({"day": "2026-02-27", "site": "2026-02-27"})],
        "has a MultiPartitionsDefinition",
    ),
    (dg.HourlyPartitionsDefinition("2026-02-27-00:00"), ["2026-02-27-23:00"], "t, partition 2026-02-27-23:00: it is shorter"),
    (
        dg.TimeWindowPartitionsDefinition(start="2026-02-27-00", fmt="%Y-%m-%d-%H", cron_schedule="0 */12 * * *"),
        ["2026-02-27-12"],
        "it is shorter than a day",
    ),
]


@pytest.mark.parametrize(("definition", "keys", "reason"), REFUSED)
def test_what_is_no_whole_days_is_refused(definition: dg.PartitionsDefinition[Any] | None, keys: list[str], reason: str) -> None:
    with pytest.raises(ContractError, match=reason) as raised:
        partition_days("t", definition, keys)
    assert "needs daily partitions, or longer ones" in str(raised.value)


def of_all(rows: pa.Table) -> pa.Table:
    return table(ALL)


@pytest.mark.parametrize(
    ("definition", "start", "end", "counts"),
    [
        (
            DAILY("20260201", fmt="%Y%m%d", timezone="America/Lima"),
            "20260227",
            "20260301",
            {"20260227": 2, "20260228": 1, "20260301": 1},
        ),
        (DAILY("2026-02-01", timezone="UTC"), "2026-02-27", "2026-03-01", {"2026-02-27": 2, "2026-02-28": 1, "2026-03-01": 1}),
        (WEEKLY("2026-02-01", day_offset=4), "2026-02-26", None, {"2026-02-26": 4}),
        (MONTHLY("202601", fmt="%Y%m", timezone="America/Lima"), "202602", "202603", {"202602": 3, "202603": 1}),
    ],
)
def test_partitions_of_whole_days_are_loaded_and_each_has_its_own_counts(
    run: Run, conn: psycopg.Connection, definition: Any, start: str, end: str | None, counts: dict[str, int]
) -> None:
    asset = visits(of_all, partitions_def=definition)
    for _ in range(2):
        result = run(asset, start=start, end=end)
        assert result.success
        assert stored(conn) == wanted(ALL)
    found = {
        str(event.partition): event.materialization.metadata["rows_unchanged"].value
        for event in result.get_asset_materialization_events()
    }
    assert found == counts
    days = [day for key in counts for day in partition_days("t", definition, [key])[key]]
    attempts = conn.execute("SELECT partition_start, partition_end FROM etl_extractions").fetchall()
    assert attempts == [(days[0], days[-1])] * 2


def test_a_reloaded_month_loses_what_the_source_lost_in_it(run: Run, conn: psycopg.Connection) -> None:
    asset = partial(visits, partitions_def=MONTHLY("2026-01-01"))
    assert run(asset(of_all), start="2026-02-01", end="2026-03-01").success
    kept: Rows = [ALL[0], ALL[2]]
    assert run(asset(lambda _: table(kept)), start="2026-02-01", end=None).success
    assert stored(conn) == wanted([*kept, ALL[3]])


@pytest.mark.parametrize(
    ("definition", "key"),
    [
        (dg.HourlyPartitionsDefinition("2026-02-27-00:00"), "2026-02-27-05:00"),
        (STATIC, "2026-02-27"),
        (dg.MultiPartitionsDefinition({"day": DAILY("2026-02-01"), "site": STATIC}), "2026-02-27|2026-02-27"),
    ],
)
def test_other_partitions_are_refused_before_anything_is_written(
    run: Run, conn: psycopg.Connection, definition: Any, key: str
) -> None:
    asset = visits(of_all, partitions_def=definition, backfill_policy=None)
    assert "needs daily partitions, or longer ones" in failure(run(asset, start=key, end=None))
    assert conn.execute("SELECT to_regclass('visits')").fetchone() == (None,)
    assert conn.execute("SELECT status FROM etl_extractions").fetchall() == [("failed",)]


def test_dynamic_partitions_are_refused_before_anything_is_written(
    run: Run, conn: psycopg.Connection, instance: dg.DagsterInstance
) -> None:
    instance.add_dynamic_partitions("days", ["2026-02-27"])
    asset = visits(of_all, partitions_def=dg.DynamicPartitionsDefinition(name="days"), backfill_policy=None)
    assert "DynamicPartitionsDefinition" in failure(run(asset, start="2026-02-27", end=None))
    assert conn.execute("SELECT to_regclass('visits')").fetchone() == (None,)


@pytest.mark.parametrize(
    "definition",
    [
        WEEKLY("2026-02-01", timezone=ZONE.name),
        MONTHLY("2026-02-01", timezone=ZONE.name),
        DAILY("2026-02-01", timezone=ZONE.name),
        DAILY("2026-02-01", timezone=ZONE.name, end_offset=1),
        WEEKLY("2026-02-01", timezone=ZONE.name, end_offset=1),
    ],
)
def test_the_watermark_moves_with_the_newest_partition_that_there_is(
    run: Run, conn: psycopg.Connection, definition: dg.TimeWindowPartitionsDefinition
) -> None:
    """A partition without `end_offset` exists only after its end. So the newest partition has ended before a load reads it."""
    asset = visits(lambda _: table([]), partitions_def=definition)
    *_, before, newest = definition.get_partition_keys()
    assert run(asset, start=before, end=None).success
    query = "SELECT last_partition, last_extracted_at > now() - interval '5 minutes' FROM etl_watermarks"
    first = conn.execute(query).fetchone()
    assert run(asset, start=newest, end=None).success
    window = partition_days("t", definition, [newest])[newest]
    assert conn.execute(query).fetchone() == (min(window.end, TODAY), True)
    assert first == (None, None)
    # A load of an older one says nothing new about the newest.
    assert run(asset, start=before, end=None).success
    assert conn.execute(query).fetchone() == (min(window.end, TODAY), True)
