"""What becomes of a query on a bad day: what is asked again, what is not, what is cancelled, and what the error says."""

from __future__ import annotations

import _thread
import threading
import time
from datetime import date, timedelta
from typing import Any

import pytest

from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.local.sample_data import SampleData
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause, CostCapExceeded, SourceError, SourceUnavailable
from pulso_etl.sync.spec import TableSpec
from pulso_etl.tables import TABLES
from pulso_etl_tests.bigquery.conftest import MakeSource
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.faulty_proxy import (
    Fault,
    FaultyProxy,
    delayed,
    edited,
    error,
    job_failed,
    job_running,
    page,
    reset,
    truncated,
)

WINDOW = DayRange(date(2026, 7, 14), date(2026, 7, 15))
SPEC = altered(TABLES["dashboard_data"], batch_rows=30, timeout=timedelta(seconds=20))
ROWS = 80
INSERT = r"^POST \S+/jobs\?"
RESULT = r"^GET \S+/queries/\S+maxResults=0"
PAGE = r"^GET \S+/queries/\S+maxResults=30"
CANCEL = r"^POST \S+/cancel\b"


@pytest.fixture
def source(make_source: MakeSource, bigquery_proxy: FaultyProxy) -> BigQuerySource:
    return make_source(emulator_host=bigquery_proxy.url)


def read(source: BigQuerySource, spec: TableSpec = SPEC) -> list[dict[str, Any]]:
    with source.stream(spec, WINDOW, "run-1").open() as reader:
        rows: list[dict[str, Any]] = reader.read_all().to_pylist()
    return rows


def keys(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted(tuple(row[key] for key in SPEC.primary_key) for row in rows)


def test_the_query_is_parameterised_labelled_capped_and_timed(make_source: MakeSource, bigquery_proxy: FaultyProxy) -> None:
    source = make_source(emulator_host=bigquery_proxy.url, maximum_bytes_billed=12_345_678)
    with source.stream(SPEC, WINDOW, "A1b2-c3 d4").open():
        pass
    (request,) = bigquery_proxy.seen(INSERT)
    job = request.json["configuration"]
    assert {p["name"]: p["parameterValue"]["value"] for p in job["query"]["queryParameters"]} == {
        "start": "2026-07-14",
        "end": "2026-07-15",
    }
    assert "2026-07" not in job["query"]["query"]
    assert job["query"]["maximumBytesBilled"] == "12345678"
    assert job["labels"] == {"app": "pulso-etl", "table": "dashboard_data", "run_id": "a1b2-c3_d4"}
    assert job["jobTimeoutMs"] == "20000"


@pytest.mark.parametrize(
    "fault",
    [
        error(429, "rateLimitExceeded"),
        error(403, "rateLimitExceeded"),
        error(500, "backendError"),
        error(502, "badGateway"),
        error(503, "backendError"),
        page(503),
        reset,
        truncated,
    ],
    ids=["429", "403-rate", "500", "502", "503", "503-plain", "reset", "truncated"],
)
def test_a_request_that_fails_for_a_passing_reason_is_sent_again_and_no_row_is_lost_or_doubled(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, data: SampleData, fault: Fault
) -> None:
    for pattern in (INSERT, RESULT, PAGE):
        bigquery_proxy.inject(pattern, fault, times=2)
    wanted = [row for row in data.tables()["dashboard_cobranzas"].to_pylist() if row["fecha_foto"] in WINDOW]
    assert keys(read(source)) == keys(wanted)
    assert [len(bigquery_proxy.seen(pattern)) for pattern in (INSERT, RESULT, PAGE)] == [3, 3, 5]


@pytest.mark.parametrize("request_pattern", [INSERT, RESULT, PAGE], ids=["insert", "result", "page"])
def test_a_fault_that_stays_ends_in_bounded_time_after_growing_delays_as_retryable(
    make_source: MakeSource, bigquery_proxy: FaultyProxy, request_pattern: str
) -> None:
    bigquery_proxy.inject(request_pattern, error(503, "backendError"), times=None)
    spec = altered(SPEC, timeout=timedelta(seconds=1))
    began = time.monotonic()
    with pytest.raises(SourceUnavailable, match=r"dashboard_data 2026-07-14\.\.2026-07-15: BigQuery is failing for now") as caught:
        read(make_source(emulator_host=bigquery_proxy.url, retry_timeout_seconds=0.5), spec)
    assert caught.value.retryable
    assert time.monotonic() - began < 10
    assert 3 <= len(bigquery_proxy.seen(request_pattern)) <= 40


@pytest.mark.parametrize(
    ("fault", "advice", "cause"),
    [
        (error(404, "notFound"), "does not know the table; check dataset, prefix and location", Cause.SOURCE_MISSING),
        (error(403, "accessDenied"), "refuses access; grant the account roles/bigquery.jobUser", Cause.SOURCE_ACCESS),
        (error(403, "quotaExceeded"), "has no quota left", Cause.SOURCE_QUOTA),
        (error(401, "authError"), "refuses the account's key", Cause.SOURCE_ACCESS),
        (
            error(400, "invalidQuery", "Unrecognized: nope at [3:2]"),
            "rejects the query in dashboard_data.sql",
            Cause.SOURCE_REFUSED,
        ),
        (job_failed("notFound"), "does not know the table", Cause.SOURCE_MISSING),
        (job_failed("accessDenied"), "refuses access", Cause.SOURCE_ACCESS),
        (job_failed("invalidQuery"), "rejects the query", Cause.SOURCE_REFUSED),
        (job_failed("resourcesExceeded"), "narrow the range", Cause.SOURCE_REFUSED),
    ],
)
def test_a_permanent_error_is_not_retried_and_says_what_to_do(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, fault: Fault, advice: str, cause: Cause
) -> None:
    bigquery_proxy.inject(INSERT, fault, times=None)
    with pytest.raises(SourceError, match=r"^dashboard_data 2026-07-14\.\.2026-07-15: BigQuery ") as caught:
        read(source)
    assert advice in str(caught.value)
    assert caught.value.cause is cause
    assert not caught.value.retryable
    assert len(bigquery_proxy.requests) == 1


def test_a_table_that_is_not_there_is_asked_for_once(make_source: MakeSource, bigquery_proxy: FaultyProxy) -> None:
    missing = make_source(emulator_host=bigquery_proxy.url, sources={"dashboard_cobranzas": "mibot-222814.NOPE.nope"})
    with pytest.raises(SourceError, match=r"does not know the table.*NOPE") as caught:
        read(missing)
    assert not caught.value.retryable
    assert len(bigquery_proxy.seen(INSERT)) == 1


def test_a_placeholder_that_no_setting_describes_is_named(make_source: MakeSource) -> None:
    with pytest.raises(
        SourceError, match=r"dashboard_data: the query names the sources \['dashboard_cobranzas'\], .* known are \['agentes'\]"
    ):
        read(make_source(sources={"agentes": "p.d.t"}))


@pytest.mark.parametrize(
    "fault",
    [
        job_failed("bytesBilledLimitExceeded", "Query exceeded limit for bytes billed: 1. 10485760 or higher required."),
        error(400, "bytesBilledLimitExceeded", "Query exceeded limit for bytes billed: 1. 10485760 or higher required."),
    ],
    ids=["job", "request"],
)
def test_past_the_cost_cap_the_error_is_clear_and_nothing_is_retried(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, fault: Fault
) -> None:
    bigquery_proxy.inject(INSERT, fault, times=None)
    with pytest.raises(CostCapExceeded, match=r"raise BIGQUERY_MAXIMUM_BYTES_BILLED.*10485760 or higher") as caught:
        read(source)
    assert not caught.value.retryable
    assert len(bigquery_proxy.requests) == 1


@pytest.mark.parametrize("reason", ["backendError", "rateLimitExceeded", "jobInternalError", "jobRateLimitExceeded"])
def test_a_job_that_failed_for_a_passing_reason_runs_again_as_a_new_job(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, reason: str
) -> None:
    bigquery_proxy.inject(INSERT, job_failed(reason), times=2)
    assert len(read(source)) == ROWS
    assert len({request.json["jobReference"]["jobId"] for request in bigquery_proxy.seen(INSERT)}) == 3


def test_a_job_that_fails_every_time_ends_in_bounded_time_as_retryable(source: BigQuerySource, bigquery_proxy: FaultyProxy) -> None:
    bigquery_proxy.inject(INSERT, job_failed("backendError"), times=None)
    with pytest.raises(SourceUnavailable, match="is failing for now"):
        read(source, altered(SPEC, timeout=timedelta(seconds=0.5)))
    assert 2 <= len(bigquery_proxy.seen(INSERT)) <= 20
    assert not bigquery_proxy.seen(CANCEL)


@pytest.mark.parametrize(
    "fault",
    [
        job_failed("stopped", "Job execution was cancelled: Job timed out after 20s"),
        error(499, "stopped", "Job execution was cancelled: Job timed out after 20 sec"),
    ],
    ids=["job", "request"],
)
def test_a_query_that_bigquery_stopped_at_its_time_out_says_so(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, fault: Fault
) -> None:
    bigquery_proxy.inject(INSERT, fault)
    with pytest.raises(SourceUnavailable, match=r"it ran longer than 0:00:20.*Job timed out after 20"):
        read(source)
    assert len(bigquery_proxy.seen(INSERT)) == 1


def hang(bigquery_proxy: FaultyProxy) -> None:
    bigquery_proxy.inject(f"{INSERT}|^GET ", edited(job_running), times=None)


def test_a_query_that_hangs_is_cancelled_at_the_table_s_time_out(source: BigQuerySource, bigquery_proxy: FaultyProxy) -> None:
    hang(bigquery_proxy)
    began = time.monotonic()
    with pytest.raises(SourceUnavailable, match="it ran longer than 0:00:01"):
        read(source, altered(SPEC, timeout=timedelta(seconds=1)))
    assert time.monotonic() - began < 8
    (cancelled,) = bigquery_proxy.seen(CANCEL)
    assert bigquery_proxy.seen(INSERT)[0].json["jobReference"]["jobId"] in cancelled.line


def test_a_query_may_take_longer_than_a_request(make_source: MakeSource, bigquery_proxy: FaultyProxy) -> None:
    done_at = time.monotonic() + 1
    bigquery_proxy.inject(
        f"{INSERT}|^GET ", edited(lambda body: job_running(body) if time.monotonic() < done_at else None), times=None
    )
    assert len(read(make_source(emulator_host=bigquery_proxy.url, request_timeout_seconds=0.2))) == ROWS
    assert time.monotonic() >= done_at
    assert not bigquery_proxy.seen(CANCEL)


def test_a_connection_that_falls_silent_is_given_up_and_the_request_sent_again(
    make_source: MakeSource, bigquery_proxy: FaultyProxy
) -> None:
    bigquery_proxy.inject(INSERT, edited(job_running))
    bigquery_proxy.inject(r"^GET \S+/jobs/", delayed(10))
    began = time.monotonic()
    assert len(read(make_source(emulator_host=bigquery_proxy.url, request_timeout_seconds=0.2))) == ROWS
    assert time.monotonic() - began < 8


def test_an_interrupt_while_the_query_runs_cancels_it(source: BigQuerySource, bigquery_proxy: FaultyProxy) -> None:
    hang(bigquery_proxy)
    timer = threading.Timer(0.5, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        read(source)
    assert len(bigquery_proxy.seen(CANCEL)) == 1


def test_a_load_that_fails_does_not_cancel_a_query_that_is_done(source: BigQuerySource, bigquery_proxy: FaultyProxy) -> None:
    stream = source.stream(SPEC, WINDOW, "run-1")
    with pytest.raises(ZeroDivisionError), stream.open():
        _ = 1 / 0
    assert not bigquery_proxy.seen(CANCEL)


def test_an_error_of_the_load_itself_passes_through_untouched(source: BigQuerySource) -> None:
    with pytest.raises(ConnectionResetError, match="PostgreSQL"), source.stream(SPEC, WINDOW, "run-1").open():
        raise ConnectionResetError("PostgreSQL")


def test_the_metadata_are_the_job_s_statistics(source: BigQuerySource, bigquery_proxy: FaultyProxy) -> None:
    def bill(job: Any) -> None:
        job["statistics"]["query"] |= {"totalBytesProcessed": "9000000", "totalBytesBilled": "10485760", "cacheHit": False}

    bigquery_proxy.inject(INSERT, edited(bill))
    stream = source.stream(SPEC, WINDOW, "run-1")
    with stream.open():
        pass
    (request,) = bigquery_proxy.seen(INSERT)
    assert stream.metadata == {
        "bigquery_job_id": request.json["jobReference"]["jobId"],
        "cache_hit": False,
        "bytes_processed": 9_000_000,
        "bytes_billed": 10_485_760,
        "estimated_cost_usd": 0.00006,
        "transport": "rest",
    }


def test_where_no_bill_is_told_none_is_made_up(source: BigQuerySource, bigquery_proxy: FaultyProxy) -> None:
    def without(job: Any) -> None:
        del job["statistics"]["query"]["totalBytesBilled"]

    bigquery_proxy.inject(r"/jobs\b", edited(without), times=None)
    stream = source.stream(SPEC, WINDOW, "run-1")
    with stream.open():
        pass
    assert stream.metadata.keys() == {"bigquery_job_id", "cache_hit", "bytes_processed", "transport"}
