"""The ways in that Dagster gives: GraphQL launches and back-fills on a running deployment."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from google.cloud import bigquery

from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.refreshing.ranges import range_of
from pulso_etl.sync.days import DayRange
from pulso_etl_tests.clock import TODAY
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.dagster_stack import DagsterStack

WINDOW = DayRange(TODAY - timedelta(days=2), TODAY)
PARTITIONS = [str(WINDOW.start + timedelta(days=n)) for n in range(3)]

RUNS = """
query ($tag: ExecutionTag!) {
  runsOrError(filter: {tags: [$tag]}) { ... on Runs { results { runId status tags { key value } } } }
}
"""
MATERIALIZATIONS = """
query ($asset: AssetKeyInput!) {
  assetOrError(assetKey: $asset) {
    ... on Asset {
      assetMaterializations { runId partition metadataEntries { label ... on IntMetadataEntry { intValue } } }
    }
  }
}
"""
FAILURES = """
query ($run: ID!) {
  logsForRun(runId: $run) {
    ... on EventConnection { events { ... on ExecutionStepFailureEvent { failureMetadata { description } } } }
  }
}
"""


@pytest.fixture(scope="module")
def backfill(dagster_stack: DagsterStack) -> str:
    """A back-fill of three partitions as the UI requests it. It is launched first, because Dagster looks every 30 seconds."""
    return dagster_stack.backfill("operation_data", PARTITIONS)


@pytest.fixture
def target(dagster_stack: DagsterStack, backfill: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dagster_stack.env["DATABASE_URL"], autocommit=True) as conn:
        conn.execute(f"SET search_path = {dagster_stack.schema}")
        yield conn


def materializations(stack: DagsterStack, table: str, run_id: str) -> dict[str, dict[str, int]]:
    """The integers in the metadata of each partition that the run materialized."""
    found = stack.graphql(MATERIALIZATIONS, asset={"path": [table]})["assetOrError"]["assetMaterializations"]
    ours = [entry for entry in found if entry["runId"] == run_id]
    by_partition = {
        entry["partition"]: {item["label"]: item["intValue"] for item in entry["metadataEntries"] if "intValue" in item}
        for entry in ours
    }
    assert len(by_partition) == len(ours)
    return by_partition


def history(conn: psycopg.Connection, table: str) -> list[Any]:
    query = "SELECT status, error_message, extraction_id FROM etl_extractions WHERE table_name = %s ORDER BY id"
    return conn.execute(query, (table,)).fetchall()


def test_no_dialog_of_dagster_s_own_stands_before_the_page(dagster_stack: DagsterStack) -> None:
    assert dagster_stack.graphql("{ shouldShowNux }") == {"shouldShowNux": False}


def test_a_launch_over_a_trailing_range_is_one_run_with_a_materialization_per_partition(
    dagster_stack: DagsterStack, emulator: BigQueryEmulator, target: psycopg.Connection
) -> None:
    run_id = dagster_stack.launch("dashboard_data", WINDOW)
    assert dagster_stack.wait(run_id) == "SUCCESS"
    found = materializations(dagster_stack, "dashboard_data", run_id)
    assert set(found) == set(PARTITIONS)
    assert {(counts["rows_read"], counts["rows_inserted"]) for counts in found.values()} == {(30, 30)}
    columns = "fecha_foto, archivo, cartera, servicio, cuentas, deuda_asig, recupero, pct_cober, inten, fecha_procesamiento"
    query = f"SELECT {columns} FROM `{dagster_stack.data.names['dashboard_cobranzas']}` WHERE fecha_foto BETWEEN @start AND @end"
    bounds = [bigquery.ScalarQueryParameter(name, "DATE", getattr(WINDOW, name)) for name in ("start", "end")]
    with emulator.client() as client:
        source = client.query(query, job_config=bigquery.QueryJobConfig(query_parameters=bounds)).result()
        assert {tuple(row) for row in source} == set(target.execute(f"SELECT {columns} FROM dashboard_data").fetchall())
    assert history(target, "dashboard_data") == [("success", None, run_id)]


def test_a_launch_without_days_takes_those_that_are_owed_and_a_further_one_takes_none(
    dagster_stack: DagsterStack, target: psycopg.Connection
) -> None:
    """The client computes no days. The run plans them from the watermark, and its tags name them."""

    def launched() -> tuple[str, dict[str, str]]:
        run_id = dagster_stack.launch("productivity_data", None, {"pulso_etl/pipeline": (name := uuid.uuid4().hex)})
        assert dagster_stack.wait(run_id) == "SUCCESS"
        [run] = dagster_stack.graphql(RUNS, tag={"key": "pulso_etl/pipeline", "value": name})["runsOrError"]["results"]
        return run_id, {tag["key"]: tag["value"] for tag in run["tags"]}

    with suppress(psycopg.errors.UndefinedTable):
        # Others use the deployment too.
        target.execute("DELETE FROM etl_watermarks WHERE table_name = 'productivity_data'")
        target.execute("DELETE FROM etl_days WHERE table_name = 'productivity_data'")
    first, tags = launched()
    initial = DayRange(TODAY - timedelta(days=29), TODAY)
    assert range_of(tags) == initial
    assert set(materializations(dagster_stack, "productivity_data", first)) == set(map(str, initial))
    last = target.execute("SELECT last_partition FROM etl_watermarks WHERE table_name = 'productivity_data'").fetchone()
    assert last == (TODAY,)
    again, tags = launched()
    assert (range_of(tags), materializations(dagster_stack, "productivity_data", again)) == (None, {})
    assert tags["pulso_etl/skipped"].startswith("fresh")
    assert history(target, "productivity_data")[-1] == ("success", None, first)


def test_a_launch_whose_source_is_missing_ends_in_failure_with_the_reason(
    dagster_stack: DagsterStack, emulator: BigQueryEmulator, target: psycopg.Connection
) -> None:
    with emulator.client() as client:
        client.delete_table(dagster_stack.data.names["asignaciones_clean"])
        try:
            run_id = dagster_stack.launch("assignment_data", WINDOW)
            assert dagster_stack.wait(run_id) == "FAILURE"
        finally:
            dagster_stack.data.seed_into(client)
    events = dagster_stack.graphql(FAILURES, run=run_id)["logsForRun"]["events"]
    (reason,) = [event["failureMetadata"]["description"] for event in events if event]
    assert reason.startswith(f"assignment_data {WINDOW}: BigQuery does not know the table")
    assert history(target, "assignment_data") == [("failed", reason, run_id)]
    assert materializations(dagster_stack, "assignment_data", run_id) == {}


def test_a_run_that_is_terminated_in_the_middle_of_a_load_is_canceled_and_loads_nothing(
    dagster_stack: DagsterStack, target: psycopg.Connection
) -> None:
    dagster_stack.proxy.hold_page(1)
    try:
        run_id = dagster_stack.launch("evolution_data", WINDOW)
        assert dagster_stack.proxy.held.wait(90)
        # What is held may be the back-fill's page, while this run is only about to start and can't be ended yet.
        running = (
            "SELECT extraction_id FROM etl_watermarks WHERE table_name = 'evolution_data' AND last_extraction_status = 'running'"
        )
        wait_until(lambda: target.execute(running).fetchone() == (run_id,), seconds=60)
        assert dagster_stack.terminate(run_id) == "TerminateRunSuccess"
        assert dagster_stack.wait(run_id) == "CANCELED"
    finally:
        dagster_stack.proxy.release()
    ((status, reason, extraction),) = history(target, "evolution_data")
    assert (status, extraction) == ("failed", run_id)
    assert "interrupted" in reason
    assert target.execute("SELECT to_regclass('evolution_data')").fetchone() == (None,)


def test_a_backfill_of_several_partitions_is_one_run(
    dagster_stack: DagsterStack, target: psycopg.Connection, backfill: str
) -> None:
    def runs() -> list[dict[str, Any]]:
        found = dagster_stack.graphql(RUNS, tag={"key": "dagster/backfill", "value": backfill})
        return found["runsOrError"]["results"]

    wait_until(lambda: bool(runs()), seconds=60)
    (run,) = runs()
    assert dagster_stack.wait(run["runId"]) == "SUCCESS"
    assert set(materializations(dagster_stack, "operation_data", run["runId"])) == set(PARTITIONS)
    days = "SELECT array_agg(DISTINCT fecha_foto::text ORDER BY fecha_foto::text) FROM operation_data"
    assert target.execute(days).fetchone() == (PARTITIONS,)
    assert len(runs()) == 1
