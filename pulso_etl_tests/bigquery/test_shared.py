"""A read that two tables share: one job, whoever sends it; rows as of separate reads; and when a run reads alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

import pyarrow as pa
import pytest
from google.cloud import bigquery
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.bigquery.pricing import MEBIBYTE
from pulso_etl.bigquery.shared import ALONE, LONGEST_AGE, SOURCE, avoided, job_id, why_not_attach
from pulso_etl.bigquery.source import BigQuerySource, BigQueryStream
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SCHEMAS, SampleData, base_of
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import SourceUnavailable
from pulso_etl.sync.shared_reads import SharedRead
from pulso_etl.sync.spec import TableSpec
from pulso_etl.tables import TABLES
from pulso_etl_tests.bigquery.conftest import MakeSource
from pulso_etl_tests.bigquery.storage_server import StorageServer
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.faulty_proxy import FaultyProxy, edited, error, job_failed, job_running

HOST, GUEST = TABLES["dashboard_data"], TABLES["evolution_data"]
WINDOW, DAYS = DayRange(date(2026, 7, 9), date(2026, 7, 15)), DayRange(date(2026, 7, 13), date(2026, 7, 15))
LEAST = 10 * MEBIBYTE
NOW = datetime(2026, 7, 15, 12, tzinfo=UTC)
NAMES = {name: f"mibot-222814.SHARED_TESTS.{name}" for name in SCHEMAS}
BASE = base_of(NAMES, "dashboard_cobranzas")
SENT = r"^POST \S+/jobs\?"
Change = Callable[[], object]
GOT = r"^GET \S+/jobs/pulso_etl_"


@pytest.fixture(scope="module")
def sample(emulator: BigQueryEmulator) -> SampleData:
    data = SampleData(NAMES, date(2026, 7, 15), days=7, dashboard_rows_per_day=10)
    data.seed_into(emulator.client())
    return data


@pytest.fixture
def source(make_source: MakeSource, bigquery_proxy: FaultyProxy, sample: SampleData) -> BigQuerySource:
    return make_source(emulator_host=bigquery_proxy.url, sources=NAMES)


@pytest.fixture
def read() -> SharedRead:
    return SharedRead(uuid4().hex, HOST, WINDOW)


@pytest.fixture
def change(emulator: BigQueryEmulator, sample: SampleData) -> Change:
    """Changes a row of the last day at the source, so that BigQuery's cache has no result either."""
    update = f"UPDATE `{BASE}` SET recupero = recupero + 1 WHERE fecha_foto = '2026-07-15'"
    return lambda: emulator.client().query_and_wait(update)


def stream(source: BigQuerySource, spec: TableSpec, read: SharedRead | None, days: DayRange | None = None) -> BigQueryStream:
    """A stream that has looked at its source, as each load does."""
    found = source.stream(spec, days or (WINDOW if spec.name == HOST.name else DAYS), f"run of {spec.name}", shared=read)
    assert found.look()
    return found


def rows(of: BigQueryStream) -> list[dict[str, Any]]:
    with of.open() as reader:
        return in_order(reader.read_all())


def separately(source: BigQuerySource, spec: TableSpec) -> list[dict[str, Any]]:
    """The rows by the table's own query."""
    return rows(source.stream(spec, WINDOW if spec.name == HOST.name else DAYS, "alone"))


def in_order(table: pa.Table) -> list[dict[str, Any]]:
    return table.sort_by([(key, "ascending") for key in HOST.primary_key]).to_pylist()


def sent(proxy: FaultyProxy) -> list[Any]:
    """The query jobs that were asked for, without dry runs."""
    return [one.json["configuration"] for one in proxy.seen(SENT) if not one.json["configuration"].get("dryRun")]


def test_one_job_gives_the_rows_of_both_tables_also_if_the_guest_comes_first(
    source: BigQuerySource, read: SharedRead, change: Change
) -> None:
    change()
    streams = [stream(source, spec, read) for spec in (GUEST, HOST)]
    found = [rows(one) for one in streams]
    assert found == [separately(source, spec) for spec in (GUEST, HOST)]
    first, second = (one.metadata for one in streams)
    assert first["bigquery_job_id"] == second["bigquery_job_id"] == job_id(read, streams[1].sql())
    assert (first["bytes_billed"], second["bytes_billed"]) == (LEAST, 0)
    assert (first.get("bytes_avoided"), second["bytes_avoided"]) == (None, LEAST)
    assert (second["bytes_processed"], second["estimated_cost_usd"]) == (0, 0)
    assert first["shared_read"] == f"this run sent the query of dashboard_data over {WINDOW}, for all tables that share it"
    assert second["shared_read"] == f"the rows of the query of dashboard_data over {WINDOW}, which another run sent"
    # A second opening reads the same result again.
    assert rows(streams[0]) == found[0]
    assert [one.computed_at for one in streams] == [streams[0].computed_at] * 2


def test_runs_at_the_same_time_send_one_job(source: BigQuerySource, read: SharedRead, change: Change) -> None:
    change()
    streams = [stream(source, spec, read) for spec in (HOST, GUEST)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(rows, streams))
    assert found == [separately(source, spec) for spec in (HOST, GUEST)]
    assert sorted(one.metadata["bytes_billed"] for one in streams) == [0, LEAST]


def test_over_storage_only_the_columns_of_the_guest_are_sent(
    make_source: MakeSource, source: BigQuerySource, storage: StorageServer, read: SharedRead
) -> None:
    guest = altered(GUEST, batch_rows=20)
    rows(stream(source, HOST, read))
    over_storage = stream(make_source(emulator_storage=storage.address, sources=NAMES), guest, read)
    alone = stream(source, guest, None)
    assert rows(over_storage) == rows(alone)
    assert (over_storage.metadata["transport"], alone.metadata["transport"]) == ("storage", "rest")
    (session,) = storage.sessions
    assert set(session.read_session.read_options.selected_fields) == set(GUEST.column_names)


def test_over_rest_only_the_columns_of_the_guest_are_sent(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, read: SharedRead
) -> None:
    rows(stream(source, HOST, read))
    with stream(source, altered(GUEST, batch_rows=20), read).open() as reader:
        whole = reader.read_all()
    pages = bigquery_proxy.seen(r"^GET \S+/data\?")
    asked = [parse_qs(page.line.split()[1].partition("?")[2])["selectedFields"][0].split(",") for page in pages]
    assert [set(names) for names in asked] == [set(GUEST.column_names)] * 4
    assert set(whole.column_names) == set(GUEST.column_names)


def test_days_without_rows_give_the_schema_alone(source: BigQuerySource, read: SharedRead) -> None:
    later = SharedRead(read.key, HOST, DayRange(WINDOW.start, date(2026, 7, 16)))
    guest, alone = (stream(source, GUEST, one, DayRange(date(2026, 7, 16), date(2026, 7, 16))) for one in (later, None))
    with guest.open() as found, alone.open() as expected:
        assert (given := found.read_all()).num_rows == 0
        assert {(field.name, field.type) for field in given.schema} == {(field.name, field.type) for field in expected.schema}


def test_a_change_between_the_job_and_the_look_is_read(source: BigQuerySource, read: SharedRead, change: Change) -> None:
    change()
    host = stream(source, HOST, read)
    rows(host)
    change()
    guest = stream(source, GUEST, read)
    assert rows(guest) == separately(source, GUEST)
    assert guest.metadata["shared_read"] == "none: the source has changed since the other run looked at it"
    assert guest.metadata["bytes_billed"] == LEAST
    assert guest.metadata["bigquery_job_id"] != host.metadata["bigquery_job_id"]


def test_a_run_that_looked_before_a_change_and_another_one_after_it_share_nothing(
    source: BigQuerySource, read: SharedRead, change: Change
) -> None:
    early = stream(source, GUEST, read)
    change()
    late = stream(source, HOST, read)
    rows(early)
    assert rows(late) == separately(source, HOST)
    assert late.metadata["shared_read"].startswith("none: ")


def test_without_a_signal_of_changes_a_run_reads_alone(source: BigQuerySource, read: SharedRead) -> None:
    blind = source.model_copy(update={"change_aware": False}).stream(GUEST, DAYS, "run", shared=read)
    assert blind.look() is None
    assert rows(blind) == separately(source, GUEST)
    assert blind.metadata["shared_read"].startswith("none: the source gives no signal of changes")


def test_an_old_job_is_left_and_the_run_reads_alone(source: BigQuerySource, bigquery_proxy: FaultyProxy, read: SharedRead) -> None:
    def aged(job: Any) -> None:
        job["statistics"]["creationTime"] = str(int(job["statistics"]["creationTime"]) - 16 * 60_000)

    rows(stream(source, HOST, read))
    bigquery_proxy.inject(GOT, edited(aged))
    guest = stream(source, GUEST, read)
    assert rows(guest) == separately(source, GUEST)
    assert guest.metadata["shared_read"] == "none: it is older than 15 minutes"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (job_failed("stopped", "Job execution was cancelled"), "Job execution was cancelled"),
        (error(404, "notFound"), "injected"),
    ],
)
def test_a_job_without_a_result_is_left_and_the_run_reads_alone(
    source: BigQuerySource,
    bigquery_proxy: FaultyProxy,
    read: SharedRead,
    fault: Any,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pulso_etl.bigquery.source.FOUND_SECONDS", 0.05)
    rows(stream(source, HOST, read))
    bigquery_proxy.inject(GOT, fault, times=None)
    guest = stream(source, GUEST, read)
    assert rows(guest) == separately(source, GUEST)
    assert guest.metadata["shared_read"].startswith("none: ")
    assert told in guest.metadata["shared_read"]
    assert [one["labels"]["table"] for one in sent(bigquery_proxy)] == [HOST.name, *[GUEST.name] * 3]
    assert not bigquery_proxy.seen(r"/cancel")


def test_a_fault_of_the_host_s_statement_is_none_of_the_guest_s(source: BigQuerySource, read: SharedRead) -> None:
    broken = SharedRead(read.key, altered(HOST, query="SELECT nothing FROM `{dashboard_cobranzas}` WHERE @start <= @end"), WINDOW)
    guest = stream(source, GUEST, broken)
    assert rows(guest) == separately(source, GUEST)
    assert "nothing" in guest.metadata["shared_read"]


def test_a_guest_sends_no_query_of_a_host_that_gives_no_signal(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, read: SharedRead
) -> None:
    by_clock = "IF(fecha_foto < CURRENT_DATE(), cuentas, 0) AS cuentas,"
    host = altered(HOST, query=HOST.source.query.replace("cuentas,", by_clock, 1))
    guest = stream(source, GUEST, SharedRead(read.key, host, WINDOW))
    rows(guest)
    assert guest.metadata["shared_read"].startswith("none: the query of dashboard_data gives no signal of changes: ")
    assert [one["labels"]["table"] for one in sent(bigquery_proxy)] == [GUEST.name]


def test_only_the_run_that_sent_a_job_cancels_it(source: BigQuerySource, bigquery_proxy: FaultyProxy, read: SharedRead) -> None:
    host = stream(source, altered(HOST, timeout=timedelta(seconds=0.2)), read)
    guest = stream(source, altered(GUEST, timeout=timedelta(seconds=0.4)), read)
    bigquery_proxy.inject(rf"{SENT}|^GET ", edited(job_running), times=None)
    for one in (host, guest):
        with pytest.raises(SourceUnavailable, match="it ran longer than"):
            rows(one)
    assert "no result after 0:00:00.2" in guest.metadata["shared_read"]
    cancelled = [one.line for one in bigquery_proxy.seen(r"^POST \S+/cancel\b")]
    (shared, _, alone) = [one.json["jobReference"]["jobId"] for one in bigquery_proxy.seen(SENT) if "jobReference" in one.json][-3:]
    assert [job in line for job, line in zip((shared, alone), cancelled, strict=True)] == [True, True]


def test_a_slow_statement_of_the_host_does_not_stop_the_guest_that_sent_it(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, read: SharedRead, change: Change
) -> None:
    change()
    guest = stream(source, altered(GUEST, timeout=timedelta(seconds=2)), read)
    bigquery_proxy.inject(SENT, edited(job_running))
    bigquery_proxy.inject(r"^GET \S+/(jobs|queries)/pulso_etl_", edited(job_running), times=None)
    assert rows(guest) == separately(source, GUEST)
    assert "no result after 0:00:01" in guest.metadata["shared_read"]
    assert not guest.metadata["bigquery_job_id"].startswith("pulso_etl_")
    assert len(bigquery_proxy.seen(r"^POST \S+/cancel\b")) == 1


def test_a_job_whose_answer_was_lost_is_known_again_by_its_sender(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, read: SharedRead, change: Change
) -> None:
    change()
    host = stream(source, HOST, read)
    lost: list[Any] = []

    def fault(handler: Any, request: Any) -> None:
        lost.append(handler.ask_upstream(request))
        error(503, "backendError")(handler, request)

    bigquery_proxy.inject(SENT, fault)
    rows(host)
    assert len(lost) == 1
    assert host.metadata["bytes_billed"] == LEAST
    assert host.metadata["shared_read"].startswith("this run sent")


def test_a_result_that_the_account_may_not_read_is_left_and_the_run_reads_alone(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, read: SharedRead, change: Change
) -> None:
    change()
    bigquery_proxy.inject(r"^GET \S+/data\?", error(403, "accessDenied"), times=None)
    guest = stream(source, GUEST, read)
    assert rows(guest) == separately(source, GUEST)
    assert guest.metadata["shared_read"].startswith("none: ")
    assert guest.metadata["bytes_billed"] == 2 * LEAST


def test_a_job_that_bigquery_does_not_show_at_once_is_asked_for_again(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, read: SharedRead
) -> None:
    rows(stream(source, HOST, read))
    bigquery_proxy.inject(GOT, error(404, "notFound"), times=2)
    guest = stream(source, GUEST, read)
    rows(guest)
    assert guest.metadata["bytes_billed"] == 0


@given(
    changes=st.lists(st.integers(0, 20), max_size=3),
    times=st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)),
    minutes=st.integers(0, 30),
)
def test_the_rows_that_a_run_attaches_to_are_never_older_than_the_state_that_it_stores(
    changes: list[int], times: tuple[int, int, int], minutes: int
) -> None:
    look_of_sender, job = sorted(times[:2])
    look = times[2]

    def version(at: int) -> str:
        """Which state the source was in; a state does not come back."""
        return str(sum(change <= at for change in changes))

    why_not = why_not_attach({SOURCE: version(look_of_sender)}, version(look), NOW - timedelta(minutes=minutes), NOW)
    if not why_not:
        assert version(job) >= version(look)
        assert timedelta(minutes=minutes) <= LONGEST_AGE
    if not changes and timedelta(minutes=minutes) <= LONGEST_AGE:
        assert not why_not
    assert why_not_attach({}, version(look), NOW, NOW)


@pytest.mark.parametrize(
    ("host", "guest", "guest_sends"), [(100, 30, False), (100, 30, True), (LEAST, LEAST, True), (LEAST, LEAST, False)]
)
@pytest.mark.parametrize("billed", [1.0, 0.1], ids=["as promised", "clustered"])
def test_bytes_avoided_are_what_two_reads_would_have_billed_beyond_one(
    host: int, guest: int, guest_sends: bool, billed: float
) -> None:
    own, other = (host, guest) if guest_sends else (guest, host)
    assert host * billed + avoided(own, {ALONE: str(other)}, is_host=guest_sends, cached=False) == host * billed + guest
    assert avoided(own, {ALONE: str(other)}, is_host=guest_sends, cached=True) == own


def test_two_guests_and_a_host_tell_what_the_guests_would_have_billed() -> None:
    labels = {ALONE: "30"}
    assert avoided(20, labels, is_host=False, cached=False) + avoided(100, labels, is_host=True, cached=False) == 30 + 20


@pytest.mark.parametrize(("form", "host_first"), [("CAST(cuentas AS STRING) AS cuentas", True), ("cuentas AS other", False)])
def test_a_guest_reads_alone_if_the_query_of_the_host_gives_its_columns_otherwise(
    source: BigQuerySource, read: SharedRead, change: Change, form: str, host_first: bool
) -> None:
    change()
    drifted = altered(HOST, query=HOST.source.query.replace("cuentas,", f"{form},", 1))
    shared = SharedRead(read.key, drifted, WINDOW)
    if host_first:
        with stream(source, drifted, shared).open():
            pass
    guest = stream(source, GUEST, shared)
    assert rows(guest) == separately(source, GUEST)
    assert guest.metadata["shared_read"].endswith("does not give these columns as this table reads them: cuentas")
    assert guest.metadata["bytes_billed"] == (LEAST if host_first else 2 * LEAST)


def test_the_job_of_another_run_is_found_where_the_tables_are(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, read: SharedRead
) -> None:
    def placed(table: Any) -> None:
        table["location"] = "southamerica-east1"

    rows(stream(source, HOST, read))
    bigquery_proxy.inject(r"^GET \S+/tables/", edited(placed), times=None)
    guest = stream(source, GUEST, read)
    rows(guest)
    assert guest.metadata["bytes_billed"] == 0
    (asked, *_) = bigquery_proxy.seen(GOT)
    assert "location=southamerica-east1" in asked.line


def test_rows_are_not_older_than_the_states_of_partitions_that_are_stored_with_them(
    source: BigQuerySource, read: SharedRead, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(stream(source, HOST, read))
    ask = BigQuerySource.partitions

    def changed_meanwhile(*given: Any) -> Any:
        change()
        return ask(*given)

    monkeypatch.setattr("pulso_etl.bigquery.source.question_pays", lambda *given: True)
    monkeypatch.setattr(BigQuerySource, "partitions", changed_meanwhile)
    guest = source.stream(GUEST, DAYS, "run of the guest", shared=read)
    state = guest.look()
    assert state
    assert state.partitions
    assert rows(guest) == separately(source, GUEST)
    assert guest.metadata["shared_read"] == "none: the source has changed since the other run looked at it"


def test_a_window_without_any_rows_is_shared(source: BigQuerySource, read: SharedRead) -> None:
    day = DayRange(date(2026, 7, 16), date(2026, 7, 16))
    guest, alone = (stream(source, GUEST, one, day) for one in (SharedRead(read.key, HOST, day), None))
    with guest.open() as found, alone.open() as expected:
        assert found.read_all().num_rows == expected.read_all().num_rows == 0


def test_tenants_share_no_read_with_each_other(read: SharedRead) -> None:
    other = SharedRead(read.key, HOST.model_copy(update={"tenant": "other"}), WINDOW)
    assert job_id(read, "SELECT 1") != job_id(other, "SELECT 1")


def test_the_double_refuses_a_second_job_of_an_id_and_shows_the_first_to_others(emulator: BigQueryEmulator) -> None:
    name, config = f"twice_{uuid4().hex}", bigquery.QueryJobConfig(labels={"who": "first"})
    emulator.client().query("SELECT 1 AS a, 2 AS b", job_id=name, job_config=config, job_retry=None).result()
    with pytest.raises(Exception, match=r"409 .*Already Exists"):
        emulator.client().query("SELECT 3", job_id=name, job_retry=None)
    other = emulator.client()
    job = other.get_job(name)
    assert isinstance(job, bigquery.QueryJob)
    assert (job.labels, job.query) == ({"who": "first"}, "SELECT 1 AS a, 2 AS b")
    fields = [field for field in job.result().schema if field.name == "b"]
    assert [dict(row) for row in other.list_rows(job.destination, selected_fields=fields)] == [{"b": 2}]
