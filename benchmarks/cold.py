"""The project's definitions under a name of their own, for a code server that starts a Python for each run, as Dagster's does."""

from __future__ import annotations

from pulso_etl.definitions import defs

__all__ = ["defs"]
