"""The packages of the image, in a folder, run a whole deployment: `make runtime`."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

import httpx
import pytest

from pulso_etl.access.tokens import Role, make_token
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.stack import answers
from pulso_etl.sync.days import DayRange
from pulso_etl_tests.clock import TODAY
from pulso_etl_tests.conftest import running_stack, wait_until

VARIABLE = "PULSO_IMAGE"
"""Environment variable: the folder that `make runtime` fills."""
LIBRARIES = """
import ctypes, pathlib, sys
import pyarrow, pandas  # they load libraries that others need
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.so*")):
    if path.open("rb").read(4) == b"\\x7fELF":
        ctypes.CDLL(str(path))
"""
pytestmark = [
    pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no folder: `make runtime` runs this"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def image() -> Path:
    return Path(os.environ[VARIABLE]).absolute()


def files(folder: Path) -> set[Path]:
    return {one for one in folder.rglob("*") if one.is_file()}


def test_every_library_can_be_loaded_without_its_symbols(image: Path, processes: None) -> None:
    quiet = {**os.environ, "PYTHONPYCACHEPREFIX": str(image / "bytecode"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([image / "bin" / "python", "-c", LIBRARIES, image / "lib"], check=True, env=quiet)


def test_all_processes_run_and_load_and_find_their_bytecode(
    image: Path, server_url: str, emulator: BigQueryEmulator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret, entry = make_token("image", Role.ADMIN)
    home, graphql = tmp_path_factory.mktemp("image"), secrets.token_urlsafe(32)
    installed = files(image)
    # What the processes compile in memory is written here, so that it can be counted.
    cached = {"PYTHONPYCACHEPREFIX": str(image / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    doors = {"API_TOKENS": str(entry), "DAGSTER_GRAPHQL_TOKEN": graphql}
    with running_stack(server_url, emulator, home, more_env=cached, python=image / "bin" / "python") as stack:
        door, api = stack.start_door(**doors), stack.start_api(**doors)
        run = stack.launch("dashboard_data", DayRange(TODAY, TODAY))
        assert stack.wait(run, 120) == "SUCCESS", f"see the logs in {home}"
        wait_until(lambda: answers(f"{door}/server_info") and answers(f"{api}/api/v1/etl/health?live=true"), 120)
        with httpx.Client(headers={"Authorization": f"Bearer {secret}"}, trust_env=False, timeout=60) as client:
            tables = client.get(f"{api}/api/v1/etl/status").json()["tables"]
            assert client.get(api).status_code == client.get(f"{api}/metrics").status_code == 200
        assert {one["table"]: one["rows"] for one in tables}["dashboard_data"] == 30
    late = files(image) - installed
    for one in late:
        one.unlink()
    assert len(late) <= 30, f"modules without bytecode: {sorted(one.as_posix() for one in late)}"
    print(f"modules compiled in memory: {sorted(one.name for one in late)}")
