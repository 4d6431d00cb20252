"""Dagster's programs with our lines: `python -m pulso_etl.instance.programs dagster-daemon run …`.

Others start them by these names, such as Dagster's Helm chart. In the container image the names lead here.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

from pulso_etl.instance import lines


def main() -> None:
    """Runs the program that the arguments name, with the rest of them."""
    name, *rest = sys.argv[1:]
    [program] = entry_points(group="console_scripts", name=name)
    sys.argv = [name, *rest]
    run = program.load()
    # Now Dagster's modules are imported, and those that come later find ours.
    lines.serve("INFO")
    sys.exit(run())


if __name__ == "__main__":
    main()
