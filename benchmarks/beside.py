"""The empty asset in a code location that loads this project's modules: what a run costs before it does anything."""

from __future__ import annotations

import sys

import pulso_etl.definitions  # noqa: F401
from benchmarks.empty import defs, main

__all__ = ["defs"]

if __name__ == "__main__":
    main(*sys.argv[1:])
