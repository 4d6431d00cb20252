"""What a refresh would do now, and why: the pure decisions, and the preview of a real table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import psycopg
import pytest

from pulso_etl.automation.preview import Previews
from pulso_etl.automation.preview_shapes import Preview, TablePreview
from pulso_etl.bigquery.source import BigQuerySource, build_source
from pulso_etl.cli.plan import tell
from pulso_etl.definitions import build_defs
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import base_of
from pulso_etl.refreshing.execution import run_plan
from pulso_etl.refreshing.grounds import Known, reasons_of
from pulso_etl.refreshing.planner import Planner, watermarks_of
from pulso_etl.refreshing.request import Grants, RefreshRequest
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import PlanError, SourceUnavailable
from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.reasons import Ground
from pulso_etl_tests import clock
from pulso_etl_tests.clock import TABLES
from pulso_etl_tests.conftest import seed

DASHBOARD = TABLES["dashboard_data"]
TODAY = date(2026, 3, 20)
READ = datetime(2026, 3, 20, 15, 0, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
MIB = 2**20


def back(days: int) -> date:
    return TODAY - timedelta(days=days)


def day(ago: int, *, short: bool = False) -> tuple[date, Day]:
    return back(ago), Day(READ, back(ago) + timedelta(days=7), READ, 10, short)


def local(at: datetime) -> str:
    return f"{DASHBOARD.zone.local(at):%Y-%m-%d %H:%M}"


def known(days: Mapping[date, Day], owed: set[date], changed: Mapping[str, datetime]) -> Known:
    """The days of `owed` may change at the source for ever."""
    readings = {day: replace(one, open_until=date.max) if day in owed else one for day, one in days.items()}
    return Known(DASHBOARD, Watermark(READ, TODAY, readings), back(400), TODAY, changed)


def test_each_day_has_the_first_reason_that_applies() -> None:
    days = dict([day(0), day(1), day(2, short=True), day(8), day(9)])
    changed = {"p.d.gestiones_unificadas": READ - HOUR}
    one = known(days, {back(8), back(2)}, changed)
    told = {ago: one.ground(back(ago)) for ago in (1, 2, 3, 8, 9)}
    assert {ago: ground for ago, (ground, _) in told.items()} == {
        1: Ground.LOOKBACK,
        2: Ground.ROWS_LOST,
        3: Ground.NEVER_LOADED,
        8: Ground.OWED,
        9: Ground.ASKED,
    }
    assert told[8][1] == "owed: it could still change after its last reading, last read at " + local(READ)
    after = known(days, set(), {"p.d.old": READ - HOUR, "p.d.gestiones_unificadas": READ + HOUR})
    assert after.ground(back(1)) == (Ground.CHANGED, "gestiones_unificadas changed at " + local(READ + HOUR))
    assert after.ground(back(2))[0] is Ground.ROWS_LOST


def test_days_in_a_row_with_one_reason_are_one_range() -> None:
    days = dict([day(0), day(1), day(2), day(4)])
    found = reasons_of(known(days, set(), {}), [back(ago) for ago in (0, 1, 2, 3, 4, 6)])
    assert [(one.days.start, one.days.end, one.ground) for one in found] == [
        (back(6), back(6), Ground.NEVER_LOADED),
        (back(4), back(4), Ground.LOOKBACK),
        (back(3), back(3), Ground.NEVER_LOADED),
        (back(2), back(0), Ground.LOOKBACK),
    ]


class Silent(BigQuerySource):
    """A BigQuery that does not answer a look."""

    def look(self, *arguments: object, **options: object) -> None:  # type: ignore[override]
        raise SourceUnavailable("BigQuery did not answer")


def test_the_preview_is_what_a_refresh_then_does_and_changes_nothing(
    settings: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection
) -> None:
    seed(settings, emulator)
    planner, request = Planner.of(settings, TABLES), RefreshRequest((DASHBOARD.name,))
    previews = Previews(settings, planner, build_source(settings))

    def preview(force: bool = False) -> TablePreview:
        return previews.of(conn, RefreshRequest((DASHBOARD.name,), grants=Grants(force=force)), datetime.now(UTC)).tables[0]

    first = preview()
    assert first.days[0].ground is Ground.NEVER_LOADED
    assert conn.execute("SELECT to_regclass('etl_watermarks')").fetchone() == (None,)
    (plan,) = planner.plans(request, {}, datetime.now(UTC))
    assert plan.window is not None
    assert (first.days[0].start, first.days[-1].end, first.days_to_read) == (plan.window.start, plan.window.end, plan.window.days)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_plan(build_defs(settings), instance, DASHBOARD, plan).error is None

    before = conn.execute("SELECT * FROM etl_watermarks").fetchall()
    fresh = preview()
    assert (fresh.days, fresh.days_to_read, fresh.bytes_read) == ([], 0, None)
    assert fresh.reason.startswith("fresh: loaded")
    assert (fresh.reason.endswith("; its source has not changed"), fresh.on_change) == (True, None)
    forced = preview(force=True)
    assert {one.ground for one in forced.days} == {Ground.LOOKBACK}
    assert forced.days_to_read == DASHBOARD.schedule.lookback_days
    silent = Previews(settings, planner, Silent(project="p"))
    told = silent.of(conn, RefreshRequest((DASHBOARD.name,), grants=Grants(force=True)), datetime.now(UTC)).tables[0]
    assert (told.days_to_read, told.bytes_read, told.fault) == (forced.days_to_read, None, "BigQuery did not answer")
    assert conn.execute("SELECT * FROM etl_watermarks").fetchall() == before
    assert watermarks_of(Watermarks(settings.database_schema).read(conn)).keys() == {DASHBOARD.name}
    told = silent.of(conn, request, datetime.now(UTC)).tables[0]
    assert told.on_change is None
    assert re.search("^fresh: .*; its source was not looked at: BigQuery did not answer$", told.reason)
    with pytest.raises(PlanError, match="unknown table nothing"):
        previews.of(conn, RefreshRequest(("nothing",)), datetime.now(UTC))


def test_bytes_of_a_read_that_two_tables_share_are_counted_once(
    settings: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection
) -> None:
    seed(settings, emulator)

    def preview(*tables: str, **changed: object) -> Preview:
        here = settings.model_copy(update=changed)
        previews = Previews(here, Planner.of(here, TABLES), build_source(here))
        return previews.of(conn, RefreshRequest(tables, grants=Grants(force=True)), datetime.now(UTC))

    both = preview("evolution_data", "dashboard_data")
    guest, host = both.tables
    assert (guest.reads_with, guest.bytes_read, guest.bytes_billed, guest.cost_usd) == ("dashboard_data", 0, 0, 0)
    assert guest.reason.endswith("; shares the query of dashboard_data")
    assert guest.days_to_read > 0
    assert (host.reads_with, host.bytes_billed, both.bytes_billed) == (None, 10 * MIB, 10 * MIB)
    blind = preview("evolution_data", "dashboard_data", change_aware=False).tables[0]
    assert (blind.reads_with, blind.bytes_billed) == (None, 10 * MIB)


def test_a_table_that_is_not_due_shows_the_refresh_that_its_changed_source_will_lead_to(
    settings: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    seed(settings, emulator)
    settings = settings.model_copy(update={"initial_window_days": 2})
    planner, request = Planner.of(settings, TABLES), RefreshRequest((DASHBOARD.name,))
    (plan,) = planner.plans(request, {}, datetime.now(UTC))
    began = datetime.now(UTC)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_plan(build_defs(settings), instance, DASHBOARD, plan).error is None
    changing = datetime.now(UTC)
    base = base_of(settings.sources(), "dashboard_cobranzas")
    emulator.client().query_and_wait(f"UPDATE `{base}` SET cuentas = cuentas + 1 WHERE fecha_foto = '{clock.TODAY}'")

    previews, now = Previews(settings, planner, build_source(settings)), datetime.now(UTC)
    attempts = conn.execute("SELECT count(*) FROM etl_extractions").fetchall()
    preview = previews.of(conn, request, now)
    [found] = preview.tables
    read = found.on_change
    assert (found.days_to_read, found.bytes_billed) == (0, None), "a refresh would read nothing now"
    assert read is not None
    assert read.changed_at is not None
    assert changing - timedelta(milliseconds=1) <= read.changed_at <= now
    assert read.settles_at == read.changed_at + DASHBOARD.schedule.settling_time
    assert read.least_interval_until is not None
    assert began <= read.least_interval_until - DASHBOARD.schedule.least_interval <= changing
    assert read.at == max(read.settles_at, read.least_interval_until)
    assert read.days[-1].end == clock.TODAY
    assert read.days[-1].ground is Ground.CHANGED
    assert read.bytes_billed == 10 * MIB
    assert re.search(
        r"^fresh: .*; its source changed at .*; settles at .*; least interval until .*; refreshed from .* on; ", found.reason
    )
    assert conn.execute("SELECT count(*) FROM etl_extractions").fetchall() == attempts, "nothing is launched"

    tell(preview)
    told = capsys.readouterr().out
    assert "settles at" in told
    assert re.search(rf"dashboard_data: refresh on change: .*\.\.{clock.TODAY}: .*dashboard_cobranzas_base changed at", told)

    settled = previews.of(conn, request, now + 11 * MINUTE).tables[0].on_change
    assert settled is not None
    assert (settled.at, settled.settles_at, settled.least_interval_until) == (now + 11 * MINUTE, None, None)
    assert "refreshed at the next look of the refresh sensor" in settled.why
