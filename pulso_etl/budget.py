"""The day's BigQuery budget over all tables: what was billed by the history of extractions, and whether more may be.

The cap of one query is the source's; this is the sum of all queries of a day of America/Lima.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any

import dagster as dg
import psycopg
import pyarrow as pa
from psycopg import sql

from pulso_etl.destination.io_manager import DeferredStream
from pulso_etl.errors import BudgetExceeded
from pulso_etl.refresh import LIMA, lima_day

TIB = 1024**4
ALERT_SHARE = 0.8
FORCE_TAG = "pulso_etl/force"
"""Run tag; "true" lets a run go on when the budget is spent."""


@dataclass(frozen=True)
class Budget:
    """Bytes that may be billed on a day (None: no limit), bytes that were, and US dollars per TiB."""

    limit: int | None
    spent: int
    price_per_tib: float

    @property
    def share(self) -> float:
        """Spent of the limit, 0 where there is none."""
        return self.spent / self.limit if self.limit else 0.0

    @property
    def is_spent(self) -> bool:
        return self.limit is not None and self.spent >= self.limit

    def __str__(self) -> str:
        limit = "no limit" if self.limit is None else self._amount(self.limit)
        return f"{self._amount(self.spent)} of {limit} billed today"

    def admit(self) -> None:
        """Raises BudgetExceeded where the budget is spent."""
        if self.is_spent:
            raise BudgetExceeded(
                f"the day's BigQuery budget is spent: {self}; only forced refreshes run until midnight in America/Lima "
                f"(--force, or the run tag {FORCE_TAG}=true); the budget is BIGQUERY_DAILY_BUDGET_BYTES"
            )

    def _amount(self, size: int) -> str:
        return f"{size / 1024**3:.2f} GiB ({size / TIB * self.price_per_tib:.2f} USD)"


class DailyBudget(dg.ConfigurableResource[None]):
    """The budget of a deployment: how many bytes a day of America/Lima may bill (None: no limit), US dollars per TiB."""

    database_url: str
    database_schema: str = "public"
    limit: int | None = None
    price_per_tib: float = 6.25

    def today(self) -> Budget:
        """The budget now. Raises psycopg.Error."""
        if self.limit is None:
            return Budget(None, 0, self.price_per_tib)
        with psycopg.connect(self.database_url, autocommit=True, connect_timeout=10) as conn:
            return read_budget(conn, self.database_schema, datetime.now(UTC), self.limit, self.price_per_tib)


@dataclass(frozen=True)
class AdmittedStream:
    """A stream that is opened only where the budget admits it; a DeferredStream itself."""

    stream: DeferredStream
    budget: DailyBudget

    @property
    def metadata(self) -> dict[str, Any]:
        return self.stream.metadata

    def open(self) -> AbstractContextManager[pa.RecordBatchReader]:
        """Raises BudgetExceeded, or what the stream raises."""
        self.budget.today().admit()
        return self.stream.open()


def read_budget(conn: psycopg.Connection, schema: str, now: datetime, limit: int | None, price_per_tib: float) -> Budget:
    """The budget at the instant `now`, by the attempts that ended since midnight in America/Lima, failed ones included."""
    if limit is None or conn.execute("SELECT to_regclass(%s)", (f'"{schema}".etl_extractions',)).fetchone() == (None,):
        return Budget(limit, 0, price_per_tib)
    midnight = datetime.combine(lima_day(now), time(), LIMA)
    row = conn.execute(
        sql.SQL("SELECT coalesce(sum((metadata->>'bytes_billed')::numeric), 0)::bigint FROM {} WHERE finished_at >= %s").format(
            sql.Identifier(schema, "etl_extractions")
        ),
        (midnight,),
    ).fetchone()
    assert row is not None
    return Budget(limit, int(row[0]), price_per_tib)
