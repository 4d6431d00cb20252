"""Which table may read with another one, and which plans of one launch share a read."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import SettingsError
from pulso_etl.sync.shared_reads import SharedRead, check_hosts
from pulso_etl.sync.spec import Column, ColumnType, TableSpec
from pulso_etl.tables import TABLES
from pulso_etl_tests.declarations import altered

HOST, GUEST = TABLES["dashboard_data"], TABLES["evolution_data"]
WINDOW = DayRange(date(2026, 7, 9), date(2026, 7, 15))
TEXT = Column(name="cuentas", type=ColumnType.TEXT)


@pytest.mark.parametrize(
    ("host", "guest", "fault"),
    [
        (HOST, altered(GUEST, reads_with="nowhere"), "there is no such table"),
        (HOST, altered(GUEST, reads_with="evolution_data"), "a table can't read with itself"),
        (altered(HOST, reads_with="evolution_data"), GUEST, "it reads with dashboard_data itself"),
        (HOST.with_query("SELECT 1 FROM `{other}`"), GUEST, "it reads other, and this table dashboard_cobranzas"),
        (HOST.in_zone("Asia/Tokyo"), GUEST, "its days are those of Asia/Tokyo"),
        (altered(HOST, partition_column="day"), GUEST, "its partition column is day"),
        (altered(HOST, primary_key=("fecha_foto", "archivo")), GUEST, "its primary key is fecha_foto, archivo"),
        (HOST.without(HOST.column("cuentas")), GUEST, "its query has no cuentas"),
        (HOST.without(HOST.column("cuentas")).with_columns((TEXT,)), GUEST, "its cuentas has another type"),
        (altered(HOST, reading_stamps=("fecha_procesamiento",)), GUEST, "its query has no fecha_procesamiento"),
        (altered(HOST, change_capture="changes"), GUEST, "a table with change_capture shares no read"),
    ],
)
def test_a_table_reads_only_with_one_whose_query_can_have_its_rows(host: TableSpec, guest: TableSpec, fault: str) -> None:
    with pytest.raises(SettingsError, match=f"_data: reads_with .*{fault}"):
        check_hosts({one.name: one for one in (host, guest)})
    check_hosts({one.name: one for one in (HOST, GUEST)})


def test_a_read_stands_in_the_tags_of_its_runs() -> None:
    read = SharedRead("key", HOST, WINDOW)
    assert SharedRead.of(read.tags, TABLES) == read
    assert SharedRead.of(read.tags, {GUEST.name: GUEST}) is None
    (tag,) = read.tags
    for text in ("", "key", "key/dashboard_data/2026-07-15/2026-07-09", "key/dashboard_data/today/2026-07-09"):
        assert SharedRead.of({tag: text}, TABLES) is None


def test_a_read_serves_host_and_guest_over_its_days_alone() -> None:
    read, more = SharedRead("key", HOST, WINDOW), DayRange(WINDOW.start - timedelta(days=1), WINDOW.end)
    assert [read.serves(spec, WINDOW) for spec in TABLES.values()] == [spec in (HOST, GUEST) for spec in TABLES.values()]
    assert not any(read.serves(spec, more) for spec in TABLES.values())


@pytest.mark.parametrize(
    ("spec", "others", "shares"),
    [
        (HOST, [GUEST], True),
        (GUEST, [HOST], True),
        (HOST, [], False),
        (GUEST, [], False),
        (TABLES["operation_data"], [HOST, GUEST], False),
    ],
)
def test_tables_of_one_run_over_the_same_days_share_a_read(spec: TableSpec, others: Any, shares: bool) -> None:
    assert SharedRead.of_run(spec, WINDOW, "run", others) == (SharedRead("run", HOST, WINDOW) if shares else None)
