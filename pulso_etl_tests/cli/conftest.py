"""The command line in the process of the tests."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pulso_etl.cli.main import main


@dataclass(frozen=True)
class Ended:
    """The result of a command. `words` are the words of its standard output."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> list[list[str]]:
        return [line.split() for line in self.out.splitlines()]


Pulso = Callable[..., Ended]


def in_this_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pulso:
    """Runs `pulso-etl` with the arguments in this process."""
    # The command configures the process's log. `monkeypatch` restores it after the test.
    monkeypatch.setattr(logging.root, "handlers", list(logging.root.handlers))
    monkeypatch.setattr(logging.root, "level", logging.root.level)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["pulso-etl", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def pulso(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pulso:
    return in_this_process(capsys, monkeypatch)
