"""What a load asks of its days while it begins to read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pytest

from pulso_etl.sync.loading.before import Before, Days

DAY = date(2026, 11, 20)


def test_the_server_is_asked_once_and_both_threads_have_the_answer() -> None:
    asked: list[Days] = []

    def ask() -> Days:
        asked.append(Days({DAY: 3}))
        return asked[-1]

    before = Before(ask)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(before.wait)
        assert before.days() is before.days()
        assert waiting.result(10) is asked[0]
    assert len(asked) == 1


def test_an_error_of_the_server_also_ends_the_thread_that_waits() -> None:
    def ask() -> Days:
        raise InterruptedError("stopped")

    before = Before(ask)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(before.wait)
        with pytest.raises(InterruptedError):
            before.days()
        with pytest.raises(InterruptedError):
            waiting.result(10)
