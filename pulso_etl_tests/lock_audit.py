"""Holds lock files against the package index, through uv: every locked version is there, none was withdrawn, and every locked hash
is one that the index still gives.

    python -m pulso_etl_tests.lock_audit UV LOCK...
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PIN = re.compile(r"^([a-z0-9][^\s;]*==[^\s;]+(?: ; [^\\\n]+?)?)(?: \\)?$", re.MULTILINE)
HASH = re.compile(r"--hash=(\S+)")
YANKED = re.compile(r"^warning: `(\S+)` is yanked(.*)$", re.MULTILINE)


def pins(lock: str) -> list[str]:
    """The requirements of a lock file, without hashes."""
    return PIN.findall(lock)


def hashes(lock: str) -> dict[str, set[str]]:
    """The hashes of each requirement."""
    starts = [*PIN.finditer(lock)]
    ends = [found.start() for found in starts[1:]] + [len(lock)]
    return {found[1]: set(HASH.findall(lock[found.end() : end])) for found, end in zip(starts, ends, strict=False)}


def faults(lock: str, index: str, said: str) -> Iterator[str]:
    """The faults of a lock file. `index` is the same file as resolved now. `said` is the output of uv."""
    for name, reason in YANKED.findall(said):
        yield f"{name}: withdrawn{reason}"
    now = hashes(index)
    for pin, locked in hashes(lock).items():
        if not locked:
            yield f"{pin}: no hash"
        elif unknown := locked - now.get(pin, set()):
            yield f"{pin}: the index knows no file of the hash {', '.join(sorted(unknown))}"


def main(uv: str, *locks: str) -> int:
    """Prints the faults of the files. Returns 1 if there are any."""
    found = False
    for path in locks:
        lock = Path(path).read_text(encoding="utf-8")
        options = ["--universal", "--no-deps", "--generate-hashes", "--no-header", "--no-annotate", "--python-version=3.11"]
        asked = subprocess.run([uv, "pip", "compile", *options, "-"], input="\n".join(pins(lock)), capture_output=True, text=True)
        told = [asked.stderr.strip()] if asked.returncode else [*faults(lock, asked.stdout, asked.stderr)]
        print(f"{path}: {len(pins(lock))} packages" + "".join(f"\n  {fault}" for fault in told))
        found = found or bool(told)
    return int(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
