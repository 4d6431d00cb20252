"""Decides which alerts to send. Pure functions turn incidents, new events and the time into messages and new incidents.

An incident gathers the tables that one cause has hit. One message opens it, reminders repeat it at a limited rate, and a last
message ends it when every table is well again. An outage of BigQuery or PostgreSQL is over once that system is back, even if its
tables are loaded later. The next outage is another incident.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.redaction import scrub

DETAIL_LENGTH = 400
"""How many characters of an error an alert keeps."""


class State(StrEnum):
    """Reasons for an alert other than failed runs: the state of a table, or of the budget."""

    STALE = "stale"
    CHECK = "check"
    RECOVERY_LIMIT = "recovery_limit"
    BUDGET_80 = "budget_80"
    BUDGET_100 = "budget_100"
    DRIFT = "drift"
    QUARANTINE = "quarantine"
    MISSED_CHANGE = "missed_change"
    MOVEMENT = "movement"


Topic = Cause | State
"""What an alert is about: the cause of failed runs, or a state."""


OUTAGES: frozenset[Topic] = frozenset({Cause.SOURCE_UNAVAILABLE, Cause.DESTINATION_UNAVAILABLE})
"""One outside system is down. Every table that it hits until it is back belongs to the same incident."""
DEPENDENCIES: Mapping[Topic, str] = {Cause.SOURCE_UNAVAILABLE: "BigQuery", Cause.DESTINATION_UNAVAILABLE: "base de datos"}
"""The name of the outside system as a subject of its outage."""
UNCLEAR: frozenset[Topic] = frozenset({Cause.TIMEOUT, Cause.CANCELLED, Cause.ABANDONED, Cause.INTERNAL, Cause.UNKNOWN})
"""Failures without a clear cause. If an outage holds the table, they belong to that outage."""
FAILURES: frozenset[Topic] = frozenset(Cause)
"""Causes of failed runs. A successful run of the table ends them."""

PROVES_WELL: Mapping[Topic, frozenset[Topic]] = {
    **dict.fromkeys(
        (
            *(Cause.CONTRACT, Cause.REJECTED_ROWS, Cause.DUPLICATE_KEY, Cause.QUARANTINE_EXCEEDED, Cause.SHRINK),
            *(Cause.SNAPSHOT_WITHDRAWN, Cause.VERIFICATION),
        ),
        OUTAGES,
    ),
    **dict.fromkeys(
        (Cause.COST_CAP, Cause.SOURCE_QUOTA, Cause.SOURCE_MISSING, Cause.SOURCE_REFUSED), frozenset({Cause.SOURCE_UNAVAILABLE})
    ),
    **dict.fromkeys((Cause.SCHEMA, Cause.LOCKED, Cause.NEWER_READING), frozenset({Cause.DESTINATION_UNAVAILABLE})),
}
"""Failures that can happen only after the named outages are over for their table."""
NOTICED = timedelta(minutes=2)
"""The longest time from the start of an outage until it is noticed, and from its end until the runs that it ended are noticed."""
EVERY_TABLE = ""
"""The table of a subject that stands for all tables: the database itself."""
FOLLOWS_FROM: Mapping[Topic, frozenset[Topic]] = {State.STALE: FAILURES, State.RECOVERY_LIMIT: OUTAGES}
"""Causes that are held back while a cause that brings them about is open for all their tables, because that one was sent."""


@dataclass(frozen=True)
class Failed:
    """Something went wrong with a table at the instant `at` (with zone).

    `table` is empty if no single table is meant (a budget). `name` distinguishes several subjects of one table (a check's name).
    `window` is the partitions, `detail` the error's text with passwords blanked. `began` is the start of the run.
    """

    cause: Topic
    table: str
    at: datetime
    name: str = ""
    window: DayRange | None = None
    run_id: str | None = None
    detail: str = ""
    began: datetime | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _require_zone(self.at)


@dataclass(frozen=True)
class Recovered:
    """These causes are over for the table (and `name`) since the instant `at` (with zone).

    `began` is the start of the run that shows it: every outside system that the run needed was back by `at`.
    """

    causes: Collection[Topic]
    table: str
    at: datetime
    name: str = ""
    began: datetime | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _require_zone(self.at)


Event = Failed | Recovered


def succeeded(table: str, at: datetime, began: datetime | None = None) -> Recovered:
    """A run of the table that started at `began` succeeded at `at`. So the table's failures and outages are over."""
    return Recovered(FAILURES | {State.RECOVERY_LIMIT}, table, at, began=began or at)


@dataclass(frozen=True)
class Subject:
    """A table (or one of its checks) in an incident: its first and last failure, and since when it is well (None: not well).

    In an outage, the outside system itself may be a subject, with the table `EVERY_TABLE`. Its count: how often it was found away.
    """

    table: str
    name: str
    first: datetime
    last: datetime
    count: int = 1
    recovered_at: datetime | None = None
    window: DayRange | None = None
    run_id: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Incident:
    """One cause and the subjects that it hit.

    `id` is None until it is stored. `notified_at` is the time of its last message. Before `held_until` it sends none. `closed_at`
    is when its last subject became well.
    """

    cause: Topic
    subjects: tuple[Subject, ...]
    id: int | None = None
    notified_at: datetime | None = None
    held_until: datetime | None = None
    closed_at: datetime | None = None

    @property
    def open(self) -> bool:
        return self.closed_at is None

    @property
    def failing(self) -> tuple[Subject, ...]:
        return tuple(subject for subject in self.subjects if subject.recovered_at is None)

    @property
    def first_seen(self) -> datetime:
        return min(subject.first for subject in self.subjects)

    @property
    def last_seen(self) -> datetime:
        return max(subject.last for subject in self.subjects)

    @property
    def recovered_at(self) -> datetime | None:
        """When the last subject became well, or None while one is not."""
        instants = [subject.recovered_at for subject in self.subjects if subject.recovered_at is not None]
        return max(instants) if len(instants) == len(self.subjects) else None

    @property
    def count(self) -> int:
        return sum(subject.count for subject in self.subjects)

    @property
    def failed_runs(self) -> int:
        return sum(subject.count for subject in self.subjects if subject.table)

    @property
    def tables(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(subject.table for subject in self.subjects if subject.table))

    @property
    def over_at(self) -> datetime | None:
        """When the problem was over. An outage is over when the outside system is back, even if its tables are loaded later."""
        whole = self.whole
        return whole.recovered_at if whole is not None and whole.recovered_at is not None else self.recovered_at

    @property
    def whole(self) -> Subject | None:
        """The outside system itself, if it was found away, or back."""
        return next((s for s in self.subjects if s.table == EVERY_TABLE and self.cause in OUTAGES), None)

    @property
    def alone(self) -> str | None:
        """The only table that failed, while others proved that the outside system was back. Its next failure is its own."""
        if self.whole is None or self.whole.count or self.over_at is None:
            return None
        failing = tuple(subject.table for subject in self.failing)
        return failing[0] if len(failing) == 1 and failing == self.tables else None

    def ended(self, event: Failed) -> bool:
        """Whether the outage ended the failed run: it began before the outage's end, and names the outage or no clear cause."""
        if self.cause not in OUTAGES or event.at < self.first_seen - NOTICED:
            return False
        began, over = event.began or event.at, self.over_at
        if event.cause is self.cause:
            return over is not None and began <= over
        seen_away = self.whole is not None and self.whole.count > 0
        return event.cause in UNCLEAR and seen_away and (over is None or began <= over + NOTICED)

    def shown_over(self, event: Recovered) -> bool:
        """Whether the event shows that the outside system is back: its run began after the last failure."""
        known = self.cause in OUTAGES and self.cause in event.causes
        return known and self.over_at is None and event.began is not None and event.began >= self.last_seen

    def subject(self, table: str, name: str) -> Subject | None:
        return next((s for s in self.subjects if (s.table, s.name) == (table, name)), None)


@dataclass(frozen=True)
class Policy:
    """How long events gather before the message of an incident or of its end, and how often a reminder follows."""

    gather: timedelta = timedelta(seconds=60)
    remind_every: timedelta = timedelta(hours=6)


class Stage(StrEnum):
    """Which message of an incident it is."""

    OPENED = "opened"
    REMINDER = "reminder"
    RECOVERED = "recovered"


@dataclass(frozen=True)
class Notice:
    """A message to send, with its incident and stage. `held` are open incidents that follow from it and get no own message.

    `position` is the incident's place in the list that came with the notice.
    """

    position: int
    incident: Incident
    stage: Stage
    held: tuple[Incident, ...] = ()


def review(
    incidents: Sequence[Incident], events: Iterable[Event], now: datetime, policy: Policy
) -> tuple[list[Incident], list[Notice]]:
    """The incidents after `events` at the instant `now`, in the same order with new ones at the end, and the notices to send."""
    return announce(absorb(incidents, events), now, policy)


def absorb(incidents: Sequence[Incident], events: Iterable[Event]) -> list[Incident]:
    """The incidents after `events`, in order of time. Giving an event twice changes nothing.

    `incidents` may contain closed ones. They show that a failure from before their recovery is not new.
    """
    book = list(incidents)
    for event in sorted(events, key=lambda event: event.at):
        if isinstance(event, Recovered):
            _recover(book, event)
        else:
            _fail(book, event)
    return book


def announce(incidents: Sequence[Incident], now: datetime, policy: Policy) -> tuple[list[Incident], list[Notice]]:
    """The incidents after sending, and the messages that are due at the instant `now`."""
    book, notices = list(incidents), []
    for position, incident in enumerate(book):
        if not incident.open:
            continue
        if (well_since := incident.over_at) is not None:
            if now >= well_since + policy.gather:
                book[position] = replace(incident, closed_at=well_since)
                if incident.notified_at is not None:
                    notices.append(Notice(position, book[position], Stage.RECOVERED))
        elif _held(incident, book, now - policy.gather):
            # It waits for the next gathering too. The end of the outage usually ends this problem a little later.
            book[position] = replace(incident, held_until=now + policy.gather)
        elif now >= _due(incident, policy):
            stage = Stage.OPENED if incident.notified_at is None else Stage.REMINDER
            book[position] = replace(incident, notified_at=now)
            held = tuple(other for other in book if other.open and other.failing and _follows(other, incident))
            notices.append(Notice(position, book[position], stage, held))
    return book, notices


def _due(incident: Incident, policy: Policy) -> datetime:
    told = incident.notified_at
    due = incident.first_seen + policy.gather if told is None else told + policy.remind_every
    return max(due, incident.held_until or due)


def _held(incident: Incident, book: Sequence[Incident], well_before: datetime) -> bool:
    """Whether a cause that brings it about is open for all its tables, or was open until after `well_before`."""
    covered = {
        subject.table
        for other in book
        if other.open and other.cause in FOLLOWS_FROM.get(incident.cause, ())
        for subject in other.subjects
        if subject.recovered_at is None or subject.recovered_at > well_before
    }
    return EVERY_TABLE in covered or all(subject.table in covered for subject in incident.failing)


def _follows(incident: Incident, origin: Incident) -> bool:
    tables = {subject.table for subject in origin.failing}
    return origin.cause in FOLLOWS_FROM.get(incident.cause, ()) and any(s.table in tables for s in incident.failing)


def _recover(book: list[Incident], event: Recovered) -> None:
    for position, incident in enumerate(book):
        if incident.cause not in event.causes:
            continue
        back = incident.shown_over(event)
        # An outage that is over may still have tables that are not well.
        subject = incident.subject(event.table, event.name)
        if subject and subject.recovered_at is None and event.at >= subject.last:
            _put(book, position, replace(subject, recovered_at=event.at))
        if back:
            itself = Subject(EVERY_TABLE, DEPENDENCIES[incident.cause], incident.first_seen, incident.last_seen, count=0)
            _put(book, position, replace(incident.whole or itself, recovered_at=event.at))


def _fail(book: list[Incident], event: Failed) -> None:
    homes = {event.cause} | (OUTAGES if event.cause in UNCLEAR else set())
    known = [incident.subject(event.table, event.name) for incident in book if incident.cause in homes]
    if any(subject and (event.at <= subject.last or (subject.recovered_at or event.at) > event.at) for subject in known):
        return
    _recover(book, Recovered(PROVES_WELL.get(event.cause, ()), event.table, event.at, began=event.began or event.at))
    for place, incident in enumerate(book):
        if incident.over_at is not None and incident.ended(event):
            # The message of the outage's end includes it, or has been sent.
            if incident.open and incident.whole:
                _put(book, place, _subject(event, incident.subject(event.table, event.name)))
            return
    if any(incident.cause is event.cause and incident.alone == event.table != EVERY_TABLE for incident in book):
        _fail(book, replace(event, cause=Cause.INTERNAL))
        return
    position = _home(book, event)
    if position is None:
        book.append(Incident(event.cause, (_subject(event),)))
    else:
        _put(book, position, _subject(event, book[position].subject(event.table, event.name)))


def _home(book: Sequence[Incident], event: Failed) -> int | None:
    """The open incident that takes a failure: the incident of its subject, its table's outage, or one without a message yet.

    An outage that is over takes no more failures, unless the outside system is away again before the message of its end.
    """
    open_ = [(position, incident) for position, incident in enumerate(book) if incident.open]
    going = [(position, incident) for position, incident in open_ if incident.cause not in OUTAGES or incident.over_at is None]
    places = going + [one for one in open_ if one not in going and event.table == EVERY_TABLE]
    alike = [(position, incident) for position, incident in places if incident.cause is event.cause]
    own = [position for position, incident in alike if incident.subject(event.table, event.name)]
    outage = [
        position
        for position, incident in places
        if incident.ended(event)
        or (event.cause in UNCLEAR and incident.cause in OUTAGES and any(s.table == event.table for s in incident.failing))
    ]
    joined = [position for position, incident in alike if event.cause in OUTAGES or incident.notified_at is None]
    return next(iter(own + outage + joined), None)


def _subject(event: Failed, before: Subject | None = None) -> Subject:
    window = event.window or (before.window if before else None)
    if before and before.window and event.window:
        window = DayRange(min(before.window.start, event.window.start), max(before.window.end, event.window.end))
    return Subject(
        event.table,
        event.name,
        first=before.first if before else event.at,
        last=event.at,
        count=before.count + 1 if before else 1,
        window=window,
        run_id=event.run_id or (before.run_id if before else None),
        detail=short_detail(event.detail) or (before.detail if before else ""),
    )


def _put(book: list[Incident], position: int, subject: Subject) -> None:
    """Adds the subject to the incident, or replaces its earlier state."""
    incident = book[position]
    subjects = {(s.table, s.name): s for s in incident.subjects} | {(subject.table, subject.name): subject}
    book[position] = replace(incident, subjects=tuple(subjects.values()))


def short_detail(text: str) -> str:
    """An error's text on one line, shortened, without passwords and parameters of URLs."""
    text = " ".join(scrub(text.replace("\0", "")).split())
    text = re.sub(r"(\w://)[^\s/@]+@", r"\1***@", text)
    text = re.sub(r"(\w://[^\s?]+\?)[^\s'\")]+", r"\1***", text)
    text = re.sub(r"(?i)\b(password|passwd|pwd|token|secret|api_?key)(\s*[=:]\s*)[^\s,;]+", r"\1\2***", text)
    return text if len(text) <= DETAIL_LENGTH else text[: DETAIL_LENGTH - 1] + "…"


def _require_zone(at: datetime) -> None:
    if at.tzinfo is None:
        raise ValueError("the time of an alert's event has no zone")
