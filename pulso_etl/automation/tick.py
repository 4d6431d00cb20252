"""One tick of the refresh sensor: what it asks for, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import dagster as dg
import psycopg

from pulso_etl.automation.looks import BY_LOOK, Looks, Seen
from pulso_etl.automation.memory import Memory, Word
from pulso_etl.refreshing.due import Decision, Standing
from pulso_etl.refreshing.keys import asset_key
from pulso_etl.refreshing.launch import Launch, launches
from pulso_etl.refreshing.on_change import ANNOUNCED, decide_change, is_unheeded, why_no_look
from pulso_etl.refreshing.plan import RefreshPlan, known_at
from pulso_etl.refreshing.planner import Planner
from pulso_etl.refreshing.request import Grants, RefreshRequest
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange, contiguous
from pulso_etl.sync.errors import PulsoError
from pulso_etl.sync.ledger.ledger import Unchanged
from pulso_etl.sync.ledger.queries import Purpose, Usage
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.owed import Horizon
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.tags import AVOIDED_TAG


@dataclass(frozen=True)
class Ticked:
    """What a tick asks for, a line with the reason for each table (tables without a run come last), and the sensor's cursor."""

    requests: list[dg.RunRequest]
    reasons: list[str]
    cursor: str


@dataclass(frozen=True)
class Asked:
    """A refresh of a table that a tick asks for: a plan for each range of its days. `cause` is part of the run keys: it says which
    refresh it is, and which change is read. `bytes_avoided`: what all of its runs together avoid."""

    plans: Sequence[RefreshPlan]
    cause: Sequence[str]
    bytes_avoided: int


@dataclass
class Tick:
    """A tick at the instant `now` (the server's clock). It reads and writes the ledger over `conn`, and tells Dagster of ranges
    that were verified without a run. `as_run` asks for a launch under a run key."""

    settings: Settings
    planner: Planner
    instance: dg.DagsterInstance
    conn: psycopg.Connection
    looks: Looks
    memory: Memory
    now: datetime
    as_run: Callable[[Launch, str], dg.RunRequest]
    asked: list[Asked] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)

    @property
    def margin(self) -> timedelta:
        """How far the clocks of source and server may differ."""
        return timedelta(seconds=self.settings.change_margin_seconds)

    def of(self, decided: Mapping[str, tuple[Standing, Decision]]) -> None:
        """Looks at the sources of due tables first, then at those of the others, each in its turn."""
        others = {}
        for table, (standing, decision) in decided.items():
            if decision.window is None:
                others[table] = (standing, decision)
            elif delay := self.looks.delay():
                self._wait(decision, delay)
            else:
                seen = self.looks.seen(self.planner.tables[table], decision.window, standing, self.now)
                self._refresh(standing, decision, decision.reason, seen)
        turns = list(self.memory.in_turn(others))
        for table, (standing, decision) in turns:
            self._on_change(self.planner.tables[table], standing, decision)

    def _on_change(self, spec: TableSpec, standing: Standing, decision: Decision) -> None:
        """Refreshes a table that is not due if its source has changed, or was updated as somebody has announced."""
        announced, asks = self._unheeded(standing, decision) is not None, self.looks.asks(spec)
        if not announced and not asks:
            self._wait(decision)
            return
        look_at = self.memory.looks.get(spec.name)
        why_not = why_no_look(spec, standing, decision, self.now, announced=announced, look_at=look_at)
        if why_not is None and asks:
            why_not = self.looks.halt() or None
        if why_not is not None:
            self._wait(decision, why_not)
        elif asks:
            self._look(spec, standing, decision, announced=announced)
        else:
            self._refresh(standing, decision, ANNOUNCED, self.looks.seen(spec, decision.trailing, standing, self.now))

    def _look(self, spec: TableSpec, standing: Standing, decision: Decision, *, announced: bool) -> None:
        """Looks at the source of such a table, and refreshes the days that have changed."""
        window = decision.trailing
        self.memory.last = spec.name
        self.memory.looks[spec.name] = self.now + timedelta(seconds=self.settings.change_look_seconds)
        try:
            sight = self.looks.sight(spec, window)
        except PulsoError as error:
            if self.looks.away is not None:
                # The pace says when looks go on.
                self.memory.looks.pop(spec.name)
            if announced and self.looks.away is None:
                # Somebody knows that there is something new. The run will report what is wrong with the source.
                seen = Seen(list(window), f"the whole window: no look was possible ({error})")
                self._refresh(standing, decision, ANNOUNCED, seen)
            else:
                self._wait(decision, str(error))
            return
        known = {day: one for day, one in standing.days.items() if day in window}
        verdict = decide_change(spec.schedule, known, sight.state, self.now, self.margin, announced=announced)
        if verdict.again_at is not None:
            self.memory.looks[spec.name] = verdict.again_at
        if verdict.read:
            seen = self.looks.seen(spec, window, standing, self.now, sight)
            self._refresh(standing, decision, verdict.reason, seen, sight.digest)
        else:
            self._wait(decision, verdict.reason)

    def _unheeded(self, standing: Standing, decision: Decision) -> Word | None:
        """The announcement of one of the table's sources that the table does not show yet."""
        word = self.memory.word(self.planner.tables[decision.table].sources)
        return word if word is not None and is_unheeded(word.heard_at, standing) else None

    def _wait(self, decision: Decision, more: str = "") -> None:
        self.waiting.append("; ".join(filter(None, [f"{decision.table}: {decision.reason}", more])))

    def _refresh(self, standing: Standing, decision: Decision, reason: str, seen: Seen, cause: str = "") -> None:
        """Asks for runs over the days to read. `cause` is part of the run keys: it says which change is read."""
        spec = self.planner.tables[decision.table]
        why = f"{reason}; {seen.note}"
        self.reasons.append(f"{spec.name}: {why}")
        self._keep(spec, decision.trailing, seen)
        if not seen.days:
            self._report_unchanged(spec, decision.trailing, seen.bytes_avoided)
            self.verified.append(spec.name)
        word = self._unheeded(standing, decision)
        known = known_at(spec, standing.watermark, self.now, self.planner.calendar, seen.look.changed if seen.look else {})
        # After a failure, only the rows of the source count.
        grants = Grants(capture=self.looks.captures(spec) and not decision.failures)
        plans = []
        for unread in contiguous(seen.days):
            asked = RefreshRequest((spec.name,), start=unread.start, end=unread.end, grants=grants)
            asked = replace(asked, announced_at=word.updated_at if word else None)
            # The days stand in the request, so only this place knows why they are read.
            plans += [replace(plan, reason=why, known=known) for plan in self.planner.plans(asked, {}, self.now)]
        self.asked.append(Asked(plans, (decision.slot, cause), seen.bytes_avoided))

    def run_requests(self) -> list[dg.RunRequest]:
        """The runs of everything that the tick asks for, launched together: reads that they share have a new key each time."""
        requests, asked = [], {plan.table: one for one in self.asked for plan in one.plans}
        avoided = {table: one.bytes_avoided for table, one in asked.items()}
        for launch in launches(self.planner.tables, (plan for one in self.asked for plan in one.plans)):
            name = launch.spec.name
            # Dagster launches each run only once per key.
            key = "/".join(filter(None, [name, str(launch.window), *asked[name].cause]))
            # The first run tells what all of them together avoid.
            more = {AVOIDED_TAG: str(size)} if (size := avoided.pop(name, 0)) else {}
            requests.append(self.as_run(replace(launch, tags={**launch.tags, **more}), key))
        return requests

    def _keep(self, spec: TableSpec, window: DayRange, seen: Seen) -> None:
        """Writes to the ledger what the look told: the days that need not be read, and the states that the next look compares."""
        unchanged = [day for day in window if day not in seen.days]
        if seen.state is None or not (unchanged or seen.state.partitions):
            return
        marks = Watermarks(self.settings.database_schema)
        horizon = Horizon.of(spec, self.settings.partitions_start, spec.zone.day(self.now))
        with self.conn.transaction():
            marks.unchanged(self.conn, spec.name, unchanged, Unchanged(self.now, seen.state, horizon, seen.empty))
            if not seen.days:
                avoided = Usage(bytes_avoided=seen.bytes_avoided)
                marks.queries.record(self.conn, spec.name, Purpose.SKIPPED, BY_LOOK, avoided)

    def _report_unchanged(self, spec: TableSpec, window: DayRange, bytes_avoided: int) -> None:
        """Tells Dagster that nothing has changed: the table is as fresh as after a load."""
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset_key(spec),
                partition=str(window.end),
                description="The source has not changed since this range was loaded; nothing was read.",
                metadata={"partitions_verified": window.days, "range": str(window), "bytes_avoided": bytes_avoided},
            )
        )
