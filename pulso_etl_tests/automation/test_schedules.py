"""The schedules' ticks: which runs they ask for, over which days of America/Lima."""

from __future__ import annotations

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import dagster as dg
import psycopg
import pytest
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from pulso_etl.definitions import build_defs
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.owed import Horizon
from pulso_etl.sync.shared_reads import SharedRead
from pulso_etl.sync.tags import COMPARE_TAG, TABLE_TAG
from pulso_etl.tables import TABLES
from pulso_etl_tests.refreshing.test_budget import billed

LIMA = ZoneInfo("America/Lima")
pytestmark = pytest.mark.usefixtures("lima")


@pytest.fixture
def deployment(settings: Settings, schema: str) -> Settings:
    return settings.model_copy(update={"database_schema": schema, "bigquery_daily_budget_bytes": 1000})


def tick(settings: Settings, name: str, at: datetime) -> dg.ScheduleExecutionData:
    repository = build_defs(settings).get_repository_def()
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(instance, scheduled_execution_time=at, repository_def=repository)
        return repository.get_schedule_def(name).evaluate_tick(context)


@pytest.mark.parametrize(
    ("at", "last"),
    [
        (datetime(2026, 3, 1, 2, 30, tzinfo=LIMA), "2026-03-01"),
        (datetime(2028, 3, 1, 4, 59, tzinfo=UTC), "2028-02-29"),
    ],
)
def test_every_night_each_table_s_whole_window_is_asked_for(deployment: Settings, at: datetime, last: str) -> None:
    requests = tick(deployment, "nightly_recheck", at).run_requests
    assert requests is not None
    assert [next(iter(request.asset_selection or [])).to_user_string() for request in requests] == list(TABLES)
    for request, spec in zip(requests, TABLES.values(), strict=True):
        assert request.run_key == f"nightly/{last}/{spec.name}"
        start, end = (request.tags[f"dagster/asset_partition_range_{side}"] for side in ("start", "end"))
        assert end == last
        assert (datetime.fromisoformat(end) - datetime.fromisoformat(start)).days + 1 == spec.schedule.lookback_days
        names = {key.name for key in request.asset_check_keys or []}
        assert "primary_key" in names
        assert "reconciliation" not in names
    reads = {request.tags[TABLE_TAG]: SharedRead.of(request.tags, TABLES) for request in requests}
    assert reads["dashboard_data"] is not None
    assert reads["dashboard_data"] == reads["evolution_data"]
    assert [name for name, read in reads.items() if read] == ["dashboard_data", "evolution_data"]


def test_at_night_what_is_owed_is_asked_for_however_old_and_in_chunks(
    deployment: Settings, conn: psycopg.Connection, schema: str
) -> None:
    """A table was loaded at 10:00. After that nothing ran for a long time."""
    last, marks = datetime(2026, 3, 1, 10, tzinfo=LIMA), Watermarks(schema)
    days = DayRange(date(2026, 2, 28), date(2026, 3, 1))
    extraction = RunningAttempt("operation_data", days, "run", 1, last)
    with conn.transaction():
        marks.create(conn)
        marks.start(conn, extraction)
        horizon = Horizon(TABLES["operation_data"].schedule.lookback_days)
        assert marks.succeed(conn, extraction, Loaded(last, dict.fromkeys(days, 10), 20, 1.0, True, horizon)).moved

    def asked_for(at: datetime) -> list[tuple[str, str]]:
        found = [
            one for one in tick(deployment, "nightly_recheck", at).run_requests or [] if one.tags[TABLE_TAG] == "operation_data"
        ]
        assert len({one.run_key for one in found}) == len(found)
        assert {one.tags[COMPARE_TAG] for one in found} <= {"true"}
        return [(one.tags[ASSET_PARTITION_RANGE_START_TAG], one.tags[ASSET_PARTITION_RANGE_END_TAG]) for one in found]

    # Both days were read while they could still change.
    assert asked_for(datetime(2026, 3, 3, 2, 30, tzinfo=LIMA)) == [("2026-02-28", "2026-03-03")]
    assert asked_for(datetime(2026, 7, 3, 2, 30, tzinfo=LIMA)) == [("2026-04-03", "2026-07-03"), ("2026-02-28", "2026-04-02")]
    # A load was undone, and the hold goes on.
    conn.execute("UPDATE etl_watermarks SET held_until = '2026-07-03 08:00-05'")
    assert asked_for(datetime(2026, 7, 3, 2, 30, tzinfo=LIMA)) == []
    assert asked_for(datetime(2026, 7, 4, 2, 30, tzinfo=LIMA)) != []


def test_every_week_the_tables_are_compared_with_bigquery(deployment: Settings) -> None:
    requests = tick(deployment, "weekly_reconciliation", datetime(2026, 3, 1, 4, 0, tzinfo=LIMA)).run_requests or []
    assert [request.run_key for request in requests] == [f"weekly/2026-03-01/{name}" for name in TABLES]
    job = build_defs(deployment).resolve_job_def("reconcile_all")
    for request, name in zip(requests, TABLES, strict=True):
        # Otherwise the run would count as a refresh that is under way.
        assert "pulso_etl/table" not in request.tags
        chosen = job.get_subset(
            asset_selection=set(request.asset_selection or []), asset_check_selection=set(request.asset_check_keys or [])
        )
        assert [node.name for node in chosen.nodes] == [f"{name}_checks"]
        assert not chosen.asset_layer.selected_asset_keys


@pytest.mark.parametrize("name", ["nightly_recheck", "weekly_reconciliation"])
def test_a_spent_budget_stops_the_schedules(deployment: Settings, name: str, conn: psycopg.Connection, schema: str) -> None:
    billed(conn, schema, 1000)
    told = tick(deployment, name, datetime.now(UTC))
    assert not told.run_requests
    assert "budget is spent" in str(told.skip_message)
