"""What an asset yields that can't be loaded: each failure is an attempt in the history, which names table and partitions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import dagster as dg
import pandas as pd
import psycopg
import pyarrow as pa
import pytest

from pulso_etl.automation.sensors import standings
from pulso_etl.refreshing.due import MEMORY
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.ledger import locks
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.tags import SPEC_KEY, TABLE_TAG
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.sync.test_io_manager import failure, stored, wanted
from pulso_etl_tests.sync.visits import ALL, D3, SPEC, Deferred, materialize, table, visits

Run = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def run(manager: PostgresUpsertIOManager, instance: dg.DagsterInstance) -> Run:
    return partial(materialize, manager, instance)


def history(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    """Table, days, status and error of each attempt."""
    query = "SELECT table_name, partition_start, partition_end, status, error_message FROM etl_extractions ORDER BY id"
    return conn.execute(query).fetchall()


def mixed(rows: pa.Table) -> pd.DataFrame:
    frame = rows.to_pandas()
    return frame.assign(site=pd.Series([7, *frame["site"][1:]], dtype=object))


def broken(rows: pa.Table) -> pa.RecordBatchReader:
    def batches() -> Iterator[pa.RecordBatch]:
        yield from rows.slice(0, 1).to_batches()
        raise ValueError("the file ends early")

    return pa.RecordBatchReader.from_batches(rows.schema, batches())


class Unopened(Deferred):
    def open(self) -> Any:
        raise OSError("no such share")


class Bare(Deferred):
    @contextmanager
    def open(self) -> Iterator[pa.RecordBatchReader]:
        yield pa.Table.from_pylist([]).to_reader()


class Series:
    """An object that has Arrow's interface and is not a table."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return pa.chunked_array([[1, 2]]).__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    ("yielded", "reason", "retried"),
    [
        pytest.param(mixed, "the asset's DataFrame can't be read as Arrow: .*site", False, id="mixed objects"),
        pytest.param(
            lambda rows: rows.to_pandas().set_axis(["day", "site", "site", "hora", "share", "seen"], axis=1),
            "the asset's DataFrame can't be read as Arrow: .*Duplicate column names",
            False,
            id="a name twice",
        ),
        pytest.param(lambda rows: Series(), "the asset's Series can't be read as Arrow", False, id="a series"),
        pytest.param(lambda rows: {"a": 1}, "the asset yielded dict; expected", False, id="a dict"),
        pytest.param(lambda rows: iter(rows.to_batches()), "the asset yielded .*iterator; expected", False, id="an iterator"),
        pytest.param(broken, "ValueError: the file ends early", True, id="a generator that raises"),
        pytest.param(lambda rows: Unopened(rows), "OSError: no such share", True, id="a stream that does not open"),
    ],
)
def test_a_failure_of_what_the_asset_yields_is_an_attempt_that_names_table_and_partitions(
    run: Run, conn: psycopg.Connection, yielded: Callable[[pa.Table], Any], reason: str, retried: bool
) -> None:
    result = run(visits(yielded, retry_policy=dg.RetryPolicy(max_retries=1)))
    assert not result.success
    assert bool([event for event in result.all_events if event.is_step_up_for_retry]) is retried
    attempts = history(conn)
    assert len(attempts) == 1 + retried
    for name, start, end, status, error in attempts:
        assert (name, str(start), str(end), status) == ("visits", "2026-02-27", "2026-03-01", "failed")
        assert re.search(rf"visits 2026-02-27\.\.2026-03-01: {reason}", error)
    assert conn.execute("SELECT last_extraction_status FROM etl_watermarks").fetchall() == [("failed",)]
    assert conn.execute("SELECT count(*) FROM etl_running").fetchone() == (0,)


def test_an_asset_that_forbids_a_retry_while_its_rows_are_read_is_not_tried_again(run: Run, conn: psycopg.Connection) -> None:
    class Forbidding(Deferred):
        def open(self) -> Any:
            raise dg.Failure("the contract of the share has ended", allow_retries=False)

    assert failure(run(visits(Forbidding))) == "the contract of the share has ended"
    assert [(status, error) for *_, status, error in history(conn)] == [("failed", "the contract of the share has ended")]


@pytest.mark.parametrize(
    ("options", "launch", "reason"),
    [
        ({"metadata": {}}, {}, "no TableSpec"),
        (
            {"partitions_def": dg.StaticPartitionsDefinition(["norte", "sur"]), "backfill_policy": None},
            {"start": "norte", "end": None},
            "visits, partition norte: .*StaticPartitionsDefinition",
        ),
    ],
)
def test_an_asset_that_names_no_table_or_no_days_fails_in_the_history_on_the_day_of_its_attempt(
    run: Run, conn: psycopg.Connection, options: dict[str, Any], launch: dict[str, Any], reason: str
) -> None:
    assert re.search(reason, failure(run(visits(lambda rows: rows, **options), **launch)))
    ((name, start, end, status, error),) = history(conn)
    assert (name, status, start) == ("visits", "failed", end)
    assert re.search(reason, error)


def test_a_load_that_waits_for_its_lock_in_vain_is_an_attempt(
    server_url: str, schema: str, instance: dg.DagsterInstance, conn: psycopg.Connection
) -> None:
    manager = PostgresUpsertIOManager(database_url=server_url, database_schema=schema, lock_timeout_seconds=1)
    conn.execute("SELECT pg_advisory_lock(%s)", (locks.table_lock(schema, "visits"),))
    assert not materialize(manager, instance, visits(lambda rows: rows, retry_policy=None)).success
    ((_, _, _, status, error),) = history(conn)
    assert status == "failed"
    assert "visits 2026-02-27..2026-03-01: PostgreSQL" in error
    assert "another writer" in error
    pid = conn.info.backend_pid
    assert f"held by login {conn.info.user} (server process {pid}" in error


def test_a_run_that_is_ended_after_the_commit_has_loaded(
    server_url: str, schema: str, instance: dg.DagsterInstance, conn: psycopg.Connection
) -> None:
    class Ended(PostgresUpsertIOManager):
        def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
            super().handle_output(context, obj)
            raise dg.Failure("the run's time was up", allow_retries=False)

    asset = visits(lambda rows: rows)
    result = materialize(Ended(database_url=server_url, database_schema=schema), instance, asset, tags={TABLE_TAG: "visits"})
    assert not result.success
    assert stored(conn) == wanted(ALL)
    assert [(status, error) for *_, status, error in history(conn)] == [("success", None)]
    now = datetime.now(UTC)
    states = Watermarks(schema).read(conn, now - MEMORY)
    assert states["visits"].status == "success"
    # Dagster's failed run is not counted beside it.
    standing = standings(instance, states, {"visits": SPEC}, now)["visits"]
    assert [attempt.succeeded for attempt in standing.attempts] == [True]


EVOLVING = {"metadata": {SPEC_KEY: altered(SPEC, contract="evolve").as_metadata()}}
FRAME = table().to_pandas()


def columns(conn: psycopg.Connection) -> set[str]:
    query = "SELECT attname FROM pg_attribute WHERE attrelid = 'visits'::regclass AND attnum > 0"
    return {name for (name,) in conn.execute(query)}


@pytest.mark.parametrize(
    "yielded",
    [
        pytest.param(FRAME, id="a range"),
        pytest.param(pd.concat([FRAME, FRAME])[lambda f: ~f.duplicated(keep="last")], id="filtered"),
        pytest.param(FRAME.set_axis(list("abcd"), axis=0), id="labels"),
        pytest.param(FRAME.set_index(pd.MultiIndex.from_product([[1, 2], [3, 4]])), id="levels"),
        pytest.param(FRAME.set_index("site", drop=False), id="a column's name again"),
        pytest.param(FRAME.set_index("site"), id="a column as index"),
        pytest.param(FRAME.set_index(["day", "site"]), id="columns as levels"),
        pytest.param(FRAME.set_index(["day", pd.Index([4, 3, 2, 1])]), id="a column and no name"),
        pytest.param(pa.Table.from_pandas(FRAME.iloc[[2, 0, 1, 3]]), id="a table of a frame"),
        pytest.param(pa.Table.from_pandas(FRAME.iloc[[2, 0, 1, 3]]).to_reader(), id="a reader of a frame"),
    ],
)
def test_an_index_without_a_name_is_no_data_and_one_with_a_name_is_a_column(
    run: Run, conn: psycopg.Connection, instance: dg.DagsterInstance, yielded: Any
) -> None:
    assert run(visits(lambda _: yielded, **EVOLVING)).success
    assert stored(conn) == wanted(ALL)
    assert columns(conn) == {*SPEC.column_names, "created_at", "updated_at"}
    (record,) = instance.fetch_materializations(dg.AssetRecordsFilter(dg.AssetKey("visits")), limit=1).records
    assert record.asset_materialization is not None
    assert not {"columns_added", "columns_not_loaded"} & set(record.asset_materialization.metadata)


def test_a_range_index_with_a_name_is_a_column_too(run: Run, conn: psycopg.Connection) -> None:
    frame = FRAME.drop(columns="hora").set_axis(pd.RangeIndex(4, name="hora"), axis=0)
    assert run(visits(lambda _: frame)).success
    assert conn.execute("SELECT hora FROM visits ORDER BY day, site").fetchall() == [(0,), (1,), (2,), (3,)]


NOTHING = [
    pytest.param(lambda: pa.Table.from_pylist([]), id="table"),
    pytest.param(lambda: pa.Table.from_pylist([]).to_reader(), id="reader"),
    pytest.param(lambda: Bare(table()), id="stream"),
    pytest.param(pd.DataFrame, id="frame"),
    pytest.param(lambda: pd.DataFrame({"day": [], "site": [], "hora": [], "amount": []}), id="frame with other types"),
    pytest.param(lambda: FRAME[FRAME["hora"] > 100], id="filtered frame"),
]


@pytest.mark.parametrize("nothing", NOTHING)
def test_what_has_neither_rows_nor_columns_is_a_day_without_rows(
    run: Run, conn: psycopg.Connection, nothing: Callable[[], Any]
) -> None:
    empty = visits(lambda _: nothing(), **EVOLVING)
    assert run(empty).success
    assert stored(conn) == []
    assert run(visits(lambda rows: rows, **EVOLVING)).success
    assert "refused to delete" in failure(run(empty))
    assert stored(conn) == wanted(ALL)
    assert run(empty, start="2026-03-02", end=None).success
    assert conn.execute("SELECT max(day), count(*) FROM visits").fetchone() == (D3, 4)


@pytest.mark.parametrize("rows", [pa.table({"n": [1, 2]}).select([]), pa.table({"n": [1, 2]}).select([]).to_reader()])
def test_rows_without_columns_are_refused(run: Run, rows: Any) -> None:
    assert "site: missing" in failure(run(visits(lambda _: rows)))
