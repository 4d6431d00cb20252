"""Tables in partitions of a month: what is made, what a load reads, what is kept."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from datetime import date, timedelta

import psycopg
import pytest
from pydantic import ValidationError

from pulso_etl.refreshing.plan import Calendar, plan_refresh
from pulso_etl.refreshing.request import Mode, RefreshRequest
from pulso_etl.sync.days import DayRange, first_kept_day
from pulso_etl.sync.errors import ContractError, DestinationUnavailable, PlanError, SchemaRefused
from pulso_etl.sync.ledger.locks import table_lock
from pulso_etl.sync.loading.load import load
from pulso_etl.sync.loading.months import expired, partitions, remove_expired
from pulso_etl.sync.loading.strategies import STRATEGIES
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import Strategy, TableSpec
from pulso_etl.sync.target import Target
from pulso_etl_tests.sync.samples import D1, D2, D3, NOON, WINDOW, Loads, by_month, monthly, request, row, table, things

SPEC = by_month()
KEPT = by_month(retention_months=2)
ROWS = [row(D1, "a"), row(D2, "a"), row(D3, "a")]
MARCH = date(2026, 3, 15)


def names(loads: Loads) -> list[str]:
    return [partition.name for partition in partitions(loads.target(SPEC))]


def test_a_load_makes_the_months_that_it_touches_and_no_default(loads: Loads) -> None:
    loads(ROWS, SPEC)
    assert names(loads) == ["things_y2026m02", "things_y2026m03"]
    assert loads.rows("SELECT relispartition, count(*) FROM pg_class WHERE relname LIKE 'things_y____m__' GROUP BY 1") == [
        (True, 2)
    ]
    loads([row(date(2025, 12, 31), "x")], SPEC, DayRange(date(2025, 12, 31), date(2025, 12, 31)))
    assert names(loads) == ["things_y2025m12", "things_y2026m02", "things_y2026m03"]
    assert loads.rows("SELECT tableoid::regclass::text, day FROM things_y2026m03") == [("things_y2026m03", D3)]


def test_rows_at_one_address_in_two_months_are_told_apart(loads: Loads) -> None:
    loads(ROWS, SPEC)
    assert loads.rows("SELECT count(DISTINCT ctid), count(*) FROM things WHERE day IN ('2026-02-27', '2026-03-01')") == [(1, 2)]
    total = loads([row(D1, "a"), row(D2, "a"), row(D3, "a", "7")], SPEC).total
    assert (total.updated, total.unchanged) == (1, 2)
    assert loads.rows("SELECT day, money::float FROM things ORDER BY 1") == [(D1, 1.5), (D2, 1.5), (D3, 7.0)]
    assert loads([row(D2, "a"), row(D3, "a", "7")], SPEC).total.deleted == 1
    assert loads.rows("SELECT day FROM things ORDER BY 1") == [(D2,), (D3,)]


@pytest.mark.parametrize("strategy", ["upsert", "replace_partition", "append", "scd2"])
def test_the_statements_of_a_load_read_the_months_of_its_window_only(loads: Loads, strategy: str) -> None:
    spec = by_month(strategy=strategy)
    loads([row(date(2026, 1, 5), "x")], spec, DayRange(date(2026, 1, 5), date(2026, 1, 5)))
    loads(ROWS, spec)
    statements, bounds = Statements(spec, loads.schema), {"start": D1, "end": D2}
    how = STRATEGIES[Strategy(strategy)]
    with loads.conn.transaction(force_rollback=True):
        loads.conn.execute(statements.create_stage(frozenset()))
        todo = [statements.rows_by_day(), statements.holds_rows(), how.create_diff(statements)]
        todo += [write.statement(statements) for write in how.writes]
        for statement in todo:
            # The tables that a statement makes are there for the ones that follow.
            plan = "\n".join(line for (line,) in loads.conn.execute("EXPLAIN " + statement.as_string(), bounds))
            assert "m01" not in plan
            assert "m03" not in plan
            if "CREATE TEMP" in statement.as_string():
                loads.conn.execute(statement, bounds)


def test_loads_that_need_the_same_new_month_make_it_once(loads: Loads, server_url: str, schema: str) -> None:
    loads(ROWS[:2], SPEC, DayRange(D1, D2))
    failures: list[BaseException] = []

    def write(day: date) -> None:
        try:
            with psycopg.connect(server_url, autocommit=True) as other, other.transaction():
                given = table([row(day, "a")])
                window = DayRange(day, day)
                asked = request(window, lambda: nullcontext(given.to_reader()), sole=False)
                load(Target(other, SPEC, schema), asked)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(D3 + timedelta(days=n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert loads.rows("SELECT count(*) FROM things_y2026m03") == [(4,)]


@pytest.mark.parametrize(("before", "after"), [(things(), SPEC), (SPEC, things())])
def test_a_table_that_is_not_partitioned_as_declared_is_refused_and_the_statements_convert_it(
    loads: Loads, before: TableSpec, after: TableSpec
) -> None:
    loads(ROWS, before)
    held = loads.rows("SELECT * FROM things ORDER BY day")
    with pytest.raises(SchemaRefused, match=r"partitions: declared .*the table has") as caught:
        loads(ROWS, after)
    assert loads.rows("SELECT * FROM things ORDER BY day") == held
    loads.conn.execute(str(caught.value).split("in this order:")[1].encode())
    assert loads.rows("SELECT * FROM things ORDER BY day") == held
    result = loads(ROWS, after)
    assert (result.plan, result.total.unchanged, result.migration) == ("merge", 3, [])


def test_retention_takes_only_months_that_are_wholly_older(loads: Loads) -> None:
    days = [date(2025, 12, 31), date(2026, 1, 1), D1, D3]
    for day in days:
        loads([row(day, "a")], SPEC, DayRange(day, day))
    assert first_kept_day(KEPT, MARCH) == date(2026, 1, 1)
    assert [p.name for p in expired(loads.target(KEPT), MARCH)] == ["things_y2025m12"]
    assert expired(loads.target(SPEC), MARCH) == []
    gone = remove_expired(loads.target(KEPT), date(2026, 4, 1), drop=False, lock_timeout_seconds=5)
    assert [p.name for p in gone] == ["things_y2025m12", "things_y2026m01"]
    assert loads.rows("SELECT day FROM things ORDER BY 1") == [(D1,), (D3,)]
    assert loads.rows("SELECT day FROM things_y2026m01") == [(date(2026, 1, 1),)]
    list(remove_expired(loads.target(KEPT), date(2026, 5, 1), drop=True, lock_timeout_seconds=5))
    assert loads.rows("SELECT to_regclass('things_y2026m02')") == [(None,)]


def test_retention_waits_for_loads_and_readers_and_gives_up_in_time(loads: Loads, server_url: str) -> None:
    loads(ROWS, SPEC)
    with psycopg.connect(server_url, options=f"-c search_path={loads.schema}") as reader:
        reader.execute("SELECT pg_advisory_xact_lock_shared(%s)", (lock_of(loads),))
        with pytest.raises(DestinationUnavailable, match="a load held the table"):
            list(remove_expired(loads.target(KEPT), date(2026, 7, 1), drop=True, lock_timeout_seconds=1))
    assert len(names(loads)) == 2


def lock_of(loads: Loads) -> int:
    return table_lock(loads.schema, "things")


def test_no_load_and_no_plan_brings_back_a_month_that_is_gone(loads: Loads) -> None:
    with pytest.raises(ContractError, match=r"keeps days from 20\d\d-\d\d-01 on \(retention_months=2\)"):
        loads([], KEPT, DayRange(date(2020, 1, 1), date(2020, 1, 2)))
    calendar = Calendar(date(2020, 1, 1), 400)
    for mode in (Mode.FULL_REFRESH, Mode.INCREMENTAL):
        plan = plan_refresh(KEPT, None, RefreshRequest(mode=mode), NOON, calendar)
        assert plan.window == DayRange(date(2026, 1, 1), date(2026, 3, 1))
    with pytest.raises(PlanError, match="retention_months=2"):
        plan_refresh(KEPT, None, RefreshRequest(start=D1 - timedelta(days=90)), NOON, calendar)


def test_a_month_whose_name_is_taken_is_refused_with_the_statement_that_brings_it_back(loads: Loads) -> None:
    loads(ROWS, SPEC)
    loads.conn.execute("ALTER TABLE things DETACH PARTITION things_y2026m03")
    with pytest.raises(SchemaRefused, match="exists but is not attached to the table") as caught:
        loads(ROWS, SPEC)
    loads.conn.execute(str(caught.value).split("attach it: ")[1].encode())
    assert loads(ROWS, SPEC).total.unchanged == 3


def test_a_declaration_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ValidationError, match="partition_by needs the partition column day in the primary key"):
        monthly(partition_by="month")
    with pytest.raises(ValidationError, match="retention_months needs partition_by"):
        things(retention_months=2)
    with pytest.raises(ValidationError, match="must cover lookback_days and reconcile_days"):
        by_month(retention_months=1)
    with pytest.raises(ValidationError, match="54 characters at most"):
        by_month(name="t" * 55)
    assert WINDOW.days == 3
