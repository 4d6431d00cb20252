"""Runs that name no days: each table's days are planned by the run itself, from its watermark."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
import psycopg
import pytest
from dagster._core.storage.tags import SCHEDULE_NAME_TAG, SENSOR_NAME_TAG
from pydantic import SecretStr
from typer.testing import CliRunner

from pulso_etl.cli.main import app
from pulso_etl.definitions import build_defs
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.refreshing.execution import failure_reason
from pulso_etl.refreshing.ranges import is_automatic, range_of, range_tags
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.undoings import Wish
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.loading.rules import Check
from pulso_etl.sync.reasons import Ground, Reason, Reasons
from pulso_etl.sync.tags import FORCE_TAG, SKIPPED_TAG
from pulso_etl.sync.target import Target
from pulso_etl.sync.undoing import undo_load
from pulso_etl_tests.clock import TABLES, TODAY
from pulso_etl_tests.conftest import seed

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL", "events": False}}}}


class Deployment:
    """The five tables on sample data; `run` launches assets without a day, as GraphQL can."""

    def __init__(self, settings: Settings, conn: psycopg.Connection, instance: dg.DagsterInstance) -> None:
        self.settings = settings
        self.conn = conn
        self.instance = instance
        self.today = TODAY

    def run(self, job: str, **tags: str) -> dg.ExecuteInProcessResult:
        found = build_defs(self.settings).resolve_job_def(job)
        return found.execute_in_process(tags=tags, instance=self.instance, run_config=QUIET)

    def tags(self, result: dg.ExecuteInProcessResult) -> dict[str, str]:
        run = self.instance.get_run_by_id(result.run_id)
        assert run is not None
        return dict(run.tags)

    def trailing(self, days: int) -> DayRange:
        return DayRange(self.today - timedelta(days=days - 1), self.today)

    def watermark(self, table: str) -> object:
        return Watermarks(self.settings.database_schema).read(self.conn)[table].last_partition


@pytest.fixture
def deployment(settings: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection, schema: str) -> Iterator[Deployment]:
    seed(settings, emulator)
    here = settings.model_copy(update={"database_schema": schema, "initial_window_days": 6})
    with dg.DagsterInstance.ephemeral() as instance:
        yield Deployment(here, conn, instance)


def loaded(result: dg.ExecuteInProcessResult) -> dict[str, list[str]]:
    """The partitions of each table that the run materialized."""
    found: dict[str, list[str]] = {}
    for event in result.get_asset_materialization_events():
        assert event.asset_key is not None
        found.setdefault(event.asset_key.to_user_string(), []).append(str(event.partition))
    return found


def days(window: DayRange) -> list[str]:
    return [str(day) for day in window]


def test_a_run_without_days_loads_those_that_a_refresh_takes_and_then_none(deployment: Deployment) -> None:
    first = deployment.run("refresh_operation_data")
    assert loaded(first) == {"operation_data": days(deployment.trailing(6))}
    assert range_of(deployment.tags(first)) == deployment.trailing(6)
    assert deployment.watermark("operation_data") == deployment.today
    checked = first.get_asset_check_evaluations()
    assert checked
    assert all(told.passed for told in checked)
    # The checks look at the days that the run has loaded, as in a run with days.
    of_rows = [told for told in checked if told.check_name != Check.UP_TO_DATE]
    assert {told.metadata["partitions"].value for told in of_rows} == {str(deployment.trailing(6))}

    again = deployment.run("refresh_operation_data")
    assert again.success
    assert loaded(again) == {}
    assert deployment.tags(again)[SKIPPED_TAG].startswith("fresh: loaded 0:00:0")

    forced = deployment.run("refresh_operation_data", **{FORCE_TAG: "true"})
    assert loaded(forced) == {"operation_data": days(deployment.trailing(TABLES["operation_data"].schedule.lookback_days))}

    kept = deployment.conn.execute("SELECT metadata FROM etl_extractions ORDER BY id").fetchall()
    told = [Reasons.of_metadata(metadata) for (metadata,) in kept]
    assert told == [
        Reasons("first load, 6 days", (Reason(deployment.trailing(6), Ground.NEVER_LOADED, "never loaded"),)),
        Reasons(
            f"lookback of 2 days from {deployment.today}",
            (Reason(deployment.trailing(2), Ground.LOOKBACK, "within the lookback of 2 days"),),
        ),
    ]
    shown = CliRunner().invoke(app, ["status", "--why"])
    assert f"operation_data: {deployment.trailing(2)}: within the lookback of 2 days\n" in shown.output
    deployment.run("refresh_operation_data", **range_tags(deployment.trailing(1)))
    by_hand = deployment.conn.execute("SELECT metadata ->> 'reason' FROM etl_extractions ORDER BY id DESC LIMIT 1").fetchall()
    assert by_hand == [("asked for by hand",)]


def test_a_run_that_a_sensor_launched_before_an_undoing_leaves_the_table_to_people(deployment: Deployment) -> None:
    """Else the run, which waited in the queue, would put the bad rows back."""
    days_of = range_tags(deployment.trailing(2))
    deployment.run("refresh_operation_data", **days_of)
    target = Target(deployment.conn, TABLES["operation_data"], deployment.settings.database_schema)
    undo_load(target, Wish())
    queued = deployment.run("refresh_operation_data", **days_of, **{SENSOR_NAME_TAG: "refresh_sensor"})
    assert (queued.success, loaded(queued)) == (True, {})
    assert "a load was undone: only people refresh the table until" in deployment.tags(queued)[SKIPPED_TAG]
    assert is_automatic({SCHEDULE_NAME_TAG: "nightly_recheck"})
    assert loaded(deployment.run("refresh_operation_data", **days_of)) == {"operation_data": days(deployment.trailing(2))}


def test_a_run_without_days_makes_up_for_an_outage(deployment: Deployment) -> None:
    deployment.run("refresh_operation_data")
    # As if nothing had run for four days.
    deployment.conn.execute("DELETE FROM etl_days WHERE day > %s", (deployment.today - timedelta(days=4),))
    deployment.conn.execute(
        "UPDATE etl_watermarks SET last_extracted_at = last_extracted_at - interval '4 days', last_partition = last_partition - 4"
    )
    assert loaded(deployment.run("refresh_operation_data")) == {"operation_data": days(deployment.trailing(4))}
    assert deployment.watermark("operation_data") == deployment.today


def test_each_table_of_a_run_without_days_takes_its_own(deployment: Deployment) -> None:
    deployment.run("refresh_dashboard", **{FORCE_TAG: "true"})
    result = deployment.run("refresh_dashboard", **{FORCE_TAG: "true"})
    wanted = {name: days(deployment.trailing(TABLES[name].schedule.lookback_days)) for name in ("dashboard_data", "evolution_data")}
    assert loaded(result) == wanted
    # They have no common range.
    assert range_of(deployment.tags(result)) is None


def test_a_run_that_can_not_plan_says_why_and_is_tried_again(deployment: Deployment) -> None:
    """PostgreSQL is away. The step fails with a clear text, and its retries follow."""
    away = deployment.settings.model_copy(update={"database_url": SecretStr("postgresql://127.0.0.1:1/none")})
    job = build_defs(away, retries=dg.RetryPolicy(max_retries=1, delay=0)).resolve_job_def("refresh_operation_data")
    result = job.execute_in_process(instance=deployment.instance, run_config=QUIET, raise_on_error=False)
    assert not result.success
    assert "operation_data" in failure_reason(result)
    assert [event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]
