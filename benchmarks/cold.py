"""The project's definitions under another name, for a code server that starts a Python for each run, as Dagster's own does."""

from __future__ import annotations

from pulso_etl.definitions import defs

__all__ = ["defs"]
