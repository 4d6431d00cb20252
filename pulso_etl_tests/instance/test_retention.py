"""Nothing that Dagster keeps grows without end, and what says how things stand now stays."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.storage.dagster_run import DagsterRun
from dagster._serdes import serialize_value
from pydantic import SecretStr

from pulso_etl.instance.retention import Ledger, Old, clean, old, retention_sensor
from pulso_etl.settings import Retention
from pulso_etl.sync.ledger.migrations import migrate
from pulso_etl_tests.instance.test_event_storage import opened

ASSET = dg.AssetKey("visits")
FIRST = date(2026, 1, 1)
LOOKBACK, RUNS_A_DAY, EVENTS_A_RUN = 3, 2, 20
KEPT = Retention(logs=timedelta(days=14), runs=timedelta(days=60))


@pytest.fixture
def storage(server_url: str) -> Iterator[str]:
    """The URL of a storage in a schema of its own."""
    name = f"d_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA {name}")
        try:
            yield f"{server_url}{'&' if '?' in server_url else '?'}options=-csearch_path%3D{name}"
        finally:
            conn.execute(f"DROP SCHEMA {name} CASCADE")


@pytest.fixture
def instance(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    with opened(storage, tmp_path, monkeypatch) as instance:
        yield instance


LIVE = """
WITH lived AS (
  INSERT INTO runs (run_id, pipeline_name, status, run_body, create_timestamp, update_timestamp)
  SELECT id, 'job', 'SUCCESS', replace(%(body)s, 'RUN_ID', id), at, at FROM (
    SELECT gen_random_uuid()::text AS id, day + interval '12 hours' AS at
    FROM generate_series(%(start)s::timestamp, %(end)s::timestamp, '1 day') AS day, generate_series(1, %(runs)s)
  ) AS made RETURNING run_id, create_timestamp AS at
), days AS (
  SELECT DISTINCT at FROM lived
), checked AS (
  INSERT INTO asset_check_executions
    (asset_key, check_name, run_id, execution_status, evaluation_event, evaluation_event_timestamp)
  SELECT %(asset)s, name, run_id, status, '{}', at
  FROM lived, (VALUES ('volume', 'SUCCEEDED'), ('skipped', 'PLANNED')) AS v (name, status)
)
INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, asset_key, partition)
SELECT run_id, '{}', 'STEP_OUTPUT', at, NULL, NULL FROM lived, generate_series(1, %(events)s)
UNION ALL SELECT run_id, '{}', kind, at, %(asset)s, (at::date - back)::text FROM lived, generate_series(0, %(back)s) AS back,
  unnest(ARRAY['ASSET_MATERIALIZATION_PLANNED', 'ASSET_MATERIALIZATION']) AS kind
UNION ALL SELECT '', '{}', 'ASSET_MATERIALIZATION', at, %(asset)s, at::date::text FROM days
UNION ALL SELECT '', '{}', 'ASSET_CHECK_EVALUATION', at, %(asset)s, NULL FROM days
"""


def live(conn: psycopg.Connection, instance: dg.DagsterInstance, start: date, days: int) -> None:
    """Simulates days. Each has runs over the lookback with their events, a check, and a materialization without a run."""
    given = {
        "body": serialize_value(DagsterRun("job", run_id="RUN_ID", status=dg.DagsterRunStatus.SUCCESS)),
        "start": start,
        "end": start + timedelta(days=days - 1),
        "runs": RUNS_A_DAY,
        "asset": ASSET.to_string(),
        "events": EVENTS_A_RUN,
        "back": LOOKBACK - 1,
    }
    conn.execute(LIVE, given)
    for n in range(days):
        write(instance, datetime.combine(start + timedelta(days=n), datetime.min.time(), UTC) + timedelta(hours=12))


def write(instance: dg.DagsterInstance, at: datetime) -> None:
    """Writes the logs of a day: of a sensor's tick, and of a run."""
    folder = Path(instance.storage_directory())
    for name in (f"sensor/{at:%Y%m%d}.err", f"{at:%Y%m%d}/compute_logs/step.out"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * 100)
        os.utime(path, (at.timestamp(),) * 2)


def files(instance: dg.DagsterInstance) -> int:
    return sum(len(names) for _, _, names in os.walk(instance.storage_directory()))


def rows(conn: psycopg.Connection, table: str) -> int:
    return conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # type: ignore[index]


def test_a_year_leaves_bounded_files_and_rows_and_every_partition_stays_materialized(
    storage: str, instance: dg.DagsterInstance
) -> None:
    with psycopg.connect(storage, autocommit=True) as conn:
        for part in range(6):
            start = FIRST + timedelta(days=60 * part)
            live(conn, instance, start, 60)
            now = datetime.combine(start + timedelta(days=60), datetime.min.time(), UTC)
            expected = old(instance, KEPT, now)
            assert clean(instance, KEPT, now) == expected
            assert old(instance, KEPT, now) == Old()
            days = 60 * (part + 1)
            assert rows(conn, "runs") == 60 * RUNS_A_DAY
            # Of each earlier day, one materialization stays.
            of_a_day = RUNS_A_DAY * (EVENTS_A_RUN + 2 * LOOKBACK) + 2
            assert rows(conn, "event_logs") <= 60 * of_a_day + days + LOOKBACK
            assert rows(conn, "asset_check_executions") == 60 * RUNS_A_DAY * 2
            assert files(instance) == 2 * 14
        partitions = instance.get_materialized_partitions(ASSET)
    assert {str(FIRST + timedelta(days=n)) for n in range(-LOOKBACK + 1, 360)} == partitions


def test_the_last_evaluation_of_a_check_and_the_last_materialization_stay_however_old(
    storage: str, instance: dg.DagsterInstance
) -> None:
    with psycopg.connect(storage, autocommit=True) as conn:
        live(conn, instance, FIRST, 1)
        clean(instance, KEPT, datetime(2027, 1, 1, tzinfo=UTC))
        assert (rows(conn, "runs"), files(instance)) == (0, 0)
        assert conn.execute("SELECT check_name, execution_status FROM asset_check_executions").fetchall() == [
            ("volume", "SUCCEEDED")
        ]
        left = conn.execute("SELECT dagster_event_type, partition FROM event_logs ORDER BY id").fetchall()
    days = [str(FIRST - timedelta(days=back)) for back in range(1, LOOKBACK)]
    assert sorted(left) == sorted([("ASSET_MATERIALIZATION", day) for day in (*days, str(FIRST))])


def test_nothing_is_deleted_that_runs_or_is_young(storage: str, instance: dg.DagsterInstance) -> None:
    with psycopg.connect(storage, autocommit=True) as conn:
        live(conn, instance, FIRST, 1)
        conn.execute("UPDATE runs SET status = 'STARTED'")
        before = rows(conn, "event_logs")
        clean(instance, KEPT, datetime(2026, 2, 1, tzinfo=UTC))
        assert (rows(conn, "runs"), rows(conn, "event_logs")) == (RUNS_A_DAY, before)
        clean(instance, KEPT, datetime(2027, 1, 1, tzinfo=UTC), lambda: False)
        assert rows(conn, "event_logs") == before


def test_the_sensor_cleans_each_ledger_and_names_one_that_is_away(
    instance: dg.DagsterInstance, server_url: str, schema: str, conn: psycopg.Connection
) -> None:
    migrate(conn, schema)
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    conn.execute(
        "INSERT INTO etl_refreshes (pipeline_id, fingerprint, request, runs, requested_by, requested_at) "
        "VALUES ('p', 'f', '{}', '{}', 'ana', %s)",
        (long_ago,),
    )
    conn.commit()
    ledgers = [Ledger(SecretStr(server_url), schema), Ledger(SecretStr("postgresql://user:s3cr3t@127.0.0.1:1/none"), "x", "away")]
    sensor = retention_sensor(KEPT, ledgers, dg.DefaultSensorStatus.STOPPED)
    [told] = sensor.evaluate_tick(dg.build_sensor_context(instance)).skip_message.split("\n")  # type: ignore[union-attr]
    assert "ledger: 0 attempts, 0 queries, 0 alerts, 1 refreshes; away: " in told
    assert "s3cr3t" not in told
    assert conn.execute("SELECT count(*) FROM etl_refreshes").fetchone() == (0,)
