"""The empty asset in a code location that loads this project's modules. It shows the cost of a run that does nothing."""

from __future__ import annotations

import sys

import pulso_etl.definitions  # noqa: F401
from benchmarks.empty import defs, main

__all__ = ["defs"]

if __name__ == "__main__":
    main(*sys.argv[1:])
