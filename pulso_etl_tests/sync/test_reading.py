"""Reading back: what an asset downstream, or a notebook, is given of a table."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Optional

import dagster as dg
import pandas as pd
import psycopg
import pyarrow as pa
import pytest

from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.tags import SPEC_KEY
from pulso_etl_tests.clock import ZONE
from pulso_etl_tests.sync.test_io_manager import failure, stored, wanted
from pulso_etl_tests.sync.visits import ALL, D1, D2, D3, DAYS, SCHEMA, SPEC, materialize, table, visits

Run = Callable[..., dg.ExecuteInProcessResult]
RANGES: dict[str, Any] = {"partitions_def": DAYS, "backfill_policy": dg.BackfillPolicy.single_run()}


@pytest.fixture
def run(manager: PostgresUpsertIOManager, instance: dg.DagsterInstance) -> Run:
    return partial(materialize, manager, instance)


def reader(got: list[Any], kind: Any = pa.Table, asset_in: dg.AssetIn | None = None, **options: Any) -> dg.AssetsDefinition:
    """A downstream asset that keeps what it is given."""

    def read(visits: Any) -> None:
        got.append(visits)

    read.__annotations__["visits"] = kind
    ins = {"visits": asset_in} if asset_in else None
    return dg.asset(name="reader", ins=ins, **RANGES | options)(read)


def cumulative(got: list[pa.Table], first: date = D1) -> dg.AssetsDefinition:
    """An asset whose rows of a day are the rows of the day before, with one more hour. It is launched day by day from `first`."""
    before = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)

    @dg.asset(
        name="visits",
        ins={"visits": dg.AssetIn("visits", partition_mapping=before)},
        partitions_def=dg.DailyPartitionsDefinition("2026-02-27", end_offset=1),
        backfill_policy=dg.BackfillPolicy.multi_run(1),
        metadata={SPEC_KEY: SPEC.as_metadata()},
        io_manager_key="postgres",
    )
    def asset(visits: pa.Table) -> pa.Table:
        got.append(visits)
        hour = visits.num_rows and visits["hora"][0].as_py() + 1
        row = {"day": first + timedelta(days=len(got) - 1), "site": "a", "hora": hour}
        return pa.Table.from_pylist([row], schema=SCHEMA)

    return asset


def test_an_asset_that_reads_its_own_day_before_begins_with_an_empty_table(run: Run, conn: psycopg.Connection) -> None:
    got: list[pa.Table] = []
    asset = cumulative(got)
    for day in (D1, D2, D3):
        assert run(asset, start=str(day), end=None).success
    assert [rows.num_rows for rows in got] == [0, 1, 1]
    assert got[0].schema == got[1].schema
    assert conn.execute("SELECT day, hora FROM visits ORDER BY day").fetchall() == [(D1, 0), (D2, 1), (D3, 2)]


def test_an_asset_that_reads_itself_may_begin_on_any_day(run: Run) -> None:
    got: list[pa.Table] = []
    assert run(cumulative(got, D2), start=str(D2), end=None).success
    assert [rows.num_rows for rows in got] == [0]
    assert got[0].column_names == list(SPEC.column_names)


@pytest.mark.parametrize("kind", [pa.Table, pd.DataFrame])
def test_a_table_that_nobody_has_loaded_is_empty(run: Run, conn: psycopg.Connection, kind: Any) -> None:
    got: list[Any] = []
    assert run(visits(lambda rows: rows), reader(got, kind), selection=["reader"]).success
    (found,) = got
    assert len(found) == 0
    assert list(found.column_names if kind is pa.Table else found.columns) == list(SPEC.column_names)
    assert conn.execute("SELECT to_regclass('visits'), to_regclass('etl_watermarks')").fetchone() == (None, None)


BIG = 9007199254740993
LARGE = SPEC.model_copy(
    update={"columns": tuple(column.model_copy(update={"minimum": None, "maximum": None}) for column in SPEC.columns)}
)
WIDE = pa.Table.from_pylist(
    [
        {"day": D1, "site": "a", "hora": BIG, "amount": Decimal("12345678901234567890123456789.5"), "share": 0.1},
        {"day": D1, "site": "b", "hora": None, "amount": None, "share": None},
    ],
    schema=SCHEMA,
)


def test_a_frame_keeps_every_digit_and_null_and_can_be_written_back(run: Run, conn: psycopg.Connection) -> None:
    got: list[pd.DataFrame] = []
    metadata = {SPEC_KEY: LARGE.as_metadata()}
    asset = visits(lambda _: WIDE, metadata=metadata)
    day = {"start": str(D1), "end": None}
    assert run(asset, reader(got, pd.DataFrame), **day).success
    (frame,) = got
    assert str(frame["hora"].dtype) == "Int64"
    assert frame["hora"][0] == BIG
    assert frame["hora"].isna().tolist() == [False, True]
    query = "SELECT day, site, hora, amount, share, seen, xmin::text FROM visits ORDER BY site"
    before = conn.execute(query).fetchall()
    assert before[0][2:5] == (BIG, Decimal("12345678901234567890123456789.5"), 0.1)
    assert before[1][2:6] == (None, None, None, None)
    # Its rows are as they were: not even written again.
    assert run(visits(lambda _: frame, metadata=metadata), **day).success
    assert conn.execute(query).fetchall() == before


def test_a_frame_with_arrow_s_types_keeps_dates_and_decimals_and_can_be_written_back(run: Run, conn: psycopg.Connection) -> None:
    got: list[pd.DataFrame] = []
    metadata = {SPEC_KEY: LARGE.as_metadata()}
    day = {"start": str(D1), "end": None}
    wants = dg.AssetIn("visits", metadata={"dtype_backend": "pyarrow"})
    assert run(visits(lambda _: WIDE, metadata=metadata), reader(got, pd.DataFrame, wants), **day).success
    (frame,) = got
    told = {name: str(frame[name].dtype) for name in ("day", "hora", "amount", "seen")}
    assert told == {
        "day": "date32[day][pyarrow]",
        "hora": "int64[pyarrow]",
        "amount": "decimal256(76, 38)[pyarrow]",
        "seen": "timestamp[us, tz=UTC][pyarrow]",
    }
    assert frame["hora"].isna().tolist() == [False, True]
    query = "SELECT day, site, hora, amount, share, seen, xmin::text FROM visits ORDER BY site"
    before = conn.execute(query).fetchall()
    assert run(visits(lambda _: frame, metadata=metadata), **day).success
    assert conn.execute(query).fetchall() == before


def test_another_backend_of_types_is_refused(run: Run) -> None:
    got: list[Any] = []
    wants = dg.AssetIn("visits", metadata={"dtype_backend": "numpy_nullable"})
    assert "`dtype_backend` may be 'pyarrow'" in failure(run(visits(lambda rows: rows), reader(got, pd.DataFrame, wants)))


@pytest.mark.parametrize("kind", [Optional[pd.DataFrame], pd.DataFrame | None])  # noqa: UP045
def test_an_optional_frame_is_a_frame(run: Run, kind: Any) -> None:
    got: list[Any] = []
    assert run(visits(lambda rows: rows), reader(got, kind)).success
    assert isinstance(got[0], pd.DataFrame)
    assert len(got[0]) == 4


@pytest.mark.parametrize("kind", [Any, Optional[pa.Table], pa.Table, object])  # noqa: UP045
def test_what_is_annotated_otherwise_may_be_a_table(run: Run, kind: Any) -> None:
    got: list[Any] = []
    assert run(visits(lambda rows: rows), reader(got, kind)).success
    assert isinstance(got[0], pa.Table)


def test_a_reader_is_given_where_it_is_asked_for(run: Run) -> None:
    got: list[Any] = []
    assert run(visits(lambda rows: rows), reader(got, pa.RecordBatchReader)).success
    assert got[0].read_all().num_rows == 4


@pytest.mark.parametrize("kind", [dict, pd.Series, list[int]])
def test_a_form_that_can_not_be_given_is_refused_with_those_that_can(run: Run, kind: Any) -> None:
    got: list[Any] = []
    assert run(visits(lambda rows: rows)).success
    retried = dg.RetryPolicy(max_retries=2)
    reason = failure(run(visits(lambda rows: rows), reader(got, kind, retry_policy=retried), selection=["reader"]))
    assert "visits: " in reason
    assert "pyarrow.Table" in reason
    assert got == []


@pytest.mark.parametrize("kind", [pa.Table, pd.DataFrame])
def test_an_input_may_name_the_columns_that_it_wants(run: Run, kind: Any) -> None:
    got: list[Any] = []
    wants = dg.AssetIn("visits", metadata={"columns": ["amount", "site"]})
    assert run(visits(lambda rows: rows), reader(got, kind, wants)).success
    (found,) = got
    assert list(found.column_names if kind is pa.Table else found.columns) == ["amount", "site"]
    assert len(found) == 4


@pytest.mark.parametrize(
    ("columns", "reason"),
    [(["site", "colour"], "colour"), ("site", "list of names"), ([], "list of names"), ([1], "list of names")],
)
def test_columns_that_are_not_there_are_refused(run: Run, columns: Any, reason: str) -> None:
    got: list[Any] = []
    assert run(visits(lambda rows: rows)).success
    wants = dg.AssetIn("visits", metadata={"columns": columns})
    told = failure(run(visits(lambda rows: rows), reader(got, asset_in=wants), selection=["reader"]))
    assert reason in told
    assert "visits" in told


def load(manager: PostgresUpsertIOManager, instance: dg.DagsterInstance, asset: dg.AssetsDefinition, **options: Any) -> Any:
    defs = dg.Definitions([asset], resources={"postgres": manager})
    with defs.get_asset_value_loader(instance=instance) as loader:
        return loader.load_asset_value("visits", **options)


def test_a_value_is_loaded_of_one_partition_of_a_range_or_of_all(
    run: Run, manager: PostgresUpsertIOManager, instance: dg.DagsterInstance
) -> None:
    asset = visits(lambda rows: rows)
    assert load(manager, instance, asset).num_rows == 0
    assert run(asset).success
    assert load(manager, instance, asset, partition_key="2026-02-27")["site"].to_pylist() == ["a", "b"]
    assert load(manager, instance, asset, python_type=pd.DataFrame, partition_key="2026-02-28")["site"].tolist() == ["a"]
    assert load(manager, instance, asset)["day"].to_pylist() == [day for day, *_ in ALL]
    assert load(manager, instance, asset, input_definition_metadata={"columns": ["site"]}).column_names == ["site"]


def test_an_asset_without_partitions_reads_all_days(run: Run) -> None:
    got: list[Any] = []
    asset = visits(lambda rows: rows)
    assert run(asset).success
    plain = reader(got, partitions_def=None, backfill_policy=None)
    assert run(asset, plain, selection=["reader"], start=None, end=None).success
    assert got[0].num_rows == 4


def test_days_with_a_gap_are_read_without_those_between(run: Run) -> None:
    got: list[Any] = []
    asset = visits(lambda rows: rows)
    assert run(asset).success
    mapping = dg.SpecificPartitionsPartitionMapping(["2026-02-27", "2026-03-01"])
    wants = dg.AssetIn("visits", partition_mapping=mapping)
    assert run(asset, reader(got, asset_in=wants), selection=["reader"]).success
    assert got[0]["day"].to_pylist() == [D1, D1, D3]


def test_a_week_reads_its_days_and_a_day_reads_its_month(run: Run, conn: psycopg.Connection) -> None:
    got: list[Any] = []
    asset = visits(lambda rows: rows)
    assert run(asset).success
    weekly = reader(got, partitions_def=dg.WeeklyPartitionsDefinition("2026-02-01", timezone=ZONE.name))
    assert run(asset, weekly, selection=["reader"], start="2026-02-22", end=None).success
    assert got.pop()["day"].to_pylist() == [D1, D1, D2]
    monthly = visits(lambda _: table(), partitions_def=dg.MonthlyPartitionsDefinition("2026-01-01", timezone=ZONE.name))
    assert run(monthly, start="2026-02-01", end="2026-03-01").success
    assert stored(conn) == wanted(ALL)
    assert run(monthly, reader(got), selection=["reader"], start="2026-02-28", end=None).success
    assert got.pop()["day"].to_pylist() == [D1, D1, D2]
