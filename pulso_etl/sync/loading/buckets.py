"""The buckets of a day: its rows in parts, by a hash of the key. They show which part of a day has changed.

All rows of a key are in one bucket. So if the source's rows of a bucket are those that the last load of the day had, and the table
is as that load left it, then a load changes no row of the bucket, whatever it does to other rows of the day.

The digest of a bucket is the sum of 64 bits of the hashes of its rows. Buckets come in powers of two: the sums of two halves of the
buckets of a day, added up, are the sums of half as many buckets. So a load with fewer buckets can read the trace of one with more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pulso_etl.sync.ledger.traces import Digest
from pulso_etl.sync.loading.contract import Fitted
from pulso_etl.sync.loading.row_hashes import Words
from pulso_etl.sync.spec import ColumnType, OnReject, Strategy

BUCKET_ROWS = 4
"""A day gets a bucket for each so many rows, up to MOST_OF_DAY. One changed row sends the rows of its bucket to the server."""
MOST_OF_DAY = 2_048
"""The most buckets of a day: 16 KiB of its trace."""
MOST_OF_LOAD = 2**18
"""The most buckets of all days of a load: 2 MiB of memory."""
MOST_DIFFERING = 1 / 2
"""If more than this share of the buckets of a day differs, the day is compared as a whole."""
CHANCE = 3
"""Up to so many standard deviations, a difference may be chance."""

DayPlaces = npt.NDArray[np.int32]
"""The place in the window of each row's day: 0 is the first day."""
BucketPlaces = npt.NDArray[np.int32]
"""The place of each row's bucket among the buckets of all days of the window."""


def buckets_of_day(fitted: Fitted, days: int) -> int:
    """How many buckets a load of so many days has for each of them: 1 if it has to compare whole days."""
    return min(MOST_OF_DAY, _power_of_two(MOST_OF_LOAD // days)) if _keys_stand_alone(fitted) else 1


def _keys_stand_alone(fitted: Fitted) -> bool:
    """Whether the rows of a key can be compared without the other rows of the day.

    They need them in two cases. The source may give more rows than the table should have: versions of a key, and quarantined
    rows. Or only the server may know which keys are equal: a number has two zeros, and the server converts a text.
    """
    spec, loading = fitted.spec, fitted.spec.loading
    one_row_each = loading.strategy in (Strategy.UPSERT, Strategy.SCD2) and spec.version_column is None
    loose = fitted.text_columns | {column.name for column in spec.columns if column.type is ColumnType.DOUBLE}
    return one_row_each and loading.on_reject is OnReject.FAIL and loose.isdisjoint(spec.primary_key)


class Buckets:
    """The sums of the buckets of each day of a window, `of_day` buckets a day."""

    def __init__(self, days: int, of_day: int) -> None:
        self.days, self.of_day = days, of_day
        self._sums = np.zeros(days * of_day, np.uint64)

    def places(self, days: DayPlaces, keys: Words) -> BucketPlaces:
        """The bucket of each row, by the number of its key."""
        return days * np.int32(self.of_day) + (keys & np.uint64(self.of_day - 1)).astype(np.int32)

    def add(self, places: BucketPlaces, numbers: Words) -> None:
        """Adds the rows' numbers to the sums of their buckets."""
        np.add.at(self._sums, places, numbers)

    def by_day(self) -> Words:
        """The sum of each day."""
        sums: Words = self._sums.reshape(self.days, self.of_day).sum(axis=1, dtype=np.uint64)
        return sums

    def told(self, day: int, rows: int) -> bytes:
        """The buckets of a day with so many rows, as its trace keeps them: 8 bytes each. Empty if one bucket has all rows."""
        count = min(self.of_day, _power_of_two(rows // BUCKET_ROWS))
        return _halved(self._of(day), count).astype("<u8").tobytes() if count > 1 else b""

    def differing(self, day: int, last: Digest) -> npt.NDArray[np.bool_] | None:
        """Of each bucket of a day, whether its rows differ from those of the last load. None if the trace does not tell it, or if
        too many of them differ.

        Versions of Pulso ETL that know no buckets leave those of an earlier load in the trace: they do not add up to the digest.
        """
        then = np.frombuffer(last.buckets, "<u8").astype(np.uint64)
        if not len(then) or then.sum() != np.frombuffer(last.total, "<u8")[0]:
            return None
        count = min(len(then), self.of_day)
        differs = _halved(self._of(day), count) != _halved(then, count)
        # The digests of the day differ, so a bucket does, unless the sums of the day are equal by chance.
        return np.tile(differs, self.of_day // count) if 0 < differs.mean() <= MOST_DIFFERING else None

    def bearable_share(self, last: Digest | None) -> float:
        """The share of a day's rows that may be new: with more of them, more than MOST_DIFFERING of its buckets would differ."""
        count = min(self.of_day, len(last.buckets) // 8) if last else 0
        return 1 - (1 - MOST_DIFFERING) ** (count / last.rows) if last and last.rows and count > 1 else 0

    def _of(self, day: int) -> Words:
        return self._sums[day * self.of_day : (day + 1) * self.of_day]


def surely_more(found: npt.NDArray[np.int64], expected: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Of each day, whether more rows were found than expected, and by more than chance. If none is expected, one is more."""
    most: npt.NDArray[np.float64] = np.where(expected > 0, expected + CHANCE * np.sqrt(expected + 1), 0)
    return found > most


def _halved(sums: Words, count: int) -> Words:
    """Adds buckets up until `count` of them are left. `count` divides their number."""
    halved: Words = sums.reshape(-1, count).sum(axis=0, dtype=np.uint64)
    return halved


def _power_of_two(number: int) -> int:
    """The greatest power of two that is at most the number; 1 if there is none."""
    return 1 << max(0, number.bit_length() - 1)
