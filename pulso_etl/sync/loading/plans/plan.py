"""Defines a plan, and the plans that a load tries."""

from __future__ import annotations

from typing import Protocol

from pulso_etl.sync.loading.plans.changes import Changes
from pulso_etl.sync.loading.plans.direct import Direct
from pulso_etl.sync.loading.plans.merge import Merge
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.loading.result import LoadResult
from pulso_etl.sync.loading.staging import Staged
from pulso_etl.sync.loading.under_way import Load


class Plan(Protocol):
    """A way to make the rows of a range equal to the source's."""

    name: PlanName

    def applies(self, load: Load) -> bool:
        """Whether the plan suits what the source gives and the table holds."""

    def stage(self, load: Load) -> Staged | None:
        """Brings the source's rows to PostgreSQL; None if the load has to try the next plan. Raises ContractError."""

    def write(self, load: Load, staged: Staged) -> LoadResult:
        """Makes the table's rows equal to the staged ones. Raises ContractError and ShrinkRefused."""


PLANS: tuple[Plan, ...] = (Changes(), Direct(), Merge())
"""A load tries them in this order. The last one applies to every load."""


def plans_for(load: Load) -> list[Plan]:
    """The plans to try, in order: all plans that apply, or else the plan that the request names and the last plan."""
    named = load.request.plan
    return [plan for plan in PLANS if (plan.applies(load) if named is None else plan.name == named or plan is PLANS[-1])]
