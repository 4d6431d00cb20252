"""No test depends on the hour at which it runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pulso_etl_tests.clock import MARGIN, zone_at

TESTS = Path(__file__).parent
CLOCKS = {"now", "today", "utcnow", "time"}
"""The functions that read the clock: `datetime.now`, `date.today`, `time.time`, …"""


def read_at_import(code: ast.AST) -> Iterator[ast.Call]:
    """The reads of the clock at the import of the module. They are all outside of functions."""
    if isinstance(code, ast.Lambda):
        return
    inside = [*code.decorator_list, code.args] if isinstance(code, ast.FunctionDef) else ast.iter_child_nodes(code)
    for part in inside:
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr in CLOCKS:
            yield part
        yield from read_at_import(part)


@pytest.mark.parametrize(
    ("code", "reads"),
    [
        ("TODAY = day(datetime.now(UTC))", 1),
        ("class A:\n    at = date.today()", 1),
        ("@parametrize('x', [datetime.now(UTC)])\ndef test(x): ...", 1),
        ("def f(at=time.time()): ...", 1),
        ("def f():\n    return datetime.now(UTC)", 0),
        ("later = lambda: datetime.now(UTC)", 0),
    ],
)
def test_a_read_of_the_clock_at_import_is_found(code: str, reads: int) -> None:
    assert len(list(read_at_import(ast.parse(code)))) == reads


def test_only_the_clock_of_the_session_is_read_at_import() -> None:
    """A session may last past midnight. After that, a day from the time of import is yesterday."""
    found = [
        f"{file.relative_to(TESTS)}:{call.lineno}"
        for file in sorted(TESTS.rglob("*.py"))
        for call in read_at_import(ast.parse(file.read_text(encoding="utf-8")))
        if file.name != "clock.py"
    ]
    assert found == [], "take TODAY from pulso_etl_tests.clock, or ask for the instant in the test"


@pytest.mark.parametrize("minutes", range(0, 24 * 60, 20))
def test_a_session_is_far_from_midnight_at_every_hour(minutes: int) -> None:
    instant = datetime(2026, 11, 26, tzinfo=UTC) + timedelta(minutes=minutes)
    zone = zone_at(instant)
    assert zone.begin(zone.day(instant)) + MARGIN <= instant
    assert instant < zone.begin(zone.day(instant) + timedelta(days=1)) - MARGIN
