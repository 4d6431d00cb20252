"""The key figures of the tables, from PostgreSQL: of the newest day, beside earlier days, and where a day is not whole."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pulso_etl.api.models import Comparison, DayCheck, DayMark, DayState, FigureDay, Figures, FigureStatus, PartitionStatus
from pulso_etl.api.status import CALENDAR_DAYS, StatusReader
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.figures import EXACT, RATIO_DIGITS, Number, Part, decimal_of, parts, value
from pulso_etl.sync.ledger.changes import Changes, sums_of, with_decimals
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import Figure, TableSpec, Unit

YESTERDAY, WEEK = timedelta(days=1), timedelta(weeks=1)
DAYS = """
SELECT d.day, d.read_at, coalesce(d.found < d.rows, false), EXISTS (
    SELECT FROM {quarantine} q WHERE q.table_name = d.table_name AND q.partition = d.day AND q.extraction_id = d.extraction_id
) FROM {days} d WHERE d.table_name = %(table)s AND d.day BETWEEN %(last)s::date - %(back)s AND %(last)s
"""
HELD = """
SELECT a.day, a.at, e.committed_at, e.after FROM unnest(%(days)s::date[], %(at)s::timestamptz[]) AS a (day, at)
CROSS JOIN LATERAL (
    SELECT c.committed_at, d.after::text AS after FROM {loads} c JOIN {changed} d USING (load_id)
    WHERE c.table_name = %(table)s AND d.day = a.day AND c.committed_at <= a.at ORDER BY c.load_id DESC LIMIT 1
) e
"""
"""What the table held of each day at an instant, by the last load before it that changed the day."""
LAST_DAY = "SELECT max(day) FROM {days} WHERE table_name = %s AND day <= %s"


@dataclass(frozen=True)
class ReadDay:
    """A loaded day: when it was last read (with zone), whether loaded rows are gone, and whether rows of it are in quarantine."""

    read_at: datetime
    lost: bool = False
    quarantined: bool = False


@dataclass(frozen=True)
class Sums:
    """The parts of a day's figures: of all its rows, and of those before the hour that is compared."""

    whole: Mapping[Part, Number]
    at_hour: Mapping[Part, Number]


@dataclass(frozen=True)
class HeldThen:
    """What a table held of a day at the instant `at`, by the parts' names, since the load that was committed at `loaded_at`. Both
    have a zone."""

    at: datetime
    loaded_at: datetime
    sums: Mapping[str, Decimal]


@dataclass(frozen=True)
class Seen:
    """What is known of a table: its days as the calendar tells them, oldest first, the loaded ones of them, and their sums.

    `sums` has no entry for a day without rows. It is None if the table can't be read. `then`: what the table held of earlier days
    at the hour at which the newest day was read, as far as that is known.
    """

    calendar: Sequence[PartitionStatus]
    read: Mapping[date, ReadDay]
    sums: Mapping[date, Sums] | None
    then: Mapping[date, HeldThen] = field(default_factory=dict)


def hours_read(spec: TableSpec, day: date, read_at: datetime) -> int | None:
    """How many hours of the day were over when it was read, by the clocks of the table's zone. None: the whole day."""
    local = spec.zone.local(read_at)
    return None if local.date() > day else local.hour if local.date() == day else 0


def compared_hour(spec: TableSpec, day: date, read_at: datetime) -> int | None:
    """The hour before which the day's hours are compared with those of other days. None: whole days are compared."""
    return (hours_read(spec, day, read_at) or None) if spec.hour_column else None


def same_hour(spec: TableSpec, day: date, read_at: datetime) -> dict[date, datetime]:
    """The day before and the same weekday of the week before, each with the instant at which the clocks of the table's zone showed
    what they showed at the reading."""
    clock = spec.zone.local(read_at).time()
    earlier = (day - YESTERDAY, day - WEEK)
    return {one: datetime.combine(one, clock, spec.zone.tzinfo).astimezone(UTC) for one in earlier}


def marks(spec: TableSpec, day: PartitionStatus, read: ReadDay | None, today: date) -> list[DayMark]:
    """Why the day's figures are not the last word."""
    if read is None:
        return [DayMark.FAILED if day.state is DayState.FAILED else DayMark.MISSING]
    unfinished = hours_read(spec, day.day, read.read_at) is not None
    found = {
        DayMark.GOES_ON: unfinished and day.day >= today,
        DayMark.CUT_SHORT: unfinished and day.day < today,
        DayMark.FAILED: day.check is DayCheck.FAILED,
        DayMark.UNVERIFIED: day.check is DayCheck.UNVERIFIED,
        DayMark.QUARANTINED: read.quarantined,
        DayMark.LOST: read.lost,
    }
    return [mark for mark, there in found.items() if there]


def figure_status(spec: TableSpec, figure: Figure, seen: Seen, today: date) -> FigureStatus:
    """The figure as its readers see it on the day `today`.

    A snapshot without rows has not been taken yet, so it is unknown. Events without rows have not happened, so there are none.
    """
    days = [
        FigureDay(day=one.day, value=_whole(figure, seen, one.day), marks=marks(spec, one, seen.read.get(one.day), today))
        for one in seen.calendar
    ]
    common = FigureStatus(
        table=spec.name, figure=figure.name, title=figure.title, unit=figure.unit, over_days=figure.over_days, days=days
    )
    newest = next((one for one in reversed(days) if one.value is not None or (figure.over_days and one.day in seen.read)), None)
    if newest is None:
        return common
    read_at = seen.read[newest.day].read_at
    hour = compared_hour(spec, newest.day, read_at) if newest.day == days[-1].day else None
    beside = _Beside(spec, figure, seen, newest, hour)
    return common.model_copy(
        update={
            "today": newest,
            "until": read_at,
            "hour": hour,
            "value_at_hour": None if hour is None else _at_hour(figure, seen, newest.day),
            "yesterday": beside.compared(next((one for one in days if one.day == newest.day - YESTERDAY), None)),
            "week_before": beside.compared(next((one for one in days if one.day == newest.day - WEEK), None)),
        }
    )


@dataclass(frozen=True)
class _Beside:
    """The figure of the newest day, to be compared with other days."""

    spec: TableSpec
    figure: Figure
    seen: Seen
    newest: FigureDay
    hour: int | None

    def compared(self, other: FigureDay | None) -> Comparison | None:
        if other is None:
            return None
        if (then := self._then(other)) is not None:
            return then
        mine, its = (one.value if self.hour is None else _at_hour(self.figure, self.seen, one.day) for one in (self.newest, other))
        difference = _difference(self.figure, mine, its) if self._fair(other) else {}
        return Comparison(day=other.day, value=its, marks=other.marks, **difference)

    def _then(self, other: FigureDay) -> Comparison | None:
        """The day as the table held it at the same hour, if that is known, and if the newest day goes on."""
        held = self.seen.then.get(other.day)
        read = parts([self.figure])
        if held is None or self.newest.day != self.seen.calendar[-1].day or any(part.name not in held.sums for part in read):
            return None
        its = decimal_of(value(self.figure, {part: held.sums[part.name] for part in read}))
        difference = _difference(self.figure, self.newest.value, its)
        return Comparison(day=other.day, value=its, as_of=held.at, loaded_at=held.loaded_at, marks=[], **difference)

    def _fair(self, other: FigureDay) -> bool:
        """Whether both values cover the same part of their days. A snapshot says what was so far, at any hour."""
        if not self.figure.over_days:
            return True
        read = self.seen.read.get(other.day)
        if self.hour is not None:
            reached = hours_read(self.spec, other.day, read.read_at) if read else 0
            return reached is None or reached >= self.hour
        return not {DayMark.GOES_ON, DayMark.CUT_SHORT} & {*self.newest.marks, *other.marks}


def _difference(figure: Figure, mine: Decimal | None, its: Decimal | None) -> dict[str, Decimal | None]:
    """How much more the newest day has, and in percent of the other."""
    if mine is None or its is None:
        return {}
    more = EXACT.subtract(mine, its)
    if not its or figure.unit is Unit.PERCENT:
        return {"difference": more}
    return {"difference": more, "percent": EXACT.quantize(EXACT.divide(EXACT.multiply(more, 100), abs(its)), RATIO_DIGITS)}


def _whole(figure: Figure, seen: Seen, day: date) -> Decimal | None:
    sums = _sums(figure, seen, day)
    return None if sums is None else decimal_of(value(figure, sums.whole))


def _at_hour(figure: Figure, seen: Seen, day: date) -> Decimal | None:
    sums = _sums(figure, seen, day)
    return None if sums is None else decimal_of(value(figure, sums.at_hour))


def _sums(figure: Figure, seen: Seen, day: date) -> Sums | None:
    if seen.sums is None or day not in seen.read:
        return None
    if day in seen.sums:
        return seen.sums[day]
    nothing: dict[Part, Number] = dict.fromkeys(parts([figure]), 0)
    return Sums(nothing, nothing) if figure.over_days else None


Key = tuple[int, date, int | None]
"""The version of the table's rows, the last day, and the hour that is compared."""


@dataclass
class FiguresReader:
    """Reads the figures. It reads a table's rows again only if they have changed, or the day or the hour that is compared."""

    reader: StatusReader
    _known: dict[str, tuple[Key, Mapping[date, Sums] | None]] = field(default_factory=dict)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One reading at a time, so that callers who come together read the rows once."""

    async def read(self, versions: Mapping[str, int]) -> Figures:
        """All figures. `versions` has the version of each table's rows. Raises DatabaseUnavailable."""
        now, settings = datetime.now(UTC), self.reader.settings
        found: list[FigureStatus] = []
        async with self._reading, self.reader.database.connection() as conn:
            for spec in self.reader.tables.values():
                if spec.figures:
                    found += await self._table(conn, spec, versions.get(spec.name, 0), now)
        return Figures(timezone=settings.timezone, generated_at=now, figures=found)

    async def _table(self, conn: psycopg.AsyncConnection, spec: TableSpec, version: int, now: datetime) -> list[FigureStatus]:
        today = spec.zone.day(now)
        names = {
            "days": self.reader.database.marks.ledger.days,
            "quarantine": sql.Identifier(self.reader.database.schema, "etl_quarantine"),
        }
        row = await (await conn.execute(sql.SQL(LAST_DAY).format(**names), (spec.name, today))).fetchone()
        if row is None or row[0] is None:
            return [figure_status(spec, figure, Seen([], {}, {}), today) for figure in spec.figures]
        shown = DayRange(row[0] - timedelta(days=CALENDAR_DAYS - 1), row[0])
        days = await conn.execute(sql.SQL(DAYS).format(**names), {"table": spec.name, "last": shown.end, "back": CALENDAR_DAYS - 1})
        read = {day: ReadDay(*more) for day, *more in await days.fetchall()}
        key = (version, shown.end, compared_hour(spec, shown.end, read[shown.end].read_at))
        if self._known.get(spec.name, (None,))[0] != key:
            self._known[spec.name] = (key, await _read(conn, spec, self.reader.database.schema, shown, key[2]))
        calendar = await self.reader.calendar(conn, spec.name, shown, now)
        then = await self._then(conn, spec, shown.end, read[shown.end].read_at)
        seen = Seen(calendar, read, self._known[spec.name][1], then)
        return [figure_status(spec, figure, seen, today) for figure in spec.figures]

    async def _then(
        self, conn: psycopg.AsyncConnection, spec: TableSpec, newest: date, read_at: datetime
    ) -> Mapping[date, HeldThen]:
        """What the table held of the earlier days at the hour of the reading. Empty if it has hours, or the newest day is over."""
        if spec.hour_column or hours_read(spec, newest, read_at) is None:
            return {}
        changes = Changes(self.reader.database.schema)
        earlier = same_hour(spec, newest, read_at)
        found = await conn.execute(
            sql.SQL(HELD).format(loads=changes.loads, changed=changes.days),
            {"table": spec.name, "days": list(earlier), "at": list(earlier.values())},
        )
        return {day: HeldThen(at, loaded, sums_of(with_decimals(after))) for day, at, loaded, after in await found.fetchall()}


def sums_query(spec: TableSpec, schema: str, hour: int | None) -> tuple[sql.Composed, Sequence[Part]]:
    """The query of the sums by day: the day, each of the returned parts, and each of them in the hours before `hour`. Its
    parameters are `start` and `end`."""
    names, read = Statements(spec, schema), parts(spec.figures)
    at_hour = sql.SQL("true") if hour is None else sql.SQL("{} < {}").format(sql.Identifier(spec.hour_column or ""), hour)
    columns = [names.partition, *(one.aggregate for one in read), *(one.aggregate_where(at_hour) for one in read)]
    query = sql.SQL("SELECT {} FROM {} WHERE {} BETWEEN %(start)s AND %(end)s AND {} GROUP BY 1").format(
        sql.SQL(", ").join(columns), names.target, names.partition, names.current
    )
    return query, read


async def _read(
    conn: psycopg.AsyncConnection, spec: TableSpec, schema: str, shown: DayRange, hour: int | None
) -> Mapping[date, Sums] | None:
    query, read = sums_query(spec, schema, hour)
    try:
        rows = await (await conn.execute(query, {"start": shown.start, "end": shown.end})).fetchall()
    except (pg.UndefinedTable, pg.UndefinedColumn, pg.InsufficientPrivilege):
        # Somebody dropped the table, or keeps the API from it.
        return None
    half = len(read) + 1
    return {row[0]: Sums(dict(zip(read, row[1:half], strict=True)), dict(zip(read, row[half:], strict=True))) for row in rows}
