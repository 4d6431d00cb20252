"""The order in which rows are copied straight into a table: in runs, each in the order of the primary key.

The server fills the index of the key. Rows that come in its order go to the same page, one after the other; other rows make it look
for a page each. So a long run is worth much. A run has the batches that came while the server took the run before it. If the source
is quick, runs are long; if it is slow, the server waits for none. The rows wait in temporary files, so that memory does not hold a
run. A file has the rows of a batch by groups of days. A piece of the run has the rows of one group, or of its part, of all files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.loading.day_digests import places_of_days
from pulso_etl.sync.loading.read_ahead import in_turns
from pulso_etl.sync.loading.spool import no_room
from pulso_etl.sync.spec import TableSpec

RUN_BATCHES = 25
"""The most batches of a run. As many wait for the next run."""
GROUPS = 25
"""Into how many groups the days of a load are put, if it has so many days."""
PIECE_ROWS = 5_000
"""From this size on, a piece takes no more rows."""

Batches = Iterator[pa.RecordBatch]


def in_runs(spec: TableSpec, window: DayRange, batches: Batches) -> Batches:
    """The rows of the batches, whose days are all in the window, in runs. The batches have one schema, and at least one row.

    Each batch is a run of its own if the key does not begin with the day, or if there is one day only. Raises LoadFailed if there
    is no room for the files.
    """
    in_order = partial(_sorted, spec)
    if spec.primary_key[0] != spec.partition_column or window.days == 1:
        yield from map(in_order, batches)
        return
    with (
        closing(Shelves()) as shelves,
        in_turns((shelves.keep(_shelved(spec, window, one)) for one in batches), RUN_BATCHES, RUN_BATCHES) as runs,
    ):
        for run in runs:
            for group in range(min(GROUPS, window.days)):
                yield from map(in_order, _pieces(run, group))
            shelves.clear(run)


class Shelf:
    """The rows of a batch in a file without a name, by groups of days."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._ends = schema, [0]
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - `close` closes it

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def add(self, rows: pa.RecordBatch) -> None:
        """Adds the next group."""
        told = memoryview(rows.serialize() if rows.num_rows else b"")
        self._ends.append(self._ends[-1] + len(told))
        while told:
            told = told[self._file.write(told) :]

    def rows(self, group: int) -> pa.RecordBatch | None:
        """The rows of a group; None if there are none."""
        start, end = self._ends[group : group + 2]
        if start == end:
            return None
        return pa.ipc.read_record_batch(pa.py_buffer(os.pread(self._file.fileno(), end - start, start)), self._schema)


class Shelves:
    """The shelves of a load that are full and not yet read. One thread keeps them, another one clears them.

    Whoever holds an error of the load also holds its shelves, so their files do not end with the objects.
    """

    def __init__(self) -> None:
        self._kept: set[Shelf] = set()
        self._closed = False

    def keep(self, shelf: Shelf) -> Shelf:
        """Keeps the shelf. A thread may fill its last one after the load has ended."""
        self._kept.add(shelf)
        if self._closed:
            self.clear([shelf])
        return shelf

    def clear(self, shelves: Iterable[Shelf]) -> None:
        """Ends the files of these shelves."""
        for shelf in shelves:
            shelf.close()
            self._kept.discard(shelf)

    def close(self) -> None:
        """Ends the files of all shelves."""
        self._closed = True
        self.clear(list(self._kept))


def _shelved(spec: TableSpec, window: DayRange, batch: pa.RecordBatch) -> Shelf:
    """Puts the rows of a batch in a file. Raises LoadFailed if the disk has no room."""
    groups = min(GROUPS, window.days)
    of_row = (places_of_days(batch, spec.partition_column, window) * groups // window.days).astype(np.uint16)
    order = pa.array(np.argsort(of_row, kind="stable"))
    ends = np.searchsorted(np.sort(of_row), np.arange(groups + 1))
    try:
        with ExitStack() as broken_off:
            shelf = Shelf(batch.schema)
            broken_off.callback(shelf.close)
            for start, end in pairwise(ends):
                shelf.add(batch.take(order[start:end]))
            broken_off.pop_all()
    except OSError as error:
        raise no_room(f"{spec.name} {window}", error) from error
    return shelf


def _pieces(run: Sequence[Shelf], group: int) -> Batches:
    """The rows of a group of days, in pieces."""
    piece: list[pa.RecordBatch] = []
    for shelf in run:
        if (rows := shelf.rows(group)) is not None:
            piece.append(rows)
        if sum(map(len, piece)) >= PIECE_ROWS:
            yield _joined(piece)
    if piece:
        yield _joined(piece)


def _joined(piece: list[pa.RecordBatch]) -> pa.RecordBatch:
    """The rows of the batches. The list loses them, so that memory holds them once."""
    table = pa.Table.from_batches(piece)
    piece.clear()
    return table.combine_chunks().to_batches()[0]


def _sorted(spec: TableSpec, rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows.sort_by([(key, "ascending") for key in spec.primary_key])
