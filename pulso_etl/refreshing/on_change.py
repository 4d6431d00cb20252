"""Whether a table that is not due by its rhythm is refreshed because its source has changed: pure functions.

The refresh sensor calls `why_no_look` first, because a look takes requests, and `decide_change` with what the look showed.
`foresee` says beforehand what the two will decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from pulso_etl.refreshing.due import Decision, Standing
from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.source_state import SourceState
from pulso_etl.sync.spec import Schedule, TableSpec

ANNOUNCED = "somebody said that its source was updated"


@dataclass(frozen=True)
class Verdict:
    """What follows from a look at the source of a table that is not due: whether to `read` its changed days, and why.

    `again_at`: when the source is to be looked at again, if that is earlier than usual.
    """

    read: bool
    reason: str
    again_at: datetime | None = None


def is_unheeded(announced_at: datetime | None, standing: Standing) -> bool:
    """Whether the table has not been compared with its source since somebody said, at this instant, that the source was updated."""
    since = standing.watermark.last_extracted_at if standing.watermark else None
    return announced_at is not None and (since is None or since < announced_at)


def why_no_look(
    spec: TableSpec, standing: Standing, decision: Decision, now: datetime, *, announced: bool, look_at: datetime | None
) -> str | None:
    """Why the source of a table that is not due need not be looked at now, beside the decision's reason; None if it must be.

    `announced`: somebody has said that the source was updated, and the table does not show it yet. `look_at`: the next usual look;
    None for at once.
    """
    why_never = _why_never(spec, standing, decision, now)
    if why_never is not None:
        return why_never
    after = rests_until(spec, standing, decision, now)
    if after is not None:
        what = "its source was updated, as announced" if announced else "its source"
        return f"{what}: looked at from {after:%H:%M:%S %Z} on, {spec.schedule.least_interval} after its last load"
    if look_at is not None and now < look_at:
        return f"its source is looked at again at {look_at:%H:%M:%S %Z}"
    return None


def _why_never(spec: TableSpec, standing: Standing, decision: Decision, now: datetime) -> str | None:
    """Why no change of the source leads to a refresh as things are, beside the decision's reason; None if one can."""
    held = standing.watermark is not None and standing.watermark.is_held(now)
    if held or decision.failures or decision.run_under_way:
        # Holds and the waits after failures come first, and a run that goes on may already read what has changed.
        return ""
    return None if spec.schedule.refresh_on_change else "it is refreshed by its rhythm only"


def rests_until(spec: TableSpec, standing: Standing, decision: Decision, now: datetime) -> datetime | None:
    """The end of the least interval after the table's last load; None if it is over."""
    begun = max((one.started_at for one in standing.attempts if one.window.overlaps(decision.trailing)), default=None)
    # An attempt that begins in the future comes from a wrong clock.
    if begun is None or begun > now or now >= begun + spec.schedule.least_interval:
        return None
    return begun + spec.schedule.least_interval


def unseen_days(days: Mapping[date, Day], state: SourceState, margin: timedelta) -> list[date]:
    """The days that were last read in another state of the source.

    Of a day whose reading had no signal, only the time of the last change tells: it counts if the change may be later than the
    reading. `margin`: how far the clocks of source and server may differ.
    """

    def is_unseen(known: Day) -> bool:
        if known.source is not None:
            return known.source != state.digest
        return state.changed_at is None or state.changed_at >= known.at - margin

    return [day for day, known in days.items() if is_unseen(known)]


def decide_change(
    schedule: Schedule, days: Mapping[date, Day], state: SourceState | str, now: datetime, margin: timedelta, *, announced: bool
) -> Verdict:
    """What to do about a table that is not due, by the state of its source (or why there is none) and the ledger's `days` of its
    window. `margin`: see `unseen_days`.

    An announced update is complete, so nothing waits for it to settle.
    """
    if announced:
        return Verdict(True, ANNOUNCED)
    if isinstance(state, str):
        return Verdict(False, f"its source gives no signal of changes: {state}")
    if not unseen_days(days, state, margin):
        return Verdict(False, "its source has not changed")
    if state.changed_at is None:
        return Verdict(True, "its source has changed")
    settled_at = state.changed_at + schedule.settling_time
    if now < settled_at:
        return Verdict(False, f"its source changed at {state.changed_at:%H:%M:%S %Z} and settles", settled_at)
    return Verdict(True, f"its source changed at {state.changed_at:%Y-%m-%d %H:%M:%S %Z}")


@dataclass(frozen=True)
class Foreseen:
    """A refresh that the sensor will ask for at its first look from `at` on, if the source does not change again.

    `changed_at`: when the source changed; None if it does not tell. `settles_at`, `rests_until`: what the refresh waits for (see
    `decide_change` and `rests_until`); None if it does not wait for that. Instants have a zone.
    """

    at: datetime
    changed_at: datetime | None
    settles_at: datetime | None = None
    rests_until: datetime | None = None


def foresee(
    spec: TableSpec, standing: Standing, decision: Decision, state: SourceState | str, now: datetime, margin: timedelta
) -> Foreseen | str:
    """The refresh of a table that is not due which its changed source will lead to; or why there will be none. `state`: see
    `decide_change`, `margin`: see `unseen_days`.

    Announcements are left aside: an announced update waits for the least interval only.
    """
    why_never = _why_never(spec, standing, decision, now)
    if why_never is not None:
        return why_never
    days = {day: one for day, one in standing.days.items() if day in decision.trailing}
    verdict = decide_change(spec.schedule, days, state, now, margin, announced=False)
    if isinstance(state, str) or not (verdict.read or verdict.again_at):
        return verdict.reason
    rests = rests_until(spec, standing, decision, now)
    at = max(filter(None, (now, rests, verdict.again_at)))
    return Foreseen(at, state.changed_at, verdict.again_at, rests)
