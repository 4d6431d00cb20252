"""Changes that the source did not report: a load that finds one says so, and nothing else counts as one."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.loading.missed import missed_days
from pulso_etl.sync.loading.result import Counts, Held, LoadResult
from pulso_etl.sync.source_state import SourceState
from pulso_etl_tests.sync.samples import D1, D2, D3, things

STATE, OTHER = SourceState({"t": 1}), SourceState({"t": 2})
AT = datetime(2026, 3, 1, tzinfo=UTC)


def known(rows: int, state: SourceState | None = STATE) -> Day:
    return Day(AT, D3, AT, rows, source=state.digest if state else None)


def missed(counts: Counts, before: dict[date, Day], held: int, state: SourceState | None = STATE, **spec: Any) -> list[date]:
    result = LoadResult("merge", {D1: counts, D2: Counts(read=4)}, Held({}, "0"))
    return missed_days(things(**spec), before, state, result, {D1: held, D2: 4})


@pytest.mark.parametrize(
    ("counts", "held"), [(Counts(3, updated=1), 3), (Counts(3, inserted=1, deleted=1), 3), (Counts(2, deleted=1), 2)]
)
def test_a_change_in_the_state_of_the_last_reading_was_missed(counts: Counts, held: int) -> None:
    assert missed(counts, {D1: known(3), D2: known(4)}, held) == [D1]
    # The source reported a change, or it gave no signal, or the day is new.
    assert missed(counts, {D1: known(3, OTHER)}, held) == []
    assert missed(counts, {D1: known(3, None)}, held) == []
    assert missed(counts, {D1: known(3)}, held, state=None) == []
    assert missed(counts, {}, held) == []


def test_rows_that_somebody_took_away_here_are_no_change_there() -> None:
    assert missed(Counts(3, inserted=2), {D1: known(3)}, 3) == []


def test_a_strategy_that_writes_every_row_anew_tells_nothing() -> None:
    assert missed(Counts(3, inserted=3, deleted=3), {D1: known(3)}, 3, strategy="replace_partition") == []
