"""The short form of `make chaos`: every kind of fault once or twice, at points that a seed chooses."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from chaos import soak
from chaos.__main__ import report
from chaos.faults import Kind
from chaos.trial import Broken, World, world
from pulso_etl.refreshing.execution import Outcome
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause

pytestmark = pytest.mark.usefixtures("processes")

SEED = 5


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("chaos")
    with world(home) as found:
        yield found


def test_a_refresh_that_meets_a_fault_loads_all_or_nothing_and_the_next_one_heals(found: World) -> None:
    kinds = found.boundary.kinds()
    results = [found.trial(number, SEED) for number in range(len(kinds))]
    assert {result.kind for result in results} == set(kinds)
    assert sum(result.happened for result in results) > len(results) / 2
    left = [result for result in results if result.error]
    assert left, "no fault made a refresh fail"
    told = report(results, SEED, 1.0)
    assert f"| all | {len(results)} |" in told


def test_a_lost_row_is_found_out(found: World, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh = found._refresh

    def losing(table: str, window: DayRange, kind: Kind, retries: int) -> Outcome:
        outcome = refresh(table, window, kind, retries)
        found.conn.execute(f"DELETE FROM {table} WHERE ctid = (SELECT min(ctid) FROM {table})")
        return outcome

    monkeypatch.setattr(found, "_refresh", losing)
    with pytest.raises(Broken, match="neither as it was nor as the source has it"):
        found.trial(list(found.boundary.kinds()).index(Kind.BIGQUERY_DELAY), SEED)


def test_a_fault_that_nobody_was_counted_at_is_known_to_have_hit_by_the_attempt_that_says_so() -> None:
    at, minute = datetime(2026, 3, 2, 15, tzinfo=UTC), timedelta(minutes=1)
    refused = soak.Fault("BigQuery refused", soak.Part.SOURCE, lambda: False, 40)
    early, late = (soak.Struck(refused, at + n * 10 * minute, at + n * 10 * minute + minute, met=False) for n in range(2))
    found = soak.Findings(soak.Asked(), struck=[early, late])
    assert (found.hits, found.met_nobody) == ({}, {"BigQuery refused": 2})
    soak._judge_cause(found, "run", Cause.SOURCE_UNAVAILABLE, "BigQuery is away", at, at + minute)
    assert (found.hits, found.met_nobody, found.broken) == ({"BigQuery refused": 1}, {"BigQuery refused": 1}, [])
    soak._judge_cause(found, "run", Cause.DESTINATION_UNAVAILABLE, "PostgreSQL is away", at, at + minute)
    assert len(found.broken) == 1
