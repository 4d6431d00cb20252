"""The figures are what Python computes from the rows, and say where a day is not whole."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulso_etl.api.dagster_client import DagsterClient
from pulso_etl.api.database import Database
from pulso_etl.api.figures import FiguresReader, ReadDay, Seen, Sums, figure_status, hours_read, marks, same_hour, sums_query
from pulso_etl.api.models import DayCheck, DayMark, DayState, FigureDay, FigureStatus, PartitionStatus
from pulso_etl.api.status import CALENDAR_DAYS, StatusReader
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.figures import parts
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import Adds, Figure, TableSpec, Unit
from pulso_etl_tests.api.conftest import SECRETS, Operation
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.clock import TABLES
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.sync.samples import things

TODAY = date(2026, 11, 25)
YESTERDAY, BEFORE = TODAY - timedelta(days=1), TODAY - timedelta(weeks=1)
EVENTS = Figure(name="calls", title="Llamadas", unit=Unit.COUNT, adds=Adds.COUNT)
PAID = Figure(name="paid", title="Pagado", unit=Unit.MONEY, of=("money",), over_days=False)
SHARE = Figure(name="share", title="Parte", unit=Unit.PERCENT, adds=Adds.RATIO, of=("money", "hour"))
SPEC = things(
    figures=(EVENTS, PAID, SHARE, Figure(name="names", title="Nombres", unit=Unit.COUNT, adds=Adds.DISTINCT, of=("name",))),
    hour_column="hour",
    primary_key=("day", "name", "hour"),
)
DAILY = altered(SPEC, hour_column=None)
ROWS = st.lists(
    st.tuples(
        st.sampled_from([TODAY, YESTERDAY, BEFORE, date(2026, 1, 1)]),
        st.sampled_from("abcd"),
        st.integers(0, 23),
        st.none() | st.decimals(-(10**20), 10**20, places=4),
    ),
    max_size=25,
    unique_by=lambda row: row[:3],
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, hour=st.none() | st.integers(1, 23))
def test_the_sums_of_a_day_are_those_of_its_rows(
    conn: psycopg.Connection, schema: str, rows: list[tuple[Any, ...]], hour: int | None
) -> None:
    conn.execute("DROP TABLE IF EXISTS things")
    conn.execute("CREATE TABLE things (day date, name text, hour bigint, money numeric)")
    conn.cursor().executemany("INSERT INTO things VALUES (%s, %s, %s, %s)", rows)
    query, read = sums_query(SPEC, schema, hour)
    found = conn.execute(query, {"start": BEFORE, "end": TODAY}).fetchall()

    def computed(rows: list[tuple[Any, ...]]) -> list[Any]:
        money = sum((row[3] for row in rows if row[3] is not None), Decimal(0))
        return [len(rows), money, sum(row[2] for row in rows), len({row[1] for row in rows})]

    days: dict[date, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows:
        if BEFORE <= row[0] <= TODAY:
            days[row[0]].append(row)
    wanted = {day: computed(some) + computed([row for row in some if hour is None or row[2] < hour]) for day, some in days.items()}
    assert [part.adds for part in read] == [Adds.COUNT, Adds.SUM, Adds.SUM, Adds.DISTINCT]
    assert {row[0]: list(row[1:]) for row in found} == wanted


def at(day: date, hour: int, spec: TableSpec = SPEC) -> datetime:
    """The instant when the clocks of the table's zone show that hour of the day, and six minutes."""
    return datetime(day.year, day.month, day.day, hour, 6, tzinfo=spec.zone.tzinfo)


def seen(read: dict[date, datetime], counts: dict[date, tuple[int, int]], spec: TableSpec = SPEC) -> Seen:
    """Days that were read at those instants, with so many rows in all and before the compared hour."""
    calendar = [
        PartitionStatus(
            day=day, state=DayState.LOADED if day in read else DayState.MISSING, check=DayCheck.OK if day in read else None
        )
        for day in DayRange(TODAY - timedelta(days=CALENDAR_DAYS - 1), TODAY)
    ]
    sums = {day: Sums(*(dict.fromkeys(parts(spec.figures), number) for number in numbers)) for day, numbers in counts.items()}
    return Seen(calendar, {day: ReadDay(instant) for day, instant in read.items()}, sums)


NOON = {TODAY: at(TODAY, 11), YESTERDAY: at(TODAY, 11), BEFORE: at(TODAY, 11)}
COUNTS = {TODAY: (13, 12), YESTERDAY: (50, 10), BEFORE: (60, 15)}


def test_hours_that_are_over_are_compared_with_the_same_hours() -> None:
    told = figure_status(SPEC, EVENTS, seen(NOON, COUNTS), TODAY)
    assert (told.today and told.today.value, told.hour, told.value_at_hour) == (13, 11, 12)
    assert told.today is not None
    assert told.today.marks == [DayMark.GOES_ON]
    assert told.yesterday is not None
    assert (told.yesterday.value, told.yesterday.difference, told.yesterday.percent) == (10, 2, 20)
    assert told.week_before is not None
    assert (told.week_before.value, told.week_before.difference, told.week_before.percent) == (15, -3, -20)
    assert [day.value for day in told.days[-2:]] == [50, 13]
    assert len(told.days) == CALENDAR_DAYS


def test_a_day_without_hours_is_compared_with_whole_days_and_no_difference_is_made_up() -> None:
    told = figure_status(DAILY, EVENTS, seen(NOON, COUNTS, DAILY), TODAY)
    assert (told.hour, told.yesterday and told.yesterday.value, told.yesterday and told.yesterday.difference) == (None, 50, None)
    # What a snapshot says so far can be compared at any hour.
    paid = figure_status(DAILY, PAID, seen(NOON, COUNTS, DAILY), TODAY)
    assert (paid.yesterday and paid.yesterday.difference, paid.yesterday and paid.yesterday.percent) == (-37, -74)
    # When the day is over, events can be compared too.
    tomorrow = TODAY + timedelta(days=1)
    over = figure_status(DAILY, EVENTS, seen(dict.fromkeys(NOON, at(tomorrow, 3)), COUNTS, DAILY), tomorrow)
    assert (over.today and over.today.marks, over.yesterday and over.yesterday.difference) == ([], -37)


def test_a_difference_in_percent_is_in_points() -> None:
    told = figure_status(SPEC, SHARE, seen(NOON, COUNTS), TODAY)
    assert told.yesterday is not None
    assert (told.yesterday.difference, told.yesterday.percent) == (0, None)


def test_hours_that_were_not_read_of_the_other_day_make_no_difference() -> None:
    read = NOON | {YESTERDAY: at(YESTERDAY, 9), BEFORE: at(BEFORE, 15)}
    told = figure_status(SPEC, EVENTS, seen(read, COUNTS), TODAY)
    assert told.yesterday is not None
    assert told.week_before is not None
    assert (told.yesterday.difference, told.yesterday.marks) == (None, [DayMark.CUT_SHORT])
    assert (told.week_before.difference, told.week_before.marks) == (-3, [DayMark.CUT_SHORT])


def test_in_the_first_hour_nothing_is_over_that_could_be_compared() -> None:
    told = figure_status(SPEC, EVENTS, seen(NOON | {TODAY: at(TODAY, 0)}, COUNTS), TODAY)
    assert (told.hour, told.yesterday and told.yesterday.value, told.yesterday and told.yesterday.difference) == (None, 50, None)


def test_a_snapshot_that_was_not_taken_yet_is_unknown_and_events_that_did_not_happen_are_none() -> None:
    counts = {YESTERDAY: (50, 10), BEFORE: (60, 15)}
    assert (figure_status(SPEC, EVENTS, seen(NOON, counts), TODAY).today or PAID).value == 0  # type: ignore[union-attr]
    paid = figure_status(SPEC, PAID, seen(NOON, counts), TODAY)
    assert paid.today is not None
    assert (paid.today.day, paid.today.value, paid.hour, paid.days[-1].value) == (YESTERDAY, 50, None, None)


def test_before_the_first_load_and_without_the_table_nothing_is_known() -> None:
    for unknown in (Seen([], {}, {}), Seen(seen(NOON, COUNTS).calendar, {}, {})):
        told = figure_status(SPEC, PAID, unknown, TODAY)
        assert (told.today, told.yesterday, told.hour) == (None, None, None)
    gone = seen(NOON, COUNTS)
    assert figure_status(SPEC, PAID, Seen(gone.calendar, gone.read, None), TODAY).today is None
    assert {day.value for day in figure_status(SPEC, EVENTS, Seen(gone.calendar, gone.read, None), TODAY).days} == {None}


@pytest.mark.parametrize(
    ("read", "state", "check", "expected"),
    [
        (ReadDay(at(TODAY, 3)), DayState.LOADED, DayCheck.OK, []),
        (ReadDay(at(YESTERDAY, 23)), DayState.LOADED, DayCheck.UNVERIFIED, [DayMark.CUT_SHORT, DayMark.UNVERIFIED]),
        (ReadDay(at(TODAY, 3)), DayState.LOADED, DayCheck.FAILED, [DayMark.FAILED]),
        (ReadDay(at(TODAY, 3), lost=True, quarantined=True), DayState.LOADED, DayCheck.OK, [DayMark.QUARANTINED, DayMark.LOST]),
        (None, DayState.MISSING, None, [DayMark.MISSING]),
        (None, DayState.FAILED, DayCheck.FAILED, [DayMark.FAILED]),
    ],
)
def test_a_day_that_is_not_whole_says_why(
    read: ReadDay | None, state: DayState, check: DayCheck | None, expected: list[DayMark]
) -> None:
    assert marks(SPEC, PartitionStatus(day=YESTERDAY, state=state, check=check), read, TODAY) == expected


def test_hours_are_those_of_the_clocks_of_the_zone_also_where_they_change() -> None:
    spring, autumn = date(2026, 3, 29), date(2026, 10, 25)
    berlin = SPEC.in_zone("Europe/Berlin")
    # In spring no clock shows 02:xx; in autumn 02:xx comes twice.
    for day, instant, hours in [
        (spring, datetime(2026, 3, 29, 0, 59, tzinfo=UTC), 1),
        (spring, datetime(2026, 3, 29, 1, 0, tzinfo=UTC), 3),
        (autumn, datetime(2026, 10, 25, 0, 30, tzinfo=UTC), 2),
        (autumn, datetime(2026, 10, 25, 1, 30, tzinfo=UTC), 2),
        (autumn, datetime(2026, 10, 25, 2, 0, tzinfo=UTC), 3),
        (autumn, datetime(2026, 10, 25, 22, 59, tzinfo=UTC), 23),
        (autumn, datetime(2026, 10, 25, 23, 0, tzinfo=UTC), None),
    ]:
        assert hours_read(berlin, day, instant) == hours


def test_the_same_hour_is_that_of_the_clocks_also_where_they_have_changed_since() -> None:
    monday, read_at = date(2026, 3, 30), datetime(2026, 3, 30, 7, 0, tzinfo=UTC)
    assert same_hour(SPEC.in_zone("Europe/Berlin"), monday, read_at) == {
        date(2026, 3, 29): datetime(2026, 3, 29, 7, 0, tzinfo=UTC),
        date(2026, 3, 23): datetime(2026, 3, 23, 8, 0, tzinfo=UTC),
    }


def test_the_figures_of_the_five_tables_are_read_once_until_rows_change(operation: Operation) -> None:
    operation.conn.execute(
        "INSERT INTO etl_quarantine (table_name, extraction_id, partition, reason, column_name, source_row, copy) "
        "VALUES ('operation_data', 'r1', %s, 'null', 'hora', '{}', 1)",
        (operation.yesterday,),
    )

    async def read() -> list[dict[str, FigureStatus]]:
        database = Database(operation.settings)
        await database.open()
        try:
            dagster = DagsterClient(operation.settings.dagster_graphql_url, None)
            figures = FiguresReader(StatusReader(operation.settings, database, dagster, TABLES))
            found = []
            for version in (1, 1, 2):
                told = await figures.read({"operation_data": version})
                found.append({one.figure: one for one in told.figures})
                operation.conn.execute("UPDATE operation_data SET total_gestiones = 11 WHERE hora = 3")
            return found
        finally:
            await database.close()

    first, same, changed = asyncio.run(read())
    assert list(first) == ["recupero", "cobertura", "gestiones", "contactos", "pdp"]
    assert first["recupero"].today is None
    assert [(one.day, one.value, one.marks) for one in first["gestiones"].days[-2:]] == [
        (operation.yesterday, 17, [DayMark.QUARANTINED]),
        (operation.today, 0, [DayMark.GOES_ON]),
    ]
    assert same == first
    assert changed["gestiones"].days[-2].value == 18


def test_a_day_without_hours_is_compared_with_what_the_table_held_at_the_same_hour(operation: Operation) -> None:
    conn, spec, today, yesterday = operation.conn, TABLES["dashboard_data"], operation.today, operation.yesterday
    for statement in Statements(spec, operation.settings.database_schema).create_table():
        conn.execute(statement)
    conn.execute(
        "INSERT INTO dashboard_data (fecha_foto, archivo, cartera, servicio, recupero, cuentas, cuentas_gestionadas) VALUES "
        "(%s, 'a', 'c', 'FIJA', 70.10, 4, 3), (%s, 'a', 'c', 'FIJA', 500, 4, 2)",
        (today, yesterday),
    )
    now = datetime.now(UTC)
    history = Watermarks(operation.settings.database_schema)
    began = RunningAttempt(spec.name, DayRange(yesterday, today), "r2", 1, now)
    history.start(conn, began)
    history.succeed(conn, began, Loaded(now, {yesterday: 1, today: 1}, 2, 1.0, changed=True))
    then = now - timedelta(days=1)
    for hours, after in ((-3, "9.99"), (-1, "50.10"), (1, "500")):
        conn.execute(
            "WITH c AS (INSERT INTO etl_changes (table_name, extraction_id, committed_at, kept, key_columns, value_columns) "
            "VALUES ('dashboard_data', 'r', %s, 'none', '{}', '{}') RETURNING load_id) "
            "INSERT INTO etl_changed_days (load_id, day, rows_new, rows_changed, rows_gone, before, after) "
            "SELECT load_id, %s, 1, 0, 0, '{}', %s FROM c",
            (then + timedelta(hours=hours), yesterday, f'{{"sum:recupero": {after}}}'),
        )

    async def read() -> dict[str, FigureStatus]:
        database = Database(operation.settings)
        await database.open()
        try:
            dagster = DagsterClient(operation.settings.dagster_graphql_url, None)
            told = await FiguresReader(StatusReader(operation.settings, database, dagster, TABLES)).read({})
            return {one.figure: one for one in told.figures}
        finally:
            await database.close()

    found = asyncio.run(read())
    recupero, cobertura = found["recupero"].yesterday, found["cobertura"].yesterday
    assert recupero is not None
    assert (recupero.value, recupero.difference, recupero.as_of) == (Decimal("50.10"), Decimal("20.00"), then)
    assert recupero.loaded_at == then - timedelta(hours=1)
    # What the log does not know of that hour is the whole day, and nothing is known of the week before.
    assert cobertura is not None
    assert (cobertura.value, cobertura.as_of) == (50, None)
    assert found["recupero"].week_before is not None
    assert (found["recupero"].week_before.value, found["recupero"].week_before.as_of) == (None, None)


def test_figures_are_served_with_an_etag_to_everyone_with_a_token(operation: Operation) -> None:
    with ApiServer(operation.settings) as server:
        assert server.call("GET", "/api/v1/etl/figures").status_code == 401
        told = server.call("GET", "/api/v1/etl/figures", SECRETS["read"][0])
        assert told.status_code == 200
        found = {one["figure"]: one for one in told.json()["figures"]}
        assert {name: one["unit"] for name, one in found.items()} == {
            "recupero": "PEN",
            "cobertura": "percent",
            "gestiones": "count",
            "contactos": "count",
            "pdp": "count",
        }
        assert found["gestiones"]["today"] == {"day": str(operation.today), "value": "0", "marks": ["goes_on"]}
        assert found["recupero"]["today"] is None
        again = {"If-None-Match": told.headers["ETag"]}
        assert server.call("GET", "/api/v1/etl/figures", SECRETS["read"][0], headers=again).status_code == 304


def test_values_are_texts_with_all_their_digits_and_no_more() -> None:
    for number, written in (("12522521.020000000", "12522521.02"), ("100", "100"), ("0.000", "0"), ("-1E+3", "-1000")):
        told = FigureDay(day=TODAY, value=Decimal(number)).model_dump(mode="json")
        assert told["value"] == written
