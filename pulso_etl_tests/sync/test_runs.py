"""Rows on their way straight into a table: in runs that are sorted by the key, and that wait in temporary files."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from datetime import date, timedelta
from pathlib import Path
from threading import Event

import psycopg
import pyarrow as pa
import pytest

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import ContractError, LoadFailed
from pulso_etl.sync.loading import runs
from pulso_etl.sync.loading.load import load
from pulso_etl.sync.loading.runs import in_runs
from pulso_etl.sync.target import Target
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.sync.samples import D1, SCHEMA, request, row, table, things

WINDOW = DayRange(D1, D1 + timedelta(days=29))
BATCHES = 8


def batches(of: int = 50) -> list[pa.RecordBatch]:
    """Batches whose rows are of all days, in an order that is not the key's."""
    rows = [
        row(D1 + timedelta(days=n * 7 % WINDOW.days), f"n{n * 3571 % 997:03d}", str(n) if n % 3 else None)
        for n in range(of * BATCHES)
    ]
    found: list[pa.RecordBatch] = table(rows).to_batches(max_chunksize=of)
    return found


def keys(rows: pa.Table) -> list[tuple[date, str]]:
    return [(one["day"], one["name"]) for one in rows.select(["day", "name"]).to_pylist()]


def taken(given: list[pa.RecordBatch], window: DayRange = WINDOW) -> tuple[list[pa.RecordBatch], list[pa.RecordBatch]]:
    """What comes of the first batch, and of the others, which come while the server takes the first."""
    others_are_there = Event()

    def source() -> Iterator[pa.RecordBatch]:
        yield given[0]
        first_is_taken.wait(10)
        yield from given[1:]
        others_are_there.set()

    first_is_taken = Event()
    found: list[pa.RecordBatch] = []
    made = in_runs(things(), window, source())
    while sum(one.num_rows for one in found) < given[0].num_rows:
        found.append(next(made))
        first_is_taken.set()
    assert others_are_there.wait(10)
    return found, list(made)


@pytest.mark.parametrize("piece_rows", [1, 60, 10_000])
def test_what_comes_while_the_server_is_busy_is_a_run_in_the_order_of_the_key(
    piece_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "PIECE_ROWS", piece_rows)
    given = batches()
    first, others = taken(given)
    assert keys(pa.Table.from_batches(first)) == sorted(keys(pa.Table.from_batches(given[:1])))
    if piece_rows == 10_000:
        assert keys(pa.Table.from_batches(others)) == sorted(keys(pa.Table.from_batches(given[1:])))
    # The rows of a day lie together, however large a piece is.
    groups = [(day - D1).days * runs.GROUPS // WINDOW.days for day, _ in keys(pa.Table.from_batches(others))]
    assert groups == sorted(groups)
    whole = pa.Table.from_batches([*first, *others])
    assert whole.sort_by([("day", "ascending"), ("name", "ascending")]) == pa.Table.from_batches(given).sort_by(
        [("day", "ascending"), ("name", "ascending")]
    )


def test_each_batch_is_sorted_alone_if_days_do_not_lie_together_in_the_key_or_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(runs, "in_turns")
    given = batches()
    by_name = in_runs(things(primary_key=("name", "day")), WINDOW, iter(given))
    assert [[one["name"] for one in batch.to_pylist()] for batch in by_name] == [
        sorted(one["name"] for one in batch.to_pylist()) for batch in given
    ]
    one_day = table([row(D1, name) for name in "cab"]).to_batches()
    (found,) = in_runs(things(), DayRange(D1, D1), iter(one_day))
    assert found["name"].to_pylist() == ["a", "b", "c"]


OPEN = Path("/proc/self/fd")


def open_files(folder: Path) -> list[str]:
    """The files of a folder that this process has open, by their names or where they had one."""
    found = []
    for one in OPEN.iterdir():
        with suppress(FileNotFoundError):  # another thread has closed it meanwhile
            found.append(os.readlink(one))
    return [one for one in found if one.startswith(str(folder))]


@pytest.mark.skipif(not OPEN.exists(), reason="this system does not tell the open files")
def test_files_end_with_the_load_also_if_it_breaks_off(
    conn: psycopg.Connection, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    faulty = [*batches(), table([row(D1 - timedelta(days=1), "before the window")]).to_batches()[0]]
    # Who holds the error holds what the load had in hand.
    with pytest.raises(ContractError, match="was not asked for") as held, conn.transaction():
        load(
            Target(conn, things(), schema),
            request(WINDOW, lambda: nullcontext(pa.RecordBatchReader.from_batches(SCHEMA, iter(faulty))), repeatable=False),
        )
    made = in_runs(things(), WINDOW, iter(batches()))
    next(made)
    assert open_files(tmp_path)
    del made
    assert sum(1 for _ in in_runs(things(), WINDOW, iter(batches())))
    wait_until(lambda: not open_files(tmp_path))
    assert held.tb


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda buffering: full.open("r+b", buffering=buffering))
    told = f"things {WINDOW.start}.*{os.strerror(errno.ENOSPC)}.*TMPDIR"
    with pytest.raises(LoadFailed, match=told):
        list(in_runs(things(), WINDOW, iter(batches())))
