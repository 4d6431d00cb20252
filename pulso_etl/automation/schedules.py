"""Schedules in the time zone of the tables. They run at a fixed hour, independently of the sensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import dagster as dg
import psycopg

from pulso_etl.access.permits import WHOLE_GRAPH
from pulso_etl.refreshing.keys import run_request
from pulso_etl.refreshing.launch import Launch, launches
from pulso_etl.refreshing.planner import Planner
from pulso_etl.refreshing.request import Grants, Mode, RefreshRequest
from pulso_etl.refreshing.runs import ALL_JOB, RECONCILIATION_JOB, tenant_of, zone_of
from pulso_etl.sync.errors import BudgetExceeded
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.patience import TICK_SECONDS, within
from pulso_etl.sync.spec import qualified

NIGHTLY = "30 2 * * *"
"""At this hour the call centre is closed, and the source's own nightly jobs have ended."""

WEEKLY = "0 4 * * 0"
"""Sundays, after the nightly re-check."""

Requests = Iterator[dg.RunRequest | dg.SkipReason]


@dataclass(frozen=True)
class Schedules:
    """The run requests of one deployment's schedules. `watermarks` reads how far its tables are loaded."""

    planner: Planner
    watermarks: Callable[[], Mapping[str, Watermark]]

    def nightly(self, now: datetime) -> Requests:
        """Refreshes of each table over its lookback window and its older owed days. Many days are split into several runs. A
        table of which a load was undone is left out until its hold ends."""
        request = RefreshRequest(mode=Mode.SLIDING_WINDOW, grants=Grants(compare=True))

        def asked(found: Mapping[str, Watermark]) -> Iterator[dg.RunRequest]:
            plans = [
                replace(plan, reason=f"nightly re-check, {plan.reason}")
                for plan in self.planner.plans(request, found, now)
                if plan.table not in found or not found[plan.table].is_held(now)
            ]
            begun = set()
            for launch in launches(self.planner.tables, plans):
                spec = launch.spec
                key = f"nightly/{spec.zone.day(now)}/{spec.name}"
                yield run_request(launch, f"{key}/{launch.window}" if spec.name in begun else key)
                begun.add(spec.name)

        yield from self._within_budget(request, asked)

    def weekly(self, now: datetime) -> Requests:
        """A comparison of each table with its source."""
        specs = self.planner.tables.values()
        yield from self._within_budget(
            RefreshRequest(),
            lambda _: [run_request(Launch.of_reconciliation(spec), f"weekly/{spec.zone.day(now)}/{spec.name}") for spec in specs],
        )

    def _within_budget(
        self, request: RefreshRequest, asked: Callable[[Mapping[str, Watermark]], Iterable[dg.RunRequest]]
    ) -> Requests:
        """The requests that follow from the watermarks; none if the budget is spent."""

        def look() -> Mapping[str, Watermark]:
            self.planner.admit(request)
            return self.watermarks()

        try:
            found = within(TICK_SECONDS, look)
        except BudgetExceeded as error:
            yield dg.SkipReason(str(error))
            return
        except (psycopg.OperationalError, TimeoutError):
            # Each run checks the budget again before its query. The refresh sensor launches what the budget stopped.
            found = {}
        yield from asked(found)


def build_schedules(
    planner: Planner, watermarks: Callable[[], Mapping[str, Watermark]], *, with_jobs: bool, running: bool
) -> list[dg.ScheduleDefinition]:
    """The nightly re-check of each table's lookback window and of older days that are owed, and the weekly reconciliation. Both
    skip while the day's budget is spent.

    `with_jobs`: whether the deployment has jobs of its own. `running`: whether the schedules are on from the start.
    """
    tenant, schedules = tenant_of(planner.tables), Schedules(planner, watermarks)
    common: dict[str, Any] = {
        "execution_timezone": zone_of(planner.tables).name,
        "default_status": dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED,
    }

    def job(name: str) -> str:
        return qualified(tenant, name) if with_jobs else WHOLE_GRAPH

    @dg.schedule(
        name=qualified(tenant, "nightly_recheck"),
        cron_schedule=NIGHTLY,
        job_name=job(ALL_JOB),
        description="Re-materializes the whole lookback window of every table, and older days that are owed, whatever the source "
        "says has changed.",
        **common,
    )
    def nightly(context: dg.ScheduleEvaluationContext) -> Requests:
        yield from schedules.nightly(context.scheduled_execution_time)

    @dg.schedule(
        name=qualified(tenant, "weekly_reconciliation"),
        cron_schedule=WEEKLY,
        job_name=job(RECONCILIATION_JOB),
        description="Compares rows and sums of each partition with BigQuery, a run a table.",
        **common,
    )
    def weekly(context: dg.ScheduleEvaluationContext) -> Requests:
        yield from schedules.weekly(context.scheduled_execution_time)

    return [nightly, weekly]
