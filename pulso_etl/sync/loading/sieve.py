"""Which rows of a load are as the last load left them: they do not go to the server.

Which days have not changed shows only at the end of the stream. The same holds for the buckets of the other days. Until then the
rows of a day wait in a temporary file. If the day's sample shows that most buckets of the day will differ, its later rows go on at
once, and the whole day is compared. If many days are like that, all rows go on.
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
from pulso_etl.sync.ledger.traces import Digest, Trace
from pulso_etl.sync.loading.before import Before
from pulso_etl.sync.loading.buckets import Buckets, buckets_of_day, surely_more
from pulso_etl.sync.loading.contract import Fitted
from pulso_etl.sync.loading.day_digests import DayDigests, Found, Samples, maker
from pulso_etl.sync.loading.read_ahead import read_ahead
from pulso_etl.sync.loading.result import Digested
from pulso_etl.sync.loading.spool import Spool
from pulso_etl.sync.postgres.catalog import Table

PART_ROWS = 2_500
"""How many rows of a batch are copied at once, so that memory holds few copies."""
BUCKET = "pulso_bucket"
"""The column of a waiting row's bucket, see `BucketPlaces`."""
BATCHES_AHEAD = 1
"""How many digested batches wait at most. The thread that digests holds one more."""
FEW_DAYS = 10
"""If more days than these, and more than a quarter of the known days, are compared as a whole, all other days are, too. Most days
have probably changed, and the server would have nothing to do until the stream ends."""
Batches = Iterator[pa.RecordBatch]


@dataclass(frozen=True)
class Known:
    """What a load knows of its days: the `table` as PostgreSQL has it, the traces that the `last` loads of the days have left, and
    what the table holds of the days `before` the load. `aside`: where rows wait."""

    table: Table
    window: DayRange
    last: Mapping[date, Trace]
    before: Before
    aside: Spool


class Sieve:
    """Lets the rows through that may differ from the last load of their days: whole days, or the buckets of them that differ.

    Three threads work at once. One checks and digests a batch (`_digested`). Another one decides about the batch before it, sets
    rows aside and encodes the others (`_sifted`). The third one has the connection: it asks the server (`ask`), and sends.
    `spoilt` names, at the end of the stream, days with rows that did not come here (they are quarantined): such a day never counts
    as unchanged.
    """

    def __init__(self, fitted: Fitted, known: Known, spoilt: Callable[[], Collection[date]] = tuple) -> None:
        self._fitted, self._known, self._window, self._spoilt = fitted, known, known.window, spoilt
        self._made_by = maker(fitted, known.table)
        # A column that the load adds has no values yet. No trace knows that.
        adds = not set(fitted.spec.column_names) <= known.table.columns.keys()
        usable = {} if adds else known.last
        self._last = {day: trace.digest for day, trace in usable.items() if trace.made_by == self._made_by}
        self._digests = DayDigests(fitted.spec, known.window, buckets_of_day(fitted, known.window.days))
        self._unchanged: set[date] = set()
        self._in_buckets: set[date] = set()

    def ask(self) -> None:
        """Asks the server what the table holds of the days; `rest` waits for it in another thread."""
        self._known.before.days()

    def digested(self) -> Digested:
        """What the stream has shown; call it at its end."""
        return Digested(
            self._made_by,
            self._digests.by_day(),
            frozenset(self._unchanged),
            frozenset(self._in_buckets),
        )

    def rest(self, batches: Batches) -> Batches:
        """The rows that may differ. The batches have the wire schema."""
        given = filter(len, batches)
        return self._sifted(given) if self._last else map(self._counted, given)

    def _counted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self._digests.add(batch)
        return batch

    def _digested(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Found]:
        return batch, self._digests.add(batch)

    def _sifted(self, batches: Batches) -> Batches:
        whole = _WholeDays(self._window, self._last, self._digests.buckets)
        waiting, aside = np.zeros(self._window.days, bool), self._known.aside
        with read_ahead(map(self._digested, batches), BATCHES_AHEAD) as digested:
            for batch, found in digested:
                whole.take(found, aside.is_full)
                goes = whole.so_far[found.days]
                waiting[found.days[~goes]] = True
                for part in _parts(batch.append_column(BUCKET, pa.array(found.buckets)), ~goes):
                    aside.put(part)
                yield from _parts(batch, goes)
                del batch
        differs = self._differing(whole.so_far)
        if (differs.any(axis=1) & waiting).any():
            for batch in aside.batches():
                chosen = differs.ravel()[batch.column(BUCKET).to_numpy()]
                yield from _parts(batch.select(self._fitted.wire.names), chosen)

    def _differing(self, whole: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Of each bucket of each day, whether its rows are compared. `whole`: days that are compared as a whole in any case."""
        digests, spoilt, intact = self._digests.by_day(), self._spoilt(), self._known.before.wait().intact
        differs = np.ones((self._window.days, self._digests.buckets.of_day), bool)
        for place, day in enumerate(self._window):
            last = self._last.get(day)
            if whole[place] or last is None or day in spoilt or day not in intact:
                continue
            if digests[day] == last:
                self._unchanged.add(day)
                differs[place] = False
            elif (found := self._digests.buckets.differing(place, last)) is not None:
                self._in_buckets.add(day)
                differs[place] = found
        return differs


class _WholeDays:
    """Decides, while the rows stream, which days are compared as a whole.

    These are days without a usable trace, and days in whose samples too many rows are new. A day that has become one stays one.
    """

    def __init__(self, window: DayRange, last: Mapping[date, Digest], buckets: Buckets) -> None:
        self._samples = Samples(window, last)
        self._last_rows = np.array([last[day].rows if day in last else -1 for day in window])
        self._bearable = np.array([buckets.bearable_share(last.get(day)) for day in window])
        self._rows, self._asked, self._new = np.zeros((3, window.days), np.int64)
        self._known = self._last_rows >= 0
        self.so_far = ~self._known

    def take(self, found: Found, is_full: bool) -> None:
        """Learns from the rows of a batch. `is_full`: no more rows can wait."""
        asked, new = self._samples.ask(found.days, found.marks)
        for counted, days in ((self._rows, found.days), (self._asked, asked), (self._new, new)):
            counted += np.bincount(days, minlength=len(counted))
        self.so_far |= surely_more(self._new, self._bearable * self._asked) | is_full
        self.so_far |= self._rows > self._last_rows * (1 + self._bearable)
        self.so_far |= int((self.so_far & self._known).sum()) > max(FEW_DAYS, int(self._known.sum()) // 4)


def _parts(batch: pa.RecordBatch, rows: npt.NDArray[np.bool_]) -> Batches:
    """The rows of the batch that are true: the batch itself if all are."""
    chosen = int(rows.sum())
    if chosen == len(rows):
        yield batch
        return
    step = PART_ROWS if chosen > PART_ROWS else len(rows)
    for start in range(0, len(rows) if chosen else 0, step):
        yield pc.filter(batch.slice(start, step), pa.array(rows[start : start + step]), memory_pool=pa.system_memory_pool())
