"""The day's budget: what counts, and what it stops."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest

from pulso_etl.definitions import build_defs
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.refreshing.budget import Budget, DailyBudget
from pulso_etl.refreshing.execution import run_plan
from pulso_etl.refreshing.plan import RefreshPlan
from pulso_etl.refreshing.request import Grants
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import BudgetExceeded, Cause
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.tables import TABLES
from pulso_etl_tests.conftest import seed
from pulso_etl_tests.lima import lima_day

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


def budget_of(schema: str, **given: Any) -> DailyBudget:
    return DailyBudget(database_url="", database_schema=schema, limit=10 * GIB, **given)


def test_what_was_billed_today_counts_failed_attempts_too(conn: psycopg.Connection, schema: str) -> None:
    now = datetime.now(UTC)
    assert budget_of(schema).read(conn, now).spent == 0
    billed(conn, schema, 3 * GIB)
    billed(conn, schema, 5 * GIB, failed=True)
    budget = budget_of(schema).read(conn, now)
    assert (budget.spent, budget.share, budget.is_spent) == (8 * GIB, 0.8, False)
    assert str(budget) == "8.00 GiB (0.05 USD) of 10.00 GiB (0.06 USD) billed today"
    assert budget_of(schema).read(conn, now + timedelta(days=1)).spent == 0


def test_a_budget_without_limit_is_never_spent() -> None:
    Budget(None, 10**18, 6.25).admit()


def test_a_spent_budget_says_what_to_do() -> None:
    with pytest.raises(BudgetExceeded, match=r"1.00 GiB .* of 1.00 GiB .*--force.*BIGQUERY_DAILY_BUDGET_BYTES"):
        Budget(GIB, GIB, 6.25).admit()


def test_past_the_budget_only_a_forced_run_goes_on(
    settings: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection, schema: str
) -> None:
    seed(settings, emulator)
    limited = settings.model_copy(update={"database_schema": schema, "bigquery_daily_budget_bytes": GIB})
    billed(conn, schema, GIB)
    today = lima_day(datetime.now(UTC))
    plan = RefreshPlan("dashboard_data", DayRange(today - timedelta(days=1), today), "test")
    defs, spec = build_defs(limited), TABLES["dashboard_data"]
    with dg.DagsterInstance.ephemeral() as instance:
        refused = run_plan(defs, instance, spec, plan)
        assert refused.error is not None
        assert "budget is spent" in refused.error
        state = Watermarks(schema).read(conn, datetime.now(UTC) - timedelta(hours=1))["dashboard_data"]
        assert state.error == refused.error
        assert [attempt.run_id for attempt in state.attempts].count(str(refused.run_id)) == 1
        assert run_plan(defs, instance, spec, replace(plan, grants=Grants(force=True))).error is None
