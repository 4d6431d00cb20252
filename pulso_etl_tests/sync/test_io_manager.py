"""PostgresUpsertIOManager with assets that are not ours: what they may yield, and what a downstream asset gets."""

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import dagster as dg
import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.io_manager import Committed, PostgresUpsertIOManager
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.loading.result import Held, LoadResult
from pulso_etl.sync.owed import Settlement, Watermark
from pulso_etl.sync.source_state import SourceState
from pulso_etl.sync.tags import ALLOW_SHRINK_TAG, COMPARE_TAG, FORCE_TAG, SPEC_KEY
from pulso_etl_tests.sync.visits import (
    ALL,
    D1,
    D2,
    D3,
    DAYS,
    NOON,
    SCHEMA,
    SPEC,
    Arrowlike,
    Deferred,
    Rows,
    materialize,
    table,
    visits,
)

Run = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def run(manager: PostgresUpsertIOManager, instance: dg.DagsterInstance) -> Run:
    """Materializes assets, see `materialize`."""
    return partial(materialize, manager, instance)


def metadata(instance: dg.DagsterInstance, day: date) -> dict[str, Any]:
    """The metadata of the partition's last materialization."""
    selection = dg.AssetRecordsFilter(dg.AssetKey("visits"), asset_partitions=[day.isoformat()])
    (record,) = instance.fetch_materializations(selection, limit=1).records
    assert record.asset_materialization is not None
    return {name: value.value for name, value in record.asset_materialization.metadata.items()}


def counts(instance: dg.DagsterInstance, day: date) -> tuple[int, ...]:
    """Read, inserted, updated, unchanged, deleted."""
    names = ("read", "inserted", "updated", "unchanged", "deleted")
    return tuple(metadata(instance, day)[f"rows_{name}"] for name in names)


def stored(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    return conn.execute("SELECT day, site, amount FROM visits ORDER BY 1, 2").fetchall()


def wanted(rows: Rows) -> list[tuple[Any, ...]]:
    return [(day, site, None if amount is None else Decimal(amount)) for day, site, amount in rows]


def addresses(conn: psycopg.Connection) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    found = conn.execute("SELECT day, site, xmin::text, ctid::text, updated_at FROM visits").fetchall()
    return {(day, site): tuple(rest) for day, site, *rest in found}


def failure(result: dg.ExecuteInProcessResult) -> str:
    """The reason of a step that failed without a retry."""
    assert not result.success
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    (failed,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failed.user_failure_data is not None
    assert failed.user_failure_data.description is not None
    return failed.user_failure_data.description


@pytest.mark.parametrize(
    "yielded",
    [
        pytest.param(lambda rows: rows.to_reader(max_chunksize=1), id="reader"),
        pytest.param(lambda rows: rows, id="table"),
        pytest.param(lambda rows: rows.to_pandas(), id="pandas"),
        pytest.param(Arrowlike, id="arrow_c_stream"),
        pytest.param(Deferred, id="deferred"),
    ],
)
def test_whatever_holds_arrow_is_loaded_for_a_range_and_for_one_partition(
    run: Run, conn: psycopg.Connection, instance: dg.DagsterInstance, yielded: Callable[[pa.Table], Any]
) -> None:
    asset = visits(yielded)
    assert run(asset, end=None).success
    assert stored(conn) == wanted(ALL[:2])
    assert run(asset).success
    assert stored(conn) == wanted(ALL)
    assert counts(instance, D1) == (2, 0, 0, 2, 0)
    assert counts(instance, D2) == (1, 1, 0, 0, 0)
    assert conn.execute("SELECT DISTINCT hora, share, seen FROM visits").fetchall() == [(9, 0.25, NOON)]


def test_each_partition_has_its_own_counts_and_the_load_its_plan_and_seconds(run: Run, instance: dg.DagsterInstance) -> None:
    assert run(visits(lambda rows: rows), end="2026-03-02").success
    days = [D1, D2, D3, D3 + timedelta(days=1)]
    assert [counts(instance, day) for day in days] == [(2, 2, 0, 0, 0), (1, 1, 0, 0, 0), (1, 1, 0, 0, 0), (0, 0, 0, 0, 0)]
    first = metadata(instance, D1)
    assert first["load_plan"] == "direct"
    assert (first["dagster/partition_row_count"], first["dagster/row_count"], "age_seconds" in first) == (2, 4, False)
    assert {name for name in first if name.startswith("seconds_")} == {"seconds_lock", "seconds_copy"}

    def later(_: pa.Table) -> pa.Table:
        return table([(D1, "a", "2"), (D1, "c", "1"), ALL[2], (D3, "z", None)], NOON + timedelta(hours=1))

    assert run(visits(later), end="2026-03-02").success
    assert [counts(instance, day) for day in days] == [(2, 1, 1, 0, 1), (1, 0, 0, 1, 0), (1, 1, 0, 0, 1), (0, 0, 0, 0, 0)]
    second = metadata(instance, D2)
    assert second["load_plan"] == "merge"
    assert (second["dagster/partition_row_count"], second["dagster/row_count"]) == (1, 4)
    assert second["seconds"] > 0
    stages = {f"seconds_{stage}" for stage in ("lock", "copy", "analyze", "diff", "write")}
    assert {name for name in second if name.startswith("seconds_")} == stages
    assert all(second[stage] >= 0 for stage in stages)


@pytest.mark.parametrize(
    ("age", "told"), [(None, {}), (timedelta(hours=6), {"age_seconds": 21600.0}), (timedelta(0), {"age_seconds": 0.0})]
)
def test_the_age_that_is_told_is_the_time_since_the_table_was_read(age: timedelta | None, told: dict[str, float]) -> None:
    settlement = Settlement(Watermark(None, None, {}), True)
    done = Committed(LoadResult("merge", {}, Held({}, "0")), settlement, {D1: 2, D2: 1}, rows=40, age=age)
    assert done.of_table(1.25) == {"dagster/row_count": 40, "seconds": 1.25} | told
    assert done.of_partition(DayRange(D1, D3))["dagster/partition_row_count"] == 3


def test_metadata_that_opening_a_stream_fills_stand_with_the_materialization(run: Run, instance: dg.DagsterInstance) -> None:
    assert run(visits(Deferred)).success
    assert metadata(instance, D3)["pages"] == 7


def test_unchanged_rows_stay_where_they_are_and_only_changed_rows_get_a_new_updated_at(run: Run, conn: psycopg.Connection) -> None:
    assert run(visits(lambda rows: rows)).success
    before = addresses(conn)
    changed = [(D1, "a", "1.5"), (D1, "b", "7"), *ALL[2:]]
    assert run(visits(lambda _: table(changed, NOON + timedelta(hours=1)))).success
    after = addresses(conn)
    assert sorted(stored(conn)) == sorted(wanted(changed))
    assert {key for key in before if before[key] != after[key]} == {(D1, "b")}
    assert after[D1, "b"][2] > before[D1, "b"][2]
    assert conn.execute("SELECT count(*) FROM visits WHERE created_at < updated_at").fetchone() == (1,)


SEEN = SourceState({"tables": {"p.d.t": 1}})


@dataclass
class Observed(Deferred):
    """A stream whose source reports its state."""

    state: SourceState | None = SEEN
    computed_at: datetime | None = None

    def look(self, kept: Collection[str] = ()) -> SourceState | None:
        if self.state is None or "p.d.t" in kept:
            return self.state
        return replace(self.state, partitions={"p.d.t": {"20260301": self.state.digest}})


def test_the_state_of_the_source_is_kept_with_the_rows_and_a_change_that_it_did_not_tell_is_counted(
    run: Run, instance: dg.DagsterInstance, conn: psycopg.Connection, manager: PostgresUpsertIOManager
) -> None:
    def kept() -> tuple[Any, set[str | None]]:
        state = Watermarks(manager.database_schema).read(conn)["visits"]
        return state.source, {row[0] for row in conn.execute("SELECT source_state FROM etl_days")}

    changed = table([(D1, "a", "1.5"), (D1, "b", "7"), *ALL[2:]])
    assert run(visits(Observed)).success
    assert kept() == (SEEN, {SEEN.digest})
    assert "changes_missed" not in metadata(instance, D1)
    assert run(visits(lambda _: Observed(changed))).success
    assert metadata(instance, D1)["changes_missed"] == 1
    # No change was missed if the source reports a change or gives no signal.
    other = SourceState({"tables": {"p.d.t": 2}})
    assert run(visits(lambda rows: Observed(rows, state=other))).success
    assert "changes_missed" not in metadata(instance, D1)
    assert kept() == (other, {other.digest})
    assert run(visits(lambda _: Observed(changed, state=None))).success
    assert "changes_missed" not in metadata(instance, D1)
    assert kept() == (other, {None})
    # The states of partitions are asked for once. They tell about days that were read since then.
    marks = Watermarks(manager.database_schema)
    asked = marks.partitions(conn, "visits")["p.d.t"]
    assert asked.states == {"20260301": SEEN.digest}
    [(began, read)] = conn.execute("SELECT (SELECT min(started_at) FROM etl_extractions), (SELECT min(read_at) FROM etl_days)")
    assert began <= asked.at < read
    # They hold for every table while the base table is like that.
    assert marks.known_partitions(conn, {"p.d.t": 1, "p.d.u": 1}) == {"p.d.t": asked.states}
    assert marks.known_partitions(conn, {"p.d.t": 2}) == {}


def test_rows_of_other_partitions_are_never_touched(run: Run, conn: psycopg.Connection) -> None:
    assert run(visits(lambda rows: rows)).success
    assert run(visits(lambda _: table([])), start="2026-02-28", end="2026-02-28", tags={ALLOW_SHRINK_TAG: "true"}).success
    assert stored(conn) == wanted([ALL[0], ALL[1], ALL[3]])


def test_a_load_that_would_empty_a_range_is_refused_once(run: Run, conn: psycopg.Connection) -> None:
    assert run(visits(lambda rows: rows)).success
    assert "refused to delete" in failure(run(visits(lambda _: table([]))))
    assert stored(conn) == wanted(ALL)


WITH_A_GAP = dg.TimeWindowPartitionsDefinition(
    start="2026-02-01", fmt="%Y-%m-%d", cron_schedule="0 0 * * *", exclusions=["0 0 28 2 *"]
)


@pytest.mark.parametrize(
    ("asset", "message"),
    [
        (visits(lambda rows: rows, metadata={}), r"visits has no TableSpec.*pulso_etl/table"),
        (visits(lambda rows: rows, metadata={SPEC_KEY: {"name": "visits"}}), r"visits.*not a valid TableSpec.*primary_key"),
        (visits(lambda rows: rows, partitions_def=WITH_A_GAP), r"2026-02-27\.\.2026-03-01 are not one contiguous range"),
        (visits(lambda rows: {"a": 1}), r"visits 2026-02-27\.\.2026-03-01: the asset yielded dict; expected"),
        (visits(lambda rows: None), r"visits 2026-02-27\.\.2026-03-01: the asset yielded NoneType; expected"),
        (visits(lambda rows: rows.drop_columns(["hora"])), r"visits 2026-02-27\.\.2026-03-01.*hora: missing"),
        (visits(lambda rows: table([ALL[0], ALL[0]])), r"visits .*2 rows with the primary key \(day=2026-02-27, site=a\)"),
    ],
)
def test_what_can_not_be_loaded_is_a_clear_error_and_not_tried_again(
    run: Run, conn: psycopg.Connection, asset: dg.AssetsDefinition, message: str
) -> None:
    assert re.search(message, failure(run(asset)))
    assert conn.execute("SELECT to_regclass('visits')").fetchone() == (None,)


@pytest.mark.parametrize("partitions", [None, dg.StaticPartitionsDefinition(["norte", "sur"])])
def test_an_asset_without_days_is_told_what_it_needs(run: Run, partitions: dg.PartitionsDefinition | None) -> None:
    asset = visits(lambda rows: rows, partitions_def=partitions, backfill_policy=None)
    result = run(asset, start="norte" if partitions else None, end=None)
    assert "needs daily partitions" in failure(result)


def reader(got: list[Any], kind: Any, **options: Any) -> dg.AssetsDefinition:
    """A downstream asset that keeps what it is given."""

    def read(visits: Any) -> None:
        got.append(visits)

    read.__annotations__["visits"] = kind
    return dg.asset(name="reader", partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run(), **options)(read)


def test_a_downstream_asset_gets_its_range_or_its_partition_as_a_table(run: Run) -> None:
    got: list[Any] = []
    asset = visits(lambda rows: rows)
    assert run(asset, reader(got, pa.Table)).success
    assert run(asset, reader(got, pa.Table), start="2026-02-28", end=None).success
    whole, day = got
    assert whole.select(["day", "site", "amount"]).to_pylist() == [
        {"day": day, "site": site, "amount": amount} for day, site, amount in wanted(ALL)
    ]
    assert whole.schema.field("amount").type == pa.decimal256(76, 38)
    assert whole["seen"].to_pylist() == [NOON] * 4
    assert day["site"].to_pylist() == ["a"]


def test_a_downstream_asset_gets_a_data_frame_where_it_asks_for_one(run: Run) -> None:
    got: list[Any] = []
    assert run(visits(lambda rows: rows), reader(got, pd.DataFrame)).success
    (frame,) = got
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == list(SPEC.column_names)
    assert list(frame["amount"]) == [amount for *_, amount in wanted(ALL)]
    assert frame["hora"].dtype == "int64"
    assert str(frame["seen"].dt.tz) == "UTC"


@pytest.mark.parametrize("kind", [pa.Table, pd.DataFrame])
def test_an_empty_range_has_typed_columns(run: Run, kind: Any) -> None:
    got: list[Any] = []
    assert run(visits(lambda rows: rows), reader(got, kind), start="2026-03-02", end="2026-03-03").success
    empty = got[0] if kind is pa.Table else pa.Table.from_pandas(got[0])
    assert empty.num_rows == 0
    assert empty.column_names == list(SPEC.column_names)
    assert empty.schema.field("hora").type == pa.int64()
    assert empty.schema.field("seen").type == pa.timestamp("us", "UTC")
    if kind is pa.Table:
        assert empty.schema.types == [pa.decimal256(76, 38) if pa.types.is_decimal(t) else t for t in SCHEMA.types]


def test_an_input_whose_table_is_gone_is_a_clear_error_and_not_tried_again(run: Run, conn: psycopg.Connection) -> None:
    got: list[Any] = []
    asset = visits(lambda rows: rows)
    assert run(asset).success
    conn.execute("DROP TABLE visits")
    result = run(asset, reader(got, pa.Table, retry_policy=dg.RetryPolicy(max_retries=2)), selection=["reader"])
    assert "visits" in failure(result)
    assert got == []


MONTHLY = SPEC.model_copy(update={"name": "monthly", "primary_key": ("site",), "version_column": "day"})


def test_schema_and_table_are_created_with_key_index_and_checks(
    instance: dg.DagsterInstance, server_url: str, schema: str, conn: psycopg.Connection
) -> None:
    fresh = f"{schema}_new"
    manager = PostgresUpsertIOManager(database_url=server_url, database_schema=fresh)
    try:
        for spec in (SPEC, MONTHLY):
            asset = visits(lambda rows: rows.slice(1), metadata={SPEC_KEY: spec.as_metadata()})
            assert materialize(manager, instance, asset).success
        conn.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(fresh)))
        indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = %s AND tablename = %s ORDER BY indexname"
        (key,) = conn.execute(indexes, (fresh, "visits")).fetchall()
        assert key[0].startswith("CREATE UNIQUE")
        assert key[0].endswith("(day, site)")
        by_day, unique = [row[0] for row in conn.execute(indexes, (fresh, "monthly"))]
        assert by_day.endswith("(day)")
        assert unique.endswith("(site)")
        for hora in (-1, 24):
            with pytest.raises(psycopg.errors.CheckViolation):
                conn.execute("INSERT INTO visits (day, site, hora) VALUES ('2026-01-01', 'x', %s)", (hora,))
        with pytest.raises(psycopg.errors.NotNullViolation):
            conn.execute("INSERT INTO monthly (site) VALUES ('x')")
    finally:
        conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(fresh)))


@pytest.fixture
def role(server_url: str, schema: str, conn: psycopg.Connection) -> Iterator[str]:
    """Connection string of a role that may create tables in the test's schema, and no schema."""
    name = sql.Identifier(f"{schema}_role")
    conn.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secreto'").format(name))
    conn.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA {} TO {}").format(sql.Identifier(schema), name))
    # The test reads and drops the tables of the role. It needs a membership for that if it is no superuser.
    conn.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(name))
    yield make_conninfo(server_url, user=f"{schema}_role", password="secreto")
    conn.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(name))
    conn.execute(sql.SQL("DROP ROLE {}").format(name))


def test_a_role_without_create_on_the_database_loads_into_a_schema_that_exists(
    instance: dg.DagsterInstance, role: str, schema: str, conn: psycopg.Connection
) -> None:
    manager = PostgresUpsertIOManager(database_url=role, database_schema=schema)
    for _ in range(2):
        assert materialize(manager, instance, visits(lambda rows: rows)).success
    assert stored(conn) == wanted(ALL)


def test_a_schema_that_a_role_may_not_create_is_a_clear_error_without_a_secret(
    instance: dg.DagsterInstance, role: str, schema: str
) -> None:
    manager = PostgresUpsertIOManager(database_url=role, database_schema=f"{schema}_none")
    reason = failure(materialize(manager, instance, visits(lambda rows: rows)))
    assert "permission denied" in reason
    assert "grant" in reason
    assert "secreto" not in reason


def test_the_data_version_rises_with_each_load_that_changes_rows_and_who_listens_is_told(
    run: Run, conn: psycopg.Connection, schema: str
) -> None:
    def version() -> int:
        return Watermarks(schema).read(conn)["visits"].data_version

    conn.execute("LISTEN pulso_etl_data")
    changed = [(D1, "a", "1.5"), (D1, "b", "7"), *ALL[2:]]
    versions = []
    for rows in (ALL, ALL, changed, changed):
        assert run(visits(lambda _, rows=rows: table(rows))).success
        versions.append(version())
    assert versions == [1, 1, 2, 2]
    assert not run(visits(lambda rows: rows.slice(0, 0))).success
    assert version() == 2
    told = [json.loads(notice.payload) for notice in conn.notifies(timeout=0.5)]
    ours = [(entry["table"], entry["data_version"], entry["first"], entry["last"]) for entry in told if entry["schema"] == schema]
    assert ours == [("visits", version, str(D1), str(D3)) for version in (1, 2)]


@pytest.mark.parametrize("repeatable", [True, False])
def test_days_that_are_as_they_were_are_not_compared_unless_the_run_asks_for_it(
    run: Run, instance: dg.DagsterInstance, conn: psycopg.Connection, repeatable: bool
) -> None:
    def unchanged(tags: dict[str, str] | None = None, rows: Rows = ALL) -> int:
        days = {row[0] for row in rows}
        stamped = table(rows, NOON + timedelta(hours=len(days)))
        assert run(visits(lambda _: Deferred(stamped) if repeatable else stamped.to_reader()), tags=tags).success
        return int(metadata(instance, D1)["days_unchanged"])

    assert [unchanged(), unchanged()] == [0, 3]
    before = addresses(conn)
    assert counts(instance, D1) == (2, 0, 0, 2, 0)
    assert [unchanged({FORCE_TAG: "true"}), unchanged({COMPARE_TAG: "true"}), unchanged()] == [0, 0, 3]
    assert addresses(conn) == before
    assert unchanged(rows=[*ALL[:2], (D2, "a", "2"), ALL[3]]) == 2
    assert stored(conn) == wanted([*ALL[:2], (D2, "a", "2"), ALL[3]])


def test_of_a_day_in_which_a_row_has_changed_a_part_is_compared(
    run: Run, instance: dg.DagsterInstance, conn: psycopg.Connection
) -> None:
    rows: Rows = [(day, f"n{number}", "1") for day in (D1, D2) for number in range(100)]
    changed: Rows = [*rows[:40], (D1, "n40", "2"), *rows[42:], (D1, "new", "3")]
    told = []
    for given in (rows, changed, changed):
        source = table(given)
        assert run(visits(lambda _, source=source: Deferred(source))).success
        known = metadata(instance, D1)
        told.append((known["days_unchanged"], known["days_in_buckets"], known["rows_read"]))
    assert told == [(0, 0, 100), (2, 1, 100), (3, 0, 100)]
    assert sorted(stored(conn)) == sorted(wanted(changed))
