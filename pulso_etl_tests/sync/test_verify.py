"""The last look before the commit, on a real PostgreSQL."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import date
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import VerificationFailed
from pulso_etl.sync.loading.load import load
from pulso_etl.sync.loading.result import LoadResult
from pulso_etl.sync.loading.verify import verify
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.target import Target
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.sync.samples import D1, D2, D3, SCHEMA, WINDOW, request, row
from pulso_etl_tests.sync.test_load import MONTHLY, SPEC

MINDED = altered(SPEC, lookback_days=2, minimum_records=10, minimum_kept_share=0.0)


def load_and_verify(
    conn: psycopg.Connection,
    schema: str,
    rows: list[dict[str, Any]],
    spec: TableSpec = SPEC,
    window: DayRange = WINDOW,
    allow_shrink: bool = False,
) -> LoadResult:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    for statement in Statements(spec, schema).create_table():
        conn.execute(statement)
    with conn.transaction():
        target = Target(conn, spec, schema)
        asked = request(window, lambda: nullcontext(table.to_reader()), allow_shrink=allow_shrink)
        result = load(target, asked)
        verify(target, asked, result)
    return result


def swallow(conn: psycopg.Connection, table: str) -> None:
    """A trigger that drops each row with the name `lost`."""
    conn.execute(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN IF NEW.name = ''lost'' THEN RETURN NULL; END IF; RETURN NEW; END'"
    )
    conn.execute(f"CREATE TRIGGER swallow BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION swallow()")


def names(conn: psycopg.Connection, table: str = "things") -> set[str]:
    return {name for (name,) in conn.execute(f"SELECT name FROM {table}")}


def many(day: date, count: int) -> list[dict[str, Any]]:
    return [row(day, f"n{n}") for n in range(count)]


def test_a_load_that_wrote_what_it_read_passes_first_and_again(conn: psycopg.Connection, schema: str) -> None:
    rows = [row(D1, "a"), row(D2, "b"), row(D2, "c")]
    assert load_and_verify(conn, schema, rows).plan == "direct"
    assert load_and_verify(conn, schema, rows[1:], window=DayRange(D2, D3)).plan == "merge"
    assert names(conn) == {"a", "b", "c"}


def test_a_row_that_did_not_arrive_rolls_the_load_back_and_names_partition_and_numbers(
    conn: psycopg.Connection, schema: str
) -> None:
    load_and_verify(conn, schema, [row(D1, "a")])
    swallow(conn, "things")
    with pytest.raises(
        VerificationFailed, match=r"things .*partition 2026-02-28: 2 rows read, 1 in PostgreSQL.*triggers"
    ) as caught:
        load_and_verify(conn, schema, [row(D1, "a"), row(D2, "b"), row(D2, "lost")])
    assert not caught.value.retryable
    assert names(conn) == {"a"}


def test_a_direct_first_load_is_looked_at_too(conn: psycopg.Connection, schema: str) -> None:
    load_and_verify(conn, schema, [])
    swallow(conn, "things")
    with pytest.raises(VerificationFailed, match=r"partition 2026-02-27: 1 rows read, 0 in PostgreSQL"):
        load_and_verify(conn, schema, [row(D1, "lost"), row(D2, "b")])
    assert names(conn) == set()


def test_the_newest_of_several_versions_is_no_lost_row(conn: psycopg.Connection, schema: str) -> None:
    load_and_verify(conn, schema, [row(D1, "a"), row(D2, "a"), row(D3, "a"), row(D1, "b")], MONTHLY)
    load_and_verify(conn, schema, [row(D1, "a"), row(D1, "b")], MONTHLY, DayRange(D1, D1))
    assert names(conn, "monthly") == {"a", "b"}


def test_days_that_held_the_minimum_must_keep_it_unless_the_launch_says_so(conn: psycopg.Connection, schema: str) -> None:
    load_and_verify(conn, schema, [*many(D1, 30), *many(D2, 8), *many(D3, 4)], MINDED)
    fewer = [*many(D1, 30), *many(D2, 6), *many(D3, 3)]
    with pytest.raises(
        VerificationFailed, match=r"2026-02-28..2026-03-01: only 9 of 12 rows would be left.*at least 10.*allow-shrink"
    ):
        load_and_verify(conn, schema, fewer, MINDED)
    assert len(conn.execute("SELECT FROM things").fetchall()) == 42
    load_and_verify(conn, schema, fewer, MINDED, allow_shrink=True)
    assert len(conn.execute("SELECT FROM things").fetchall()) == 39


@pytest.mark.parametrize("before", [[], [*many(D2, 4), *many(D3, 5)]])
def test_days_that_never_held_the_minimum_are_loaded(conn: psycopg.Connection, schema: str, before: list[dict[str, Any]]) -> None:
    load_and_verify(conn, schema, before, MINDED)
    load_and_verify(conn, schema, [*many(D2, 2), *many(D3, 1)], MINDED)
    assert len(conn.execute("SELECT FROM things").fetchall()) == 3


def test_a_window_shorter_than_the_lookback_says_nothing_of_the_minimum(conn: psycopg.Connection, schema: str) -> None:
    load_and_verify(conn, schema, many(D3, 12), MINDED)
    load_and_verify(conn, schema, many(D3, 1), MINDED, DayRange(D3, D3))
    assert names(conn) == {"n0"}
