"""Schedules, in America/Lima time: what runs at an hour of its own, whatever the sensors have found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date

import dagster as dg
import psycopg

from pulso_etl.access.permits import WHOLE_GRAPH
from pulso_etl.automation.jobs import ALL_JOB, RECONCILIATION_JOB, reconciliation_request, refresh_request, tenant_of
from pulso_etl.refreshing.budget import Budget
from pulso_etl.refreshing.plan import Mode, plan_refresh
from pulso_etl.sync.days import LIMA, lima_day
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.patience import TICK_SECONDS, within
from pulso_etl.sync.spec import TableSpec, qualified

NIGHTLY = "30 2 * * *"
"""Off-peak: the call centre is closed, and the source's own nightly jobs are over."""

WEEKLY = "0 4 * * 0"
"""Sundays, after the nightly re-check."""


def build_schedules(
    tables: Mapping[str, TableSpec],
    first_day: date,
    budget: Callable[[], Budget],
    watermarks: Callable[[], Mapping[str, Watermark]],
    *,
    with_jobs: bool,
    running: bool,
) -> list[dg.ScheduleDefinition]:
    """The nightly re-check of each table's lookback window, and of what else it owes by its watermark, and the weekly
    reconciliation; not while the day's budget is spent.

    `with_jobs`: whether there are jobs besides Dagster's own. `running`: whether they are on from the start.
    """
    tenant = tenant_of(tables)
    status = dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED

    def within_budget(
        requests: Callable[[Mapping[str, Watermark]], Iterable[dg.RunRequest]],
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        """What is asked for by the watermarks, unless the budget is spent."""
        try:
            today, found = within(TICK_SECONDS, lambda: (budget(), watermarks()))
        except (psycopg.OperationalError, TimeoutError):
            # Each run asks again, before it asks BigQuery; and what else is owed is for the refresh sensor.
            yield from requests({})
            return
        if today.is_spent:
            yield dg.SkipReason(f"the day's BigQuery budget is spent: {today}")
        else:
            yield from requests(found)

    @dg.schedule(
        name=qualified(tenant, "nightly_recheck"),
        cron_schedule=NIGHTLY,
        execution_timezone=LIMA.key,
        job_name=qualified(tenant, ALL_JOB) if with_jobs else WHOLE_GRAPH,
        default_status=status,
        description="Re-materializes the whole lookback window of every table, and older days that are owed, whatever the source "
        "says has changed.",
    )
    def nightly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = context.scheduled_execution_time

        def requests(found: Mapping[str, Watermark]) -> Iterator[dg.RunRequest]:
            for spec in tables.values():
                plan = plan_refresh(
                    spec, found.get(spec.name), Mode.SLIDING_WINDOW, now, first_day=first_day, initial_days=spec.lookback_days
                )
                assert plan.window is not None
                newest, *older = plan.window.chunks(spec.chunk_days)
                key = f"nightly/{lima_day(now)}/{spec.name}"
                yield refresh_request(spec, key, newest)
                yield from (refresh_request(spec, f"{key}/{chunk}", chunk) for chunk in older)

        yield from within_budget(requests)

    @dg.schedule(
        name=qualified(tenant, "weekly_reconciliation"),
        cron_schedule=WEEKLY,
        execution_timezone=LIMA.key,
        job_name=qualified(tenant, RECONCILIATION_JOB) if with_jobs else WHOLE_GRAPH,
        default_status=status,
        description="Compares rows and sums of each partition with BigQuery, a run a table.",
    )
    def weekly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        day = lima_day(context.scheduled_execution_time)
        yield from within_budget(lambda _: [reconciliation_request(spec, f"weekly/{day}/{spec.name}") for spec in tables.values()])

    return [nightly, weekly]
