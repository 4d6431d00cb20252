"""The tags of runs and assets are named in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import dagster._core.storage.tags as dagster_tags

import pulso_etl
from pulso_etl.sync import tags

PACKAGE = Path(pulso_etl.__file__).parent


def texts(path: Path) -> set[str]:
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_no_other_module_names_a_tag_of_ours() -> None:
    named = {value for value in vars(tags).values() if isinstance(value, str) and value.startswith("pulso_etl/")}
    assert len(named) > 10
    modules = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if named & texts(path)}
    assert modules == {Path("sync/tags.py")}


def test_dagsters_tags_have_dagsters_names() -> None:
    theirs = {name: value for name, value in vars(tags).items() if isinstance(value, str) and value.startswith("dagster/")}
    assert len(theirs) > 5
    assert theirs == {name: getattr(dagster_tags, name) for name in theirs}
