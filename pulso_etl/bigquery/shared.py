"""One query job for the runs of several tables that share a read (see `sync.shared_reads`).

BigQuery lets the client choose the id of a job, and refuses a second job with the same id. It keeps the result for about 24 hours,
and the same account reads it for free. So each of the runs asks for the same statement under the same id. The first one sends the
job, and is billed. The others get 409, attach to the job and read its result. Nothing of ours coordinates the runs: they may come
in either order, or at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from google.cloud import bigquery

from pulso_etl.sync.shared_reads import SharedRead

REPEATED = "REPEATED"
LONGEST_AGE = timedelta(minutes=15)
"""A job that is older than this is left alone: a run that is repeated hours later reads anew."""
READING, SOURCE, ALONE = "reading", "source", "alone_bytes"
"""Labels of a shared job: who sent it, so that a run knows its own job if the answer was lost; what the source was like just
before; and what the run that sent it would have been billed for its own statement."""


def job_id(read: SharedRead, statement: str) -> str:
    """The id of the job of the read: only letters, digits and underscores."""
    told = (read.key, read.host.tenant, statement, str(read.window.start), str(read.window.end))
    return f"pulso_etl_{sha256(repr(told).encode()).hexdigest()[:40]}"


def why_not_attach(labels: Mapping[str, str], source: str, created: datetime | None, now: datetime) -> str:
    """Why a run must not read the result of a job that another run sent; empty if it may. Pure.

    `labels` are those of the job. `source` is what the source was like when this run looked at it (see `look.source_digest`).

    A load stores the state of the source that it looked at, and later refreshes skip while the source is in that state. So the
    rows must not be older than the state. The sender looked before the job began. If this run saw the same state, the rows are not
    older: either this run looked before the job began, or nothing has changed from the one look to the other. No clock is compared,
    so a change a moment before the job is no obstacle, and one after it is.
    """
    if labels.get(SOURCE) != source:
        return "the source has changed since the other run looked at it"
    if created is None or now - created > LONGEST_AGE:
        return f"it is older than {LONGEST_AGE.total_seconds() / 60:.0f} minutes"
    return ""


@dataclass(frozen=True)
class Joined:
    """How a run takes part in a shared job: whether it has sent it, and how many bytes are not billed because of the others."""

    read: SharedRead
    sent: bool
    bytes_avoided: int = 0

    @property
    def told(self) -> str:
        """For people."""
        query = f"the query of {self.read.host.name} over {self.read.window}"
        return (
            f"this run sent {query}, for all tables that share it" if self.sent else f"the rows of {query}, which another run sent"
        )


def why_not_read(own: Sequence[tuple[str, str, str]], result: Sequence[bigquery.SchemaField]) -> str:
    """Why a result does not have the columns of a table; empty if it has. Pure.

    `own` are the columns (name, type, mode) of the table's own statement, by its dry run.
    """
    has = {field.name: (field.field_type, field.mode == REPEATED) for field in result}
    lacking = [name for name, kind, mode in own if has.get(name) != (kind, mode == REPEATED)]
    return f"the query of the host does not give these columns as this table reads them: {', '.join(lacking)}" if lacking else ""


def avoided(own: int, labels: Mapping[str, str], *, is_host: bool, cached: bool) -> int:
    """How many bytes fewer are billed because a run attached to a job. `own`: what its own statement would bill, by a dry run.

    The shared job bills what the host's own read would, and the guests' reads fall away. So a guest avoids its own read, and the
    host avoids the read of the guest that has sent the job. What a dry run promised for the host does not count: for clustered
    tables it is a limit, far above what is billed. Pure.
    """
    if cached or not is_host:
        # If the job was cached, the sender tells what the cache has saved of its own statement.
        return own
    alone = labels.get(ALONE, "")
    return int(alone) if alone.isdigit() else 0
