"""The imprint of a day: whether its rows in the table are still those that a load left.

The server keeps for each row the transaction that wrote it, and the place where it lies. Whoever changes a row, by whatever
statement, gives it another transaction and another place. A row that is deleted is missing from the count. `VACUUM` changes
neither. `VACUUM FULL`, `CLUSTER` and a restored dump change the imprint of rows whose values are the same: then the next load
compares them with the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.figures import Part
from pulso_etl.sync.ledger.traces import Trace
from pulso_etl.sync.loading.result import Counts, Digested, Held
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.target import Target


@dataclass(frozen=True)
class Imprint:
    """The rows of a day in the table: how many, the sum of their places and transactions, and how many are `young`: written by the
    transaction that was asked for, or by a later one. `sums`: the parts of figures that were asked for."""

    rows: int = 0
    total: int = 0
    young: int = 0
    sums: tuple[Decimal, ...] = ()

    def __str__(self) -> str:
        """The imprint as a trace keeps it."""
        return f"{self.rows}:{self.total}"


NO_ROWS = Imprint()


def imprints(
    target: Target, window: DayRange, since: str, days: list[date] | None = None, summed: Sequence[Part] = ()
) -> dict[date, Imprint]:
    """The imprints of the days of the window, or of some of its days; days without rows left out. `summed`: parts that add up."""
    query = Statements(target.spec, target.schema, days=days).imprint_by_day([part.aggregate for part in summed])
    found = target.conn.execute(query, {"start": window.start, "end": window.end, "since": since})
    return {day: Imprint(rows, int(total), young, tuple(map(Decimal, sums))) for day, rows, total, young, *sums in found}


def oldest_transaction(target: Target) -> str:
    """The oldest transaction that goes on; each transaction that has not ended yet is as young as it."""
    row = target.conn.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::xid::text").fetchone()
    assert row is not None
    return str(row[0])


def traces(digested: Digested, held: Held, counts: Mapping[date, Counts], now: Mapping[date, Imprint]) -> dict[date, Trace]:
    """The traces that a load leaves, by the imprints of the days that it compared.

    A day has none if some of its rows are quarantined: the next load has to see these again. It has none either if another program
    changed its rows during the load: then the table has other young rows, or another number of rows, than the load made.
    """

    def is_ours(day: date) -> bool:
        did, found = counts[day], now.get(day, NO_ROWS)
        return not did.quarantined and (found.rows, found.young) == (held.left(day, did), did.inserted + did.updated)

    return {
        day: Trace(digested.made_by, digest, str(now.get(day, NO_ROWS)))
        for day, digest in digested.digests.items()
        if day not in digested.unchanged and is_ours(day)
    }
