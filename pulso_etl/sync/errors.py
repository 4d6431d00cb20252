"""The errors that Pulso ETL raises, as a tree: catch at the level that you need.

Every message is written for the person who reads it in a run's log: what failed, for which table and partitions, and
what to do about it. `retryable` says whether the same attempt may go well later; the asset's step asks only this.
"""

from __future__ import annotations

from pulso_etl.sync.redaction import scrub


def first_line(error: BaseException) -> str:
    """The first line of the error's message, without secrets, or its class where it has none."""
    return next(iter(scrub(str(error)).splitlines()), type(error).__name__)


class PulsoError(Exception):
    """Base of all errors of this package."""

    retryable = False


class SettingsError(PulsoError):
    """A setting is missing or malformed."""


class PlanError(PulsoError):
    """A refresh was asked for that makes no sense (unknown table, empty range, a range outside the partitions)."""


class SourceError(PulsoError):
    """BigQuery did not give what was asked."""


class SourceUnavailable(SourceError):
    """BigQuery failed in a way that passes (429, 5xx, a broken stream)."""

    retryable = True


class CostCapExceeded(SourceError):
    """The query would bill more bytes than the cap allows."""


class BudgetExceeded(SourceError):
    """The day's budget of bytes billed is spent."""


class DestinationError(PulsoError):
    """PostgreSQL refused the load."""


class DestinationUnavailable(DestinationError):
    """PostgreSQL is away, out of room, or another writer holds the table: it passes (see `destination.server_errors`)."""

    retryable = True


class NewerReading(DestinationError):
    """Days of the range were loaded from a later reading of the source than this load's own."""

    retryable = True


class ContractError(DestinationError):
    """The data do not fit the table's declaration: a missing column, a wrong type, ..."""


class RejectedRows(ContractError):
    """Rows of the source can't be loaded: a null key, NaN, NUL, a value beyond a limit, ..."""


class DuplicateKeyError(RejectedRows):
    """The source holds several rows of one primary key."""


class QuarantineExceeded(ContractError):
    """More rows would be quarantined than the table allows."""


class SchemaRefused(ContractError):
    """The table in PostgreSQL is not as declared, and only a person may change it so."""


class ShrinkRefused(DestinationError):
    """The source holds so few rows that deleting the rest looks like an accident."""


class SnapshotWithdrawn(ContractError):
    """The source no longer has a snapshot that the table holds, and the one before it lies outside of what can be read."""


class LoadFailed(PulsoError):
    """A load failed by an error that is none of ours: most often one that the asset's own stream raised."""

    retryable = True


class LocalStackError(PulsoError):
    """A part of the embedded default could not start, or died."""


class VerificationFailed(DestinationError):
    """After the write, before the commit, the table does not hold what it should."""
