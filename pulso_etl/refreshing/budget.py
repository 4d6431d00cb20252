"""The budget of BigQuery: what the queries of the day and of the month used, and whether another query may run.

The source limits each single query. The budget limits the sum of all queries of a day or of a calendar month, in the deployment's
time zone: loads, also failed ones, and reconciliations. Without a limit nothing is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg

from pulso_etl.bigquery.pricing import Pricing
from pulso_etl.refreshing.period import Period
from pulso_etl.refreshing.request import NO_GRANTS, Grants
from pulso_etl.settings import GIBIBYTE, Settings
from pulso_etl.sync.errors import BudgetExceeded
from pulso_etl.sync.ledger.queries import Usage
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.tags import FORCE_TAG
from pulso_etl.sync.zone import DEFAULT_ZONE, Zone

ALERT_SHARE = 0.8


@dataclass(frozen=True)
class Limit:
    """The most that the queries of a period may use, in bytes or in US dollars. `setting` is the setting that gives it."""

    setting: str
    period: Period
    size: int | None = None
    dollars: float | None = None


@dataclass(frozen=True)
class Spent:
    """A limit, and what the queries of its period used so far."""

    limit: Limit
    used: Usage
    pricing: Pricing

    @property
    def cost(self) -> float:
        """US dollars; the free volume counts for a month only."""
        in_month = self.limit.period is Period.MONTH
        return self.pricing.cost_of_month(self.used) if in_month else self.pricing.cost(self.used)

    @property
    def share(self) -> float:
        """The share of the limit that is spent, 1 or more if nothing is left."""
        if self.limit.size is not None:
            return self.used.bytes_billed / self.limit.size
        assert self.limit.dollars is not None
        return self.cost / self.limit.dollars

    def __str__(self) -> str:
        when = "today" if self.limit.period is Period.DAY else "this month"
        if self.limit.size is None:
            return f"{self.cost:.2f} of {self.limit.dollars:.2f} USD spent {when}"
        return f"{self._amount(self.used.bytes_billed)} of {self._amount(self.limit.size)} billed {when}"

    def _amount(self, size: int) -> str:
        return f"{size / GIBIBYTE:.2f} GiB ({self.pricing.cost(Usage(size)):.2f} USD)"


@dataclass(frozen=True)
class Budget:
    """Every limit with what is spent of it. There may be no limit."""

    spent: tuple[Spent, ...] = ()

    @property
    def nearest(self) -> Spent | None:
        """The limit with the largest share that is spent."""
        return max(self.spent, key=lambda one: one.share, default=None)

    @property
    def share(self) -> float:
        """The largest share of a limit that is spent; 0 if there is no limit."""
        return self.nearest.share if self.nearest else 0.0

    @property
    def is_spent(self) -> bool:
        return self.share >= 1

    def __str__(self) -> str:
        return str(self.nearest) if self.nearest else "no limit"

    def admit(self) -> None:
        """Raises BudgetExceeded if a limit is reached."""
        if self.nearest and self.is_spent:
            limit = self.nearest.limit
            raise BudgetExceeded(
                f"the {limit.period}'s BigQuery budget is spent: {self}; only forced refreshes run until {limit.period.until} "
                f"(--force, or the run tag {FORCE_TAG}=true); the limit is {limit.setting}"
            )


@dataclass(frozen=True)
class QueryBudget:
    """A deployment's budget: its limits (None: no limit), what BigQuery takes, and the time zone. Amounts are US dollars."""

    database_url: str
    database_schema: str = "public"
    daily_bytes: int | None = None
    daily_usd: float | None = None
    monthly_bytes: int | None = None
    monthly_usd: float | None = None
    price_per_tib: float = 6.25
    price_per_slot_hour: float | None = None
    free_tib: float = 1.0
    timezone: str = DEFAULT_ZONE

    @classmethod
    def of(cls, settings: Settings) -> QueryBudget:
        """The budget that the settings describe."""
        return cls(
            database_url=settings.database_url.get_secret_value(),
            database_schema=settings.database_schema,
            daily_bytes=settings.bigquery_daily_budget_bytes,
            daily_usd=settings.bigquery_daily_budget_usd,
            monthly_bytes=settings.bigquery_monthly_budget_bytes,
            monthly_usd=settings.bigquery_monthly_budget_usd,
            price_per_tib=settings.bigquery_price_per_tib,
            price_per_slot_hour=settings.bigquery_price_per_slot_hour,
            free_tib=settings.bigquery_free_tib_per_month,
            timezone=settings.timezone,
        )

    @property
    def pricing(self) -> Pricing:
        """What the account pays."""
        return Pricing(self.price_per_tib, self.price_per_slot_hour, self.free_tib)

    @property
    def limits(self) -> list[Limit]:
        """The limits that are set."""
        every = (
            Limit("BIGQUERY_DAILY_BUDGET_BYTES", Period.DAY, size=self.daily_bytes),
            Limit("BIGQUERY_DAILY_BUDGET_USD", Period.DAY, dollars=self.daily_usd),
            Limit("BIGQUERY_MONTHLY_BUDGET_BYTES", Period.MONTH, size=self.monthly_bytes),
            Limit("BIGQUERY_MONTHLY_BUDGET_USD", Period.MONTH, dollars=self.monthly_usd),
        )
        return [limit for limit in every if limit.size is not None or limit.dollars is not None]

    def today(self) -> Budget:
        """The budget now. Asks PostgreSQL only if there is a limit. Raises psycopg.Error."""
        if not self.limits:
            return Budget()
        with Session(self.database_url, "budget").open() as conn:
            return self.read(conn, datetime.now(UTC))

    def read(self, conn: psycopg.Connection, now: datetime) -> Budget:
        """The budget at the instant `now`: what all queries used since the period began."""
        used = {period: self.used(conn, period, now) for period in {limit.period for limit in self.limits}}
        return Budget(tuple(Spent(limit, used[limit.period], self.pricing) for limit in self.limits))

    def used(self, conn: psycopg.Connection, period: Period, now: datetime) -> Usage:
        """What the queries of the period used until now."""
        zone = Zone(self.timezone)
        return Watermarks(self.database_schema).used(conn, zone.begin(period.first_day(zone.day(now))))

    def admit(self, grants: Grants = NO_GRANTS) -> None:
        """Checks the budget. Every way in and every query calls this.

        Raises BudgetExceeded if a limit is reached and the grants do not say `force`. Raises psycopg.Error.
        """
        if not grants.force:
            self.today().admit()
