"""The probe for changed days: what it tells, when it tells nothing, and what it asks of BigQuery."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from google.cloud import bigquery

from pulso_etl.bigquery.changes import changed_days, is_daily, is_telling, modified_days
from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SCHEMAS, SampleData
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PlanError, SourceError
from pulso_etl.tables import TABLES
from pulso_etl_tests.bigquery.conftest import MakeSource
from pulso_etl_tests.faulty_proxy import FaultyProxy, edited, set_modified, set_partition_times

WINDOW = DayRange(date(2026, 7, 10), date(2026, 7, 15))
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
QUERY = r"^POST \S+/(queries|jobs)\b"


@pytest.fixture
def source(make_source: MakeSource, bigquery_proxy: FaultyProxy) -> BigQuerySource:
    return make_source(emulator_host=bigquery_proxy.url)


def later() -> datetime:
    """An instant after every change so far, clocks included."""
    return datetime.now(UTC) + timedelta(seconds=0.3)


def days(*numbers: int) -> set[date]:
    return {date(2026, 7, number) for number in numbers}


@pytest.mark.parametrize("name", TABLES)
def test_nothing_changed_is_told_for_free(source: BigQuerySource, bigquery_proxy: FaultyProxy, name: str) -> None:
    assert changed_days(source, TABLES[name], WINDOW, later()) == {}
    assert len(bigquery_proxy.seen(r"^GET \S+/tables/")) == len(source.tables(TABLES[name]))
    assert not bigquery_proxy.seen(QUERY)


def test_a_table_that_changed_since_tells_its_days_in_the_window(emulator: BigQueryEmulator, make_source: MakeSource) -> None:
    names = {name: f"mibot-222814.CHANGES_TESTS.{name}" for name in SCHEMAS}
    data = SampleData(names, date(2026, 7, 15), days=3, dashboard_rows_per_day=2)
    data.seed_into(emulator.client())
    source = make_source(sources=names)
    since = later()
    assert changed_days(source, TABLES["dashboard_data"], WINDOW, since) == {}
    time.sleep(0.4)
    # The emulator moves a table's time only when the table is created.
    emulator.client().delete_table(names["dashboard_cobranzas"])
    data.seed_into(emulator.client())
    assert set(changed_days(source, TABLES["dashboard_data"], WINDOW, since) or ()) == days(13, 14, 15)
    assert set(changed_days(source, TABLES["evolution_data"], DayRange(date(2026, 7, 15), date(2026, 7, 15)), since) or ()) == days(
        15
    )
    assert changed_days(source, TABLES["operation_data"], WINDOW, since) == {}


def test_partitions_tell_which_days_and_days_outside_of_the_window_are_left_out(
    source: BigQuerySource, bigquery_proxy: FaultyProxy
) -> None:
    now = datetime.now(UTC)
    old = now - timedelta(days=3)
    set_partition_times(bigquery_proxy, {"20260701": now, "20260710": old, "20260712": now, "20260715": now, "__NULL__": now})
    assert changed_days(source, TABLES["dashboard_data"], WINDOW, now - DAY) == dict.fromkeys(days(12, 15), now)
    (query,) = bigquery_proxy.seen(QUERY)
    assert query.json["labels"] == {"app": "pulso-etl", "purpose": "changes"}
    assert int(query.json["maximumBytesBilled"]) == source.maximum_bytes_billed


def test_a_change_of_the_agents_table_is_no_signal_and_of_the_attempts_alone_is_one(
    source: BigQuerySource, bigquery_proxy: FaultyProxy
) -> None:
    now = datetime.now(UTC)
    assert changed_days(source, TABLES["productivity_data"], WINDOW, now - DAY) is None
    assert not bigquery_proxy.seen(QUERY)
    set_modified(bigquery_proxy, "agentes", LONG_AGO)
    set_partition_times(bigquery_proxy, {"20260711": now})
    assert changed_days(source, TABLES["productivity_data"], WINDOW, now - DAY) == dict.fromkeys(days(11), now)


def test_a_view_is_no_signal_and_costs_nothing(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, emulator: BigQueryEmulator, data: SampleData
) -> None:
    table = data.names["dashboard_cobranzas"]
    emulator.client().query(f"CREATE OR REPLACE VIEW `{table}_vw` AS SELECT * FROM `{table}`").result()
    viewed = source.model_copy(update={"sources": {"dashboard_cobranzas": f"{table}_vw"}})
    assert changed_days(viewed, TABLES["dashboard_data"], WINDOW, later()) is None
    assert not bigquery_proxy.seen(QUERY)


def test_rows_in_a_streaming_buffer_are_no_signal(source: BigQuerySource, bigquery_proxy: FaultyProxy) -> None:
    buffer = {"estimatedRows": "1", "estimatedBytes": "1", "oldestEntryTime": "1"}
    bigquery_proxy.inject(r"^GET \S+/tables/", edited(lambda table: table | {"streamingBuffer": buffer}))
    assert changed_days(source, TABLES["dashboard_data"], WINDOW, later()) is None


def test_an_instant_without_zone_is_refused_and_a_missing_table_named(make_source: MakeSource) -> None:
    with pytest.raises(PlanError, match="dashboard_data: the time of the last load has no zone"):
        changed_days(make_source(), TABLES["dashboard_data"], WINDOW, datetime(2026, 7, 15))
    missing = make_source(sources={"dashboard_cobranzas": "mibot-222814.NOPE.nope"})
    with pytest.raises(SourceError, match=r"^dashboard_data 2026-07-10\.\.2026-07-15: BigQuery does not know the table"):
        changed_days(missing, TABLES["dashboard_data"], WINDOW, LONG_AGO)


NOW = datetime(2026, 7, 15, 12, tzinfo=UTC)
OLD, NEW = NOW - timedelta(seconds=1), NOW


@pytest.mark.parametrize(
    ("modified", "expected"),
    [
        ({"20260714": OLD, "20260715": NEW}, days(15)),
        ({"20260715": NEW, "__NULL__": NEW}, days(15)),
        ({"20260715": OLD, "__NULL__": NEW}, set()),
        ({"20260715": OLD}, None),
        ({}, None),
        ({"20260715": NEW, "__UNPARTITIONED__": OLD}, None),
        ({"20260715": NEW, "2026071512": NEW}, None),
        ({"202607": NEW}, None),
        ({"202611": NEW}, None),
        ({None: NEW}, None),
    ],
)
def test_partition_times_become_days(modified: dict[str | None, datetime], expected: set[date] | None) -> None:
    assert modified_days(modified, NOW) == (None if expected is None else dict.fromkeys(expected, NEW))


def table(**properties: Any) -> bigquery.Table:
    fields = [bigquery.SchemaField("fecha_gestion", "DATE"), bigquery.SchemaField("timestamp_gestion", "TIMESTAMP")]
    made = bigquery.Table("p.d.t", schema=fields)
    for name, value in properties.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("partitioning", "daily"),
    [
        (bigquery.TimePartitioning("DAY", "fecha_gestion"), True),
        (bigquery.TimePartitioning("MONTH", "fecha_gestion"), False),
        (bigquery.TimePartitioning("DAY", "timestamp_gestion"), False),
        (bigquery.TimePartitioning("DAY"), False),
        (None, False),
    ],
)
def test_only_a_partition_by_the_day_on_which_the_query_filters_is_a_day_of_the_table(
    partitioning: bigquery.TimePartitioning | None, daily: bool
) -> None:
    assert is_daily(table(time_partitioning=partitioning), TABLES["operation_data"]) is daily
    assert not is_daily(table(time_partitioning=partitioning), TABLES["dashboard_data"])


@pytest.mark.parametrize(
    ("kind", "telling"), [("TABLE", True), ("VIEW", False), ("MATERIALIZED_VIEW", False), ("EXTERNAL", False), ("SNAPSHOT", False)]
)
def test_only_a_base_table_is_telling(kind: str, telling: bool) -> None:
    resource = {"tableReference": {"projectId": "p", "datasetId": "d", "tableId": "t"}, "type": kind, "lastModifiedTime": "1"}
    assert is_telling(bigquery.Table.from_api_repr(resource)) is telling
