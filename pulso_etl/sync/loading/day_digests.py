"""The digests of the days of a load, built while its rows stream, in any order of the rows.

The digest of a day is the number of its rows and the sum of their hashes (`row_hashes`), each half modulo 2 to the 64th. Equal
rows add up, and do not cancel each other. Keys and compared columns are hashed. Stamps are not: a moving stamp is no change. A
version is hashed even if it is a stamp, because it chooses among rows.

A digest may differ where the table would not: between 0.0 and -0.0, or between two spellings of one JSON value. Then the day is
compared with the table, as without digests.

The sample of a day has its smallest hashes. It shows early in the stream that a day has changed, and how much of it: a row whose
hash should be in the sample of the last load, and is not there, is new. The `buckets` of a day show at the end of the stream which
of its rows may have changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import date
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.traces import Digest
from pulso_etl.sync.loading.buckets import BucketPlaces, Buckets, DayPlaces
from pulso_etl.sync.loading.contract import Fitted
from pulso_etl.sync.loading.row_hashes import SCHEME, row_hashes
from pulso_etl.sync.postgres.catalog import Table
from pulso_etl.sync.spec import Strategy, TableSpec

SAMPLED_ROWS = 768
"""The size of a day's sample. One changed row in a hundred shows in it, on average, after an eighth of the day's rows."""
_TOP = 2**32 - 1
_CANDIDATES = 20_000
"""So many new rows may belong to a sample before those that do not are dropped."""

_HALF = np.uint64(32)
_LOWER = np.uint64(_TOP)

Marks = npt.NDArray[np.uint64]
"""A row in a sample: the place of its day in the upper half, and in the lower half the upper half of its hash's first number."""


def can_be_skipped(spec: TableSpec) -> bool:
    """Whether a load of a day that is as it was leaves the day's rows alone, and no other day's rows depend on it."""
    return spec.partition_in_key and spec.loading.strategy is not Strategy.REPLACE_PARTITION


def maker(fitted: Fitted, table: Table) -> str:
    """What a digest depends on besides the rows, as a short text: see `Trace.made_by`.

    A column that was dropped and made again has another number in the table. Its values are gone, and no row shows it.
    """
    numbers = {name: column.number for name, column in table.columns.items()}
    told = [SCHEME, SAMPLED_ROWS, fitted.spec.as_metadata(), str(fitted.wire), numbers]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def places_of_days(batch: pa.RecordBatch, column: str, window: DayRange) -> DayPlaces:
    """The place in the window of the day of each row; no day is null."""
    days = batch.column(column)
    first = np.datetime64(window.start, "D").astype(np.int32)
    places: DayPlaces = np.frombuffer(days.buffers()[1], "<i4")[days.offset : days.offset + len(days)] - first
    return places


class Found(NamedTuple):
    """The day, the mark and the bucket of each row of a batch."""

    days: DayPlaces
    marks: Marks
    buckets: BucketPlaces


class DayDigests:
    """Takes the rows of a load, batch by batch, and gives the digest of each day of its window."""

    def __init__(self, spec: TableSpec, window: DayRange, buckets_of_day: int) -> None:
        stamp = spec.version_column if spec.version_column in spec.stamp_columns else None
        self._key, self._others = spec.primary_key, (*spec.compared_columns, *filter(None, [stamp]))
        self._partition, self._window = spec.partition_column, window
        self.buckets = Buckets(window.days, buckets_of_day)
        self._rows = np.zeros(window.days, np.int64)
        self._second = np.zeros(window.days, np.uint64)
        self._limits = np.full(window.days, _TOP, np.uint64)
        self._sampled = np.zeros(0, np.uint64)
        self._candidates: list[Marks] = []

    def add(self, batch: pa.RecordBatch) -> Found:
        """Takes the rows of a batch of the wire schema, all of days of the window."""
        hashes = row_hashes(batch, self._key, self._others)
        days = places_of_days(batch, self._partition, self._window)
        buckets = self.buckets.places(days, hashes.key)
        self._rows += np.bincount(days, minlength=self._window.days)
        np.add.at(self._second, days, hashes.second)
        self.buckets.add(buckets, hashes.first)
        marks = (hashes.first >> _HALF) | (days.astype(np.uint64) << _HALF)
        self._candidates.append(marks[(marks & _LOWER) <= self._limits[days]])
        if sum(map(len, self._candidates)) > _CANDIDATES:
            self._drop_large()
        return Found(days, marks, buckets)

    def by_day(self) -> dict[date, Digest]:
        """The digest of each day of the window, days without rows included."""
        self._drop_large()
        totals = np.stack([self.buckets.by_day(), self._second], axis=1).astype("<u8")
        ends = np.searchsorted(self._sampled, np.arange(self._window.days + 1, dtype=np.uint64) << _HALF)
        return {
            day: Digest(
                int(self._rows[place]),
                totals[place].tobytes(),
                self._sampled[ends[place] : ends[place + 1]].astype("<u4").tobytes(),
                self.buckets.told(place, int(self._rows[place])),
            )
            for place, day in enumerate(self._window)
        }

    def _drop_large(self) -> None:
        """Keeps the smallest hashes of each day."""
        marks = np.sort(np.concatenate([self._sampled, *self._candidates]))
        days = marks >> _HALF
        ranks = np.arange(len(marks)) - np.searchsorted(days, days)
        last = marks[ranks == SAMPLED_ROWS - 1]
        self._limits[(last >> _HALF).astype(np.int32)] = last & _LOWER
        self._sampled, self._candidates = marks[ranks < SAMPLED_ROWS], []


class Samples:
    """The samples of days of an earlier load: they tell of a row whether it is surely new."""

    def __init__(self, window: DayRange, digests: Mapping[date, Digest]) -> None:
        known: list[Marks] = []
        # Of a day that is not known, every row may be old.
        self._limits = np.full(window.days, -1, np.int64)
        for place, day in enumerate(window):
            if (digest := digests.get(day)) is not None:
                tops = np.frombuffer(digest.sample, "<u4")
                self._limits[place] = tops[-1] if len(tops) == SAMPLED_ROWS else _TOP
                known.append(tops | np.uint64(place) << _HALF)
        self._known = np.concatenate([*known, [np.uint64(2**64 - 1)]])

    def ask(self, days: DayPlaces, marks: Marks) -> tuple[DayPlaces, DayPlaces]:
        """The days of the rows that a sample tells about, and the days of those of them that are surely new; one for each row."""
        asked = np.flatnonzero((marks & _LOWER).astype(np.int64) <= self._limits[days])
        # The marks of the samples are in order, and the greatest number stands behind them.
        found = self._known[np.searchsorted(self._known, marks[asked])] == marks[asked]
        return days[asked], days[asked[~found]]
