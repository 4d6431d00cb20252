"""What a refresh would do now: the days that it would read, why it would read each of them, and what that costs.

It launches nothing and bills nothing, except what the look at changed partitions bills (see `bigquery.look`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

import psycopg

from pulso_etl.automation.looks import LedgerNotes, Looks, Seen
from pulso_etl.automation.preview_shapes import DaysToRead, Limited, Preview, RefreshOnChange, TablePreview
from pulso_etl.bigquery.look import LOOK_SECONDS, Look, state_of
from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.refreshing.budget import Budget
from pulso_etl.refreshing.due import MEMORY, Rhythm, Standing, decide_due
from pulso_etl.refreshing.grounds import CLOCK, reasons_of
from pulso_etl.refreshing.on_change import Foreseen, foresee
from pulso_etl.refreshing.plan import RefreshPlan, known_at, pieces
from pulso_etl.refreshing.planner import Planner, watermarks_of
from pulso_etl.refreshing.request import RefreshRequest
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange, contiguous
from pulso_etl.sync.errors import PulsoError, SourceError
from pulso_etl.sync.ledger.queries import Usage
from pulso_etl.sync.ledger.watermarks import TableState, Watermarks
from pulso_etl.sync.source_state import SourceState
from pulso_etl.sync.spec import TableSpec


@dataclass(frozen=True)
class Previews:
    """Tells what a refresh of a deployment would do."""

    settings: Settings
    planner: Planner
    source: BigQuerySource

    def of(self, conn: psycopg.Connection, request: RefreshRequest, now: datetime) -> Preview:
        """What the request would do at the instant `now` (the server's clock). Writes nothing but what a question about partitions
        billed.

        A plain request reads only what changed, as the refresh sensor does; any other one reads its whole range. Of a table that is
        not due it also tells of the refresh that a change of its source will lead to. Raises PlanError
        for an invalid request, LedgerMismatch, and psycopg's errors. A fault of the source is told in the table's `fault`.
        """
        marks = Watermarks(self.settings.database_schema)
        states = marks.read(conn, now - MEMORY)
        plans = self.planner.plans(request, watermarks_of(states), now)
        until = monotonic() + LOOK_SECONDS * max(1, len(plans))
        looks = Looks(self.source, LedgerNotes(marks, conn), until, self.settings.change_aware)
        tables = self._once([self._of_table(request, plan, states.get(plan.table), looks, now) for plan in plans])
        costs = [table.cost_usd for table in tables]
        return Preview(
            at=now,
            tables=tables,
            bytes_billed=sum(table.bytes_billed or 0 for table in tables),
            cost_usd=None if self.planner.budget.price_per_slot_hour is not None else sum(cost or 0 for cost in costs),
            budget=_limits(self.planner.budget.read(conn, now)) if states else [],
        )

    def _of_table(
        self, request: RefreshRequest, plan: RefreshPlan, state: TableState | None, looks: Looks, now: datetime
    ) -> TablePreview:
        spec, standing = self.planner.tables[plan.table], _standing(state)
        if plan.window is None:
            return self._not_due(spec, plan.reason, standing, looks, now)
        seen = looks.seen(spec, plan.window, standing, now) if request.is_plain else Seen(list(plan.window), "the whole range")
        read = self._read(spec, standing, plan.window, seen, now)
        return TablePreview(table=plan.table, reason=f"{plan.reason}; {seen.note}", **read)

    def _once(self, tables: Sequence[TablePreview]) -> list[TablePreview]:
        """The same, with the bytes of a read that tables share counted for its host alone."""
        plans = [
            RefreshPlan(one.table, part, one.reason)
            for one in tables
            for part in contiguous(day for days in one.days for day in DayRange(days.start, days.end))
        ]
        alone = {piece.table for piece in pieces(self.planner.tables, plans) if piece.shared is None}

        def told(one: TablePreview) -> TablePreview:
            if one.reads_with is None:
                return one
            if not one.days or one.table in alone:
                return one.model_copy(update={"reads_with": None})
            cost = None if one.cost_usd is None else 0.0
            reason = f"{one.reason}; shares the query of {one.reads_with}"
            return one.model_copy(update={"bytes_read": 0, "bytes_billed": 0, "cost_usd": cost, "reason": reason})

        return [told(one) for one in tables]

    def _not_due(self, spec: TableSpec, reason: str, standing: Standing, looks: Looks, now: datetime) -> TablePreview:
        """What becomes of a table that is not due: its source may have changed, and then the sensor refreshes it."""
        decision = decide_due(spec, standing, now, Rhythm.of(self.settings))
        window, margin = decision.trailing, timedelta(seconds=self.settings.change_margin_seconds)
        if not looks.asks(spec):
            return TablePreview(table=spec.name, reason=reason)
        try:
            sight = looks.sight(spec, window)
        except PulsoError as error:
            return TablePreview(table=spec.name, reason=f"{reason}; its source was not looked at: {error}")
        foreseen = foresee(spec, standing, decision, sight.state, now, margin)
        if isinstance(foreseen, str):
            return TablePreview(table=spec.name, reason="; ".join(filter(None, [reason, foreseen])))
        seen = looks.seen(spec, window, standing, now, sight)
        on_change = RefreshOnChange(
            at=foreseen.at,
            changed_at=foreseen.changed_at,
            settles_at=foreseen.settles_at,
            least_interval_until=foreseen.rests_until,
            why=f"{_why(foreseen, spec, now)}; {seen.note}",
            **self._read(spec, standing, window, seen, now) | {"reads_with": None},
        )
        return TablePreview(table=spec.name, reason=f"{reason}; {on_change.why}", on_change=on_change)

    def _read(self, spec: TableSpec, standing: Standing, window: DayRange, seen: Seen, now: datetime) -> dict[str, Any]:
        """What a refresh of the window would read, as the fields of `WhatIsRead`."""
        told: dict[str, Any] = {"days_to_read": len(seen.days), "days_verified": window.days - len(seen.days)}
        if not seen.days:
            return told
        days = DayRange(min(seen.days), max(seen.days))
        look, fault = (seen.look, None) if seen.look and days == window else self._look(spec, days, seen.look)
        known = known_at(spec, standing.watermark, now, self.planner.calendar, look.changed if look else {})
        told |= {"days": [DaysToRead.of(one) for one in reasons_of(known, seen.days)], "fault": fault}
        if look is not None:
            # Without a signal of changes, each run reads alone.
            signal = self.settings.change_aware and isinstance(state_of(look, spec), SourceState)
            told |= self._costs(look) | {"reads_with": spec.source.reads_with if signal else None}
        return told

    def _look(self, spec: TableSpec, days: DayRange, whole: Look | None) -> tuple[Look | None, str | None]:
        """A look at these days. What the look over the whole window told of the tables is not asked for again."""
        try:
            if whole is None:
                return self.source.look(spec, days), None
            return replace(whole, bytes_processed=self.source.size(spec, days).bytes_processed), None
        except SourceError as error:
            return None, str(error)

    def _costs(self, look: Look) -> dict[str, Any]:
        pricing = self.planner.budget.pricing
        billed = look.size.bytes_billed
        most = self.settings.bigquery_maximum_bytes_billed
        told: dict[str, Any] = {"bytes_read": look.bytes_processed, "bytes_billed": billed}
        if pricing.per_slot_hour is None:
            told["cost_usd"] = round(pricing.cost(Usage(billed)), 6)
        if billed > most:
            told["fault"] = f"BigQuery would refuse it: {billed:,} bytes are more than BIGQUERY_MAXIMUM_BYTES_BILLED, {most:,}"
        return told


def _standing(state: TableState | None) -> Standing:
    """What the ledger alone knows of a table; Dagster is not asked."""
    if state is None:
        return Standing()
    running = {one.run_id: one.window for one in state.running}
    return Standing(state.watermark, state.attempts, running, state.days, state.source)


def _why(foreseen: Foreseen, spec: TableSpec, now: datetime) -> str:
    """The refresh on change for people."""

    def clock(at: datetime) -> str:
        return f"{spec.zone.local(at):{'%H:%M:%S' if spec.zone.day(at) == spec.zone.day(now) else CLOCK}}"

    at, changed, settles, rests = foreseen.at, foreseen.changed_at, foreseen.settles_at, foreseen.rests_until
    told = [
        f"its source changed at {clock(changed)}" if changed else "its source has changed",
        f"settles at {clock(settles)}" if settles else "",
        f"least interval until {clock(rests)}" if rests else "",
        f"refreshed from {clock(at)} on" if at > now else "refreshed at the next look of the refresh sensor",
    ]
    return "; ".join(filter(None, told))


def _limits(budget: Budget) -> list[Limited]:
    return [Limited(period=one.limit.period, text=str(one), share=one.share) for one in budget.spent]
