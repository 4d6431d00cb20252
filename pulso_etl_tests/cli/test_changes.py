"""`pulso-etl changes` and `pulso-etl undo`, on loads that are in PostgreSQL already."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pulso_etl_tests.api.test_changes import D1, D2, Deployment, deployment
from pulso_etl_tests.cli.conftest import Pulso

__all__ = ["deployment"]


def test_loads_are_shown_and_undone(deployment: Deployment, pulso: Pulso, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", deployment.settings.database_url.get_secret_value())
    monkeypatch.setenv("DATABASE_SCHEMA", deployment.schema)

    def run(*arguments: str) -> tuple[int, str]:
        ended = pulso(*arguments)
        return ended.code, ended.out + ended.err

    before = deployment.recovered()
    code, told = run("changes", "dashboard_data")
    assert code == 0, told
    assert re.findall(r"^load (\d+) of .*: can be undone while nobody", told, re.MULTILINE) == ["2", "1"]
    assert [line.split() for line in told.splitlines() if line.split()[:1] == [str(D2)]] == [
        [str(D2), "1", "1", "0", "30", "->", "12", "-"],
        [str(D2), "1", "0", "0", "0", "->", "30", "none", "->", "100"],
    ]
    assert "load 1 of" not in run("changes", "dashboard_data", "--limit", "1")[1]
    code, told = run("undo", "dashboard_data", "--dry-run")
    assert (code, "load 2 of" in told, "would be undone" in told, "nothing was changed" in told) == (0, True, True, True)
    assert deployment.recovered() == before
    code, told = run("undo", "dashboard_data", "--load", "1")
    assert (code, "undo the last of them first. Nothing was undone" in told) == (2, True)
    for hold in ("1e9", "nan"):
        code, told = run("undo", "dashboard_data", "--hold", hold)
        assert (code, "Traceback" in told, "--hold" in told) == (2, False, True), told
    code, told = run("undo", "dashboard_data", "--hold", "1.5")
    assert (code, "its days are owed again; the next refresh after" in told) == (0, True)
    assert deployment.recovered() == [(D1, "a", 10), (D1, "b", 20), (D2, "a", 30)]
    assert "undone by load" in run("changes", "dashboard_data")[1]
    assert run("undo", "nothing") == (2, run("undo", "nothing")[1])
