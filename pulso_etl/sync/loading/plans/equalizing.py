"""The common steps of plans that stage rows: compare, ask the guards, write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date

from pulso_etl.sync.loading import guards
from pulso_etl.sync.loading.differences import Differences, compare, unchanged, write
from pulso_etl.sync.loading.result import Counts
from pulso_etl.sync.loading.staging import Staged
from pulso_etl.sync.loading.under_way import Load


def make_equal(load: Load, staged: Staged, read: Mapping[date, Counts]) -> Differences:
    """Makes the table equal to the stage and returns what differed; `read` counts the rows of each day that were read."""
    if staged.nothing_differs:
        return unchanged(load, staged, read)
    with load.clock("analyze"):
        load.conn.execute(staged.statements.analyze_stage())
        for stops_staged in guards.ON_STAGE:
            stops_staged(load, staged)
    differences = compare(load, staged, read)
    for stops in guards.ON_DIFFERENCES:
        stops(differences)
    return replace(differences, logged=write(differences))
