"""A table with change capture, from the refresh sensor to PostgreSQL: what is read, what is written, and when all of it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import dagster as dg
import psycopg
import pytest

from pulso_etl.assets import build_asset, daily_partitions
from pulso_etl.automation.jobs import build_jobs
from pulso_etl.automation.sensors import Automation
from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.refreshing.budget import QueryBudget
from pulso_etl.refreshing.launch import run_tags
from pulso_etl.refreshing.request import Grants
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.ledger.watermarks import TableState, Watermarks
from pulso_etl.sync.tags import CAPTURE_TAG
from pulso_etl_tests.change_history import CALLS, ChangeHistoryProxy, Key, Source, loaded
from pulso_etl_tests.clock import TODAY, ZONE
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.faulty_proxy import error

HOUR = timedelta(hours=1)
HERE = CALLS.in_zone(ZONE.name)
QUERY = r"^POST \S+/jobs\b"


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Deployment:
    """The table `calls` in a deployment of its own. `days` are the trailing ones, today last."""

    source: Source
    history: ChangeHistoryProxy
    conn: psycopg.Connection
    instance: dg.DagsterInstance
    manager: PostgresUpsertIOManager
    budget: QueryBudget
    days: list[date]

    @property
    def bigquery(self) -> BigQuerySource:
        return BigQuerySource(
            project="mibot-222814",
            sources={"calls": self.source.name},
            emulator_host=self.history.url,
            retry_initial_seconds=0.01,
        )

    def run(self, *, capture: bool = True, success: bool = True, **options: Any) -> dict[str, Any]:
        """Materializes the trailing window. Returns the metadata, and the cause of the attempt in PostgreSQL."""
        self.source.write()
        tags = run_tags(HERE, DayRange(self.days[0], self.days[-1]), Grants(capture=capture, **options))
        result = dg.materialize(
            [build_asset(HERE, daily_partitions(self.days[0] - timedelta(days=30), ZONE), 30, dg.RetryPolicy(max_retries=0))],
            tags=tags,
            resources={"bigquery": self.bigquery, "budget": self.budget, "postgres": self.manager},
            instance=self.instance,
            raise_on_error=False,
        )
        assert result.success is success
        return self.state.metadata | {"cause": self.state.cause}

    @property
    def state(self) -> TableState:
        return Watermarks(self.manager.database_schema).read(self.conn)["calls"]

    def age(self, by: timedelta) -> None:
        """Moves every commit and every load so far into the past by that much."""
        self.source.log = [(at - by, kind, key, amount) for at, kind, key, amount in self.source.log]
        self.conn.execute("UPDATE etl_watermarks SET last_extracted_at = last_extracted_at - %s", (by,))
        self.conn.execute("UPDATE etl_days SET read_at = read_at - %s, loaded_at = loaded_at - %s", (by, by))
        self.conn.execute("UPDATE etl_extractions SET finished_at = finished_at - %s", (by,))

    def rows(self) -> list[tuple[Any, ...]]:
        return self.conn.execute("SELECT day, agent, amount FROM calls ORDER BY 1, 2").fetchall()

    def key(self, back: int, agent: str) -> Key:
        return self.days[-1 - back], agent


@pytest.fixture
def deployment(
    emulator: BigQueryEmulator, server_url: str, schema: str, conn: psycopg.Connection, now: datetime
) -> Iterator[Deployment]:
    with ChangeHistoryProxy(emulator.rest_url) as history, dg.DagsterInstance.ephemeral() as instance:
        history.set_created("calls", now - timedelta(days=30))
        yield Deployment(
            Source(emulator.client(), f"mibot-222814.CAPTURE_{uuid4().hex[:8]}.calls"),
            history,
            conn,
            instance,
            PostgresUpsertIOManager(database_url=server_url, database_schema=schema),
            QueryBudget(database_url=server_url, database_schema=schema),
            [TODAY - timedelta(days=back) for back in (2, 1, 0)],
        )


@pytest.fixture
def loaded_before(deployment: Deployment, now: datetime) -> Deployment:
    """A table that was loaded two hours ago. It holds ten rows of the day before yesterday and two rows of today."""
    rows = {deployment.key(2, f"n{number}"): number for number in range(10)} | {
        deployment.key(0, "a"): 1,
        deployment.key(0, "b"): 2,
    }
    deployment.source.commit(now - 3 * HOUR, rows)
    told = deployment.run()
    assert told["capture_reason"] == "the table is missing or not as declared"
    deployment.age(2 * HOUR)
    return deployment


def metadata(instance: dg.DagsterInstance, day: date) -> Any:
    """The metadata of the day's last materialization."""
    selection = dg.AssetRecordsFilter(dg.AssetKey("calls"), asset_partitions=[day.isoformat()])
    (record,) = instance.fetch_materializations(selection, limit=1).records
    assert record.asset_materialization is not None
    return record.asset_materialization.metadata


def addresses(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    return conn.execute("SELECT day, agent, xmin::text, ctid::text FROM calls ORDER BY 1, 2").fetchall()


def test_a_refresh_reads_and_writes_what_changed_and_the_next_goes_on_from_there(
    loaded_before: Deployment, conn: psycopg.Connection, now: datetime
) -> None:
    deployment, source = loaded_before, loaded_before.source
    before = dict((row[:2], row[2:]) for row in addresses(conn))
    source.commit(now - HOUR, {deployment.key(0, "a"): 5, deployment.key(1, "c"): 6}, [deployment.key(2, "n3")])
    source.commit(now - timedelta(minutes=5), {deployment.key(0, "late"): 7})
    told = deployment.run()
    assert (told["capture"], told["load_plan"]) == ("changes", "changes")
    assert "capture_reason" not in told
    counts = ("rows_read", "rows_inserted", "rows_updated", "rows_unchanged", "rows_deleted")
    assert tuple(told[name] for name in counts) == (2, 1, 1, 0, 1)
    start, end = (datetime.fromisoformat(bound) for bound in told["capture_interval"].split(".."))
    as_of = deployment.state.last_extracted_at
    assert as_of is not None
    assert abs(as_of - (now - timedelta(minutes=10))) < timedelta(minutes=1)
    assert (end, deployment.state.last_partition) == (as_of.replace(microsecond=0), deployment.days[-1])
    assert now - 3 * HOUR < start < now - 2 * HOUR
    assert deployment.rows() == loaded(source.as_of(as_of))
    kept = {key: address for row in addresses(conn) if (key := row[:2]) in before and (address := row[2:]) == before[key]}
    assert len(kept) == len(before) - 2
    by_day = [tuple(metadata(deployment.instance, day)[name].value for name in counts) for day in deployment.days]
    assert by_day == [(0, 0, 0, 0, 1), (1, 1, 0, 0, 0), (1, 0, 1, 0, 0)]

    deployment.age(timedelta(minutes=20))
    assert deployment.run()["capture"] == "changes"
    assert deployment.rows() == loaded(source.rows)
    assert deployment.run(capture=False)["rows_unchanged"] == len(source.rows)


def test_what_nobody_lets_be_captured_is_read_as_a_whole(loaded_before: Deployment, now: datetime) -> None:
    deployment = loaded_before
    deployment.source.commit(now - HOUR, {deployment.key(0, "a"): 5})
    told = deployment.run(capture=False)
    assert (told["capture"], told["capture_reason"], told["load_plan"]) == ("whole window", "the run asks for it", "merge")
    assert deployment.history.captures == []
    as_of = deployment.state.last_extracted_at
    assert as_of is not None
    assert as_of > now


def test_a_load_of_days_of_the_window_minutes_ago_makes_the_next_one_whole(loaded_before: Deployment, now: datetime) -> None:
    deployment = loaded_before
    # It moved no watermark. A load of one day is an example.
    deployment.conn.execute(
        "INSERT INTO etl_extractions (table_name, extraction_id, attempt, partition_start, partition_end, status, started_at) "
        "VALUES ('calls', 'other', 1, %s, %s, 'success', now())",
        (deployment.days[1], deployment.days[1]),
    )
    assert deployment.run()["capture_reason"] == "it was loaded less than 0:10:00 ago"
    assert deployment.rows() == loaded(deployment.source.rows)


def test_a_new_day_begins_with_the_whole_window(loaded_before: Deployment, now: datetime) -> None:
    deployment = loaded_before
    deployment.conn.execute("UPDATE etl_watermarks SET last_partition = last_partition - 1")
    for days in (-10, 9):
        deployment.conn.execute("UPDATE etl_days SET day = day + %s, open_until = open_until + %s", (days, days))
    assert "not " + str(deployment.days[-1]) in deployment.run()["capture_reason"]
    assert deployment.state.last_partition == deployment.days[-1]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("ALTER TABLE calls DROP COLUMN amount", "not as declared"), ("DELETE FROM calls", "PostgreSQL holds no row")],
)
def test_a_table_that_was_changed_by_others_is_made_whole_again(loaded_before: Deployment, damage: str, reason: str) -> None:
    deployment = loaded_before
    deployment.conn.execute(damage.encode())
    assert reason in deployment.run()["capture_reason"]
    assert deployment.rows() == loaded(deployment.source.rows)


def test_what_bigquery_refuses_is_read_as_a_whole_and_both_are_logged(
    loaded_before: Deployment, now: datetime, capfd: pytest.CaptureFixture[str]
) -> None:
    deployment = loaded_before
    deployment.source.commit(now - HOUR, {deployment.key(0, "a"): 5})
    deployment.source.write()
    text = "Invalid time travel timestamp 1784127000000 for table calls. Cannot read before 1784130000000"
    deployment.history.inject(QUERY, error(400, "invalidQuery", text))
    told = deployment.run()
    assert text in told["capture_reason"]
    assert deployment.rows() == loaded(deployment.source.rows)
    assert "read all rows, not only the changed ones" in capfd.readouterr().err


def test_a_row_that_can_not_be_loaded_is_left_to_the_whole_window(loaded_before: Deployment, now: datetime) -> None:
    deployment, bad = loaded_before, loaded_before.key(0, "bad")
    deployment.source.commit(now - HOUR, {bad: 1001})
    deployment.source.commit(now - HOUR / 2, {}, [bad])
    # The deletion comes with the old values. The source no longer has the row, and the load succeeds.
    assert "beyond the limit 1000" in deployment.run()["capture_reason"]
    assert deployment.rows() == loaded(deployment.source.rows)
    deployment.age(HOUR)
    deployment.source.commit(now - HOUR / 4, {bad: 1001})
    assert deployment.run(success=False)["cause"] == Cause.REJECTED_ROWS


def test_deletions_beyond_the_guard_are_refused_as_ever_unless_allowed(loaded_before: Deployment, now: datetime) -> None:
    deployment = loaded_before
    deployment.source.commit(now - HOUR, {}, [deployment.key(2, f"n{number}") for number in range(8)])
    before = addresses(deployment.conn)
    told = deployment.run(success=False)
    assert told["cause"] == Cause.SHRINK
    assert "refused to delete" in told["capture_reason"]
    assert addresses(deployment.conn) == before
    deployment.conn.execute("DELETE FROM etl_extractions WHERE status = 'failed'")
    assert deployment.run(allow_shrink=True)["rows_deleted"] == 8
    assert deployment.state.metadata["capture"] == "changes"
    assert deployment.rows() == loaded(deployment.source.rows)


def test_a_fault_that_passes_fails_the_attempt_and_a_spent_budget_asks_for_nothing(loaded_before: Deployment) -> None:
    deployment = loaded_before
    deployment.history.inject(QUERY, error(503, "outOfOrder"))
    told = deployment.run(success=False)
    assert told["cause"] == Cause.SOURCE_UNAVAILABLE
    asked = len(deployment.history.captures)
    deployment.conn.execute("UPDATE etl_extractions SET metadata = metadata || '{\"bytes_billed\": 7}'")
    url, schema = deployment.budget.database_url, deployment.budget.database_schema
    deployment.budget = QueryBudget(database_url=url, database_schema=schema, daily_bytes=1)
    assert deployment.run(success=False)["cause"] == Cause.BUDGET
    assert len(deployment.history.captures) == asked == 1


def test_the_sensor_asks_for_the_whole_trailing_window_at_once_and_trusts_changes_until_a_run_fails(
    loaded_before: Deployment, settings: Settings, now: datetime
) -> None:
    deployment = loaded_before
    tables = {"calls": altered(HERE, refresh_every=HOUR)}
    here = settings.model_copy(update={"database_schema": deployment.manager.database_schema, "partitions_start": date(2024, 1, 1)})

    def asked(settings: Settings) -> tuple[list[dg.RunRequest], str]:
        automation = Automation(settings, tables, build_jobs(tables))
        ticked = automation.tick(deployment.instance, deployment.bigquery, datetime.now(UTC))
        return ticked.requests, "; ".join(ticked.reasons)

    (request,), why = asked(here)
    assert "only the changes, if the source reports them" in why
    assert request.tags[CAPTURE_TAG] == "true"
    assert request.tags["dagster/asset_partition_range_start"] == str(deployment.days[0])
    assert request.tags["dagster/asset_partition_range_end"] == str(deployment.days[-1])
    (whole,), _ = asked(here.model_copy(update={"change_aware": False}))
    assert CAPTURE_TAG not in whole.tags
    deployment.history.inject(QUERY, error(503, "outOfOrder"))
    deployment.run(success=False)
    (retry,), why = asked(here.model_copy(update={"retry_wait_seconds": 0}))
    assert "retry after 1 failed run" in why
    assert CAPTURE_TAG not in retry.tags
