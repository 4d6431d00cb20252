"""Keeps incidents (`etl_alerts`) and the messages about them (`etl_alert_messages`) in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from pydantic import TypeAdapter

from pulso_etl.alerts.incidents import Incident, Stage, State, Subject, Topic
from pulso_etl.alerts.messages import Message
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger.migrations import migrate
from pulso_etl.sync.postgres.strangers import refuse_strangers

REMEMBERED = timedelta(days=1)
"""How long a closed incident is still read, to recognise failures from before its end as old."""

_SUBJECTS = TypeAdapter(tuple[Subject, ...])


@dataclass(frozen=True)
class PendingMessage:
    """A message that some channels, by name, have not received yet. `attempts` is how often they were tried."""

    id: int
    message: Message
    pending: tuple[str, ...]
    attempts: int
    created_at: datetime


class AlertStore:
    """Reads and writes the two tables over the caller's connection. The caller owns the transaction."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.incidents = sql.Identifier(schema, "etl_alerts")
        self.messages = sql.Identifier(schema, "etl_alert_messages")

    def lock(self, conn: psycopg.Connection) -> None:
        """Waits for any other process that changes incidents; the lock ends with the transaction.

        The tables are there. Who may only read them can't take this lock, as any login of the database could an advisory one.
        Raises SchemaRefused (see `strangers`).
        """
        conn.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(self.incidents))
        refuse_strangers(conn, self.schema, "etl_alert_messages")

    def create(self, conn: psycopg.Connection) -> None:
        """Creates what is missing, and brings up to date what an earlier release made; see `migrate`."""
        migrate(conn, self.schema)

    def load(self, conn: psycopg.Connection, now: datetime) -> list[Incident]:
        """Open incidents, and incidents closed not long before `now`, oldest first."""
        rows = conn.cursor(row_factory=dict_row).execute(
            sql.SQL(
                "SELECT cause, subjects::text, id, notified_at, held_until, closed_at FROM {} "
                "WHERE (state = 'open' OR closed_at > %s) AND cause = ANY(%s) ORDER BY id"
            ).format(self.incidents),
            (now - REMEMBERED, [*Cause, *State]),
        )
        return [
            Incident(**row | {"cause": _topic(row["cause"]), "subjects": _SUBJECTS.validate_json(row["subjects"])}) for row in rows
        ]

    def save(self, conn: psycopg.Connection, before: Iterable[Incident], after: Sequence[Incident]) -> list[Incident]:
        """Writes the incidents that are new or changed since `before`. Returns all, in order, each with its id."""
        known = set(before)
        return [incident if incident in known else self._put(conn, incident) for incident in after]

    def _put(self, conn: psycopg.Connection, incident: Incident) -> Incident:
        values = {
            "id": incident.id,
            "cause": incident.cause,
            "state": "open" if incident.open else "closed",
            "first": incident.first_seen,
            "last": incident.last_seen,
            "count": incident.count,
            "tables": list(incident.tables),
            "subjects": _SUBJECTS.dump_json(incident.subjects).decode(),
            "notified": incident.notified_at,
            "held": incident.held_until,
            "closed": incident.closed_at,
        }
        if incident.id is not None:
            conn.execute(
                sql.SQL(
                    "UPDATE {} SET state = %(state)s, first_seen = %(first)s, last_seen = %(last)s, count = %(count)s, "
                    "tables = %(tables)s, subjects = %(subjects)s::jsonb, notified_at = %(notified)s, held_until = %(held)s, "
                    "closed_at = %(closed)s WHERE id = %(id)s"
                ).format(self.incidents),
                values,
            )
            return incident
        row = conn.execute(
            sql.SQL(
                "INSERT INTO {} (cause, state, first_seen, last_seen, count, tables, subjects, notified_at, held_until, closed_at) "
                "VALUES (%(cause)s, %(state)s, %(first)s, %(last)s, %(count)s, %(tables)s, %(subjects)s::jsonb, %(notified)s, "
                "%(held)s, %(closed)s) RETURNING id"
            ).format(self.incidents),
            values,
        ).fetchone()
        assert row is not None
        return replace(incident, id=row[0])

    def post(
        self, conn: psycopg.Connection, incident: Incident, stage: Stage, message: Message, channels: Sequence[str], now: datetime
    ) -> None:
        """Queues a message for delivery. It replaces the incident's messages that channels have not received yet."""
        conn.execute(
            sql.SQL("UPDATE {} SET pending = '{{}}' WHERE alert_id = %s AND pending <> '{{}}'").format(self.messages),
            (incident.id,),
        )
        conn.execute(
            sql.SQL(
                "INSERT INTO {} (alert_id, stage, severity, title, body, created_at, pending, retry_at) "
                "VALUES (%(alert)s, %(stage)s, %(severity)s, %(title)s, %(body)s, %(now)s, %(pending)s, %(now)s)"
            ).format(self.messages),
            {
                "alert": incident.id,
                "stage": stage,
                "severity": message.severity,
                "title": message.title,
                "body": message.body,
                "now": now,
                "pending": list(channels),
            },
        )

    def claim(self, conn: psycopg.Connection, now: datetime, after: int) -> PendingMessage | None:
        """The next message after id `after` that is due at `now`, locked until the transaction ends."""
        row = (
            conn.cursor(row_factory=dict_row)
            .execute(
                sql.SQL(
                    "SELECT id, title, body, severity, pending, attempts, created_at FROM {} "
                    "WHERE pending <> '{{}}' AND retry_at <= %s AND id > %s ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"
                ).format(self.messages),
                (now, after),
            )
            .fetchone()
        )
        if row is None:
            return None
        message = Message(row["title"], row["body"], row["severity"])
        return PendingMessage(row["id"], message, tuple(row["pending"]), row["attempts"], row["created_at"])

    def delivered(
        self, conn: psycopg.Connection, message: PendingMessage, pending: Sequence[str], attempts: int, retry_at: datetime
    ) -> None:
        """Records which channels must still receive the message, and when to try again."""
        conn.execute(
            sql.SQL("UPDATE {} SET pending = %s, attempts = %s, retry_at = %s WHERE id = %s").format(self.messages),
            (list(pending), attempts, retry_at, message.id),
        )


def _topic(written: str) -> Topic:
    """What an incident is about, as it stands in its row."""
    return State(written) if written in set(State) else Cause(written)
