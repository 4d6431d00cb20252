"""Why a run reads its days: in its tag, and in the history of attempts that end, fail or die."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.reasons import MOST_BYTES, MOST_RANGES, Ground, Reason, Reasons
from pulso_etl.sync.tags import BACKFILL_ID_TAG, REASONS_TAG

FIRST = date(2026, 3, 1)
WINDOW = DayRange(FIRST, FIRST + timedelta(days=6))
TOLD = Reasons(
    "lookback of 7 days",
    (
        Reason(DayRange(FIRST, FIRST + timedelta(days=2)), Ground.OWED, "owed: «así»"),
        Reason(DayRange(FIRST + timedelta(days=3), WINDOW.end), Ground.CHANGED, "gestiones changed at 10:32"),
    ),
)


def test_a_run_carries_its_reasons_and_a_chunk_of_it_those_of_its_own_days() -> None:
    tags = {REASONS_TAG: TOLD.as_tag()}
    assert Reasons.of_run(tags, WINDOW) == TOLD
    chunk = Reasons.of_run(tags, DayRange(FIRST + timedelta(days=1), FIRST + timedelta(days=3)))
    assert [(str(one.days), one.ground) for one in chunk.days] == [
        ("2026-03-02..2026-03-03", Ground.OWED),
        ("2026-03-04", Ground.CHANGED),
    ]
    assert Reasons.of_metadata(TOLD.as_metadata()) == TOLD
    assert Reasons.of_metadata({}) is None


@pytest.mark.parametrize("tag", ["", "no JSON", "[]", '["plan",[["2026-03-01"]]]', '["plan",[["x","y","changed","z"]]]', "null"])
def test_days_that_no_plan_chose_were_asked_for_by_hand_or_by_a_back_fill(tag: str) -> None:
    (one,) = Reasons.of_run({REASONS_TAG: tag}, WINDOW).days
    assert one == Reason(WINDOW, Ground.ASKED, "asked for by hand")
    assert Reasons.of_run({REASONS_TAG: tag, BACKFILL_ID_TAG: "b"}, WINDOW).plan == "asked for by a back-fill"


@pytest.mark.parametrize("why", ["owed: last read at 10:32", "ñ" * 1000])
def test_a_tag_stays_short_and_tells_the_oldest_days_together(why: str) -> None:
    ranges = [Reason(DayRange(day := FIRST + timedelta(days=2 * place), day), Ground.OWED, why) for place in range(2000)]
    text = Reasons("p" * 1000, tuple(ranges)).as_tag()
    assert len(text.encode()) <= MOST_BYTES
    kept = Reasons.of_run({REASONS_TAG: text}, DayRange(FIRST, ranges[-1].days.end))
    assert 1 <= len(kept.days) <= MOST_RANGES
    assert (kept.days[0].days.start, kept.days[-1].days.end) == (FIRST, ranges[-1].days.end)
    assert kept.days[0].why == f"{2001 - len(kept.days)} ranges of days: owed"


def test_an_attempt_that_dies_leaves_its_reasons_in_the_history(conn: psycopg.Connection, schema: str) -> None:
    marks = Watermarks(schema)
    marks.create(conn)
    first = RunningAttempt("t", WINDOW, "run-1", 1, datetime.now(UTC), TOLD)
    marks.start(conn, first)
    marks.start(conn, RunningAttempt("t", WINDOW, "run-2", 1, datetime.now(UTC)))
    ((run, metadata),) = conn.execute("SELECT extraction_id, metadata FROM etl_extractions").fetchall()
    assert (run, Reasons.of_metadata(metadata)) == ("run-1", TOLD)
