"""Contracts, quarantine and strategies through the IO manager: data, quarantine and watermark in one transaction, and metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.spec import Strategy, TableSpec
from pulso_etl.sync.tags import SPEC_KEY
from pulso_etl_tests.sync.samples import D1, D2, Loads, row, table, things, wider

NAN = float("nan")
Materialize = Callable[[TableSpec, pa.Table], dg.ExecuteInProcessResult]


@pytest.fixture
def materialize(server_url: str, schema: str) -> Materialize:
    """Materializes the partitions D1..D2 of an asset that yields the table, in one run."""
    manager = PostgresUpsertIOManager(database_url=server_url, database_schema=schema)

    def run(spec: TableSpec, source: pa.Table) -> dg.ExecuteInProcessResult:
        @dg.asset(
            name=spec.name,
            partitions_def=dg.DailyPartitionsDefinition(start_date=D1.isoformat(), timezone="America/Lima"),
            backfill_policy=dg.BackfillPolicy.single_run(),
            io_manager_key="postgres",
            metadata={SPEC_KEY: spec.as_metadata()},
        )
        def asset() -> pa.Table:
            return source

        tags = {"dagster/asset_partition_range_start": D1.isoformat(), "dagster/asset_partition_range_end": D2.isoformat()}
        return dg.materialize([asset], resources={"postgres": manager}, tags=tags, raise_on_error=False)

    return run


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """By partition."""
    return {
        str(event.partition): {key: value.value for key, value in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
    }


def state(loads: Loads) -> tuple[str, int | None]:
    found = Watermarks(loads.schema).read(loads.conn)["things"]
    return found.status, found.records


@pytest.mark.parametrize(
    ("strategy", "rows"),
    [(Strategy.UPSERT, 3), (Strategy.REPLACE_PARTITION, 3), (Strategy.APPEND, 4), (Strategy.SCD2, 5)],
)
def test_every_strategy_commits_data_and_watermark_together(
    materialize: Materialize, loads: Loads, strategy: Strategy, rows: int
) -> None:
    spec = things(strategy=strategy)
    assert materialize(spec, table([row(D1, "same"), row(D1, "moved", "1"), row(D2, "gone")])).success
    assert state(loads) == ("success", 3)
    assert materialize(spec, table([row(D1, "same"), row(D1, "moved", "2"), row(D2, "new")])).success
    assert loads.rows("SELECT count(*) FROM things") == [(rows,)]

    before = loads.addresses()
    failed = materialize(spec, table([row(D1, "same"), row(D1, "moved", "3"), row(D2, "new", rate=NAN)]))
    assert not failed.success
    assert loads.addresses() == before
    assert state(loads) == ("failed", 3)
    statuses = loads.rows("SELECT status, records_extracted FROM etl_extractions ORDER BY id")
    assert statuses == [("success", 3), ("success", 3), ("failed", None)]


def test_quarantined_rows_commit_with_the_data_and_stand_in_the_metadata(materialize: Materialize, loads: Loads) -> None:
    spec = things(on_reject="quarantine", maximum_quarantined_share=0.8)
    source = table([row(D1, "a"), row(D2, "b", rate=NAN), row(D2, "c"), row(D2, "c")])
    result = materialize(spec, source)
    assert loads.rows("SELECT name FROM things") == [("a",)]
    quarantined = loads.rows("SELECT table_name, extraction_id, partition, reason FROM etl_quarantine ORDER BY id")
    assert quarantined == [
        ("things", result.run_id, D2, "NaN or Infinity"),
        ("things", result.run_id, D2, "duplicate key"),
        ("things", result.run_id, D2, "duplicate key"),
    ]
    found = metadata(result)
    assert {day: (m["rows_read"], m["rows_quarantined"]) for day, m in found.items()} == {str(D1): (1, 0), str(D2): (3, 3)}
    reasons = {"rate: NaN or Infinity": 1, "day, name: duplicate key": 2}
    assert found[str(D2)]["quarantine_reasons"] == reasons
    assert found[str(D2)]["quarantined_share"] == 0.75
    ((stored,),) = loads.rows("SELECT metadata FROM etl_watermarks")
    assert (stored["rows_quarantined"], stored["quarantined_share"], stored["quarantine_reasons"]) == (3, 0.75, reasons)

    failed = materialize(spec, table([row(D1, "b", rate=NAN)]))
    assert not failed.success
    assert loads.rows("SELECT count(*) FROM etl_quarantine") == [(3,)]
    assert state(loads)[0] == "failed"


def test_new_columns_stand_in_the_metadata_and_are_added_with_the_data(materialize: Materialize, loads: Loads) -> None:
    spec = things(contract="evolve")
    assert materialize(spec, table([row(D1, "a")])).success
    bad = wider([row(D1, "a"), row(D1, "b", rate=NAN)], colour=["red", "red"])
    assert not materialize(spec, bad).success
    assert "colour" not in loads.columns()

    found = metadata(materialize(spec, wider([row(D1, "a")], colour=["red"], raw=[{"a": 1}])))[str(D1)]
    assert found["columns_added"] == ["colour"]
    assert found["columns_not_loaded"] == ["raw"]
    assert found["migration"] == [f'ALTER TABLE "{loads.schema}"."things" ADD COLUMN "colour" text']
    assert loads.rows("SELECT colour FROM things") == [("red",)]
    assert metadata(materialize(spec, table([row(D1, "a")])))[str(D1)]["columns_vanished"] == ["colour"]


def test_a_refused_change_of_the_table_fails_the_run_without_a_retry_and_tells_what_to_run(
    materialize: Materialize, loads: Loads
) -> None:
    assert materialize(things(), table([row(D1, "a")])).success
    loads.conn.execute("ALTER TABLE things ADD note text")
    result = materialize(things(), table([row(D1, "a")]))
    failure = next(event for event in result.all_events if event.is_step_failure).step_failure_data.user_failure_data
    assert failure is not None
    assert f'ALTER TABLE "{loads.schema}"."things" DROP COLUMN "note";' in str(failure.description)
    assert state(loads)[0] == "failed"
