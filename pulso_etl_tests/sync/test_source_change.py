"""When a load is the first to read a change of the source."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.loading.source_change import source_change
from pulso_etl.sync.source_state import SourceState

READ = datetime(2026, 7, 15, 15, 0, tzinfo=UTC)
LATER = READ + timedelta(minutes=5)
DAY = date(2026, 7, 15)
OLD, NEW = SourceState({"n": 1}, changed_at=READ - timedelta(hours=1)), SourceState({"n": 2}, changed_at=LATER)


def known(state: SourceState | None) -> dict[date, Day]:
    return {DAY: Day(READ, DAY, READ, 10, False, state.digest if state else None)}


@pytest.mark.parametrize(
    ("before", "state", "announced_at", "expected"),
    [
        (known(OLD), NEW, None, LATER),
        (known(OLD), NEW, READ + timedelta(minutes=1), LATER),
        (known(None), NEW, None, LATER),
        (known(OLD), OLD, LATER, None),
        (known(NEW), NEW, None, None),
        (known(OLD), SourceState({"n": 2}, changed_at=READ - timedelta(hours=1)), None, None),
        (known(OLD), SourceState({"n": 2}), LATER, None),
        (known(OLD), None, LATER, LATER),
        (known(OLD), None, READ, None),
        (known(OLD), None, None, None),
        ({}, NEW, LATER, None),
    ],
    ids=[
        "changed",
        "the source knows better than who announces",
        "before it had no signal",
        "announced, not changed",
        "read already",
        "another text of the statement",
        "changed, no time",
        "announced",
        "announced before the reading",
        "nothing known",
        "first load",
    ],
)
def test_a_change_counts_if_the_load_is_the_first_to_read_it(
    before: dict[date, Day], state: SourceState | None, announced_at: datetime | None, expected: datetime | None
) -> None:
    assert source_change(before, state, announced_at) == expected
