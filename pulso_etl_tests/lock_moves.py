"""Says what a renewal of the lock files moved, beside the last commit.

python -m pulso_etl_tests.lock_moves LOCK...
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pulso_etl_tests.lock_audit import pins


def moved(before: str, after: str) -> Iterator[str]:
    """One line for each package that is new, is gone, or has another version. The lines are in order of the names."""
    old, new = versions(before), versions(after)
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            yield f"{name}: new, {new[name]}"
        elif name not in new:
            yield f"{name}: gone, was {old[name]}"
        elif old[name] != new[name]:
            yield f"{name}: {old[name]} -> {new[name]}"


def versions(lock: str) -> dict[str, str]:
    """The version of each package; several versions if they depend on the platform."""
    found: dict[str, list[str]] = {}
    for pin in pins(lock):
        name, _, version = pin.partition(" ;")[0].partition("==")
        found.setdefault(name, []).append(version)
    return {name: ", ".join(several) for name, several in found.items()}


def main(*locks: str) -> None:
    """Prints what moved in each file."""
    for path in locks:
        committed = subprocess.run(["git", "show", f"HEAD:./{path}"], capture_output=True, text=True)
        moves = [*moved(committed.stdout, Path(path).read_text(encoding="utf-8"))]
        print(f"{path}:" + ("".join(f"\n  {move}" for move in moves) or " nothing moved"))


if __name__ == "__main__":
    main(*sys.argv[1:])
