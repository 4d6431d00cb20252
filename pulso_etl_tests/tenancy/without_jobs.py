"""The deployment's definitions as they are with very many tables: every launch is a selection of Dagster's own job."""

from __future__ import annotations

from pulso_etl import definitions

definitions.MOST_TABLES_WITH_JOBS = 0  # type: ignore[attr-defined]
defs = definitions.defs
