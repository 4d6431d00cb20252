"""The calls that the documentation types, typed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from pydantic import SecretStr

from pulso_etl_tests.api.conftest import SECRETS, settings_of
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.api.test_refreshes import finished
from pulso_etl_tests.dagster_stack import CHECKOUT, DagsterStack

ADDRESS = "http://127.0.0.1:8000"
TYPED = [
    re.sub(r"\s*\\\n\s*", " ", call).strip()
    for page in ("README.md", "docs/api.md")
    for call in re.findall(r"^    (curl (?:.*\\\n)*.*)$", (CHECKOUT / page).read_text(encoding="utf-8"), re.MULTILINE)
    # Commands with the id of a refresh or with another host can't run as they are printed.
    if ADDRESS in call and "/refresh/3c8e" not in call
]
ENDLESS = 28
"""What curl ends with when its time is over."""


def test_there_is_something_to_type() -> None:
    assert len(TYPED) >= 8


@pytest.fixture(scope="module")
def developed(stack: DagsterStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiServer, Path]]:
    """The API as `make dev` starts it, and the folder in which the user typed the command."""
    secret, token = SECRETS["admin"]
    folder = tmp_path_factory.mktemp("typed")
    (folder / ".pulso").mkdir()
    (folder / ".pulso" / "token").write_text(secret, encoding="utf-8")
    instance = {name: stack.env[name] for name in ("DAGSTER_HOME", "DAGSTER_POSTGRES_URL")}
    with patch.dict(os.environ, instance), ApiServer(settings_of(stack, api_tokens=SecretStr(str(token)))) as server:
        yield server, folder


@pytest.mark.parametrize("call", TYPED)
def test_what_is_typed_is_answered(api: ApiServer, developed: tuple[ApiServer, Path], call: str) -> None:
    server, folder = developed
    limited = call.replace(ADDRESS, server.url).replace("curl ", "curl --fail-with-body --max-time 15 ", 1)
    if "/events" in call:
        limited = limited.replace("--max-time 15", "--max-time 2")
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", limited], cwd=folder, capture_output=True, text=True, timeout=60)
    assert ended.returncode == (ENDLESS if "/events" in call else 0), ended.stdout + ended.stderr
    assert ended.stdout
    if "-X POST" in call and "/refresh" in call:
        found = re.search(r'"status_url":"([^"]+)"', ended.stdout)
        assert found is not None
        assert finished(api, {"status_url": found[1]})["status"] == "success"
