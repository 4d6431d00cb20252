"""The merge plan: the rows are staged, compared with the table's in one join, and only differences are written."""

from __future__ import annotations

from collections import Counter
from datetime import date

from pulso_etl.sync.loading.plans.equalizing import make_equal
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.loading.result import Counts, LoadResult
from pulso_etl.sync.loading.staging import Staged, stage_rows
from pulso_etl.sync.loading.under_way import Load


class Merge:
    """Takes every load of whole days."""

    name: PlanName = "merge"

    def applies(self, load: Load) -> bool:
        return True

    def stage(self, load: Load) -> Staged:
        return stage_rows(load.target, load.table, load.window, load.source, load.clock, load.known)

    def write(self, load: Load, staged: Staged) -> LoadResult:
        set_aside: Counter[date] = Counter()
        if staged.quarantine:
            staged.quarantine.write(load.conn, load.target.schema, load.request.writer.run_id)
            set_aside = staged.quarantine.by_day
        read = {day: Counts(rows, quarantined=set_aside[day]) for day, rows in staged.read.items()}
        return make_equal(load, staged, read).result(self.name, _expected(load, staged))


def _expected(load: Load, staged: Staged) -> dict[date, int] | None:
    """How many rows each day should have now; None if that is the number of rows that were read."""
    if staged.spec.snapshot_of:
        return dict(load.conn.execute(staged.statements.staged_by_day()).fetchall())
    if staged.spec.version_column is not None and staged.spec.partition_in_key:
        if staged.nothing_differs:
            return dict(load.held.rows)
        left = {day: load.held.rows.get(day, 0) for day in staged.digested.unchanged} if staged.digested else {}
        return left | dict(load.conn.execute(staged.statements.keys_by_day()).fetchall())
    return None
