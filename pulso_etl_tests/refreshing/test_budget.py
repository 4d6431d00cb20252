"""The day's budget: what counts, and what it stops."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.bigquery.pricing import Pricing, question_pays
from pulso_etl.bigquery.pricing import billed as billed_for
from pulso_etl.bigquery.source import build_source
from pulso_etl.checks.reconciliation import reconcile
from pulso_etl.definitions import build_defs
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.refreshing.budget import Budget, Limit, QueryBudget, Spent
from pulso_etl.refreshing.execution import run_plan
from pulso_etl.refreshing.period import Period
from pulso_etl.refreshing.plan import RefreshPlan
from pulso_etl.refreshing.request import Grants
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import BudgetExceeded, Cause
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.queries import Usage
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.target import Target
from pulso_etl_tests.clock import TABLES, TODAY
from pulso_etl_tests.conftest import seed

GIB = 1024**3


def billed(conn: psycopg.Connection, schema: str, size: int, *, failed: bool = False) -> None:
    marks = Watermarks(schema)
    extraction = RunningAttempt("dashboard_data", DayRange(date(2026, 3, 1), date(2026, 3, 2)), "run", 1, datetime.now(UTC))
    with conn.transaction():
        marks.create(conn)
        marks.start(conn, extraction)
    metadata = {"bytes_billed": size}
    with conn.transaction():
        if failed:
            marks.fail(conn, extraction, error="no", cause=Cause.INTERNAL, seconds=1.0, metadata=metadata)
        else:
            marks.succeed(conn, extraction, Loaded(datetime.now(UTC), {}, 0, 1.0, True, metadata=metadata))


def budget_of(schema: str, **given: Any) -> QueryBudget:
    return QueryBudget(database_url="", database_schema=schema, daily_bytes=10 * GIB, **given)


def test_what_was_billed_today_counts_failed_attempts_too(conn: psycopg.Connection, schema: str) -> None:
    now = datetime.now(UTC)
    assert budget_of(schema).read(conn, now).share == 0
    billed(conn, schema, 3 * GIB)
    billed(conn, schema, 5 * GIB, failed=True)
    budget = budget_of(schema).read(conn, now)
    assert (budget.share, budget.is_spent) == (0.8, False)
    assert str(budget) == "8.00 GiB (0.05 USD) of 10.00 GiB (0.06 USD) billed today"
    assert budget_of(schema).read(conn, now + timedelta(days=1)).share == 0


def test_a_budget_without_limit_is_never_spent() -> None:
    Budget().admit()


def test_a_spent_budget_says_what_to_do() -> None:
    spent = Spent(Limit("BIGQUERY_DAILY_BUDGET_BYTES", Period.DAY, size=GIB), Usage(GIB), Pricing())
    with pytest.raises(BudgetExceeded, match=r"1.00 GiB .* of 1.00 GiB .*until midnight.*--force.*BIGQUERY_DAILY_BUDGET_BYTES"):
        Budget((spent,)).admit()
    spent = Spent(Limit("BIGQUERY_MONTHLY_BUDGET_USD", Period.MONTH, dollars=2.0), Usage(0, 3_600_000), Pricing(per_slot_hour=2.5))
    with pytest.raises(BudgetExceeded, match=r"2.50 of 2.00 USD spent this month.*end of the month.*BIGQUERY_MONTHLY_BUDGET_USD"):
        Budget((spent,)).admit()


def test_a_month_costs_nothing_up_to_the_free_volume_and_slots_have_a_price_of_their_own() -> None:
    tib = 2**40
    on_demand = Pricing(per_tib=6.0, free_tib=1.0)
    assert on_demand.cost(Usage(tib // 2, 10**9)) == 3.0
    assert (on_demand.cost_of_month(Usage(tib)), on_demand.cost_of_month(Usage(3 * tib))) == (0.0, 12.0)
    slots = Pricing(per_tib=6.0, per_slot_hour=0.04)
    assert slots.cost(Usage(tib, 100 * 3_600_000)) == pytest.approx(4.0)
    assert slots.cost_of_month(Usage(tib)) == 0.0


def test_a_query_is_billed_whole_mebibytes_and_ten_for_each_table_at_least() -> None:
    assert [billed_for(size, tables) for size, tables in ((0, 3), (1, 1), (1, 3), (10**9, 3))] == [
        0,
        10 * 2**20,
        30 * 2**20,
        954 * 2**20,
    ]


LARGE = st.integers(1, GIB)


@given(st.tuples(LARGE, LARGE).map(sorted), st.integers(1, 4), st.integers(1, 4))
def test_a_question_about_partitions_pays_if_the_narrowest_read_and_the_question_bill_less_than_the_whole_window(
    read: list[int], tables: int, asked: int
) -> None:
    (narrow, whole), question = read, asked * billed_for(1, 1)
    pays = question_pays(whole, tables, asked)
    assert pays or billed_for(whole, tables) <= question + billed_for(narrow, tables), "a narrower read would have been cheaper"
    assert not pays or billed_for(whole, tables) > question + billed_for(1, tables), "no narrower read can be cheaper"


def test_a_question_about_partitions_pays_from_more_than_twenty_mebibytes_of_one_table() -> None:
    assert [
        question_pays(size * 2**20, tables, asked) for size, tables, asked in ((20, 1, 1), (21, 1, 1), (30, 2, 1), (31, 2, 1))
    ] == [
        False,
        True,
        False,
        True,
    ]
    assert not question_pays(0, 0, 1)


def test_a_month_has_a_limit_of_its_own_and_the_nearest_limit_counts(conn: psycopg.Connection, schema: str) -> None:
    now = datetime.now(UTC)
    billed(conn, schema, 3 * GIB)
    # The load was in this month. It does not count in the next month.
    budget = budget_of(schema, monthly_bytes=3 * GIB)
    assert budget.read(conn, now).is_spent
    assert str(budget.read(conn, now)).endswith("billed this month")
    next_month = (now.replace(day=28) + timedelta(days=10)).replace(day=3)
    assert budget.read(conn, next_month).share == 0
    assert str(budget_of(schema, monthly_bytes=100 * GIB).read(conn, now)).endswith("billed today")


def test_a_reconciliation_counts_in_the_budget(
    settings: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection, schema: str
) -> None:
    seed(settings, emulator)
    days = DayRange(TODAY - timedelta(days=1), TODAY)
    spec = TABLES["dashboard_data"]
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_plan(build_defs(settings), instance, spec, RefreshPlan(spec.name, days, "test")).error is None
    for window in (days, DayRange(TODAY + timedelta(days=400), TODAY + timedelta(days=400))):
        reconcile(Target(conn, spec, schema), build_source(settings), window, TODAY, "run")
    asked = conn.execute("SELECT table_name, purpose, run_id FROM etl_queries").fetchall()
    assert asked == [(spec.name, "reconciliation", "run")] * 2
    conn.execute("UPDATE etl_queries SET bytes_billed = 0, slot_millis = 0")
    before = Watermarks(schema).used(conn, datetime.now(UTC) - timedelta(hours=1))
    conn.execute("UPDATE etl_queries SET bytes_billed = 7, slot_millis = 5")
    assert Watermarks(schema).used(conn, datetime.now(UTC) - timedelta(hours=1)) == before + Usage(14, 10)


def test_past_the_budget_only_a_forced_run_goes_on(
    settings: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection, schema: str
) -> None:
    seed(settings, emulator)
    limited = settings.model_copy(update={"database_schema": schema, "bigquery_daily_budget_bytes": GIB})
    billed(conn, schema, GIB)
    plan = RefreshPlan("dashboard_data", DayRange(TODAY - timedelta(days=1), TODAY), "test")
    defs, spec = build_defs(limited), TABLES["dashboard_data"]
    with dg.DagsterInstance.ephemeral() as instance:
        refused = run_plan(defs, instance, spec, plan)
        assert refused.error is not None
        assert "budget is spent" in refused.error
        state = Watermarks(schema).read(conn, datetime.now(UTC) - timedelta(hours=1))["dashboard_data"]
        assert state.error == refused.error
        assert [attempt.run_id for attempt in state.attempts].count(str(refused.run_id)) == 1
        assert run_plan(defs, instance, spec, replace(plan, grants=Grants(force=True))).error is None
