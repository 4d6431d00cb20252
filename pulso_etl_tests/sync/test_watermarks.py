"""Watermarks and the history of extractions, alone and as the IO manager keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pyarrow as pa
import pytest

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause, SourceError
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import RunningAttempt, TableState, Watermarks
from pulso_etl.sync.owed import Horizon, Settlement
from pulso_etl_tests.clock import TODAY
from pulso_etl_tests.sync.visits import ALL, D1, D3, Deferred, materialize, table, visits

WINDOW = DayRange(D1, D3)
THEN = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def marks(schema: str, conn: psycopg.Connection) -> Watermarks:
    marks = Watermarks(schema)
    with conn.transaction():
        marks.create(conn)
    return marks


def attempt(number: int = 1, run: str = "run-1", table: str = "visits") -> RunningAttempt:
    return RunningAttempt(table, WINDOW, run, number, THEN + timedelta(minutes=number))


def succeed(
    marks: Watermarks,
    conn: psycopg.Connection,
    extraction: RunningAttempt,
    *,
    lookback_days: int = 3,
    read_at: datetime | None = None,
) -> Settlement:
    """Records a success. The load read its rows at the begin of the attempt, unless the caller gives another instant."""
    rows, horizon = dict.fromkeys(extraction.window, 2), Horizon(lookback_days)
    loaded = Loaded(read_at or extraction.started_at, rows, 4, 1.5, True, horizon, {"load_plan": "direct"})
    return marks.succeed(conn, extraction, loaded)


def fail(marks: Watermarks, conn: psycopg.Connection, extraction: RunningAttempt, error: str = "no luck") -> None:
    marks.fail(conn, extraction, error=error, cause=Cause.INTERNAL, seconds=0.5, metadata={})


def history(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    return conn.execute("SELECT extraction_id, attempt, status, error_message FROM etl_extractions ORDER BY id").fetchall()


def everything(conn: psycopg.Connection) -> list[Any]:
    query = "SELECT to_jsonb(t), xmin::text, ctid::text FROM {} t ORDER BY ctid"
    return [conn.execute(query.format(name)).fetchall() for name in ("etl_watermarks", "etl_extractions")]


def test_a_table_that_was_never_refreshed_has_no_state(schema: str, conn: psycopg.Connection) -> None:
    assert Watermarks(schema).read(conn) == {}


def test_many_processes_create_the_tables_at_once(server_url: str, schema: str, conn: psycopg.Connection) -> None:
    def create() -> None:
        with psycopg.connect(server_url) as other:
            Watermarks(schema).create(other)

    with ThreadPoolExecutor(6) as pool:
        for result in [pool.submit(create) for _ in range(6)]:
            result.result(30)
    assert Watermarks(schema).read(conn) == {}


def test_success_moves_the_watermark_to_the_end_of_the_window_and_the_start_of_the_attempt(
    marks: Watermarks, conn: psycopg.Connection
) -> None:
    assert (marks.last_extracted_at(conn, "visits"), marks.ledger.rows(conn, "visits")) == (None, 0)
    marks.start(conn, attempt())
    succeed(marks, conn, attempt())
    state = marks.read(conn)["visits"]
    assert (state.status, state.last_partition, state.last_extracted_at) == ("success", D3, attempt().started_at)
    assert (marks.last_extracted_at(conn, "visits"), marks.ledger.rows(conn, "visits")) == (attempt().started_at, 2 * WINDOW.days)
    assert (state.records, state.seconds, state.error, state.extraction_id) == (4, 1.5, None, "run-1")
    assert history(conn) == [("run-1", 1, "success", None)]
    row = conn.execute("SELECT partition_start, partition_end, records_extracted, metadata->>'load_plan' FROM etl_extractions")
    assert row.fetchone() == (D1, D3, 4, "direct")


def test_a_load_of_the_past_moves_nothing_but_is_told(marks: Watermarks, conn: psycopg.Connection) -> None:
    marks.start(conn, attempt())
    succeed(marks, conn, attempt())
    past = RunningAttempt("visits", DayRange(date(2026, 1, 1), date(2026, 1, 2)), "run-2", 1, THEN + timedelta(days=1))
    marks.start(conn, past)
    assert not succeed(marks, conn, past).moved
    state = marks.read(conn)["visits"]
    assert (state.last_partition, state.last_extracted_at) == (D3, attempt().started_at)
    assert (state.status, state.extraction_id) == ("success", "run-2")
    assert len(history(conn)) == 2


@pytest.mark.parametrize(("gap", "moved"), [(-3, True), (-2, True), (-1, False), (0, False), (1, False), (2, False), (40, False)])
def test_a_load_that_leaves_out_what_was_owed_does_not_hide_it(
    marks: Watermarks, conn: psycopg.Connection, gap: int, moved: bool
) -> None:
    marks.start(conn, attempt())
    succeed(marks, conn, attempt())
    later = DayRange(D3 + timedelta(days=gap), D3 + timedelta(days=gap + 5))
    extraction = RunningAttempt("visits", later, "run-2", 1, THEN + timedelta(days=gap + 5))
    marks.start(conn, extraction)
    assert succeed(marks, conn, extraction).moved == moved
    state = marks.read(conn)["visits"]
    assert state.status == "success"
    wanted = (later.end, extraction.started_at) if moved else (D3, attempt().started_at)
    assert (state.last_partition, state.last_extracted_at) == wanted


def test_a_first_load_of_the_past_leaves_no_watermark(marks: Watermarks, conn: psycopg.Connection) -> None:
    marks.start(conn, attempt())
    assert not succeed(marks, conn, attempt(), lookback_days=4).moved
    state = marks.read(conn)["visits"]
    assert (state.status, state.last_partition, state.last_extracted_at) == ("success", None, None)


def test_failure_keeps_the_watermark_and_says_why(marks: Watermarks, conn: psycopg.Connection) -> None:
    marks.start(conn, attempt())
    succeed(marks, conn, attempt())
    marks.start(conn, attempt(run="run-2"))
    fail(marks, conn, attempt(run="run-2"), "no\0luck")
    state = marks.read(conn)["visits"]
    assert (state.status, state.error, state.last_partition) == ("failed", "noluck", D3)
    assert history(conn) == [("run-1", 1, "success", None), ("run-2", 1, "failed", "noluck")]


def test_history_gains_one_row_an_attempt_and_never_changes_one(marks: Watermarks, conn: psycopg.Connection) -> None:
    marks.start(conn, attempt(1))
    fail(marks, conn, attempt(1))
    _, first = everything(conn)
    marks.start(conn, attempt(2))
    fail(marks, conn, attempt(2))
    marks.start(conn, attempt(3))
    succeed(marks, conn, attempt(3))
    _, after = everything(conn)
    assert after[:1] == first
    assert [(number, status) for _, number, status, _ in history(conn)] == [(1, "failed"), (2, "failed"), (3, "success")]


def test_the_state_of_a_table_is_one_row_however_many_attempts_it_has(marks: Watermarks, conn: psycopg.Connection) -> None:
    ends: list[Any] = [succeed, fail, succeed]
    for number, end in enumerate(ends, start=1):
        marks.start(conn, attempt(number))
        end(marks, conn, attempt(number))
    assert len(conn.execute(*marks.query(THEN)).fetchall()) == 1
    found = [(one.window, one.succeeded, one.started_at, one.error) for one in marks.read(conn, THEN)["visits"].attempts]
    ends = [(1, True, None), (2, False, "no luck"), (3, True, None)]
    assert found == [(WINDOW, succeeded, attempt(number).started_at, error) for number, succeeded, error in ends]
    assert marks.read(conn)["visits"].attempts == ()


def test_an_abandoned_attempt_enters_the_history_once_and_counts_as_a_recovery(marks: Watermarks, conn: psycopg.Connection) -> None:
    marks.start(conn, attempt(1, "dead-1"))
    assert marks.read(conn)["visits"].recovery_attempts == 0
    marks.start(conn, attempt(1, "dead-2"))
    assert marks.read(conn)["visits"].recovery_attempts == 1
    marks.start(conn, attempt(1, "alive"))
    state = marks.read(conn)["visits"]
    assert (state.status, state.extraction_id, state.recovery_attempts) == ("running", "alive", 2)
    succeed(marks, conn, attempt(1, "alive"))
    assert marks.read(conn)["visits"].recovery_attempts == 0
    assert [(run, status) for run, _, status, _ in history(conn)] == [
        ("dead-1", "failed"),
        ("dead-2", "failed"),
        ("alive", "success"),
    ]
    assert "killed" in history(conn)[0][3]
    times = conn.execute("SELECT started_at, partition_start, partition_end FROM etl_extractions ORDER BY id").fetchone()
    assert times == (attempt(1).started_at, D1, D3)
    marks.start(conn, attempt(1, "next"))
    assert len(history(conn)) == 3


def test_an_abandoned_attempt_of_another_table_is_left_alone(marks: Watermarks, conn: psycopg.Connection) -> None:
    marks.start(conn, attempt(table="others"))
    marks.start(conn, attempt())
    assert history(conn) == []
    assert marks.read(conn)["others"].status == "running"


@pytest.mark.parametrize("late", [attempt(1, "run-1"), attempt(2, "run-2"), attempt(1, "run-2", "others")])
def test_a_late_failure_of_an_attempt_that_is_not_the_running_one_changes_nothing(
    marks: Watermarks, conn: psycopg.Connection, late: RunningAttempt
) -> None:
    marks.start(conn, attempt(1, "run-1"))
    marks.start(conn, attempt(1, "run-2"))
    before = everything(conn)
    fail(marks, conn, late)
    assert everything(conn) == before


def test_a_late_failure_after_success_changes_nothing(marks: Watermarks, conn: psycopg.Connection) -> None:
    marks.start(conn, attempt())
    succeed(marks, conn, attempt())
    before = everything(conn)
    fail(marks, conn, attempt())
    assert everything(conn) == before


def state_of(conn: psycopg.Connection, schema: str) -> TableState:
    return Watermarks(schema).read(conn)["visits"]


def rows(conn: psycopg.Connection) -> int:
    if conn.execute("SELECT to_regclass('visits')").fetchone() == (None,):
        return 0
    return conn.execute("SELECT count(*) FROM visits").fetchone()[0]  # type: ignore[index]


def test_running_is_seen_from_outside_while_the_stream_is_open(
    manager: PostgresUpsertIOManager, instance: dg.DagsterInstance, schema: str, conn: psycopg.Connection
) -> None:
    seen: list[tuple[Any, ...]] = []

    def look() -> None:
        state = state_of(conn, schema)
        seen.append((state.status, state.extraction_id, rows(conn), history(conn)))

    result = materialize(manager, instance, visits(lambda found: Deferred(found, look)))
    assert seen == [("running", result.run_id, 0, [])]
    assert state_of(conn, schema).status == "success"
    assert rows(conn) == len(ALL)


def test_rows_watermark_and_history_are_one_transaction(
    manager: PostgresUpsertIOManager, instance: dg.DagsterInstance, conn: psycopg.Connection
) -> None:
    assert materialize(manager, instance, visits(lambda found: found)).success
    changed = table([(D1, "a", "2"), *ALL[1:]])
    assert materialize(manager, instance, visits(lambda _: changed)).success
    ids = conn.execute(
        "SELECT (SELECT xmin::text FROM visits WHERE amount = 2), (SELECT xmin::text FROM etl_watermarks), "
        "(SELECT xmin::text FROM etl_extractions ORDER BY id DESC LIMIT 1)"
    ).fetchone()
    assert ids is not None
    assert len(set(ids)) == 1


def test_rows_are_not_kept_where_the_watermark_can_not_be_written(
    manager: PostgresUpsertIOManager, instance: dg.DagsterInstance, schema: str, conn: psycopg.Connection, marks: Watermarks
) -> None:
    conn.execute(f"CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no success today'; END $$")
    conn.execute(
        "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON etl_extractions DEFERRABLE INITIALLY DEFERRED "
        f"FOR EACH ROW WHEN (NEW.status = 'success') EXECUTE FUNCTION {schema}.refuse()"
    )
    result = materialize(manager, instance, visits(lambda found: found))
    assert not result.success
    assert rows(conn) == 0
    state = state_of(conn, schema)
    assert state.status == "failed"
    assert "no success today" in str(state.error)
    assert history(conn) == [(result.run_id, 1, "failed", state.error)]


def raising(error: BaseException) -> Any:
    def during() -> None:
        raise error

    return lambda found: Deferred(found, during)


@contextmanager
def _unopened() -> Iterator[pa.RecordBatchReader]:
    raise SourceError("the source does not open")
    yield


class Unopened(Deferred):
    """A source that fails before its first row."""

    def open(self) -> Any:
        return _unopened()


@pytest.mark.parametrize(
    ("yielded", "reason"),
    [
        (raising(SourceError("the source broke")), "the source broke"),
        (lambda found: Unopened(found), "the source does not open"),
        (raising(ValueError("a bug")), "a bug"),
        (raising(ValueError()), "ValueError"),
        (raising(KeyboardInterrupt()), "interrupted"),
        (lambda found: found.drop_columns(["hora"]), "hora: missing"),
        (lambda found: found.set_column(2, "hora", pa.array([24] * 4)), "beyond the limit 23"),
        (lambda _: table([ALL[0], ALL[0]]), "primary key"),
    ],
)
def test_whatever_went_wrong_is_recorded_after_the_rows_were_rolled_back(
    manager: PostgresUpsertIOManager,
    instance: dg.DagsterInstance,
    schema: str,
    conn: psycopg.Connection,
    yielded: Any,
    reason: str,
) -> None:
    result = materialize(manager, instance, visits(yielded, retry_policy=None))
    assert not result.success
    assert rows(conn) == 0
    state = state_of(conn, schema)
    assert state.status == "failed"
    assert reason in str(state.error)
    assert (state.last_partition, state.last_extracted_at) == (None, None)
    assert history(conn) == [(result.run_id, 1, "failed", state.error)]


def test_an_interrupt_just_before_the_commit_is_recorded(
    server_url: str,
    instance: dg.DagsterInstance,
    schema: str,
    conn: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager = PostgresUpsertIOManager(database_url=server_url, database_schema=schema, lock_timeout_seconds=2)
    assert materialize(manager, instance, visits(lambda found: found.slice(1))).success
    before, leave = state_of(conn, schema), psycopg.Transaction.__exit__

    def interrupted(block: psycopg.Transaction, *error: Any) -> bool:
        successes = f"SELECT FROM {schema}.etl_extractions WHERE status = 'success'"
        if error[0] is None and block.connection.execute(successes).rowcount == 2:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return leave(block, *error)

    monkeypatch.setattr(psycopg.Transaction, "__exit__", interrupted)
    result = materialize(manager, instance, visits(lambda found: found, retry_policy=None))
    assert not result.success
    assert rows(conn) == len(ALL) - 1
    state = state_of(conn, schema)
    assert (state.status, state.last_extracted_at) == ("failed", before.last_extracted_at)
    assert "interrupted" in str(state.error)
    assert [status for _, _, status, _ in history(conn)] == ["success", "failed"]
    assert materialize(manager, instance, visits(lambda found: found)).success
    assert rows(conn) == len(ALL)


def test_an_error_of_the_server_is_recorded_as_we_tell_it(
    manager: PostgresUpsertIOManager, instance: dg.DagsterInstance, schema: str, conn: psycopg.Connection
) -> None:
    assert materialize(manager, instance, visits(lambda found: found)).success
    conn.execute("ALTER TABLE visits ADD CONSTRAINT odd CHECK (site <> 'z')")
    result = materialize(manager, instance, visits(lambda _: table([*ALL, (D3, "z", None)])))
    assert not result.success
    error = str(state_of(conn, schema).error)
    assert "visits 2026-02-27..2026-03-01: PostgreSQL refuses a row" in error
    assert rows(conn) == len(ALL)
    assert [status for _, _, status, _ in history(conn)] == ["success", "failed"]


def test_only_a_load_that_reaches_today_moves_the_watermark(
    manager: PostgresUpsertIOManager, instance: dg.DagsterInstance, schema: str, conn: psycopg.Connection
) -> None:
    asset = visits(lambda found: found)
    assert materialize(manager, instance, asset).success
    state = state_of(conn, schema)
    assert (state.status, state.last_partition, state.last_extracted_at) == ("success", None, None)

    before = datetime.now(UTC)
    assert materialize(manager, instance, asset, start=TODAY.isoformat(), end=None).success
    state = state_of(conn, schema)
    assert state.last_partition == TODAY
    assert state.last_extracted_at is not None
    assert before <= state.last_extracted_at <= datetime.now(UTC)

    assert materialize(manager, instance, asset).success
    again = state_of(conn, schema)
    assert (again.last_partition, again.last_extracted_at) == (state.last_partition, state.last_extracted_at)
    assert len(history(conn)) == 3


def test_the_cause_of_a_failure_is_kept_until_the_next_attempt_begins(marks: Watermarks, conn: psycopg.Connection) -> None:
    marks.start(conn, attempt())
    marks.fail(conn, attempt(), error="503", cause=Cause.SOURCE_UNAVAILABLE, seconds=1, metadata={})
    state = marks.read(conn, THEN)["visits"]
    assert (state.cause, [one.cause for one in state.attempts]) == (Cause.SOURCE_UNAVAILABLE, [Cause.SOURCE_UNAVAILABLE])
    marks.start(conn, attempt(2))
    succeed(marks, conn, attempt(2))
    state = marks.read(conn, THEN)["visits"]
    assert (state.cause, [one.cause for one in state.attempts]) == (None, [Cause.SOURCE_UNAVAILABLE, None])
    marks.start(conn, attempt(3))
    marks.abandon(conn, attempt(3), "gone")
    assert marks.read(conn)["visits"].cause is Cause.ABANDONED


@pytest.mark.parametrize("written", [None, "a cause of a later release"])
def test_a_failure_whose_cause_is_not_known_here_is_of_an_unknown_one(
    marks: Watermarks, conn: psycopg.Connection, written: str | None
) -> None:
    marks.start(conn, attempt())
    fail(marks, conn, attempt())
    # Without an instant, as an earlier release left the rows.
    conn.execute("UPDATE etl_watermarks SET error_cause = %s", (written,))
    conn.execute("UPDATE etl_extractions SET error_cause = %s", (written,))
    state = marks.read(conn, THEN)["visits"]
    assert (state.cause, [one.cause for one in state.attempts]) == (Cause.UNKNOWN, [Cause.UNKNOWN])
