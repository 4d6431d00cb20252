"""Which alerts a deployment needs: a pure function from its state at one instant to the events of `alerts`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pulso_etl.alerts.incidents import Event, Failed, Recovered, State, Topic, succeeded
from pulso_etl.alerts.messages import last_load
from pulso_etl.refreshing.budget import ALERT_SHARE, Budget
from pulso_etl.refreshing.due import Standing
from pulso_etl.refreshing.freshness import freshness
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger.watermarks import Attempt
from pulso_etl.sync.spec import TableSpec


@dataclass(frozen=True)
class CheckOutcome:
    """The last evaluation of an asset check, at an instant with zone."""

    table: str
    name: str
    passed: bool
    at: datetime
    run_id: str | None
    description: str


@dataclass(frozen=True)
class Situation:
    """The state of a deployment at the instant `now`: the standing of each table, its failed runs that no later run has repaired,
    the last outcomes of the checks, and the budget."""

    now: datetime
    found: Mapping[str, Standing]
    failures: Mapping[str, Sequence[Attempt]]
    checks: Iterable[CheckOutcome]
    budget: Budget


def events(tables: Mapping[str, TableSpec], situation: Situation, *, since: datetime, retry_limit: int) -> Iterator[Event]:
    """What happened after `since`, and what is wrong now or is well again."""
    now = situation.now
    for table, spec in tables.items():
        standing = situation.found[table]
        for attempt in sorted(standing.attempts, key=lambda attempt: attempt.finished_at):
            if attempt.finished_at > since and not attempt.withdrawn:
                yield from _ended(spec, attempt)
        # For a table without a load, the alerts about its failed runs are enough.
        if standing.watermark is not None and standing.watermark.last_extracted_at is not None:
            detail = last_load(standing.watermark, now, spec.timezone)
            if (lost := standing.watermark.lost) is not None:
                detail = f"faltan {lost.rows} filas de {lost.window}; para recuperarlas: {lost.command(spec)}"
            yield _state(freshness(spec, standing.watermark, now).is_stale, State.STALE, table, now, detail)
        outstanding = [attempt for attempt in situation.failures[table] if not attempt.withdrawn]
        if len(outstanding) >= retry_limit:
            last = outstanding[-1]
            yield Failed(State.RECOVERY_LIMIT, table, now, window=last.window, run_id=last.run_id, detail=last.error or "")
    for check in situation.checks:
        if check.passed:
            yield Recovered({State.CHECK}, check.table, check.at, check.name)
        else:
            yield Failed(State.CHECK, check.table, check.at, check.name, run_id=check.run_id, detail=check.description)
    budget = situation.budget
    yield _state(budget.is_spent, State.BUDGET_100, "", now, str(budget))
    yield _state(budget.share >= ALERT_SHARE and not budget.is_spent, State.BUDGET_80, "", now, str(budget))


def _ended(spec: TableSpec, attempt: Attempt) -> Iterator[Event]:
    if not attempt.succeeded:
        yield Failed(
            attempt.cause or Cause.UNKNOWN,
            spec.name,
            attempt.finished_at,
            window=attempt.window,
            run_id=attempt.run_id,
            detail=attempt.error or "",
            began=attempt.started_at,
        )
        return
    if attempt.is_undoing:
        # It says nothing of the source.
        yield Recovered({State.MOVEMENT}, spec.name, attempt.finished_at)
        return
    yield succeeded(spec.name, attempt.finished_at, attempt.started_at)
    found = attempt.metadata
    left_out, share = found.get("columns_not_loaded") or [], found.get("quarantined_share") or 0
    missed, moved = found.get("changes_missed") or 0, found.get("implausible_movements") or []
    for wrong, cause, detail in (
        (bool(left_out), State.DRIFT, f"columnas nuevas: {', '.join(map(str, left_out))}"),
        (share > spec.quality.alert_quarantined_share, State.QUARANTINE, f"{share:.1%} de las filas, en etl_quarantine"),
        (missed > 0, State.MISSED_CHANGE, f"{missed} días cambiaron sin aviso del origen"),
        (bool(moved), State.MOVEMENT, "; ".join(map(_told, moved))),
    ):
        yield _state(wrong, cause, spec.name, attempt.finished_at, detail, attempt)


def _told(moved: Mapping[str, str]) -> str:
    """A movement that is not plausible, for people."""
    usual = f"lo habitual es un cambio de {moved['least']} a {moved['most']}"
    return f"{moved['day']}: {moved['figure']} pasó de {moved['before'] or 'nada'} a {moved['after'] or 'nada'} ({usual})"


def _state(wrong: bool, cause: Topic, table: str, at: datetime, detail: str, attempt: Attempt | None = None) -> Event:
    if not wrong:
        return Recovered({cause}, table, at)
    window, run_id = (attempt.window, attempt.run_id) if attempt else (None, None)
    return Failed(cause, table, at, window=window, run_id=run_id, detail=detail)
