"""The errors that Pulso ETL raises, as a tree: catch at the level that you need.

Every message is written for the person who reads it in a run's log: what failed, for which table and partitions, and
what to do about it. What a program does about an error follows from its `cause` alone.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import ClassVar

from pulso_etl.sync.redaction import scrub


class Cause(StrEnum):
    """Why something failed: a closed list. For each value, people have to do something different."""

    SOURCE_UNAVAILABLE = "source_unavailable"
    """BigQuery does not answer for now."""
    SOURCE_QUOTA = "source_quota"
    """BigQuery accepts no more queries until its quota is renewed."""
    SOURCE_ACCESS = "source_access"
    """BigQuery refuses the account or its key."""
    SOURCE_MISSING = "source_missing"
    """BigQuery does not know a source table."""
    SOURCE_REFUSED = "source_refused"
    """BigQuery refuses the query for another reason."""
    COST_CAP = "cost_cap"
    """The query would bill more bytes than the limit for one query."""
    BUDGET = "budget"
    """A limit of the budget is reached."""
    DESTINATION_UNAVAILABLE = "destination_unavailable"
    """PostgreSQL cannot be reached for now, or has no resources left."""
    DESTINATION_REFUSED = "destination_refused"
    """PostgreSQL refuses the work until somebody changes a right or a setting."""
    LOCKED = "locked"
    """Another session holds the table, or changed its rows during the load."""
    NEWER_READING = "newer_reading"
    """A later reading of the same days is loaded already."""
    CONTRACT = "contract"
    """The source does not have the declared columns or types."""
    REJECTED_ROWS = "rejected_rows"
    """Rows of the source have values that the table cannot take."""
    DUPLICATE_KEY = "duplicate_key"
    """The source holds several rows with the same primary key."""
    QUARANTINE_EXCEEDED = "quarantine_exceeded"
    """More rows are bad than the table allows."""
    SCHEMA = "schema"
    """The table in PostgreSQL is not as declared."""
    SHRINK = "shrink"
    """The source holds far fewer rows than the table."""
    SNAPSHOT_WITHDRAWN = "snapshot_withdrawn"
    """The source no longer has a snapshot that the table holds."""
    VERIFICATION = "verification"
    """After the write, the table does not have the rows that it should have."""
    SETTINGS = "settings"
    """A setting is missing or malformed."""
    REQUEST = "request"
    """The request is invalid."""
    UNDO_REFUSED = "undo_refused"
    """The load cannot be undone."""
    UNAUTHORIZED = "unauthorized"
    """The caller has no valid token."""
    FORBIDDEN = "forbidden"
    """The caller may not do this."""
    RATE_LIMITED = "rate_limited"
    """The caller asks too often."""
    LAUNCHER_UNAVAILABLE = "launcher_unavailable"
    """Dagster, which launches the loads, does not answer."""
    TIMEOUT = "timeout"
    """The load took longer than its time-out."""
    CANCELLED = "cancelled"
    """Somebody, or the machine, told the run to end."""
    ABANDONED = "abandoned"
    """The process or its server session ended without a report."""
    INTERNAL = "internal"
    """Another error, most often an error in an asset's code."""
    UNKNOWN = "unknown"
    """The attempt has no cause, or a cause that this release does not know, because another release wrote it."""

    @classmethod
    def of(cls, written: str | None) -> Cause:
        """The cause of that name; UNKNOWN if there is no name or this release does not know it."""
        return cls(written) if written in set(cls) else cls.UNKNOWN

    @property
    def retryable(self) -> bool:
        """Whether the same attempt may succeed later without any change."""
        return self in PASSING


PASSING = frozenset(
    {
        *(Cause.SOURCE_UNAVAILABLE, Cause.DESTINATION_UNAVAILABLE, Cause.LAUNCHER_UNAVAILABLE, Cause.RATE_LIMITED),
        *(Cause.LOCKED, Cause.NEWER_READING, Cause.TIMEOUT, Cause.CANCELLED, Cause.ABANDONED, Cause.INTERNAL, Cause.UNKNOWN),
    }
)


def first_line(error: BaseException) -> str:
    """The first line of the error's message, without secrets, or its class if it has no message."""
    return next(iter(scrub(str(error)).splitlines()), type(error).__name__)


class PulsoError(Exception):
    """Base of all errors of this package."""

    cause: ClassVar[Cause] = Cause.INTERNAL

    @property
    def retryable(self) -> bool:
        """Whether the same attempt may succeed later."""
        return self.cause.retryable


def cause_of(error: BaseException) -> Cause:
    """The cause of the error. An error that is not an Exception is an interrupt."""
    if isinstance(error, PulsoError):
        return error.cause
    return Cause.INTERNAL if isinstance(error, Exception) else Cause.CANCELLED


def interrupted(lasted: timedelta, timeout: timedelta, otherwise: Cause = Cause.CANCELLED) -> Cause:
    """The cause of an attempt that was ended from outside after the time `lasted`.

    It is TIMEOUT if that time reaches the time-out, and `otherwise` if it does not.
    """
    return Cause.TIMEOUT if lasted >= timeout else otherwise


class SettingsError(PulsoError):
    """A setting is missing or malformed."""

    cause = Cause.SETTINGS


class PlanError(PulsoError):
    """The request for a refresh is invalid (unknown table, empty range, a range outside of the partitions)."""

    cause = Cause.REQUEST


class UndoRefused(PlanError):
    """A load cannot be undone: there is no such load, its rows are not kept, or they have changed since."""

    cause = Cause.UNDO_REFUSED


class SourceError(PulsoError):
    """BigQuery did not give the rows."""

    cause = Cause.SOURCE_REFUSED


class SourceUnavailable(SourceError):
    """BigQuery failed for now (429, 5xx, a broken stream)."""

    cause = Cause.SOURCE_UNAVAILABLE


class QueryTimedOut(SourceUnavailable):
    """The query ran longer than the table's time-out, or somebody stopped it."""

    cause = Cause.TIMEOUT


class SourceQuotaSpent(SourceError):
    """BigQuery accepts no more queries until the project's quota is renewed."""

    cause = Cause.SOURCE_QUOTA


class SourceAccessRefused(SourceError):
    """BigQuery refuses the account, or the account's key is unusable."""

    cause = Cause.SOURCE_ACCESS


class SourceTableMissing(SourceError):
    """BigQuery does not know a table that the query reads."""

    cause = Cause.SOURCE_MISSING


class CostCapExceeded(SourceError):
    """The query would bill more bytes than the cap allows."""

    cause = Cause.COST_CAP


class BudgetExceeded(SourceError):
    """A limit of what the queries of a day or of a month may use is reached."""

    cause = Cause.BUDGET


class DestinationError(PulsoError):
    """PostgreSQL refused the load."""

    cause = Cause.DESTINATION_REFUSED


class DestinationUnavailable(DestinationError):
    """PostgreSQL cannot be reached for now, or has no resources left (see `postgres.server_errors`)."""

    cause = Cause.DESTINATION_UNAVAILABLE


class TableBusy(DestinationUnavailable):
    """Another session holds the table, or changed its rows during the load. A later attempt may pass."""

    cause = Cause.LOCKED


class LoadTimedOut(DestinationUnavailable):
    """The server ended a statement or a transaction that took too long: a later attempt may pass."""

    cause = Cause.TIMEOUT


class LedgerMismatch(DestinationError):
    """The ledger in PostgreSQL is from another release, and this process cannot migrate it."""

    cause = Cause.SCHEMA


class NewerReading(DestinationError):
    """Another load has committed days of the range that it read from the source later than this load."""

    cause = Cause.NEWER_READING


class ContractError(DestinationError):
    """The data do not fit the table's declaration: a missing column, a wrong type, ..."""

    cause = Cause.CONTRACT


class RejectedRows(ContractError):
    """Rows of the source cannot be loaded: a null key, NaN, NUL, a value beyond a limit, ..."""

    cause = Cause.REJECTED_ROWS


class DuplicateKeyError(RejectedRows):
    """The source holds several rows with the same primary key."""

    cause = Cause.DUPLICATE_KEY


class QuarantineExceeded(ContractError):
    """More rows would be quarantined than the table allows."""

    cause = Cause.QUARANTINE_EXCEEDED


class SchemaRefused(ContractError):
    """The table in PostgreSQL is not as declared, and only a person may change it."""

    cause = Cause.SCHEMA


class ShrinkRefused(DestinationError):
    """The source has so few rows that it has probably lost rows by accident; the load refuses to delete the table's rows."""

    cause = Cause.SHRINK


class SnapshotWithdrawn(ContractError):
    """The source no longer has a snapshot that the table holds, and the load cannot read the days of the snapshot before it."""

    cause = Cause.SNAPSHOT_WITHDRAWN


class LauncherUnavailable(PulsoError):
    """Dagster does not answer, so nothing can be launched."""

    cause = Cause.LAUNCHER_UNAVAILABLE


class LaunchForbidden(PulsoError):
    """A launch has arguments that are forbidden for everybody, or for this caller."""

    cause = Cause.FORBIDDEN


class RequestRefused(PlanError):
    """A request is unreadable, or Dagster does not accept its run."""


class LoadFailed(PulsoError):
    """A load failed because of an error in code outside of this package, most often in the asset's own stream."""

    cause = Cause.INTERNAL


class LocalStackError(PulsoError):
    """A part of the embedded local stack could not start, or ended unexpectedly."""

    cause = Cause.INTERNAL


class VerificationFailed(DestinationError):
    """After the write and before the commit, the table does not have the rows that it should have."""

    cause = Cause.VERIFICATION
