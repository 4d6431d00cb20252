"""Keys that the source gives more than once: how a load notices them, and how it reports them."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date

from pulso_etl.sync.errors import DuplicateKeyError
from pulso_etl.sync.loading.staging import Staged
from pulso_etl.sync.loading.strategies import STRATEGIES
from pulso_etl.sync.loading.under_way import Load


def are_counted(load: Load, staged: Staged) -> bool:
    """Whether the number of differences shows a repeated key. If it does, the load does not group the stage by its key."""
    spec = staged.spec
    compared_otherwise = spec.version_column or spec.snapshot_of or staged.quarantine or load.source.captured
    return STRATEGIES[spec.loading.strategy].counts_duplicates and not compared_otherwise


def days_with_duplicates(load: Load, staged: Staged, days: Collection[date]) -> set[date]:
    """Those of these days of which the stage has a key more than once. Groups the stage by its key."""
    return {day for (day,) in load.conn.execute(staged.statements.days_with_duplicates(sorted(days)))}


def refuse_duplicates(load: Load, staged: Staged) -> None:
    """Raises DuplicateKeyError if the stage has a key more than once. Groups the stage by its key."""
    row = load.conn.execute(staged.statements.duplicates()).fetchone()
    if row is None:
        return
    spec = staged.spec
    *key, copies, duplicated = row
    named = ", ".join(f"{name}={value}" for name, value in zip(spec.primary_key, key, strict=True))
    alike = f" and the same {spec.version_column}" if spec.version_column else ""
    advice = "" if spec.version_column or spec.snapshot_of else " or declare a version_column"
    raise DuplicateKeyError(
        f"{load}: the source holds {copies} rows with the primary key ({named}){alike}; "
        f"{duplicated} key(s) are duplicated in total; correct the source{advice}"
    )
