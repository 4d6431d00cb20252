"""Announcements that a source was updated, as Dagster keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from pulso_etl.automation.announcements import UPDATED_AT, announce, listen, newest_announcement
from pulso_etl.automation.memory import Memory
from pulso_etl.refreshing.keys import source_key
from pulso_etl_tests.clock import TABLES

SOURCE = "gestiones_unificadas"


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def earlier(now: datetime) -> datetime:
    return now.replace(microsecond=0) - timedelta(minutes=5)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_the_newest_event_of_the_asset_counts_whoever_records_it(
    instance: dg.DagsterInstance, now: datetime, earlier: datetime
) -> None:
    assert newest_announcement(instance, SOURCE) is None
    assert announce(instance, SOURCE, earlier, "dbt")
    found = newest_announcement(instance, SOURCE)
    assert found is not None
    assert found.updated_at == earlier
    # Twice the same is one event. A later instant is another one.
    assert not announce(instance, SOURCE, earlier, "dbt")
    assert newest_announcement(instance, SOURCE) == found
    assert announce(instance, SOURCE, earlier + timedelta(minutes=1), "dbt")
    instance.report_runless_asset_event(dg.AssetMaterialization(source_key(SOURCE)))
    last = newest_announcement(instance, SOURCE)
    assert last is not None
    assert last.event > found.event
    assert now <= last.updated_at <= datetime.now(UTC)


@pytest.mark.parametrize("told", ["tomorrow", "yesterday", None, 1_764_000_000_000, -1e18, 1e30, float("nan"), float("inf")])
def test_an_instant_that_can_not_be_is_that_of_the_event(
    instance: dg.DagsterInstance, now: datetime, told: str | float | None
) -> None:
    """Whoever reports events by Dagster's API may give milliseconds, or anything else."""
    tomorrow = dg.MetadataValue.timestamp((now + timedelta(days=1)).timestamp())
    metadata = {UPDATED_AT: tomorrow if told == "tomorrow" else told}
    instance.report_runless_asset_event(dg.AssetObservation(source_key(SOURCE), metadata=metadata))
    found = newest_announcement(instance, SOURCE)
    assert found is not None
    assert now <= found.updated_at <= datetime.now(UTC)


def test_an_announcement_concerns_its_own_tenant_and_the_tables_that_read_the_source(
    instance: dg.DagsterInstance, now: datetime, earlier: datetime
) -> None:
    announce(instance, SOURCE, earlier, "dbt", "acme")
    heard = {}
    for tenant in ("acme", "globex", ""):
        tables = {name: spec.model_copy(update={"tenant": tenant}) for name, spec in TABLES.items()}
        memory = Memory()
        listen(instance, tables, memory, now)
        heard[tenant] = {name for name, spec in tables.items() if memory.word(spec.sources) is not None}
    assert heard == {"acme": {"operation_data", "productivity_data"}, "globex": set(), "": set()}
