"""How rows arrive: over the Storage Read API, or over REST, complete, in bounded memory, leaving nothing open."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date, timedelta
from typing import Any

import grpc
import psutil
import pyarrow as pa
import pytest

from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SampleData
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import SourceUnavailable
from pulso_etl.sync.spec import TableSpec
from pulso_etl.tables import TABLES
from pulso_etl_tests.bigquery.conftest import MakeSource
from pulso_etl_tests.bigquery.storage_server import Break, StorageServer
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.faulty_proxy import FaultyProxy

WINDOW = DayRange(date(2026, 7, 6), date(2026, 7, 15))
EMPTY = DayRange(date(2026, 1, 1), date(2026, 1, 2))
SPEC = altered(TABLES["dashboard_data"], batch_rows=30, timeout=timedelta(seconds=20))
ROWS = 400


def read(source: BigQuerySource, window: DayRange = WINDOW, spec: TableSpec = SPEC) -> tuple[pa.Table, dict[str, Any]]:
    stream = source.stream(spec, window, "run-1")
    with stream.open() as reader:
        return reader.read_all(), stream.metadata


def in_order(table: pa.Table) -> list[dict[str, Any]]:
    return table.sort_by([(key, "ascending") for key in SPEC.primary_key]).to_pylist()


def expected(data: SampleData) -> list[dict[str, Any]]:
    return in_order(data.tables()["dashboard_cobranzas"].select(SPEC.column_names))


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


BEFORE: set[threading.Thread] = set()
"""Threads that other tests of this process have left running."""


@pytest.fixture(autouse=True)
def threads_before() -> None:
    BEFORE.clear()
    BEFORE.update(threading.enumerate())


def nothing_is_left(storage: StorageServer) -> bool:
    """Whether the server has no call and no connection, and the client has no thread that downloads."""
    return (
        storage.active == 0
        and not any(c.raddr and c.raddr.port == storage.port for c in psutil.Process().net_connections("tcp"))
        and not any(t.name.startswith("ThreadPoolExecutor") for t in threading.enumerate() if t not in BEFORE)
    )


def test_a_result_larger_than_a_page_comes_over_storage_in_several_streams_and_batches(
    make_source: MakeSource, storage: StorageServer, data: SampleData
) -> None:
    stream = make_source(emulator_storage=storage.address).stream(SPEC, WINDOW, "run-1")
    with stream.open() as reader:
        batches = list(reader)
    assert in_order(pa.Table.from_batches(batches)) == expected(data)
    assert stream.metadata["transport"] == "storage"
    assert len({request.read_stream for request in storage.reads}) == 2
    assert [batch.num_rows for batch in batches] == [50] * 8
    assert storage.sessions[0].max_stream_count == 2
    assert eventually(lambda: nothing_is_left(storage))


def test_both_transports_give_the_same_schema_and_rows(make_source: MakeSource, storage: StorageServer, data: SampleData) -> None:
    over_storage, told = read(make_source(emulator_storage=storage.address))
    over_rest, also_told = read(make_source(use_storage_api=False, emulator_storage=storage.address))
    assert (told["transport"], also_told["transport"]) == ("storage", "rest")
    assert over_storage.schema == over_rest.schema
    assert in_order(over_storage) == in_order(over_rest) == expected(data)
    assert len(storage.sessions) == 1


@pytest.mark.parametrize(("setting", "codec"), [("lz4", 1), ("zstd", 2), ("none", 0)])
def test_rows_are_compressed_on_their_way_as_set(
    make_source: MakeSource, storage: StorageServer, data: SampleData, setting: str, codec: int
) -> None:
    table, told = read(make_source(emulator_storage=storage.address, wire_compression=setting))
    assert storage.sessions[0].read_session.read_options.arrow_serialization_options.buffer_compression == codec
    assert (in_order(table), told["transport"]) == (expected(data), "storage")


def test_a_result_of_one_page_comes_over_rest_and_says_so(
    make_source: MakeSource, storage: StorageServer, bigquery_proxy: FaultyProxy
) -> None:
    spec = altered(SPEC, batch_rows=ROWS)
    table, told = read(make_source(emulator_host=bigquery_proxy.url, emulator_storage=storage.address), spec=spec)
    assert (table.num_rows, told["transport"]) == (ROWS, "rest")
    assert not storage.sessions


@pytest.mark.parametrize("name", TABLES)
def test_an_empty_result_has_the_schema_with_the_right_types(make_source: MakeSource, storage: StorageServer, name: str) -> None:
    source = make_source(emulator_storage=storage.address)
    empty, _ = read(source, EMPTY, TABLES[name])
    full, _ = read(source, WINDOW, TABLES[name])
    assert empty.num_rows == 0
    assert full.num_rows > 0
    assert empty.schema == full.schema
    assert set(empty.schema.names) == {column.name for column in TABLES[name].query_columns}


def test_numeric_types_are_exact_on_both_transports(make_source: MakeSource, storage: StorageServer) -> None:
    spec = altered(
        SPEC,
        batch_rows=1,
        query="SELECT @start AS d, NUMERIC '12345678901234567890123456789.123456789' AS n, "
        "BIGNUMERIC '1.12345678901234567890' AS b, TIMESTAMP '2026-07-01 00:00:00.000001+00' AS t "
        "FROM UNNEST([1, 2]) WHERE @start <= @end",
    )
    over_storage, told = read(make_source(emulator_storage=storage.address), spec=spec)
    over_rest, _ = read(make_source(), spec=spec)
    assert told["transport"] == "storage"
    assert over_storage == over_rest
    assert over_rest.schema.field("n").type == pa.decimal128(38, 9)
    assert over_rest.schema.field("b").type == pa.decimal256(76, 38)
    assert str(over_rest["n"][0].as_py()) == "12345678901234567890123456789.123456789"
    assert str(over_rest["b"][0].as_py()).rstrip("0") == "1.1234567890123456789"


def test_a_stream_that_breaks_is_taken_up_where_it_broke(make_source: MakeSource, storage: StorageServer, data: SampleData) -> None:
    storage.breaks = [
        Break(grpc.StatusCode.UNAVAILABLE, after=100),
        Break(grpc.StatusCode.UNAVAILABLE, after=150),
        Break(grpc.StatusCode.UNAVAILABLE, after=50, stream=1),
    ]
    table, told = read(make_source(emulator_storage=storage.address))
    assert in_order(table) == expected(data)
    assert told["transport"] == "storage"
    assert [request.offset for request in storage.reads if request.read_stream.endswith("/0")] == [0, 100, 150]
    assert [request.offset for request in storage.reads if request.read_stream.endswith("/1")] == [0, 50]


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED])
def test_a_stream_that_breaks_for_good_is_retryable_and_leaves_nothing_open(
    make_source: MakeSource, storage: StorageServer, status: grpc.StatusCode
) -> None:
    storage.breaks = [Break(status, after=100, times=1000)]
    began = time.monotonic()
    with pytest.raises(SourceUnavailable, match=r"dashboard_data 2026-07-06\.\.2026-07-15: BigQuery is failing for now"):
        read(make_source(emulator_storage=storage.address, retry_timeout_seconds=0.5))
    assert time.monotonic() - began < 10
    assert eventually(lambda: nothing_is_left(storage))


def test_a_stream_that_falls_silent_ends_at_the_table_s_time_out(make_source: MakeSource, storage: StorageServer) -> None:
    storage.breaks = [Break(None, after=100)]
    spec = altered(SPEC, timeout=timedelta(seconds=1))
    with pytest.raises(SourceUnavailable, match="is failing for now"):
        read(make_source(emulator_storage=storage.address), spec=spec)
    assert eventually(lambda: nothing_is_left(storage))


def test_a_server_that_dies_in_the_middle_is_retryable(make_source: MakeSource, storage: StorageServer) -> None:
    storage.breaks = [Break(None, after=100), Break(None, after=100, stream=1)]
    with make_source(emulator_storage=storage.address, retry_timeout_seconds=0.5).stream(SPEC, WINDOW, "run-1").open() as reader:
        reader.read_next_batch()
        storage.die()
        with pytest.raises(SourceUnavailable, match="is failing for now"):
            reader.read_all()
    assert eventually(lambda: nothing_is_left(storage))


def test_a_load_that_fails_in_the_middle_ends_the_download_at_once(make_source: MakeSource, storage: StorageServer) -> None:
    storage.breaks = [Break(None, after=100), Break(None, after=0, stream=1)]
    began = time.monotonic()
    with suppress(ZeroDivisionError), make_source(emulator_storage=storage.address).stream(SPEC, WINDOW, "run-1").open() as reader:
        reader.read_next_batch()
        assert eventually(lambda: storage.active == 2)
        _ = 1 / 0
    assert time.monotonic() - began < 10
    assert eventually(lambda: nothing_is_left(storage))


def test_batches_read_ahead_are_bounded(make_source: MakeSource, storage: StorageServer) -> None:
    rows = 700
    spec = altered(
        SPEC,
        batch_rows=10,
        query="SELECT n, STRING_AGG(TO_HEX(SHA256(CAST(n * 1000 + m AS STRING))), '') AS v "
        f"FROM UNNEST(GENERATE_ARRAY(1, {rows})) AS n CROSS JOIN UNNEST(GENERATE_ARRAY(1, 600)) AS m "
        "WHERE @start <= @end GROUP BY n",
    )
    storage.batch_rows = 10
    before = pa.total_allocated_bytes()
    with make_source(emulator_storage=storage.address).stream(spec, WINDOW, "run-1").open() as reader:
        reader.read_next_batch()
        assert storage.bytes_held > 20_000_000
        read_ahead = [sleep_and_measure() - before - storage.bytes_held for _ in range(5)]
        assert max(read_ahead) < 8_000_000
        assert sum(batch.num_rows for batch in reader) == rows - 10


def sleep_and_measure() -> int:
    time.sleep(0.2)
    return int(pa.total_allocated_bytes())


def test_rest_reads_a_page_when_the_load_asks_for_it(make_source: MakeSource, bigquery_proxy: FaultyProxy) -> None:
    with make_source(emulator_host=bigquery_proxy.url).stream(SPEC, WINDOW, "run-1").open() as reader:
        first = reader.read_next_batch()
        while not first.num_rows:
            first = reader.read_next_batch()
        pages = bigquery_proxy.seen(r"GET .*/queries/.*maxResults=30")
        assert (first.num_rows, len(pages)) == (30, 1)
        assert sum(batch.num_rows for batch in reader) == ROWS - 30


def test_the_emulator_s_own_storage_end_point_fails_and_rest_gives_every_row_once(
    make_source: MakeSource, emulator: BigQueryEmulator, data: SampleData, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pulso_etl"):
        table, told = read(make_source(emulator_storage=emulator.grpc_address))
    assert in_order(table) == expected(data)
    assert told["transport"] == "rest"
    assert "dashboard_data 2026-07-06..2026-07-15: the Storage Read API does not answer, so rows come over REST" in caplog.text
    assert "404 Table read failed" in caplog.text
    assert "400 rows over rest" in caplog.text


def test_permission_denied_on_storage_falls_back_and_says_what_to_grant(
    make_source: MakeSource, storage: StorageServer, data: SampleData, caplog: pytest.LogCaptureFixture
) -> None:
    storage.refusal = grpc.StatusCode.PERMISSION_DENIED
    table, told = read(make_source(emulator_storage=storage.address))
    assert in_order(table) == expected(data)
    assert told["transport"] == "rest"
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "roles/bigquery.readSessionUser" in warning.getMessage()
    assert len(storage.sessions) == 1
    assert eventually(lambda: nothing_is_left(storage))


def test_streams_that_never_start_fall_back_and_lose_no_row(
    make_source: MakeSource, storage: StorageServer, data: SampleData
) -> None:
    storage.breaks = [Break(grpc.StatusCode.UNAVAILABLE, after=0, stream=n, times=1000) for n in range(2)]
    table, told = read(make_source(emulator_storage=storage.address, retry_timeout_seconds=0.5))
    assert in_order(table) == expected(data)
    assert told["transport"] == "rest"
    assert eventually(lambda: nothing_is_left(storage))


def test_an_address_where_nothing_listens_falls_back_quickly(
    make_source: MakeSource, data: SampleData, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    table, told = read(make_source(emulator_storage="127.0.0.1:9"))
    assert (table.num_rows, told["transport"]) == (ROWS, "rest")
    assert "BIGQUERY_USE_STORAGE_API=false" in caplog.text
    assert time.monotonic() - began < 10


def test_rows_that_are_missing_at_the_end_are_an_error(make_source: MakeSource, storage: StorageServer) -> None:
    storage.lost = 10
    with pytest.raises(SourceUnavailable, match="gave 390 of the result's 400 rows"):
        read(make_source(emulator_storage=storage.address))


def test_a_stream_opened_again_reads_the_same_job_and_runs_no_second_query(
    make_source: MakeSource, storage: StorageServer, bigquery_proxy: FaultyProxy, data: SampleData
) -> None:
    stream = make_source(emulator_host=bigquery_proxy.url, emulator_storage=storage.address).stream(SPEC, WINDOW, "run-1")
    with stream.open() as reader:
        reader.read_next_batch()
    job_id = stream.metadata["bigquery_job_id"]
    with stream.open() as reader:
        assert in_order(reader.read_all()) == expected(data)
    assert stream.metadata["bigquery_job_id"] == job_id
    assert len(bigquery_proxy.seen(r"POST .*/jobs")) == 1
