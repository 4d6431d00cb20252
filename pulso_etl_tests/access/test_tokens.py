"""Tokens: what is kept of them, and who they let in."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from pulso_etl.access.tokens import Caller, Keyring, Role, find_caller, make_token, parse_tokens
from pulso_etl.cli.main import app
from pulso_etl.settings import Settings, load_settings
from pulso_etl.sync.errors import SettingsError
from pulso_etl_tests.clock import TODAY, ZONE


def test_a_token_is_found_by_its_secret_and_its_entry_does_not_hold_it() -> None:
    secret, kept = make_token("dashboard", Role.REFRESH)
    other, kept_too = make_token("monitor", Role.READ)
    tokens = parse_tokens(f"{kept},\n {kept_too}")
    assert find_caller(tokens, secret) == Caller("dashboard", Role.REFRESH)
    assert find_caller(tokens, other) == Caller("monitor", Role.READ)
    assert find_caller(tokens, secret[:-1]) is None
    assert find_caller(tokens, kept.digest) is None
    assert secret not in str(kept)


@pytest.mark.parametrize(
    "text",
    [
        "secret",
        "a:read:12",
        "a:root:" + "0" * 64,
        "a b:read:" + "0" * 64,
        "a:read:" + "0" * 64 + ":2026-02-30",
        f"a:read:{'0' * 64} a:admin:{'1' * 64}",
    ],
)
def test_an_entry_that_is_none_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=r"entry|same name") as told:
        parse_tokens(text)
    assert text not in str(told.value)


def test_no_entries_are_no_tokens() -> None:
    assert parse_tokens(" \n") == ()


def test_beyond_loopback_tokens_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/x")
    monkeypatch.setenv("API_HOST", "0.0.0.0")
    with pytest.raises(SettingsError, match="API_HOST is not on loopback, which needs API_TOKENS"):
        load_settings()
    _, kept = make_token("dashboard", Role.REFRESH)
    monkeypatch.setenv("API_TOKENS", str(kept))
    assert load_settings().api_host == "0.0.0.0"
    with pytest.raises(SettingsError, match="API_TOKENS"):
        load_settings(api_tokens="nonsense")


@pytest.mark.parametrize(
    ("name", "value"),
    [("api_cors_origins", "*"), ("api_cors_origins", "https://a/b"), ("api_launch_limit", "many"), ("api_port", 70000)],
)
def test_a_malformed_setting_of_the_api_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Settings.model_validate({"database_url": SecretStr("postgresql://localhost/x"), name: value})


def test_the_command_line_makes_a_token_that_the_settings_take() -> None:
    told = CliRunner().invoke(app, ["token", "dashboard", "refresh"])
    assert told.exit_code == 0
    secret, entry = (line.split(": ", 1)[1].strip() for line in told.output.strip().splitlines())
    assert find_caller(parse_tokens(entry), secret) == Caller("dashboard", Role.REFRESH)
    assert CliRunner().invoke(app, ["token", "dashboard", "root"]).exit_code != 0
    told = CliRunner().invoke(app, ["token", "dashboard", "refresh", "--until", "2027-01-31"])
    assert told.output.endswith(":2027-01-31\n")


def test_a_token_opens_something_up_to_the_end_of_its_last_day() -> None:
    made = [make_token(f"n{days}", Role.READ, last_day=TODAY + timedelta(days)) for days in (-1, 0, 1)]
    ring = Keyring(" ".join(str(entry) for _, entry in made), None, zone=ZONE)
    assert [find_caller(ring, secret) is not None for secret, _ in made] == [False, True, True]


def test_a_file_of_tokens_is_read_anew_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "tokens"
    (first, one), (second, two), (third, three) = (make_token(name, Role.READ) for name in ("one", "two", "three"))

    def known() -> list[bool]:
        return [find_caller(ring, secret) is not None for secret in (first, second, third)]

    file.write_text(f"{two}\n", encoding="utf-8")
    ring = Keyring(str(one), file)
    assert known() == [True, True, False]
    file.write_text(f"{two}\n{three}\n", encoding="utf-8")
    assert known() == [True, True, True]
    file.write_text("", encoding="utf-8")
    assert known() == [True, False, False]
    # Kubernetes replaces a file so, and careful people do.
    other = tmp_path / "new"
    other.write_text(f"{three}\n", encoding="utf-8")
    os.replace(other, file)
    assert known() == [True, False, True]
    with caplog.at_level(logging.INFO):
        file.write_text("not-an-entry", encoding="utf-8")
        assert known() == known() == [True, False, True]
        file.unlink()
        assert known() == [True, False, True]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "not-an-entry" not in caplog.text


def test_a_file_without_an_entry_lets_nobody_in_and_one_that_is_none_ends_the_start(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    # Servers that run in this checkout leave tokens in its settings.
    given = {"database_url": SecretStr("postgresql://localhost/x"), "api_tokens": SecretStr(""), "api_tokens_file": file}
    with pytest.raises(ValueError, match="api_tokens_file"):
        Settings.model_validate(given)
    file.touch()
    settings = Settings.model_validate(given)
    assert settings.guarded
    assert list(settings.keyring(tuple)) == []
