"""The one way in: here a request becomes a plan for each table, for schedules, command line and HTTP API alike.

The refresh sensor decides by `due.decide_due`, and a run that names no days by `assets.plan_of_run`. Both use the same
`plan_refresh`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pulso_etl.refreshing.budget import QueryBudget
from pulso_etl.refreshing.plan import Calendar, RefreshPlan, plan_refresh
from pulso_etl.refreshing.request import RefreshRequest
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.ledger.watermarks import TableState
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.spec import TableSpec


@dataclass(frozen=True)
class Planner:
    """Decides on the refreshes of one deployment, by its tables, its days and its budget."""

    tables: Mapping[str, TableSpec]
    calendar: Calendar
    budget: QueryBudget

    @classmethod
    def of(cls, settings: Settings, tables: Mapping[str, TableSpec]) -> Planner:
        """The planner that the settings describe."""
        return cls(tables, Calendar.of(settings), QueryBudget.of(settings))

    def named(self, request: RefreshRequest) -> list[TableSpec]:
        """The tables of the request, or all tables if it names none. Raises PlanError for an unknown table."""
        return named_tables(request.tables, self.tables)

    def admit(self, request: RefreshRequest) -> None:
        """Raises BudgetExceeded if a limit of the budget is reached and the request has no grant to go on. Raises psycopg.Error."""
        self.budget.admit(request.grants)

    def plans(self, request: RefreshRequest, watermarks: Mapping[str, Watermark], now: datetime) -> list[RefreshPlan]:
        """What to do about each table of the request at the instant `now`. Raises PlanError."""
        return [plan_refresh(spec, watermarks.get(spec.name), request, now, self.calendar) for spec in self.named(request)]


def named_tables(names: Sequence[str], tables: Mapping[str, TableSpec]) -> list[TableSpec]:
    """The tables of these names, or all tables if there are no names. Raises PlanError for an unknown table."""
    for name in names:
        if name not in tables:
            raise PlanError(f"unknown table {name}; known are {', '.join(tables)}")
    return [tables[name] for name in names or tables]


def watermarks_of(states: Mapping[str, TableState]) -> dict[str, Watermark]:
    """How far each table is loaded, for the tables that have a refresh."""
    return {table: state.watermark for table, state in states.items()}
