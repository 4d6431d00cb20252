"""The heart of the destination on the oldest PostgreSQL that is promised; `make test-postgres15` runs all of it there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pulso_etl_tests.oldest_postgres import needs_oldest_postgres, oldest_postgres

pytestmark = pytest.mark.usefixtures("processes")

HERE = Path(__file__).parent
FILES = ("test_change_log.py", "test_load.py", "test_schema.py", "test_sessions.py", "test_watermarks.py")


@needs_oldest_postgres
@pytest.mark.timeout(400)
def test_loads_migrates_and_keeps_watermarks_as_on_the_newest(tmp_path: Path) -> None:
    with oldest_postgres() as url:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'tests'}"]
        ended = subprocess.run(
            [*command, *(str(HERE / name) for name in FILES)],
            env=os.environ | {"DATABASE_URL": url},
            cwd=HERE.parents[1],
            capture_output=True,
            text=True,
            timeout=360,
        )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
