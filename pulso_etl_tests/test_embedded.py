"""What other processes know of the embedded default: its settings, who runs its servers, and who uses them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pulso_etl import embedded
from pulso_etl.embedded import Holder, adopt, holder, holding, join, settings_file, unused
from pulso_etl.local.stack import Sample, local_stack
from pulso_etl.sync.errors import LocalStackError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an embedded default whose settings are left, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "DAGSTER_POSTGRES_URL", "TIMEZONE", embedded.VARIABLE):
        # Set first, so that monkeypatch removes what a test adopts.
        monkeypatch.setenv(name, "")
        del os.environ[name]
    folder = tmp_path / ".pulso"
    folder.mkdir()
    lines = ["DATABASE_URL='postgresql:///left'", "TIMEZONE='America/Bogota'", f"{embedded.VARIABLE}='{folder}'"]
    settings_file(folder).write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_a_process_without_a_database_adopts_the_settings_that_were_left_and_keeps_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIMEZONE", "America/Santiago")
    assert adopt() == home
    assert (os.environ["DATABASE_URL"], os.environ["TIMEZONE"]) == ("postgresql:///left", "America/Santiago")


@pytest.mark.parametrize("name", ["DATABASE_URL", "DAGSTER_POSTGRES_URL"])
def test_a_process_with_a_database_adopts_nothing(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "postgresql:///production")
    assert adopt() is None
    join()
    assert (os.environ[name], "TIMEZONE" in os.environ) == ("postgresql:///production", False)


def test_the_holder_is_known_while_it_is_there_and_a_second_one_is_told_of_it(home: Path) -> None:
    assert holder(home) is None
    with holding(home, "dev") as ready:
        assert holder(home) == Holder("dev", os.getpid())
        ready()
        assert holder(home) == Holder("dev", os.getpid(), ready=True)
        with pytest.raises(LocalStackError, match=rf"`pulso-etl dev` \(process {os.getpid()}\) already runs the servers"):
            next(holding(home, "servers").gen)
    assert holder(home) is None
    with holding(home, "servers"):
        assert holder(home) == Holder("servers", os.getpid())


def test_a_second_stack_is_refused_before_it_starts_or_changes_anything(home: Path) -> None:
    before = settings_file(home).read_bytes()
    with holding(home, "dev"), pytest.raises(LocalStackError, match="already runs the servers"):
        local_stack(home, holds="dev").__enter__()
    assert settings_file(home).read_bytes() == before
    assert not (home / "postgres").exists()


def test_servers_are_unused_once_the_last_user_has_gone(home: Path) -> None:
    import fcntl

    with (home / "users").open("a") as user, unused(home) as nobody:
        fcntl.flock(user, fcntl.LOCK_SH)
        assert not nobody()
        fcntl.flock(user, fcntl.LOCK_UN)
        assert nobody()


def test_the_sample_remembers_what_it_was_made_from(tmp_path: Path) -> None:
    file = tmp_path / "sample.json"
    assert Sample().completed(file) == Sample(0, 170, 30)
    assert Sample(revision=1, rows_per_day=20).completed(file) == Sample(1, 20, 30)
    assert Sample().completed(file) == Sample(1, 20, 30)
    assert Sample(revision=0).completed(file) == Sample(0, 20, 30)
