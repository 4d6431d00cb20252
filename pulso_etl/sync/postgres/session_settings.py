"""The settings that every PostgreSQL session states, both ours and the sessions of Dagster's own storage."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

STATED = {
    "array_nulls": "on",
    "bytea_output": "hex",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "extra_float_digits": "1",
    "idle_session_timeout": "0",
    "IntervalStyle": "postgres",
    "quote_all_identifiers": "off",
    "row_security": "on",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    "transform_null_equals": "off",
}
"""The same in all sessions. A session skips settings that the server's version does not have.

`default_transaction_read_only` is not among them. A provider sets it when the disk is nearly full, and then wants no writer.
"""


@dataclass(frozen=True)
class Limits:
    """When the server ends a statement, a wait for a lock, a transaction, or a pause in it. None: never. No other limits apply."""

    statement: timedelta | None = None
    lock: timedelta | None = None
    transaction: timedelta | None = None
    idle_in_transaction: timedelta | None = None

    @classmethod
    def of_work(cls, timeout: timedelta, lock: timedelta) -> Limits:
        """Limits of work that may take `timeout` in all, the source's time included, and wait for another writer up to `lock`."""
        return cls(statement=timeout, lock=lock, transaction=timeout, idle_in_transaction=timeout)

    def settings(self) -> dict[str, str]:
        """The server's settings, by name. A version without a limit of transactions ignores that one."""
        limits = {
            "statement_timeout": self.statement,
            "lock_timeout": self.lock,
            "transaction_timeout": self.transaction,
            "idle_in_transaction_session_timeout": self.idle_in_transaction,
        }
        return {name: f"{limit // timedelta(milliseconds=1) if limit else 0}ms" for name, limit in limits.items()}


UNLIMITED = Limits()


STATING = (
    "SELECT pg_catalog.set_config(name, value, false) FROM (VALUES {}) AS stated (name, value) "
    "WHERE pg_catalog.current_setting(name, true) IS NOT NULL"
)
"""The statement that gives a session these pairs of name and value. It skips settings that the server's version does not have."""
