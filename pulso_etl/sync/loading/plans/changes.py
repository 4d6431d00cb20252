"""The plan for changes: only the rows that changed are staged, and the rows of other keys stay as they are."""

from __future__ import annotations

from datetime import date

from pulso_etl.sync.loading.plans.equalizing import make_equal
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.loading.result import Counts, LoadResult
from pulso_etl.sync.loading.staging import Staged, stage_rows
from pulso_etl.sync.loading.under_way import Load


class Changes:
    """Takes a stream of the rows that changed. A mark in each row says whether the source has deleted it."""

    name: PlanName = "changes"

    def applies(self, load: Load) -> bool:
        return load.source.captured

    def stage(self, load: Load) -> Staged:
        return stage_rows(load.target, load.table, load.window, load.source, load.clock)

    def write(self, load: Load, staged: Staged) -> LoadResult:
        gone: dict[date, int] = dict(load.conn.execute(staged.statements.deletions_by_day()).fetchall())
        read = {day: Counts(rows - gone.get(day, 0)) for day, rows in staged.read.items()}
        differences = make_equal(load, staged, read)
        return differences.result(self.name, differences.left_by_day)
