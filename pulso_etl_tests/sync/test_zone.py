"""Time zones with days of 23, 24 and 25 hours, and what follows from it: plans, freshness and the ledger."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import pulso_etl
from pulso_etl.assets import daily_partitions
from pulso_etl.refreshing.freshness import freshness
from pulso_etl.refreshing.plan import Calendar as Deployment
from pulso_etl.refreshing.plan import plan_refresh
from pulso_etl.refreshing.request import RefreshRequest
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.owed import Horizon, Reading, Watermark, owed_days
from pulso_etl.sync.partitions import partition_days
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.zone import DEFAULT_ZONE, Zone, known_zone
from pulso_etl.tables import TABLES

SANTIAGO, BOGOTA = Zone("America/Santiago"), Zone("America/Bogota")
LONG, SHORT = date(2026, 4, 4), date(2026, 9, 6)
"""In Santiago: the clocks go back from midnight to 23:00, and forward from midnight to 01:00."""
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
DAYS = [
    (SANTIAGO, LONG, datetime(2026, 4, 4, 3, tzinfo=UTC), 25),
    (SANTIAGO, LONG + timedelta(days=1), datetime(2026, 4, 5, 4, tzinfo=UTC), 24),
    (SANTIAGO, SHORT, datetime(2026, 9, 6, 4, tzinfo=UTC), 23),
    (SANTIAGO, SHORT + timedelta(days=1), datetime(2026, 9, 7, 3, tzinfo=UTC), 24),
    (BOGOTA, LONG, datetime(2026, 4, 4, 5, tzinfo=UTC), 24),
    (Zone("America/New_York"), date(2026, 3, 8), datetime(2026, 3, 8, 5, tzinfo=UTC), 23),
    (Zone("America/Havana"), date(2026, 11, 1), datetime(2026, 11, 1, 4, tzinfo=UTC), 25),
]
spec_of = TABLES["operation_data"].in_zone


@pytest.fixture(params=[LONG, SHORT], ids=["25 hours", "23 hours"])
def day(request: pytest.FixtureRequest) -> date:
    found: date = request.param
    return found


@pytest.mark.parametrize(("zone", "day", "begin", "hours"), DAYS)
def test_a_day_begins_and_ends_where_its_clocks_say(zone: Zone, day: date, begin: datetime, hours: int) -> None:
    assert zone.begin(day) == begin
    end = zone.begin(day + timedelta(days=1))
    assert end - zone.begin(day) == hours * HOUR
    assert [zone.day(at) for at in (begin - SECOND, begin, end - SECOND, end)] == [
        day - timedelta(days=1),
        *(day, day),
        day + timedelta(days=1),
    ]


@given(st.dates(date(2000, 1, 1), date(2037, 12, 31)), st.sampled_from([SANTIAGO, BOGOTA, Zone(), Zone("UTC")]))
def test_every_day_begins_with_an_instant_of_its_own(day: date, zone: Zone) -> None:
    begin = zone.begin(day)
    assert (zone.day(begin), zone.day(begin - SECOND)) == (day, day - timedelta(days=1))


def test_a_time_without_zone_has_no_day() -> None:
    with pytest.raises(PlanError, match="no zone"):
        Zone().day(datetime(2026, 1, 1))


@pytest.mark.parametrize("name", ["America/Limon", "", "/etc/localtime", "Lima'; DROP TABLE x; --"])
def test_a_zone_that_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="unknown time zone"):
        TableSpec.model_validate(TABLES["operation_data"].model_dump() | {"timezone": name})


def test_the_default_zone_stands_in_one_place_of_the_package() -> None:
    package = Path(pulso_etl.__file__).parent
    texts = [file for file in package.rglob("*") if file.suffix in (".py", ".sql", ".json") and "page" not in file.parts]
    assert len(texts) > 100
    holders = [str(file.relative_to(package)) for file in texts if DEFAULT_ZONE in file.read_text(encoding="utf-8")]
    assert holders == ["sync/zone.py"]


@pytest.mark.parametrize("zone", [SANTIAGO, BOGOTA])
def test_every_day_is_a_partition_once_and_has_its_hours(zone: Zone, day: date) -> None:
    partitions = daily_partitions(day - timedelta(days=3), zone)
    end = zone.begin(day + timedelta(days=1))
    for now, last in ((zone.begin(day), day), (end - SECOND, day), (end, day + timedelta(days=1))):
        keys = [str(one) for one in DayRange(day - timedelta(days=3), last)]
        assert partitions.get_partition_keys(now) == keys
        assert partition_days("visits", partitions, keys) == {key: DayRange.parse(key, key) for key in keys}
    window = partitions.time_window_for_partition_key(str(day))
    # In UTC: Python takes no time that clocks skip for equal to another.
    assert [at.astimezone(UTC) for at in (window.start, window.end)] == [zone.begin(day), end]


def test_a_plan_ends_with_the_day_from_its_first_instant_to_its_last(day: date) -> None:
    spec, begin, end = spec_of("America/Santiago"), SANTIAGO.begin(day), SANTIAGO.begin(day + timedelta(days=1))

    def last(now: datetime) -> date:
        window = plan_refresh(spec, None, RefreshRequest(), now, Deployment(date(2026, 1, 1), 3)).window
        assert window is not None
        return window.end

    assert [last(at) for at in (begin - SECOND, begin, end - SECOND, end)] == [
        day - timedelta(days=1),
        *(day, day),
        day + timedelta(days=1),
    ]


def test_yesterday_s_partition_will_do_for_as_long_as_the_new_day_is_young(day: date) -> None:
    spec, begin = spec_of("America/Santiago"), SANTIAGO.begin(day)
    for age, stale in ((2 * spec.schedule.refresh_every, False), (2 * spec.schedule.refresh_every + SECOND, True)):
        now = begin + age
        assert freshness(spec, Watermark(now, day - timedelta(days=1)), now).is_stale == stale
        assert not freshness(spec, Watermark(now, day), now).is_stale


def test_a_day_is_final_by_the_zone_of_its_table(day: date) -> None:
    """A day that was read in its last hour is not final. A day that was read in the first hour after its end is final."""
    horizon, next_day = Horizon(1, date(2026, 1, 1), zone=SANTIAGO), day + timedelta(days=1)
    end = SANTIAGO.begin(next_day)
    for at, owed in ((end - SECOND, True), (end, False)):
        known = {one: Reading(at, horizon.open_until(one)) for one in (day, next_day)}
        assert (day in owed_days(horizon, Watermark(at, day, known), next_day)) == owed


def load(marks: Watermarks, conn: psycopg.Connection, window: DayRange, at: datetime, zone: Zone) -> bool:
    """Records a load that read these days at that instant. Returns whether the watermark moved."""
    extraction = RunningAttempt("visits", window, f"run-{at}", 1, at)
    with conn.transaction():
        marks.start(conn, extraction)
        horizon = Horizon(1, date(2026, 1, 1), zone=zone)
        return marks.succeed(conn, extraction, Loaded(at, dict.fromkeys(window, 1), 1, 1.0, True, horizon)).moved


def test_the_ledger_tells_the_days_that_are_not_final_in_the_zone_of_the_load(
    day: date, conn: psycopg.Connection, schema: str
) -> None:
    marks, later = Watermarks(schema), day + timedelta(days=5)
    marks.create(conn)
    end = SANTIAGO.begin(day + timedelta(days=1))
    for at, told in ((end - SECOND, True), (end, False)):
        load(marks, conn, DayRange(day, day), at, SANTIAGO)
        load(marks, conn, DayRange(day + timedelta(days=1), later), SANTIAGO.begin(later), SANTIAGO)
        assert (day in marks.read(conn)["visits"].days) == told


def test_a_table_whose_zone_changes_goes_on_and_owes_what_the_new_days_ask(conn: psycopg.Connection, schema: str) -> None:
    marks, day = Watermarks(schema), date(2026, 5, 4)
    marks.create(conn)
    # In Lima it is 23:30; in Santiago the next day has begun.
    at = Zone().begin(day + timedelta(days=1)) - HOUR / 2
    assert load(marks, conn, DayRange(day, day), at, Zone())
    for zone, today in ((Zone(), day), (SANTIAGO, day + timedelta(days=1))):
        assert zone.day(at) == today
        horizon = Horizon(1, date(2026, 1, 1), zone=zone)
        owed = owed_days(horizon, marks.read(conn)["visits"].watermark, today)
        # In Santiago's days, the reading was made after the day was over.
        assert owed == ([day] if today == day else [today])
    assert load(marks, conn, DayRange(day + timedelta(days=1), day + timedelta(days=1)), at + HOUR, SANTIAGO)
    state = marks.read(conn)["visits"]
    assert (state.last_partition, state.last_extracted_at) == (day + timedelta(days=1), at + HOUR)
    # And back: the day in Lima is one day before the newest day that is loaded.
    assert load(marks, conn, DayRange(day, day + timedelta(days=1)), at + 3 * HOUR, Zone())
    assert marks.read(conn)["visits"].last_partition == day + timedelta(days=1)


@pytest.mark.parametrize("name", ["localtime", "posix/America/Lima", "right/America/Lima", "", "../etc"])
def test_a_name_that_only_this_machine_knows_is_no_zone(name: str) -> None:
    """PostgreSQL and BigQuery must know the name, too."""
    with pytest.raises(ValueError, match="unknown time zone"):
        known_zone(name)
