"""Two tables that share a read, seen through Dagster: each is loaded by a run of its own, and one query is billed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest

from pulso_etl.definitions import build_defs
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.refreshing.execution import Outcome, run_plan
from pulso_etl.refreshing.plan import RefreshPlan, pieces
from pulso_etl.refreshing.ranges import range_tags
from pulso_etl.refreshing.request import Grants
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl_tests.clock import TABLES, TODAY
from pulso_etl_tests.conftest import seed

BOTH = ("dashboard_data", "evolution_data")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL", "events": False}}}}
LEAST = 10 * 2**20


def plan(table: str, days: int) -> RefreshPlan:
    return RefreshPlan(table, DayRange(TODAY - timedelta(days=days - 1), TODAY), "a test", Grants(compare=True))


def read(conn: psycopg.Connection) -> dict[str, list[Any]]:
    """What the ledger has of the last load of each table: bytes billed and avoided, and how the read was shared."""
    found = conn.execute(
        "SELECT DISTINCT ON (table_name) table_name, (metadata ->> 'bytes_billed')::bigint, "
        "(metadata ->> 'bytes_avoided')::bigint, metadata ->> 'shared_read' FROM etl_extractions ORDER BY table_name, id DESC"
    ).fetchall()
    return {table: told for table, *told in found}


@pytest.mark.parametrize("order", [BOTH, BOTH[::-1]], ids=["host first", "guest first"])
def test_two_runs_of_one_launch_load_the_rows_of_one_query(
    settings: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection, order: Sequence[str]
) -> None:
    seed(settings, emulator)
    defs, days = build_defs(settings), {"dashboard_data": 7, "evolution_data": 3}
    with dg.DagsterInstance.ephemeral() as instance:

        def run(plans: Sequence[RefreshPlan]) -> list[Outcome]:
            found = [run_plan(defs, instance, TABLES[one.table], one) for one in plans]
            assert [one.error for one in found] == [None] * len(found)
            return found

        first, second = run(pieces(TABLES, [plan(name, days[name]) for name in order]))
        assert (first.bytes_billed, second.bytes_billed) == (LEAST, 0)
        told = read(conn)
        assert told[order[0]][:2] == [LEAST, None]
        assert told[order[1]][:2] == [0, LEAST]
        window = plan("dashboard_data", 7).window
        assert told[order[1]][2] == f"the rows of the query of dashboard_data over {window}, which another run sent"
        # A separate read of the second table finds nothing to change.
        (alone,) = run([plan(order[1], days[order[1]])])
        assert alone.counts["read"] == second.counts["read"] > 0
        assert all(alone.counts[name] == 0 for name in ("inserted", "updated", "deleted"))
        assert read(conn)[order[1]][2] is None


def test_a_run_of_both_tables_over_the_same_days_sends_one_query(
    settings: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection
) -> None:
    seed(settings, emulator)
    job = build_defs(settings).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            asset_selection=[dg.AssetKey(name) for name in BOTH],
            tags=range_tags(DayRange(TODAY - timedelta(days=1), TODAY)),
            instance=instance,
            run_config=QUIET,
        )
    assert result.success
    assert sorted(billed for billed, *_ in read(conn).values()) == [0, LEAST]
