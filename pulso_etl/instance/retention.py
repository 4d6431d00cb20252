"""The end of the past: of Dagster, old runs with their events and checks, and the files of logs; of the ledger, see
`sync.ledger.retention`.

Dagster itself deletes only ticks (`retention` in `dagster.yaml`). What says how things stand now stays, however old it is: the last
materialization of each partition and of each asset, and the last evaluation of each check.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import dagster as dg
import psycopg
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from pydantic import SecretStr

from pulso_etl.instance.event_storage import BatchingEventLogStorage, StatingRunStorage
from pulso_etl.settings import Retention, Settings
from pulso_etl.sync.errors import PulsoError, first_line
from pulso_etl.sync.ledger.retention import delete_old
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.redaction import clean_errors

EVERY = timedelta(hours=1)
LOOK_SECONDS = 20.0
"""How long one tick deletes. The next tick continues."""
BATCH = 50
"""Runs of one transaction."""


@dataclass(frozen=True)
class Old:
    """How much is older than the retention says: runs that have ended, and files of logs with their bytes."""

    runs: int = 0
    files: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        return f"{self.runs} run(s), {self.files} log file(s) of {self.bytes / 2**20:.1f} MiB"


def old(instance: dg.DagsterInstance, retention: Retention, now: datetime) -> Old:
    """What `clean` would delete."""
    files = [size for _, size in _old_files(instance, now - retention.logs)]
    return Old(instance.get_runs_count(_ended_before(now - retention.runs)), len(files), sum(files))


def clean(instance: dg.DagsterInstance, retention: Retention, now: datetime, go_on: Callable[[], bool] = lambda: True) -> Old:
    """Deletes what is older than the retention says, while `go_on` says so. Returns what it deleted.

    Without the storage of `dagster.yaml` it deletes no run, because Dagster's own deletion would also delete what says how things
    stand now.
    """
    runs = files = size = 0
    for path, length in _old_files(instance, now - retention.logs):
        if not go_on():
            break
        path.unlink(missing_ok=True)
        files, size = files + 1, size + length
    events, past = instance.event_log_storage, instance.run_storage
    while isinstance(events, BatchingEventLogStorage) and isinstance(past, StatingRunStorage) and go_on():
        records = instance.get_run_records(_ended_before(now - retention.runs), limit=BATCH, ascending=True)
        ended = [record.dagster_run.run_id for record in records]
        # The events first: after an interrupt, the next look finds the runs again.
        events.forget(ended, now - retention.runs)
        past.forget(ended)
        runs += len(ended)
        if len(ended) < BATCH:
            break
    return Old(runs, files, size)


def _ended_before(moment: datetime) -> dg.RunsFilter:
    return dg.RunsFilter(statuses=FINISHED_STATUSES, updated_before=moment)


def _old_files(instance: dg.DagsterInstance, before: datetime) -> Iterator[tuple[Path, int]]:
    """The old files of logs, with their sizes. A bucket has rules of its own for its objects."""
    manager = instance.compute_log_manager
    if not isinstance(manager, LocalComputeLogManager):
        return
    for folder, folders, names in os.walk(manager._base_dir, topdown=False):
        for name in names:
            path = Path(folder, name)
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            if found.st_mtime < before.timestamp():
                yield path, found.st_size
        if not folders and not names and Path(folder) != Path(manager._base_dir):
            # Emptied by an earlier look. A folder that a run has just made is younger.
            _remove_empty(Path(folder), before)


def _remove_empty(folder: Path, before: datetime) -> None:
    try:
        if folder.stat().st_mtime < before.timestamp():
            folder.rmdir()
    except OSError:
        return


@dataclass(frozen=True)
class Ledger:
    """A ledger whose past ends too: where it is, and of which tenant."""

    database_url: SecretStr
    schema: str
    tenant: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Ledger:
        """The ledger of a deployment, or of a tenant."""
        return cls(settings.database_url, settings.database_schema, settings.owner.tenant)

    def clean(self, retention: Retention, now: datetime, go_on: Callable[[], bool]) -> str:
        """Deletes what is older than the retention says, while `go_on` says so. Tells what it deleted, or why it did not."""
        try:
            with Session(self.database_url.get_secret_value(), "retention", connect_seconds=5).hold() as conn:
                rows = delete_old(conn, self.schema, retention.before(now), go_on)
        except (psycopg.Error, PulsoError) as error:
            return f"{self.tenant or 'ledger'}: {type(error).__name__}: {first_line(error)}"
        return f"{self.tenant or 'ledger'}: {told(rows)}"


def told(rows: Mapping[str, int]) -> str:
    """Numbers of rows by kind, for people."""
    return ", ".join(f"{number} {kind}" for kind, number in rows.items())


def retention_sensor(retention: Retention, ledgers: Sequence[Ledger], status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """Deletes what Dagster and the ledgers keep of the past and nobody needs any more."""

    @dg.sensor(
        name="retention_sensor",
        minimum_interval_seconds=int(EVERY.total_seconds()),
        default_status=status,
        description="Deletes what is older than RETENTION_DAYS: runs and logs of Dagster, attempts, queries, incidents and "
        "requested refreshes of the ledger. The state of each partition and each table stays.",
    )
    @clean_errors()
    def retain(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        until, now = monotonic() + LOOK_SECONDS, datetime.now(UTC)

        def go_on() -> bool:
            return monotonic() < until

        done = [ledger.clean(retention, now, go_on) for ledger in ledgers]
        return dg.SkipReason("; ".join([f"deleted {clean(context.instance, retention, now, go_on)}", *done]))

    return retain
