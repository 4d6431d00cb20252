"""Hashes of rows, digests of days and samples, and the file for rows that wait."""

from __future__ import annotations

import errno
import os
import tempfile
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulso_etl.sync.errors import LoadFailed
from pulso_etl.sync.loading import spool
from pulso_etl.sync.loading.day_digests import SAMPLED_ROWS, DayDigests, Samples
from pulso_etl.sync.loading.row_hashes import LONG, SCHEME, row_hashes
from pulso_etl.sync.loading.spool import Spool
from pulso_etl_tests.sync.samples import D1, D2, D3, NOON, WINDOW, row, table, things

TYPES: dict[pa.DataType, list[Any]] = {
    pa.string(): ["", "a", "\0", "a\0", "ñandú", "x" * 8, "x" * 9, "x" * (LONG - 1), "x" * LONG, "x" * (LONG + 1), None],
    pa.binary(): [b"", b"\0", b"\0\0", b"\xff" * 20, None],
    pa.int64(): [0, 1, -1, 2**63 - 1, -(2**63), None],
    pa.float64(): [0.0, 1.5, -1.5, 1e300, None],
    pa.decimal128(38, 9): [Decimal(0), Decimal("1.5"), Decimal("-1.5"), Decimal("12345678901234567890123456789.5"), None],
    pa.bool_(): [True, False, None],
    pa.date32(): [D1, D2, date(1, 1, 1), None],
    pa.timestamp("us", "UTC"): [NOON, None],
    pa.list_(pa.string()): [[], [""], ["", ""], ["a", "b"], ["b", "a"], ["ab"], ["a", None], None],
    pa.list_(pa.int64()): [[], [0], [0, 0], [1, 2], [2, 1], [None], None],
}


def batch(**columns: pa.Array) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def hashes(given: pa.RecordBatch) -> list[tuple[int, int]]:
    found = row_hashes(given, given.schema.names, [])
    return list(zip(found.first.tolist(), found.second.tolist(), strict=True))


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_different_values_have_different_hashes_in_both_halves_and_equal_values_equal_ones(kind: pa.DataType) -> None:
    values = TYPES[kind]
    found = hashes(batch(x=pa.array(values, kind)))
    for half in zip(*found, strict=True):
        assert len(set(half)) == len(values)
    # The hash depends on the row alone, not on its neighbours, its place or the batch.
    assert [hashes(batch(x=pa.array([value], kind)))[0] for value in values] == found
    padded = batch(x=pa.array([*values[::-1], *values, values[0]], kind)).slice(len(values), len(values))
    assert hashes(padded) == found


def test_a_value_counts_where_it_stands() -> None:
    given = batch(x=pa.array(["a", "b", None, "ab"]), y=pa.array(["b", "a", "a", None]), z=pa.array([None, None, "a", ""]))
    assert len(set(hashes(given))) == 4


def test_the_hashes_of_known_rows_stay_the_same() -> None:
    """If this test fails, stored digests no longer match. Give SCHEME another number, and put the new hashes here."""
    known = table([row(D1, "a"), row(D3, "ñ" * 300, None, hour=-1)]).to_batches()[0]
    listed = pa.array([["x", None], None], pa.list_(pa.string()))
    given = known.append_column("list", listed).append_column("flag", pa.array([True, None]))
    assert (SCHEME, hashes(given)) == (
        1,
        [(17786333438552298998, 6746589833025606247), (2410487534020462070, 11364299113168156046)],
    )


def digested(rows: list[dict[str, Any]], size: int = 2) -> DayDigests:
    digests = DayDigests(things(), WINDOW, 1)
    for one in table(rows).to_batches(max_chunksize=size):
        digests.add(one)
    return digests


rows = st.lists(
    st.builds(row, st.sampled_from([D1, D2, D3]), st.sampled_from("abc"), st.sampled_from(["1", "2", None])), max_size=12
)


@given(rows, st.randoms(use_true_random=False), st.integers(1, 5))
def test_a_digest_does_not_depend_on_the_order_of_rows_nor_on_batches(given: list[Any], random: Any, size: int) -> None:
    shuffled = random.sample(given, len(given))
    assert digested(given).by_day() == digested(shuffled, size).by_day()


def test_equal_rows_do_not_cancel_each_other() -> None:
    totals = [digested([row(D1, "a")] * copies).by_day()[D1] for copies in range(4)]
    assert [one.rows for one in totals] == [0, 1, 2, 3]
    assert len({one.total for one in totals}) == 4
    assert totals[0].total == bytes(16)


def test_a_sample_shows_a_new_row_and_never_takes_an_old_row_for_new() -> None:
    many = [row(D1, f"n{n}", str(n)) for n in range(5 * SAMPLED_ROWS)] + [row(D2, f"n{n}") for n in range(10)]
    known = digested(many, 1000).by_day()
    samples = Samples(WINDOW, {D1: known[D1], D2: known[D2]})
    asked = DayDigests(things(), WINDOW, 1)

    def new(rows: list[dict[str, Any]]) -> list[int]:
        found = asked.add(table(rows).to_batches()[0])
        return samples.ask(found.days, found.marks)[1].tolist()

    assert new(many) == []
    changed = [one | {"money": Decimal(7777)} if n % 20 == 0 else one for n, one in enumerate(many)]
    assert set(new(changed)) == {0, 1}
    # The ledger knows nothing about the other days. So none of their rows is surely new.
    assert new([row(D3, "a")]) == []
    sample = known[D1].sample
    assert len(sample) == 4 * SAMPLED_ROWS
    assert sample == np.sort(np.frombuffer(sample, "<u4")).tobytes()


def test_rows_wait_in_memory_or_in_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 2000)
    given = table([row(D1, f"n{n}") for n in range(300)]).to_batches(max_chunksize=100)
    with Spool("things") as waiting:
        assert list(waiting.batches()) == []
        for one in given:
            waiting.put(one)
        assert list(tmp_path.iterdir()) == []
        assert list(waiting.batches()) == given
        assert list(waiting.batches()) == given


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda max_size: full.open("r+b", buffering=0))
    given = table([row(D1, "a")]).to_batches()[0]
    told = f"things 2026-02-27: .*{os.strerror(errno.ENOSPC)}.*TMPDIR"
    with Spool("things 2026-02-27") as waiting, pytest.raises(LoadFailed, match=told):
        waiting.put(given)
