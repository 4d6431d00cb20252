"""Tables that are not due are refreshed when their source changes or somebody says so, seen from the change to the rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import psycopg
import pytest
from psycopg import sql

from pulso_etl.api.status import EXTRACTION_COLUMNS, extraction
from pulso_etl.automation.announcements import announce
from pulso_etl.automation.preview import Previews
from pulso_etl.bigquery.source import build_source
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import base_of
from pulso_etl.refreshing.keys import source_key
from pulso_etl.refreshing.planner import Planner
from pulso_etl.refreshing.request import RefreshRequest
from pulso_etl.settings import Settings
from pulso_etl.sync.reasons import Ground
from pulso_etl.sync.tags import ANNOUNCED_TAG
from pulso_etl_tests.automation.test_sensors import Deployment, of_size, ranges
from pulso_etl_tests.bigquery.test_look import SENT
from pulso_etl_tests.clock import TABLES, TODAY
from pulso_etl_tests.conftest import seed
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.faulty_proxy import FaultyProxy, Request, edited, error

MINUTE = timedelta(minutes=1)
NAME = "operation_data"
LATER = [TODAY - timedelta(days=1), TODAY]
"""The window of operation_data."""
LARGE = 100 * 2**20
"""Bytes of a window of which it pays to ask which days have changed."""


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def loaded(
    settings: Settings, schema: str, emulator: BigQueryEmulator, bigquery_proxy: FaultyProxy, instance: dg.DagsterInstance
) -> Deployment:
    """A table that was loaded just now, and is due in two hours. A change settles in a quarter of an hour."""
    seed(settings, emulator)
    changed = {
        "database_schema": schema,
        "initial_window_days": 2,
        "change_margin_seconds": 0,
        "bigquery_emulator_host": bigquery_proxy.url,
    }
    tables = {NAME: altered(TABLES[NAME], settling_time=15 * MINUTE)}
    deployment = Deployment(settings.model_copy(update=changed), instance, tables)
    (request,), _ = deployment.tick(datetime.now(UTC))
    bigquery_proxy.inject(SENT, edited(of_size(LARGE)))
    assert deployment.run(request)
    return deployment


def bills(request: Request) -> bool:
    configuration = request.json.get("configuration", {})
    return not configuration.get("dryRun")


def test_a_changed_day_is_fresh_within_minutes(
    loaded: Deployment, conn: psycopg.Connection, emulator: BigQueryEmulator, bigquery_proxy: FaultyProxy, settings: Settings
) -> None:
    before, now = len(bigquery_proxy.seen(SENT)), datetime.now(UTC)
    assert "looked at from" in loaded.tick(now + 9 * MINUTE)[1], "the least interval has not passed"
    requests, why = loaded.tick(now + 11 * MINUTE)
    assert requests == []
    assert "its source has not changed" in why
    assert "looked at again at" in loaded.tick(now + 12 * MINUTE)[1], "looks are some minutes apart"

    changed_day = LATER[0]
    base = base_of(settings.sources(), "gestiones_unificadas")
    began = datetime.now(UTC)
    emulator.client().query_and_wait(
        f"UPDATE `{base}` SET es_compromiso = NOT es_compromiso, es_contacto_efectivo = TRUE WHERE fecha_gestion = '{changed_day}'"
    )
    ended = datetime.now(UTC)
    requests, why = loaded.tick(now + 14 * MINUTE)
    assert requests == []
    assert re.search("operation_data: .* its source changed at .* and settles", why)
    assert not [one for one in bigquery_proxy.seen(SENT)[before:] if bills(one)], "a look costs nothing"

    bigquery_proxy.inject(SENT, edited(of_size(LARGE)))
    planner = Planner.of(loaded.settings, {NAME: altered(TABLES[NAME], settling_time=15 * MINUTE)})
    previews = Previews(loaded.settings, planner, build_source(loaded.settings))
    planned = previews.of(conn, RefreshRequest((NAME,)), now + 16 * MINUTE).tables[0].on_change
    assert planned is not None
    bigquery_proxy.inject(SENT, edited(of_size(LARGE)))
    requests, why = loaded.tick(now + 16 * MINUTE)
    assert ranges(requests) == [("operation_data", str(changed_day), str(changed_day))]
    assert re.search("operation_data: its source changed at .*; 1 of 2 partitions to read, 1 verified", why)
    assert loaded.tick(now + 16 * MINUTE)[0] == [] or loaded.tick(now + 16 * MINUTE)[0][0].run_key == requests[0].run_key
    assert loaded.run(requests[0])
    promises = f"SELECT sum(total_pdp)::int, sum(total_gestiones)::int FROM operation_data WHERE fecha_foto = '{changed_day}'"
    (kept,) = conn.execute(promises.encode()).fetchall()
    source = f"SELECT countif(es_compromiso), count(*) FROM `{base}` WHERE fecha_gestion = '{changed_day}'"
    assert kept == next(iter(emulator.client().query_and_wait(source))).values()

    columns = sql.SQL("SELECT {} FROM etl_extractions ORDER BY id DESC LIMIT 1").format(EXTRACTION_COLUMNS)
    told = extraction(conn.execute(columns).fetchall()[0], "")
    assert told.reasons == planned.days, "the history tells what the plan has told"
    assert [(one.start, one.end, one.ground) for one in told.reasons] == [(changed_day, changed_day, Ground.CHANGED)]
    assert re.search(r"_gestiones_unificadas_base changed at \d{4}-\d\d-\d\d \d\d:\d\d$", told.reasons[0].why)
    assert f"operation_data: {told.reason}" in why

    history = "SELECT table_name, source_changed_at, finished_at FROM etl_extractions WHERE source_changed_at IS NOT NULL"
    ((table, changed_at, finished_at),) = conn.execute(history).fetchall()
    assert table == "operation_data"
    assert began - timedelta(milliseconds=1) <= changed_at <= ended
    assert changed_at < finished_at
    event = loaded.instance.get_latest_materialization_event(dg.AssetKey("operation_data"))
    assert event is not None
    assert event.asset_materialization is not None
    waited = event.asset_materialization.metadata["source_to_fresh_seconds"].value
    assert waited == pytest.approx((finished_at - changed_at).total_seconds(), abs=2)
    assert loaded.tick(now + 30 * MINUTE)[0] == []


def test_what_somebody_announces_is_looked_at_unless_bigquery_refuses_looks(
    loaded: Deployment, instance: dg.DagsterInstance, bigquery_proxy: FaultyProxy
) -> None:
    now = datetime.now(UTC)
    assert announce(instance, "gestiones_unificadas", now, "dbt")
    assert not announce(instance, "gestiones_unificadas", now, "dbt"), "it is recorded already"
    assert "as announced: looked at from" in loaded.tick(now + 5 * MINUTE)[1]
    # The announcement is newer than the load, but the source is in the state of the load.
    requests, why = loaded.tick(now + 11 * MINUTE)
    assert requests == []
    assert "operation_data: somebody said that its source was updated; 0 of 2 partitions to read, 2 verified" in why
    assert "somebody said" not in loaded.tick(now + 14 * MINUTE)[1]

    bigquery_proxy.inject(r"^GET \S+/tables/\w+_gestiones_unificadas_base\?", edited(lambda table: table | {"type": "EXTERNAL"}))
    assert "no signal of changes" in loaded.tick(now + 18 * MINUTE)[1]
    instance.report_runless_asset_event(dg.AssetMaterialization(source_key("gestiones_unificadas")))
    bigquery_proxy.inject(r"^GET \S+/tables/\w+_gestiones_unificadas_base\?", edited(lambda table: table | {"type": "EXTERNAL"}))
    (request,), why = loaded.tick(now + 19 * MINUTE)
    assert ranges([request]) == [("operation_data", *map(str, LATER))]
    assert "the whole window: the source gives no signal" in why
    assert request.tags[ANNOUNCED_TAG]

    # BigQuery refuses a look: the next ones wait, and the message says until when.
    bigquery_proxy.inject(r"^GET \S+/tables/", error(403, "rateLimitExceeded"))
    instance.report_runless_asset_event(dg.AssetMaterialization(source_key("gestiones_unificadas")))
    requests, why = loaded.tick(now + 20 * MINUTE)
    assert (requests, "looks wait" in why or "failing for now" in why) == ([], True)
    sent = len(bigquery_proxy.seen(SENT))
    assert "looks wait until" in loaded.tick(now + 20.5 * MINUTE)[1]
    assert len(bigquery_proxy.seen(SENT)) == sent
    assert len(loaded.tick(now + 22 * MINUTE)[0]) == 0, "the source was asked, and has not changed"
    assert len(bigquery_proxy.seen(SENT)) > sent
