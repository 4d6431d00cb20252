"""Which days of a load are as the last load left them: their rows do not go to the server.

Only the end of the stream shows that a day has not changed. Until then the rows of a day wait in a temporary file. If the day's
sample shows a new row, the day has changed, and its later rows go on at once. If many days show new rows, all rows go on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.traces import Trace
from pulso_etl.sync.loading.before import Before
from pulso_etl.sync.loading.contract import Fitted
from pulso_etl.sync.loading.day_digests import DayDigests, Samples, maker
from pulso_etl.sync.loading.result import Digested
from pulso_etl.sync.loading.spool import Spool
from pulso_etl.sync.postgres.catalog import Table

PART_ROWS = 2_500
"""How many rows of a batch are looked through at once."""
FEW_DAYS = 10
"""If more days than these, and more than a quarter of the known days, have changed, no row waits any longer: most days may have
changed, and the server would wait too."""
Batches = Iterator[pa.RecordBatch]


@dataclass(frozen=True)
class Known:
    """What a load knows of its days: the `table` as PostgreSQL has it, the traces that the `last` loads of the days have left, and
    what the table holds of the days `before` the load. `since`: the oldest transaction that goes on."""

    table: Table
    window: DayRange
    last: Mapping[date, Trace]
    before: Before
    since: str


class Sieve:
    """Lets the rows through whose days differ from the last load of them.

    `spoilt` names, at the end of the stream, days with rows that did not come here (they are quarantined): such a day never counts
    as unchanged.
    """

    def __init__(self, fitted: Fitted, known: Known, spoilt: Callable[[], Collection[date]] = tuple) -> None:
        self._fitted, self._known, self._window, self._spoilt = fitted, known, known.window, spoilt
        self._made_by = maker(fitted, known.table)
        self._last = {day: trace.digest for day, trace in known.last.items() if trace.made_by == self._made_by}
        self._digests = DayDigests(fitted.spec, known.window)
        self._unchanged: frozenset[date] = frozenset()

    def ask(self) -> None:
        """Asks the server what the table holds of the days; `rest` waits for it in another thread."""
        self._known.before.days()

    def digested(self) -> Digested:
        """What the stream has shown; call it at its end."""
        return Digested(self._made_by, self._digests.by_day(), self._unchanged, self._known.before.days().held, self._known.since)

    def rest(self, batches: Batches) -> Batches:
        """The rows of days that differ. The batches have the wire schema."""
        return self._sifted(batches) if self._last else map(self._counted, batches)

    def _counted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if batch.num_rows:
            self._digests.add(batch)
        return batch

    def _sifted(self, batches: Batches) -> Batches:
        samples = Samples(self._window, self._last)
        most = np.array([one.rows if (one := self._last.get(day)) else -1 for day in self._window])
        known = most >= 0
        changed, waiting = ~known, np.zeros(len(most), bool)
        with Spool(self._fitted.wire, f"{self._fitted.spec.name} {self._window}") as spool:
            for batch in batches:
                if not batch.num_rows:
                    continue
                codes, marks = self._digests.add(batch)
                changed[samples.new(codes, marks)] = True
                changed |= (self._digests.rows > most) | spool.is_full
                changed |= int((changed & known).sum()) > max(FEW_DAYS, int(known.sum()) // 4)
                if changed.all():
                    yield batch
                    break
                goes = changed[codes]
                waiting[codes[~goes]] = True
                for part in _parts(batch, ~goes):
                    spool.put(part)
                yield from _parts(batch, goes)
            # If every day has changed, the loop ends before the stream.
            yield from map(self._counted, batches)
            digests, spoilt, intact = self._digests.by_day(), self._spoilt(), self._known.before.wait().intact
            differs = (day in spoilt or day not in intact or digests[day] != self._last.get(day) for day in self._window)
            changed |= np.fromiter(differs, bool, len(most))
            self._unchanged = frozenset(day for day, differs in zip(self._window, changed, strict=True) if not differs)
            if (changed & waiting).any():
                for batch in spool.batches():
                    yield from _parts(batch, changed[self._digests.codes(batch)])


def _parts(batch: pa.RecordBatch, rows: npt.NDArray[np.bool_]) -> Batches:
    """The rows of the batch that are true: the batch itself if all are, else a part at a time, so that memory holds few copies."""
    if rows.all():
        yield batch
        return
    for start in range(0, len(rows), PART_ROWS):
        chosen = rows[start : start + PART_ROWS]
        if chosen.any():
            yield pc.filter(batch.slice(start, PART_ROWS), pa.array(chosen), memory_pool=pa.system_memory_pool())
