"""Memory that was freed is the system's again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROCESS = """
import pulso_etl, os, pyarrow
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
# The C library takes the size of a block that was freed as its new idea of a large block.
taught = b"x" * (24 << 20)
del taught
before = resident()
blocks = [(b"x" * (1 << 20), b"x" * 2000) for _ in range(40)]
small = [one for _, one in blocks]
del blocks
print(pyarrow.default_memory_pool().backend_name, round(resident() - before))
"""


@pytest.mark.usefixtures("processes")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system has no /proc")
def test_freed_memory_goes_back_to_the_system() -> None:
    told = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, check=True, timeout=120).stdout
    pool, megabytes = told.split()
    assert pool == "system"
    assert int(megabytes) < 10
