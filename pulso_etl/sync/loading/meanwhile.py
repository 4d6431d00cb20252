"""What other programs do to the days of a load while it goes on.

A load that is not the sole writer of its table lets other programs write. It then fails as busy, and its next attempt sees what
they have written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date

from psycopg import sql

from pulso_etl.sync.errors import TableBusy
from pulso_etl.sync.loading.imprints import NO_ROWS, Imprint
from pulso_etl.sync.loading.result import Counts, Held
from pulso_etl.sync.loading.under_way import Load


def changed_meanwhile(name: str) -> TableBusy:
    """The error of a load that met changes of another program. `name`: how errors name the load."""
    return TableBusy(
        f"{name}: another program, or a trigger of the table, changed rows of these days during the load; nothing was loaded, a "
        "later attempt may pass. If this comes again, look for triggers and rules on the table"
    )


def refuse_rows_of_others(load: Load, query: sql.Composed) -> None:
    """Raises TableBusy if the query finds rows of another program, which have the keys of rows that the load inserts."""
    if not load.request.writer.sole and load.conn.execute(query, load.bounds).fetchone() is not None:
        raise changed_meanwhile(str(load))


def changed_by_others(
    compared: Iterable[date], held: Held, counts: Mapping[date, Counts], now: Mapping[date, Imprint]
) -> set[date]:
    """Those of the compared days to which another program has added rows, or from which it has taken rows, during the load.

    The table has all rows of such a day that the load wrote, and not as many rows as the load left.
    """

    def is_changed(day: date) -> bool:
        did, found = counts[day], now.get(day, NO_ROWS)
        return found.young >= did.inserted + did.updated and found.rows != held.left(day, did)

    return {day for day in compared if is_changed(day)}
