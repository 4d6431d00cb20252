"""A temporary file for rows about which the load decides later."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from types import TracebackType

import pyarrow as pa

from pulso_etl.sync.errors import LoadFailed

IN_MEMORY_BYTES = 2**20
"""Up to this size the rows stay in memory."""
MOST_BYTES = 2**30
"""The size at which the file takes no more rows."""


class Spool:
    """Batches of one schema, compressed, in a file without a name: the system removes it with the process, however that ends.

    `name` is how errors name the load. Use it as a context manager.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115 - closed by __exit__
        self._writer: pa.RecordBatchStreamWriter | None = None

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    @property
    def is_full(self) -> bool:
        """Whether the file has reached the size at which it takes no more rows."""
        return self._file.tell() >= MOST_BYTES

    def put(self, batch: pa.RecordBatch) -> None:
        """Adds a batch. Raises LoadFailed if the disk has no room."""
        try:
            if self._writer is None:
                options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
                self._writer = pa.ipc.new_stream(self._file, batch.schema, options=options)
            self._writer.write_batch(batch)
        except OSError as error:
            raise no_room(self._name, error) from error

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Every batch, in order, each time that somebody asks. No batch is added afterwards. Raises LoadFailed if the disk has no
        room."""
        if self._writer is None:
            return
        try:
            self._writer.close()
            self._file.seek(0)
        except OSError as error:
            raise no_room(self._name, error) from error
        yield from pa.ipc.open_stream(
            self._file, options=pa.ipc.IpcReadOptions(use_threads=False), memory_pool=pa.system_memory_pool()
        )


def no_room(name: str, error: OSError) -> LoadFailed:
    """The error of a load, by its name, whose rows the disk did not take."""
    return LoadFailed(
        f"{name}: rows could not be set aside in the folder for temporary files, {tempfile.gettempdir()}: "
        f"{error.strerror or error}. Nothing was loaded. Make room there, or set TMPDIR to a folder that has room (some 150 MB for "
        "a million rows)"
    )
