"""The day's BigQuery budget over all tables: how much the history of extractions says was billed, and whether a query may run.

The source limits each single query. The budget limits the sum of all queries of a day in the deployment's time zone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import dagster as dg
import psycopg
import pyarrow as pa

from pulso_etl.bigquery.source import TIB
from pulso_etl.refreshing.request import NO_GRANTS, Grants
from pulso_etl.settings import GIBIBYTE, Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import BudgetExceeded
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.streams import ChangeStream, DatedStream, PastStream
from pulso_etl.sync.tags import FORCE_TAG
from pulso_etl.sync.zone import DEFAULT_ZONE, Zone

ALERT_SHARE = 0.8


@dataclass(frozen=True)
class Budget:
    """Bytes that may be billed on a day (None: no limit), bytes that were billed, and the price in US dollars per TiB."""

    limit: int | None
    spent: int
    price_per_tib: float

    @property
    def share(self) -> float:
        """The share of the limit that is spent; 0 if there is no limit."""
        return self.spent / self.limit if self.limit else 0.0

    @property
    def is_spent(self) -> bool:
        return self.limit is not None and self.spent >= self.limit

    def __str__(self) -> str:
        limit = "no limit" if self.limit is None else self._amount(self.limit)
        return f"{self._amount(self.spent)} of {limit} billed today"

    def admit(self) -> None:
        """Raises BudgetExceeded if the budget is spent."""
        if self.is_spent:
            raise BudgetExceeded(
                f"the day's BigQuery budget is spent: {self}; only forced refreshes run until midnight "
                f"(--force, or the run tag {FORCE_TAG}=true); the budget is BIGQUERY_DAILY_BUDGET_BYTES"
            )

    def _amount(self, size: int) -> str:
        return f"{size / GIBIBYTE:.2f} GiB ({size / TIB * self.price_per_tib:.2f} USD)"


class DailyBudget(dg.ConfigurableResource[None]):
    """A deployment's budget: the limit of billed bytes per day (None: no limit), the price in USD per TiB, and the time zone."""

    database_url: str
    database_schema: str = "public"
    limit: int | None = None
    price_per_tib: float = 6.25
    timezone: str = DEFAULT_ZONE

    @classmethod
    def of(cls, settings: Settings) -> DailyBudget:
        """The budget that the settings describe."""
        return cls(
            database_url=settings.database_url.get_secret_value(),
            database_schema=settings.database_schema,
            limit=settings.bigquery_daily_budget_bytes,
            price_per_tib=settings.bigquery_price_per_tib,
            timezone=settings.timezone,
        )

    def today(self) -> Budget:
        """The budget now. Asks PostgreSQL only if there is a limit. Raises psycopg.Error."""
        if self.limit is None:
            return Budget(None, 0, self.price_per_tib)
        with Session(self.database_url, "budget").open() as conn:
            return self.read(conn, datetime.now(UTC))

    def read(self, conn: psycopg.Connection, now: datetime) -> Budget:
        """The budget at the instant `now`. It counts the bytes of all attempts that ended since midnight, also of failed ones."""
        zone = Zone(self.timezone)
        spent = Watermarks(self.database_schema).billed(conn, zone.begin(zone.day(now)))
        return Budget(self.limit, spent, self.price_per_tib)

    def admit(self, grants: Grants = NO_GRANTS) -> None:
        """Checks the budget. Every way in and every query calls this.

        Raises BudgetExceeded if the budget is spent and the grants do not say `force`. Raises psycopg.Error.
        """
        if not grants.force:
            self.today().admit()


class SourceStream(ChangeStream, DatedStream, PastStream, Protocol):
    """The kind of stream that a source yields."""


@dataclass(frozen=True)
class AdmittedStream:
    """A SourceStream that checks the budget before each query; a run with the grant `force` passes the check."""

    stream: SourceStream
    budget: DailyBudget
    grants: Grants = NO_GRANTS

    @property
    def metadata(self) -> dict[str, Any]:
        return self.stream.metadata

    @property
    def computed_at(self) -> datetime | None:
        return self.stream.computed_at

    def open(self) -> AbstractContextManager[pa.RecordBatchReader]:
        """Raises BudgetExceeded, or what the stream raises."""
        self.budget.admit(self.grants)
        return self.stream.open()

    def read_past(self, days: DayRange) -> AbstractContextManager[pa.RecordBatchReader]:
        """Raises BudgetExceeded, or what the stream raises."""
        self.budget.admit(self.grants)
        return self.stream.read_past(days)

    def capture(self, watermark: Watermark, written_at: datetime | None, now: datetime) -> datetime | None:
        """Raises BudgetExceeded, or what the stream raises."""
        self.budget.admit(self.grants)
        return self.stream.capture(watermark, written_at, now)

    def whole(self, reason: str) -> None:
        self.stream.whole(reason)
