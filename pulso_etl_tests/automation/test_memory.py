"""What the refresh sensor remembers from one tick to the next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pulso_etl.automation.memory import Memory

NOW = datetime(2026, 7, 15, 15, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def test_what_is_over_is_forgotten_and_the_rest_is_kept() -> None:
    memory = Memory(looks={"one": NOW, "two": NOW + MINUTE}, last="two", has_listened=True)
    memory.hear("agentes", 7, NOW - MINUTE, NOW, [])
    memory.pace = memory.pace.refused("429", NOW)
    kept = Memory.of(memory.cursor(NOW))
    assert kept == memory.model_copy(update={"looks": {"two": NOW + MINUTE}})


@pytest.mark.parametrize("cursor", [None, "", "2026-07-15T15:00:00+00:00", '{"looks": 3}', '{"looks": {"one": "noon"}}'])
def test_a_cursor_of_another_release_is_no_memory(cursor: str | None) -> None:
    assert Memory.of(cursor) == Memory()


def test_each_table_gets_its_turn() -> None:
    tables = {name: name.upper() for name in ("one", "two", "three")}
    assert list(Memory().in_turn(tables)) == [("one", "ONE"), ("two", "TWO"), ("three", "THREE")]
    assert [name for name, _ in Memory(last="one").in_turn(tables)] == ["two", "three", "one"]
    assert [name for name, _ in Memory(last="gone").in_turn(tables)] == list(tables)


def test_an_announcement_counts_from_when_it_was_first_heard() -> None:
    memory = Memory()
    memory.hear("agentes", 7, NOW - 60 * MINUTE, NOW, [])
    memory.has_listened = True
    memory.hear("gestiones_unificadas", 8, NOW - 60 * MINUTE, NOW, [])
    memory.hear("gestiones_unificadas", 8, NOW - 60 * MINUTE, NOW + MINUTE, [])
    first, second = (memory.word([name]) for name in ("agentes", "gestiones_unificadas"))
    assert first is not None
    assert second is not None
    # The first tick may begin long after an announcement that the tables show already.
    assert (first.heard_at, second.heard_at, second.updated_at) == (NOW - 60 * MINUTE, NOW, NOW - 60 * MINUTE)
    assert memory.word(["agentes", "gestiones_unificadas"]) == second
    assert memory.word(["dashboard_cobranzas"]) is None
    memory.hear("agentes", 9, NOW, NOW + MINUTE, [])
    assert memory.word(["agentes", "gestiones_unificadas"]) == memory.words["agentes"]


def test_a_new_announcement_ends_the_wait_for_the_next_look_once() -> None:
    memory = Memory(has_listened=True)
    for event, looked_at_once in ((7, True), (7, False), (8, True)):
        memory.looks = {"productivity_data": NOW + MINUTE, "dashboard_data": NOW + MINUTE}
        memory.hear("agentes", event, NOW, NOW, ["productivity_data"])
        assert ("productivity_data" not in memory.looks) is looked_at_once
        assert "dashboard_data" in memory.looks
