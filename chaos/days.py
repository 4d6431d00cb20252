"""Lets days pass: moves the clock of the server and of this process, and changes the source meanwhile."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from random import Random

import psycopg
import pyarrow as pa
import time_machine

from pulso_etl.local.sample_data import PARTITIONED, SampleData
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.zone import Zone
from pulso_etl.tables import TABLES

DAYS = 4
"""How many days the source holds at first."""
RETAINED = 75
"""The most days that it holds: more than any refresh looks back."""
ROWS_PER_DAY = 40
MOVE_THE_CLOCK = """
SET allow_system_table_mods = on;
CREATE TABLE public.chaos_clock (shift interval NOT NULL);
INSERT INTO public.chaos_clock VALUES ('0');
ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO real_clock_timestamp;
CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
AS 'SELECT pg_catalog.real_clock_timestamp() + shift FROM public.chaos_clock';
"""


class Clock:
    """The current time of this process, and of the server in the database of `conn`. It can be moved forward."""

    def __init__(self, conn: psycopg.Connection, zone: Zone) -> None:
        """`conn` belongs to a superuser. In that database alone, it replaces a function of the server."""
        self.conn, self.zone = conn, zone
        self.shift = timedelta(0)
        self._travel: time_machine.travel | None = None
        conn.execute(MOVE_THE_CLOCK.encode())

    @property
    def now(self) -> datetime:
        return datetime.now(UTC)

    @property
    def today(self) -> date:
        return self.zone.day(self.now)

    def move(self, by: timedelta) -> None:
        self.stop()
        self.shift += by
        self.conn.execute("UPDATE public.chaos_clock SET shift = %s", (self.shift,))
        self._travel = time_machine.travel(self.shift, tick=True)
        self._travel.start()

    def stop(self) -> None:
        """This process's clock is right again."""
        if self._travel is not None:
            with suppress(RuntimeError):
                self._travel.stop()
            self._travel = None


class Source:
    """The rows of each source table by day, and their last change, which is within the lookback of every table that reads them."""

    def __init__(self, names: dict[str, str], clock: Clock) -> None:
        self.names, self.clock = names, clock
        self.first = clock.today - timedelta(days=DAYS - 1)
        self.changed: dict[str, dict[date, datetime]] = {name: {} for name in PARTITIONED}
        self._revisions: dict[tuple[str, date], int] = defaultdict(int)
        self._made: dict[tuple[date, int], dict[str, pa.Table]] = {}
        self._count = 0
        self._lookback = {
            name: min(spec.schedule.lookback_days for spec in TABLES.values() if name in spec.sources) for name in PARTITIONED
        }

    def change(self, name: str, at: datetime, back: int) -> None:
        """At that instant rows of a day are corrected, vanish, or are new: `back` days ago, or on the last day that may change."""
        day = self.clock.zone.day(at) - timedelta(days=min(back, self._lookback[name] - 1))
        if day >= self.first:
            self._count += 1
            self._revisions[name, day] = self._count
            self.changed[name][day] = at

    def pass_time(self, by: timedelta, random: Random) -> None:
        """Lets time pass. The source changes at random instants meanwhile, and at the end."""
        began = self.clock.now
        self.clock.move(by)
        for name in PARTITIONED:
            instants = sorted(random.random() for _ in range(random.randrange(1, 5)))
            for share in (*instants, 1.0):
                self.change(name, began + share * by, random.choice((0, 0, 1, 2, 6, 29)))

    def days(self, today: date) -> DayRange:
        """The days that it holds."""
        return DayRange(max(self.first, today - timedelta(days=RETAINED - 1)), today)

    def table(self, name: str, today: date) -> pa.Table:
        """The rows of the source table."""
        if name not in PARTITIONED:
            return self._day(today, 0)[name]
        return pa.concat_tables(self._day(day, self._revisions[name, day])[name] for day in self.days(today))

    def _day(self, day: date, revision: int) -> dict[str, pa.Table]:
        if (day, revision) not in self._made:
            self._made[day, revision] = SampleData(self.names, day, 1, ROWS_PER_DAY, revision=revision).tables()
        return self._made[day, revision]
