"""How fast looks follow each other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.bigquery.pace import LONGEST_WAIT, Pace

NOW = datetime(2026, 7, 15, 15, 0, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
MOST = 20


def test_each_refusal_doubles_the_wait_and_an_answer_ends_it() -> None:
    pace, now, waits = Pace(), NOW, []
    for _ in range(8):
        pace = pace.refused("429 too many", now)
        assert pace.resume_at is not None
        waits.append((pace.resume_at - now) / MINUTE)
        now = pace.resume_at
        assert pace.halt(now, MOST) == ""
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert "after 8 refusals in a row: 429 too many" in pace.halt(now - MINUTE, MOST)
    pace = pace.after(3, now)
    assert (pace.refusals, pace.resume_at) == (0, None)
    assert pace.refused("403", now).halt(now, MOST).endswith("after a refusal: 403")


def test_a_wait_from_a_wrong_clock_does_not_hold_looks_for_ever() -> None:
    pace = Pace().refused("429", NOW + timedelta(days=400))
    assert pace.halt(NOW, MOST) == ""
    assert timedelta(days=1) > LONGEST_WAIT


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=60))
def test_no_minute_has_more_requests_than_the_bound_and_one_look(looks: list[tuple[int, int]]) -> None:
    pace, now = Pace(), NOW
    sent: dict[datetime, int] = {}
    for seconds, requests in looks:
        now += timedelta(seconds=seconds)
        minute = now.replace(second=0)
        if halted := pace.halt(now, MOST):
            assert sent[minute] >= MOST, halted
            continue
        pace = Pace.model_validate_json(pace.after(requests, now).model_dump_json())
        sent[minute] = sent.get(minute, 0) + requests
    assert all(count < MOST + 9 for count in sent.values())
