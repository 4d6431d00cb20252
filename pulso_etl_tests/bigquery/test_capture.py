"""When changes may stand for a window, the query that reads them, and what PostgreSQL holds after any sequence of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from google.cloud import bigquery
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pulso_etl.bigquery.capture import Interval, captured_sql, interval
from pulso_etl.bigquery.pricing import Pricing
from pulso_etl.bigquery.source import BigQuerySource, BigQueryStream, statistics
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.loading import request
from pulso_etl.sync.loading.load import load
from pulso_etl.sync.loading.result import LoadResult
from pulso_etl.sync.loading.verify import verify
from pulso_etl.sync.owed import NEVER_FINAL, Reading, Watermark
from pulso_etl.sync.spec import CAPTURE_LAG, TableSpec, fill
from pulso_etl.sync.target import Target
from pulso_etl.tables import TABLES
from pulso_etl_tests.change_history import CALLS, ChangeHistoryProxy, Key, Source, loaded
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.faulty_proxy import error

NOW = datetime(2026, 7, 15, 17, tzinfo=UTC)
DAYS = [date(2026, 7, day) for day in (13, 14, 15)]
WINDOW = DayRange(DAYS[0], DAYS[-1])
LOADED = NOW - timedelta(hours=2)
MARGIN = timedelta(minutes=10)


def changed(**fields: Any) -> TableSpec:
    """The declaration with other fields, validated."""
    return TableSpec.model_validate(altered(CALLS, **fields).model_dump())


def mark(at: datetime, last: date, first: date = DAYS[0]) -> Watermark:
    """The watermark of a table whose days from `first` to `last` were read at that instant."""
    return Watermark(at, last, {day: Reading(at, day + timedelta(days=3)) for day in DayRange(min(first, last), last)})


def undone(watermark: Watermark, day: date) -> Watermark:
    """The watermark after a load of the day was undone."""
    return replace(watermark, readings={**watermark.readings, day: replace(watermark.readings[day], open_until=NEVER_FINAL)})


def test_the_interval_begins_a_margin_before_the_last_load_and_ends_ten_minutes_ago() -> None:
    found = interval(CALLS, WINDOW, mark(LOADED, DAYS[-1]), None, NOW, MARGIN)
    assert found == Interval(LOADED - MARGIN, NOW - timedelta(minutes=10))
    assert str(found) == "2026-07-15T14:50:00+00:00..2026-07-15T16:50:00+00:00"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"watermark": Watermark(None, None)}, "never loaded"),
        ({"watermark": mark(LOADED, DAYS[1])}, "the last load reached 2026-07-14, not 2026-07-15"),
        ({"window": DayRange(date(2026, 7, 12), DAYS[-1])}, "covers only 3 days"),
        ({"watermark": mark(LOADED, DAYS[-1], DAYS[1])}, "does not cover 2026-07-13"),
        ({"watermark": replace(mark(LOADED, DAYS[-1]), last_extracted_at=LOADED + MARGIN)}, "cover 2026-07-13..2026-07-15"),
        ({"watermark": undone(mark(LOADED, DAYS[-1]), DAYS[1])}, "a load of 2026-07-14 was undone"),
        ({"watermark": mark(NOW - CAPTURE_LAG, DAYS[-1])}, "less than 0:10:00 ago"),
        ({"written_at": NOW - timedelta(minutes=9)}, "less than 0:10:00 ago"),
        ({"watermark": mark(NOW - timedelta(days=1, minutes=1), DAYS[-1])}, "more than 1 day, 0:00:00 old"),
    ],
)
def test_the_whole_window_is_read_where_changes_can_not_stand_for_it(given: dict[str, Any], reason: str) -> None:
    usual: dict[str, Any] = {"spec": CALLS, "window": WINDOW, "watermark": mark(LOADED, DAYS[-1]), "written_at": None}
    found = interval(**(usual | given), now=NOW, margin=MARGIN)
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize(
    ("fields", "need"),
    [
        ({"primary_key": ("agent",), "version_column": "day"}, "the partition column in the primary key, and no version_column"),
        ({"strategy": "scd2"}, "the strategy upsert"),
        ({"strategy": "append"}, "the strategy upsert"),
        ({"change_capture": "appends", "strategy": "replace_partition"}, "the strategy upsert or append"),
        ({"on_reject": "quarantine"}, "on_reject fail"),
        ({"refresh_every": timedelta(minutes=10)}, "refresh_every above 0:10:00"),
        ({"query": "SELECT a.day FROM `{calls}` a WHERE EXISTS (SELECT 1 FROM `{other}`)"}, "makes each row from one row"),
        ({"query": "SELECT day, COUNT(*) FROM `{calls}` GROUP BY day"}, "makes each row from one row"),
        ({"query": "SELECT DISTINCT day FROM `{calls}`"}, "makes each row from one row"),
        ({"query": "SELECT day FROM calls"}, "makes each row from one row"),
    ],
)
def test_a_declaration_that_changes_can_not_feed_is_refused(fields: dict[str, Any], need: str) -> None:
    with pytest.raises(ValidationError, match=f"calls: change_capture .* needs .*{need}"):
        changed(**fields)


def test_the_declaration_survives_the_metadata_of_its_asset_and_no_table_of_ours_has_it() -> None:
    assert TableSpec.from_metadata(CALLS.as_metadata()).source.change_capture == "changes"
    assert changed(change_capture="appends", strategy="append").source.change_capture == "appends"
    assert {spec.source.change_capture for spec in TABLES.values()} == {None}


def test_the_query_takes_the_changes_in_place_of_the_table() -> None:
    assert fill(captured_sql(CALLS), {"calls": "p.d.calls"}, CALLS.timezone) == (
        "SELECT * EXCEPT (pulso_change_type, pulso_changed_at), pulso_change_type = 'DELETE' AS pulso_deleted FROM (\n"
        "SELECT fecha AS day, UPPER(agente) AS agent, monto AS amount,\n"
        "  _CHANGE_TYPE AS pulso_change_type, _CHANGE_TIMESTAMP AS pulso_changed_at\n"
        "FROM CHANGES(TABLE `p.d.calls`, @since, @until) WHERE fecha BETWEEN @start AND @end\n"
        ")\nWHERE TRUE\nQUALIFY IF(pulso_change_type = 'DELETE', "
        "ROW_NUMBER() OVER (PARTITION BY `day`, `agent` ORDER BY pulso_changed_at DESC, pulso_change_type = 'DELETE'), "
        "RANK() OVER (PARTITION BY `day`, `agent` ORDER BY pulso_changed_at DESC, pulso_change_type = 'DELETE')) = 1"
    )
    trailing_comma = changed(query="SELECT day, agent, amount, FROM `{calls}` AS c")
    assert "amount,\n  _CHANGE_TYPE AS" in captured_sql(trailing_comma)
    assert "QUALIFY" not in captured_sql(changed(change_capture="appends", strategy="append"))


def test_what_changes_that_were_not_loaded_were_billed_counts_too(emulator: BigQueryEmulator) -> None:
    def job(name: str, billed: int | None) -> bigquery.QueryJob:
        told = {} if billed is None else {"totalBytesProcessed": str(billed), "totalBytesBilled": str(billed)}
        resource = {
            "jobReference": {"projectId": "p", "jobId": name},
            "configuration": {"query": {"query": "SELECT 1"}},
            "statistics": {"query": told},
        }
        return bigquery.QueryJob.from_api_repr(resource, emulator.client())

    whole, changes = job("whole", 3), job("changes", 2**40)
    both = statistics(whole, Pricing(6.25), [changes, whole])
    assert (both["bigquery_job_id"], both["bytes_billed"], both["bytes_processed"]) == ("whole", 2**40 + 3, 2**40 + 3)
    assert both["estimated_cost_usd"] == pytest.approx(6.25)
    untold = job("whole", None)
    assert "bytes_billed" not in statistics(untold, Pricing(6.25), [changes, untold])


@pytest.fixture(scope="module")
def history(emulator: BigQueryEmulator) -> Iterator[ChangeHistoryProxy]:
    with ChangeHistoryProxy(emulator.rest_url) as proxy:
        proxy.set_created("calls", LOADED - timedelta(days=30))
        yield proxy


@pytest.fixture
def calls(emulator: BigQueryEmulator) -> Source:
    return Source(emulator.client(), f"mibot-222814.CAPTURE_{uuid4().hex[:8]}.calls")


class Replica:
    """`calls` in PostgreSQL: loaded as a whole, or by what changed."""

    def __init__(
        self, conn: psycopg.Connection, schema: str, history: ChangeHistoryProxy, calls: Source, spec: TableSpec = CALLS
    ) -> None:
        self.conn, self.schema, self.calls, self.spec = conn, schema, calls, spec
        self.source = bigquery_source(history, calls)
        self.watermark = Watermark(None, None)

    def whole(self, at: datetime) -> LoadResult:
        self.calls.write()
        result = self._load(self.source.stream(self.spec, WINDOW, "whole"), captured=False)
        self.watermark = mark(at, WINDOW.end)
        return result

    def changes(self, at: datetime) -> LoadResult:
        self.calls.write_log()
        stream = self.source.stream(self.spec, WINDOW, "changes")
        as_of = stream.capture(self.watermark, None, at)
        assert as_of is not None, stream.metadata
        result = self._load(stream, captured=True)
        self.watermark = mark(as_of, WINDOW.end)
        return result

    def _load(self, stream: BigQueryStream, captured: bool) -> LoadResult:
        with self.conn.transaction():
            target = Target(self.conn, self.spec, self.schema)
            asked = request.LoadRequest(WINDOW, request.Source(stream.open, captured=captured), allow_shrink=True)
            result = load(target, asked)
            verify(target, replace(asked, allow_shrink=False), result)
        return result

    def rows(self) -> list[tuple[Any, ...]]:
        return self.conn.execute("SELECT day, agent, amount FROM calls ORDER BY 1, 2").fetchall()

    def addresses(self) -> list[tuple[Any, ...]]:
        return self.conn.execute("SELECT day, agent, xmin::text, ctid::text FROM calls ORDER BY 1, 2").fetchall()


def bigquery_source(history: ChangeHistoryProxy, calls: Source) -> BigQuerySource:
    return BigQuerySource(
        project="mibot-222814", sources={"calls": calls.name}, emulator_host=history.url, retry_initial_seconds=0.01
    )


@pytest.fixture
def replica(conn: psycopg.Connection, schema: str, history: ChangeHistoryProxy, calls: Source) -> Replica:
    return Replica(conn, schema, history, calls)


keys = st.tuples(st.sampled_from(DAYS), st.sampled_from("abc"))
commits = st.tuples(st.dictionaries(keys, st.integers(0, 9), max_size=3), st.sets(keys, max_size=2))


@given(rounds=st.lists(st.lists(commits, min_size=1, max_size=3), min_size=1, max_size=2), unseen=commits)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8, phases=[Phase.generate])
def test_after_any_changes_the_table_is_as_the_source_was_and_as_a_whole_load_makes_it(
    rounds: list[list[tuple[dict[Key, int], set[Key]]]],
    unseen: tuple[dict[Key, int], set[Key]],
    conn: psycopg.Connection,
    replica: Replica,
    calls: Source,
) -> None:
    calls.rows, calls.log = {}, []
    conn.execute("DROP TABLE IF EXISTS calls")
    calls.commit(LOADED - timedelta(hours=1), {(day, "z"): 1 for day in DAYS} | {(DAYS[1], "a"): 1})
    at = LOADED
    replica.whole(at)
    for changes in rounds:
        for put, delete in changes:
            at += timedelta(minutes=7)
            # A row that one transaction puts and deletes counts as put.
            calls.commit(at, put, delete - put.keys())
        end = at + timedelta(minutes=1)
        calls.commit(end + timedelta(minutes=1), unseen[0], unseen[1] - unseen[0].keys())
        at = end + CAPTURE_LAG
        replica.changes(at)
        assert replica.rows() == loaded(calls.as_of(end))
    replica.changes(at + timedelta(hours=1))
    before = replica.addresses()
    replica.watermark = mark(LOADED, WINDOW.end)
    assert replica.changes(at + timedelta(hours=1)).total.written == 0
    assert replica.addresses() == before
    captured = replica.rows()
    assert captured == loaded(calls.rows)
    assert replica.whole(at).total.written == 0
    assert replica.rows() == captured


def test_counts_are_those_of_each_day_and_deletions_of_unknown_rows_are_none(replica: Replica, calls: Source) -> None:
    calls.commit(LOADED - timedelta(days=1), {(DAYS[0], "a"): 1, (DAYS[0], "b"): 2, (DAYS[1], "a"): 3, (DAYS[1], "b"): 4})
    replica.whole(LOADED)
    calls.commit(LOADED + timedelta(minutes=1), {(DAYS[0], "a"): 9, (DAYS[2], "c"): 5}, [(DAYS[1], "b")])
    calls.commit(LOADED + timedelta(minutes=2), {(DAYS[2], "d"): 6})
    calls.commit(LOADED + timedelta(minutes=3), {(DAYS[1], "a"): 3}, [(DAYS[2], "d")])
    counts = {day: tuple(told.as_dict().values())[:5] for day, told in replica.changes(NOW).by_day.items()}
    # Read, inserted, updated, unchanged, deleted.
    assert counts == {DAYS[0]: (1, 0, 1, 0, 0), DAYS[1]: (1, 0, 0, 1, 1), DAYS[2]: (1, 1, 0, 0, 0)}


def test_a_row_that_changes_its_key_moves_and_one_that_leaves_the_window_goes(replica: Replica, calls: Source) -> None:
    outside = date(2026, 7, 1)
    calls.commit(LOADED - timedelta(days=1), {(DAYS[0], "a"): 1, (DAYS[0], "b"): 2, (DAYS[2], "c"): 3})
    replica.whole(LOADED)
    calls.commit(LOADED + timedelta(minutes=1), {(DAYS[1], "a"): 1, (outside, "b"): 2}, [(DAYS[0], "a"), (DAYS[0], "b")])
    replica.changes(NOW)
    assert replica.rows() == [(DAYS[1], "A", 1), (DAYS[2], "C", 3)]


def test_appends_bring_new_rows_and_a_table_of_log_lines_gains_each_once(
    conn: psycopg.Connection, schema: str, history: ChangeHistoryProxy, calls: Source
) -> None:
    spec = changed(change_capture="appends", strategy="append")
    replica = Replica(conn, schema, history, calls, spec)
    calls.commit(LOADED - timedelta(minutes=1), {(DAYS[0], "a"): 1})
    replica.whole(LOADED)
    calls.commit(LOADED + timedelta(minutes=1), {(DAYS[2], "b"): 2, (DAYS[2], "c"): 3})
    calls.commit(LOADED + timedelta(minutes=2), {(DAYS[0], "a"): 7}, [(DAYS[2], "c")])
    for at in (NOW, NOW + timedelta(minutes=1)):
        replica.changes(at)
        assert replica.rows() == [(DAYS[0], "A", 1), (DAYS[2], "B", 2), (DAYS[2], "C", 3)]


@pytest.mark.parametrize(
    ("status", "reason", "text"),
    [
        (400, "invalidQuery", "Invalid time travel timestamp 1784127000000 for table calls. Cannot read before 1784130000000"),
        (400, "invalidQuery", "Change history is not enabled for table calls"),
        (403, "accessDenied", "Access Denied: Table calls: User does not have permission to query its change history"),
    ],
)
def test_whatever_bigquery_refuses_about_the_changes_the_whole_window_is_asked(
    history: ChangeHistoryProxy, calls: Source, status: int, reason: str, text: str
) -> None:
    calls.commit(LOADED, {(DAYS[0], "a"): 1})
    calls.write()
    history.inject(r"^POST \S+/jobs\b", error(status, reason, text))
    stream = bigquery_source(history, calls).stream(CALLS, WINDOW, "run")
    assert stream.capture(mark(LOADED, DAYS[-1]), None, NOW) is None
    assert stream.metadata["capture"] == "whole window"
    assert text in stream.metadata["capture_reason"]
    with stream.open() as reader:
        assert reader.read_all().to_pylist() == [{"day": DAYS[0], "agent": "A", "amount": 1}]


def test_a_view_and_a_table_created_since_have_no_changes_to_tell(
    emulator: BigQueryEmulator, history: ChangeHistoryProxy, calls: Source
) -> None:
    calls.write()
    emulator.client().query_and_wait(f"CREATE VIEW `{calls.name}_view` AS SELECT * FROM `{calls.name}`")
    source = bigquery_source(history, calls)
    asked = len(history.captures)
    for name, watermark, reason in (
        (f"{calls.name}_view", LOADED, "is a VIEW"),
        (f"{calls.name}_log", LOADED, "was created after the last load"),
    ):
        stream = source.model_copy(update={"sources": {"calls": name}}).stream(CALLS, WINDOW, "run")
        assert stream.capture(mark(watermark, DAYS[-1]), None, NOW) is None
        assert reason in stream.metadata["capture_reason"]
    assert len(history.captures) == asked
