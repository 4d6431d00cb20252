"""Lighthouse on its phone profile, over a running deployment. It is no part of the suite: `make lighthouse` runs it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from statistics import median

import pytest

from pulso_etl_tests.api.browser import find_chromium
from pulso_etl_tests.api.conftest import SECRETS
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.conftest import wait_until

FOLDER = Path(__file__).parents[2] / "frontend" / "lighthouse"
CATEGORIES = ("performance", "accessibility", "best-practices", "seo")
WANTED = 95
ROUNDS = 3
"""The performance differs from round to round; its median counts."""


@pytest.fixture(scope="module")
def loaded(guarded: ApiServer) -> ApiServer:
    """An API whose tables are loaded."""
    token = SECRETS["refresh"][0]
    told = guarded.call(
        "POST", "/api/v1/etl/refresh/dashboard", token, json={"tables": ["dashboard_data", "operation_data"]}
    ).json()
    wait_until(lambda: guarded.call("GET", told["status_url"], token).json()["status"] != "running", seconds=180)
    assert guarded.call("GET", told["status_url"], token).json()["status"] == "success"
    return guarded


@pytest.mark.timeout(900)
@pytest.mark.parametrize("address", [f"/#token={SECRETS['refresh'][0]}", "/"], ids=["page", "token form"])
def test_the_page_scores_95_or_more_on_a_phone(loaded: ApiServer, address: str, capfd: pytest.CaptureFixture[str]) -> None:
    chromium = find_chromium()
    assert chromium is not None, "no Chromium is installed (Debian: apt install chromium)"
    rounds = []
    for _ in range(int(os.environ.get("LIGHTHOUSE_ROUNDS", ROUNDS))):
        run = subprocess.run(
            ["node", "run.mjs", f"{loaded.url}{address}", chromium], cwd=FOLDER, capture_output=True, text=True, timeout=180
        )
        assert run.returncode == 0, run.stderr
        rounds.append(json.loads(run.stdout))
    scores = {name: median(scores[name] for scores in rounds) for name in CATEGORIES}
    with capfd.disabled():
        print(f"\n{address.partition('=')[0]}: {scores}\n{run.stderr}")
    assert min(scores.values()) >= WANTED, f"{scores}\n{run.stderr}"
