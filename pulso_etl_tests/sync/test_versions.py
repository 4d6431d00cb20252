"""A version column beside the partition column in the key: of several versions of a key in a day, the newest is loaded."""

from __future__ import annotations

from collections import Counter
from datetime import date
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import make_url

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import DuplicateKeyError, RejectedRows, ShrinkRefused, VerificationFailed
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.loading.result import LoadResult
from pulso_etl.sync.spec import Column, ColumnType, TableSpec
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.oldest_postgres import needs_oldest_postgres, oldest_postgres
from pulso_etl_tests.sync.samples import D1, D2, D3, Loads, row, things, wider
from pulso_etl_tests.sync.test_verify import load_and_verify, swallow

VERSIONED = things(version_column="hour")
QUARANTINING = things(version_column="hour", on_reject="quarantine", maximum_quarantined_share=1)


def version(day: date, name: str, hour: int | None, money: str = "1", **changes: Any) -> dict[str, Any]:
    return row(day, name, money, hour=hour, **changes)


def held(loads: Loads) -> list[tuple[Any, ...]]:
    return loads.rows("SELECT day, name, hour, money::int FROM things ORDER BY 1, 2")


@pytest.mark.parametrize("spec", [VERSIONED, things(primary_key=("name",), version_column="hour")])
def test_a_row_without_a_version_is_rejected(loads: Loads, plan: PlanName, spec: TableSpec) -> None:
    with pytest.raises(RejectedRows, match="column hour, partition 2026-02-27: null"):
        loads([version(D1, "a", 5), version(D1, "b", None)], spec, plan=plan)
    quarantining = altered(spec, on_reject=QUARANTINING.loading.on_reject, maximum_quarantined_share=1.0)
    loads([version(D1, "a", 5), version(D1, "a", None, "9")], quarantining)
    assert loads.rows("SELECT column_name, reason FROM etl_quarantine") == [("hour", "null")]
    for newest in (6, 7):
        loads([version(D1, "a", newest)], spec)
        assert held(loads) == [(D1, "a", newest, 1)]


def test_the_newest_version_in_a_day_is_loaded_and_counted_as_one_row(conn: psycopg.Connection, schema: str, loads: Loads) -> None:
    def load(rows: list[dict[str, Any]]) -> LoadResult:
        return load_and_verify(conn, schema, rows, VERSIONED)

    first = load([version(D1, "a", 1, "1"), version(D1, "a", 3, "3"), version(D1, "a", 2, "2"), version(D2, "a", 1, "1")])
    assert held(loads) == [(D1, "a", 3, 3), (D2, "a", 1, 1)]
    assert first.by_day[D1].as_dict() | {"rows_deleted": 0} == first.by_day[D1].as_dict()
    assert (first.by_day[D1].read, first.by_day[D1].inserted, first.by_day[D1].unchanged) == (3, 1, 2)
    again = load([version(D1, "a", 1, "1"), version(D1, "a", 3, "3"), version(D2, "a", 1, "1"), version(D2, "a", 2, "2")])
    assert (again.total.inserted, again.total.updated, again.total.deleted) == (0, 1, 0)
    assert held(loads) == [(D1, "a", 3, 3), (D2, "a", 2, 2)]


@pytest.mark.usefixtures("processes")
@needs_oldest_postgres
@pytest.mark.parametrize("by_day", [True, False])
def test_the_newest_of_versions_that_are_texts_is_that_of_bigquery_whatever_the_language_of_the_database(by_day: bool) -> None:
    key = ("day", "name") if by_day else ("name",)
    label = Column(name="label", type=ColumnType.TEXT)
    spec = things(label, primary_key=key, version_column="label")

    def labelled(*labels: str) -> pa.Table:
        return wider([row(D1, "a", str(n)) for n in range(len(labels))], label=list(labels))

    with oldest_postgres() as url:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("CREATE DATABASE english TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C.UTF-8'")
        with psycopg.connect(make_url(url).set(database="english").render_as_string(False), autocommit=True) as conn:
            conn.execute("CREATE SCHEMA plain")
            conn.execute("SET search_path = plain")
            loads = Loads(conn, "plain")
            assert loads.rows("SELECT 'a' < 'B', 'é' < 'z'") == [(True, True)]
            loads(labelled("B", "Z", "a"), spec)
            assert loads.rows("SELECT label FROM things") == [("a",)]
            loads(labelled("a", "é", "z"), spec)
            assert loads.rows("SELECT label FROM things") == [("é",)]
            loads(labelled("z"), spec)
            assert loads.rows("SELECT label FROM things") == [("z",) if by_day else ("é",)]


def test_a_newest_version_that_the_source_no_longer_has_is_gone(loads: Loads) -> None:
    loads([version(D1, "a", 1, "1"), version(D1, "a", 2, "2")], VERSIONED)
    loads([version(D1, "a", 1, "1")], VERSIONED)
    assert held(loads) == [(D1, "a", 1, 1)]


def test_two_rows_of_one_version_are_a_duplicate_key(loads: Loads) -> None:
    with pytest.raises(
        DuplicateKeyError, match=r"holds 2 rows with the primary key \(.*\) and the same hour; .*; correct the source$"
    ):
        loads([version(D1, "a", 2, "1"), version(D1, "a", 2, "2"), version(D1, "a", 1)], VERSIONED)


def test_a_row_that_did_not_arrive_is_missed(conn: psycopg.Connection, schema: str) -> None:
    load_and_verify(conn, schema, [], VERSIONED)
    swallow(conn, "things")
    with pytest.raises(VerificationFailed, match="partition 2026-02-27: 1 rows expected, 0 in PostgreSQL"):
        load_and_verify(conn, schema, [version(D1, "lost", 1), version(D1, "lost", 2)], VERSIONED)


def test_the_guard_counts_keys_not_versions(loads: Loads) -> None:
    loads([version(D1, f"n{i}", 1) for i in range(30)], VERSIONED)
    with pytest.raises(ShrinkRefused, match="partition 2026-02-27 holds 30 rows and the source has 2"):
        loads([version(D1, f"n{i}", hour) for i in range(2) for hour in range(20)], VERSIONED)


def test_a_quarantined_version_leaves_the_last_good_row_as_it_is(conn: psycopg.Connection, schema: str, loads: Loads) -> None:
    load_and_verify(conn, schema, [version(D1, "a", 1, "1"), version(D1, "a", 2, "2"), version(D1, "b", 1)], QUARANTINING)
    bad = version(D1, "a", 3, rate=float("nan"))
    load_and_verify(conn, schema, [version(D1, "a", 1, "1"), bad, version(D1, "b", 2, "2")], QUARANTINING)
    assert held(loads) == [(D1, "a", 2, 2), (D1, "b", 2, 2)]


days = st.sampled_from([D1, D2, D3])
windows = st.tuples(days, days).map(lambda pair: DayRange(min(pair), max(pair)))
versions = st.lists(
    st.builds(version, days, st.sampled_from("ab"), st.integers(1, 4), st.sampled_from("12")),
    unique_by=lambda r: (r["day"], r["name"], r["hour"]),
    max_size=10,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(windows, versions), max_size=5))
def test_any_sequence_of_loads_equals_the_newest_versions_of_the_source(
    loads: Loads, conn: psycopg.Connection, schema: str, steps: list[tuple[DayRange, list[dict[str, Any]]]]
) -> None:
    conn.execute("DROP TABLE IF EXISTS things")
    model: dict[tuple[date, str], tuple[int, Decimal]] = {}
    for window, batch in steps:
        rows = [r for r in batch if r["day"] in window]
        result = load_and_verify(conn, schema, rows, VERSIONED, window, allow_shrink=True)
        assert {day: counts.read for day, counts in result.by_day.items() if counts.read} == Counter(r["day"] for r in rows)
        model = {key: value for key, value in model.items() if key[0] not in window}
        for r in sorted(rows, key=lambda r: r["hour"]):
            model[r["day"], r["name"]] = (r["hour"], r["money"])
        assert {(day, name): rest for day, name, *rest in held(loads)} == {key: list(value) for key, value in model.items()}


def test_a_version_column_is_required_in_the_table(loads: Loads) -> None:
    loads([version(D1, "a", 1)], VERSIONED)
    nullable = "SELECT attname FROM pg_attribute WHERE attrelid = 'things'::regclass AND attnum > 0 AND NOT attnotnull"
    assert "hour" not in {name for (name,) in loads.rows(nullable)}
    assert VERSIONED.required(Column(name="hour", type=ColumnType.INTEGER))
