"""What `make audit` finds, and what the lint leaves to these tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pulso_etl_tests.dagster_stack import CHECKOUT
from pulso_etl_tests.lock_audit import faults, hashes, pins
from pulso_etl_tests.lock_moves import moved

LOCK = """one==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
two==2.0 ; sys_platform == 'linux' \\
    --hash=sha256:cc
"""


@pytest.mark.parametrize(
    ("index", "said", "found"),
    [
        (LOCK, "Resolved 2 packages in 3ms", []),
        (LOCK + "    --hash=sha256:dd\n", "", []),
        (LOCK.replace(":bb", ":ee"), "", ["one==1.0: the index knows no file of the hash sha256:bb"]),
        (
            LOCK,
            'warning: `one==1.0` is yanked (reason: "broken")\n',
            ['one==1.0: withdrawn (reason: "broken")'],
        ),
        ("", "", ["one==1.0: the index knows no file of the hash sha256:aa, sha256:bb", "two==2.0"]),
    ],
)
def test_a_lock_file_is_held_against_the_index(index: str, said: str, found: list[str]) -> None:
    told = [*faults(LOCK, index, said)]
    assert len(told) == len(found)
    assert all(fault.startswith(expected) for fault, expected in zip(told, found, strict=True))


def test_a_renewal_says_what_moved() -> None:
    renewed = LOCK.replace("one==1.0", "one==1.1").replace("two==2.0", "three==3.0")
    assert [*moved(LOCK, renewed)] == ["one: 1.0 -> 1.1", "three: new, 3.0", "two: gone, was 2.0"]
    assert [*moved(LOCK, LOCK)] == []


@pytest.mark.parametrize(
    "path", ["requirements.lock", "requirements-local.lock", "installer.lock", "deploy/build.lock", "deploy/requirements.lock"]
)
def test_every_package_that_is_locked_has_a_hash(path: str) -> None:
    text = (CHECKOUT / path).read_text(encoding="utf-8")
    locked = hashes(text)
    assert len(locked) == len(pins(text))
    assert all(locked.values())


def test_asserts_in_the_package_only_tell_types() -> None:
    """Python removes assertions with -O. So no safety may depend on one."""
    for path in (CHECKOUT / "pulso_etl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert):
                told = ast.unparse(node.test)
                assert told.endswith(" is not None") or told.startswith("isinstance("), f"{Path(path).name}: {told}"


def test_no_function_of_the_package_is_longer_than_a_screen() -> None:
    """Ruff checks complexity and parameters. It does not count lines."""
    long = [
        f"{path.name}:{node.lineno} {node.name}"
        for path in (CHECKOUT / "pulso_etl").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert long == []
