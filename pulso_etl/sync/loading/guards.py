"""The rules that stop a load, in one list for each moment of a load.

Each rule is a function. Its docstring says when it stops a load, and then it raises an error. A new rule is a new function in one
of the lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import ShrinkRefused, VerificationFailed
from pulso_etl.sync.ledger.ledger import Ledger
from pulso_etl.sync.loading.differences import Differences
from pulso_etl.sync.loading.duplicates import are_counted, refuse_duplicates
from pulso_etl.sync.loading.months import refuse_expired
from pulso_etl.sync.loading.request import LoadRequest
from pulso_etl.sync.loading.staging import Staged
from pulso_etl.sync.loading.strategies import STRATEGIES
from pulso_etl.sync.loading.under_way import Load
from pulso_etl.sync.postgres.strangers import refuse_strangers
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.target import Target

SMALL_PARTITION_ROWS = 20
"""A partition with fewer rows may shrink freely; the range as a whole is still guarded."""


def expired_months(target: Target, request: LoadRequest) -> None:
    """The table no longer keeps the first of these days."""
    refuse_expired(target.spec, request.window, target.spec.zone.day(datetime.now(UTC)))


def strangers(target: Target, request: LoadRequest) -> None:
    """The table has a trigger, a default or another object that runs the code of someone else: see `strangers`."""
    refuse_strangers(target.conn, target.schema, target.spec.name)


def newer_reading(target: Target, request: LoadRequest) -> None:
    """Another load has committed a later reading of some of these days."""
    if request.source.read_at is not None:
        Ledger(target.schema).refuse_older(target.conn, target.spec.name, request.window, request.source.read_at)


def changes_of_nothing(load: Load) -> None:
    """The stream has only the changed rows, and the table has lost the unchanged rows."""
    if load.source.captured and not load.held.rows:
        raise VerificationFailed(
            f"{load}: PostgreSQL holds no row of these days. The source gave only changed rows, and these can't restore the others"
        )


def repeated_keys(load: Load, staged: Staged) -> None:
    """The source gives a key more than once."""
    if STRATEGIES[staged.spec.loading.strategy].unique and not staged.quarantine and not are_counted(load, staged):
        refuse_duplicates(load, staged)


def repeated_keys_by_count(differences: Differences) -> None:
    """The source gives a key more than once, and the counts show it.

    Each row that was read and is not inserted matches a row that stays in the table. If there are more such rows than rows that
    stay, two of them match the same row. The counts are known already, but grouping by the key takes time.
    """
    load, total = differences.load, differences.total
    too_many = total.read - total.inserted > sum(load.held.rows.values()) - total.deleted
    if too_many and are_counted(load, differences.staged):
        refuse_duplicates(load, differences.staged)


def shrinking(differences: Differences) -> None:
    """The table would lose more rows than it allows."""
    load, spec = differences.load, differences.staged.spec
    owns_rows = spec.partition_in_key or spec.snapshot_of
    if owns_rows and differences.strategy.removes and not load.request.allow_shrink:
        refuse_shrink(spec, load.window, *differences.held_and_left())


ON_REQUEST: tuple[Callable[[Target, LoadRequest], None], ...] = (expired_months,)
UNDER_LOCK: tuple[Callable[[Target, LoadRequest], None], ...] = (strangers, newer_reading)
BEFORE_STAGING: tuple[Callable[[Load], None], ...] = (changes_of_nothing,)
ON_STAGE: tuple[Callable[[Load, Staged], None], ...] = (repeated_keys,)
ON_DIFFERENCES: tuple[Callable[[Differences], None], ...] = (shrinking, repeated_keys_by_count)


def refuse_shrink(spec: TableSpec, window: DayRange, held: Mapping[str, int], left: Mapping[str, int]) -> None:
    """Raises ShrinkRefused if the range, or a large enough part of it, would lose more rows than the table allows.

    `held` and `left` are the rows of each part, by its name: a partition, or a value whose snapshot is loaded.
    """
    before, after = sum(held.values()), sum(left.values())
    faults = []
    if before and after < max(1, before * spec.loading.minimum_kept_share):
        faults.append(f"the range {window} holds {before} rows and the source has {after}")
    faults += [
        f"{part} holds {rows} rows and the source has {left.get(part, 0)}"
        for part, rows in sorted(held.items())
        if rows >= SMALL_PARTITION_ROWS and left.get(part, 0) < rows * spec.loading.minimum_kept_share
    ]
    if faults:
        raise ShrinkRefused(
            f"{spec.name}: refused to delete: {'; '.join(faults[:5])}; at least {spec.loading.minimum_kept_share:.0%} must stay. "
            "If the rows are really gone, launch the range again with --allow-shrink (tag pulso_etl/allow_shrink=true)"
        )
