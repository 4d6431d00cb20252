"""The alerts as sensors call them: they record events, and a flush sends the messages that are due.

Nothing here raises because a channel or the database is away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import psycopg

from pulso_etl.alerts.channels import Channel, parse_channels
from pulso_etl.alerts.delivery import Delivery, send
from pulso_etl.alerts.incidents import DEPENDENCIES, Event, Failed, Incident, Policy, Recovered, absorb, announce, short_detail
from pulso_etl.alerts.memory import Outage, OutageMemory
from pulso_etl.alerts.messages import Message, render, trial_message
from pulso_etl.alerts.store import AlertStore
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import Cause, DestinationError
from pulso_etl.sync.patience import CONNECT_SECONDS, cut_after
from pulso_etl.sync.postgres.sessions import Session

log = logging.getLogger(__name__)

GIVE_UP_AFTER = timedelta(hours=24)
"""If a channel has not taken a message by then, the message is dropped for that channel, with an error in the log."""
RETRY_CAP = timedelta(minutes=30)
FLUSH_SECONDS = 30
"""A flush starts no further message after this time. The next flush continues."""
CUT_SECONDS = 120.0
"""A flush gives up a server that stops answering after this time. No flush takes that long."""
BACKLOG = 1000
"""Events kept in memory while PostgreSQL is away."""
KEPT_OUT = (psycopg.Error, DestinationError)
"""PostgreSQL is away, or a pooler shares its sessions. In both cases people must know."""
DATABASE_AWAY = Cause.DESTINATION_UNAVAILABLE
DATABASE = DEPENDENCIES[DATABASE_AWAY]


@dataclass(frozen=True)
class Flushed:
    """The result of a flush: how many messages became due, and each delivery. `stored` is False while PostgreSQL is away."""

    due: int
    deliveries: tuple[Delivery, ...]
    stored: bool


class Alerts:
    """Alerts of one deployment. Keep one per process. While PostgreSQL is away, memory holds the events, and a file the outage.

    Any number of processes may give events, by `record` or with `flush`. Giving an event twice is harmless. If a success is given
    before an older failure of its table, it does not end that failure. So give both from one sensor if you can, with their times.
    """

    def __init__(self, settings: Settings) -> None:
        self._database_url = settings.database_url
        self._store = AlertStore(settings.database_schema)
        self._channels = parse_channels(settings.alert_urls.get_secret_value())
        self._policy = Policy(
            gather=timedelta(seconds=settings.alert_gather_seconds), remind_every=timedelta(hours=settings.alert_reminder_hours)
        )
        self._timeout = settings.alert_timeout_seconds
        self._dagster_ui_url = settings.dagster_ui_url
        self._tenant = settings.owner.tenant
        self._timezone = settings.timezone
        self._lock = threading.Lock()
        self._backlog: list[Event] = []
        self._memory = OutageMemory(settings)

    def record(self, events: Iterable[Event]) -> bool:
        """Records events; the next flush sends them. False while PostgreSQL is away: memory keeps them until it is back."""
        given = self._take(events)
        if not given:
            return True
        try:
            with self._connect() as conn, self._exclusive(conn):
                before = self._store.load(conn, max(event.at for event in given))
                self._store.save(conn, before, absorb(before, given))
        except KEPT_OUT as error:
            self._keep(given, error)
            return False
        return True

    def flush(self, now: datetime, events: Iterable[Event] = ()) -> Flushed:
        """Records events, decides which messages are due at the instant `now` (with zone), and sends them and the pending ones.

        Any number of processes may flush at once: one of them sends each message. If a process dies after sending a message and
        before recording that, the message is sent again. While PostgreSQL is away, only that is sent: see `away`.
        """
        given = self._take(events)
        try:
            with self._connect() as conn:
                due = self._decide(conn, now, given)
                return Flushed(due, tuple(self._deliver(conn, now)), stored=True)
        except KEPT_OUT as error:
            self._keep(given, error)
            return self.away(now, error)

    def away(self, now: datetime, error: Exception) -> Flushed:
        """Sends the message that PostgreSQL is away at the instant `now`, as often as for other problems, from any process.

        The next flush that finds it back sends the message of the end.
        """
        with self._memory.alone():
            known = self._memory.read()
            if (incident := known.away) is None:
                before = [known.stored] if known.stored else []
                (incident,) = absorb(before, [Failed(DATABASE_AWAY, "", now, DATABASE, detail=str(error))])
            (told,), notices = announce([incident], now, self._policy)
            deliveries = [
                delivery
                for notice in notices
                for delivery in self._send(self._channels, render(notice, self._dagster_ui_url, self._tenant, self._timezone))
            ]
            self._memory.write(replace(known, away=told if any(one.ok for one in deliveries) else incident))
        return Flushed(len(notices), tuple(deliveries), stored=False)

    @property
    def remembers_outage(self) -> bool:
        """Whether a look found PostgreSQL away, and no flush has found it back since."""
        return self._memory.read().away is not None

    @contextmanager
    def _connect(self) -> Iterator[psycopg.Connection]:
        url = self._database_url.get_secret_value()
        # The keep-alives notice within seconds a server that vanished without a word.
        watched = {"tcp_user_timeout": 30_000, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
        session = Session(url, "alerts", connect_seconds=CONNECT_SECONDS)
        with session.hold(**watched) as conn, cut_after(CUT_SECONDS, conn):
            yield conn

    @contextmanager
    def _exclusive(self, conn: psycopg.Connection) -> Iterator[None]:
        """A transaction in which no other process changes incidents."""
        with conn.transaction():
            conn.execute("SET LOCAL lock_timeout = '15s'")
            self._store.create(conn)
            self._store.lock(conn)
            yield

    def _decide(self, conn: psycopg.Connection, now: datetime, events: Sequence[Event]) -> int:
        known = self._memory.read()
        with self._exclusive(conn):
            before = self._store.load(conn, now)
            adopted = before if known.away is None else _adopted(before, known.away, now)
            book, notices = announce(absorb(adopted, events), now, self._policy)
            book = self._store.save(conn, before, book)
            for notice in notices:
                message = render(notice, self._dagster_ui_url, self._tenant, self._timezone)
                names = [channel.name for channel in self._channels]
                self._store.post(conn, book[notice.position], notice.stage, message, names, now)
        # This follows the commit. If an outage is adopted twice, it is still one incident.
        open_ = [one for one in book if one.open and one.cause is DATABASE_AWAY]
        self._memory.write(Outage(next((one for one in open_ if one.over_at is None), next(iter(open_), None))))
        return len(notices)

    def _deliver(self, conn: psycopg.Connection, now: datetime) -> Iterator[Delivery]:
        """Sends one message after the other, each in its own transaction. A channel that fails is left out until the next flush."""
        began, last = time.monotonic(), 0
        resting: set[str] = set()
        while time.monotonic() - began < FLUSH_SECONDS:
            with conn.transaction():
                # The transaction is idle while channels answer. If the server ended it then, the message would be sent again.
                conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                message = self._store.claim(conn, now, last)
                if message is None:
                    return
                last = message.id
                pending = [channel for channel in self._channels if channel.name in message.pending]
                deliveries = self._send([channel for channel in pending if channel.name not in resting], message.message)
                failed = {delivery.channel for delivery in deliveries if not delivery.ok}
                resting |= failed
                left = [channel.name for channel in pending if channel.name in resting]
                if left and now - message.created_at >= GIVE_UP_AFTER:
                    log.error("alert %r: given up for %s after %s", message.message.title, ", ".join(left), GIVE_UP_AFTER)
                    left = []
                attempts = message.attempts + bool(failed)
                self._store.delivered(conn, message, left, attempts, now + _retry_wait(attempts) if failed else now)
            yield from deliveries

    def _send(self, channels: Sequence[Channel], message: Message) -> list[Delivery]:
        deliveries = send(channels, message, timeout=self._timeout)
        for delivery in deliveries:
            if not delivery.ok:
                log.warning("alert not delivered to %s: %s", delivery.channel, delivery.text)
        return deliveries

    def _take(self, events: Iterable[Event]) -> list[Event]:
        with self._lock:
            given, self._backlog = [*self._backlog, *events], []
        return given

    def _keep(self, events: Sequence[Event], error: Exception) -> None:
        with self._lock:
            self._backlog = [*events, *self._backlog][-BACKLOG:]
        log.error("alerts: PostgreSQL is away, %d events kept in memory: %s", len(self._backlog), short_detail(str(error)))


def _adopted(incidents: Sequence[Incident], away: Incident, now: datetime) -> list[Incident]:
    """The incidents, with the outage added that was sent while PostgreSQL was away. The outage is over now."""
    told, subject = away.notified_at, away.subject("", DATABASE)
    assert subject is not None
    gone = Failed(DATABASE_AWAY, "", subject.first, DATABASE, detail=subject.detail)
    book = absorb(incidents, [gone, replace(gone, at=subject.last), Recovered({DATABASE_AWAY}, "", now, DATABASE)])
    return [
        replace(incident, notified_at=max(told, incident.notified_at or told))
        if told is not None and incident.open and incident.cause is DATABASE_AWAY and incident.subject("", DATABASE)
        else incident
        for incident in book
    ]


def _retry_wait(attempts: int) -> timedelta:
    """The first wait is zero, so the next flush tries again. Later waits grow."""
    return min(RETRY_CAP, timedelta(seconds=30 * (2 ** min(attempts - 1, 10) - 1)))


def try_channels(settings: Settings, now: datetime) -> list[Delivery]:
    """Sends a trial message to every channel, and returns each delivery. Empty if ALERT_URLS is not set."""
    channels = parse_channels(settings.alert_urls.get_secret_value())
    return send(channels, trial_message(now, settings.owner.tenant, settings.timezone), timeout=settings.alert_timeout_seconds)
