"""The doctor over HTTP."""

from __future__ import annotations

import pytest

from pulso_etl_tests.api.conftest import SECRETS, Operation
from pulso_etl_tests.api.server import ApiServer

PATH = "/api/v1/etl/doctor"


@pytest.mark.usefixtures("processes")
def test_only_administrators_see_what_the_doctor_finds_and_nobody_sees_a_secret(
    operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The doctor reads the environment, and a malformed setting ends it early.
    monkeypatch.setenv("DATABASE_URL", "postgresql://ana:s3cr3t@a@nowhere/none")
    with ApiServer(operation.settings) as server:
        refused = {role: server.call("GET", PATH, SECRETS[role][0]).status_code for role in ("read", "refresh")}
        answer = server.call("GET", PATH, SECRETS["admin"][0])
    assert refused == {"read": 403, "refresh": 403}
    assert answer.status_code == 200
    found = answer.json()
    assert (found["ok"], [one["part"] for one in found["findings"]]) == (False, ["settings"])
    assert "DATABASE_URL" in found["findings"][0]["text"]
    assert "s3cr3t" not in answer.text
