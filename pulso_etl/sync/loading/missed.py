"""Finds changes that the source did not report: they show whether a refresh may trust its report and read nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.loading.result import LoadResult
from pulso_etl.sync.source_state import SourceState
from pulso_etl.sync.spec import Strategy, TableSpec


def missed_days(
    spec: TableSpec, before: Mapping[date, Day], state: SourceState | None, result: LoadResult, held: Mapping[date, int]
) -> list[date]:
    """The days in which a load changed rows although the source was in the very state of the day's last reading.

    A refresh that trusts the state would have left these days out. `before` has the days of the ledger before the load, `held` the
    number of rows of each day after it. A day whose rows somebody took away from PostgreSQL does not count. No day counts if the
    load changed the table's columns, or if its strategy writes every row anew. Pure.
    """
    if state is None or result.migration or spec.loading.strategy is Strategy.REPLACE_PARTITION:
        return []

    def is_missed(day: date) -> bool:
        counts, known = result.by_day[day], before.get(day)
        held_before = counts.held(held.get(day, 0))
        return bool(counts.written and known and known.source == state.digest and known.rows == held_before)

    return [day for day in sorted(result.by_day) if is_missed(day)]
