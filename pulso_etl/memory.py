"""Memory that a load no longer needs goes back to the system at once."""

from __future__ import annotations

import ctypes
import os

LARGE_BYTES = 1024 * 1024
"""A block of this size or more comes from the system and returns to it. With less, the system is asked too often."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def return_what_is_freed() -> None:
    """Makes this process and its children return large blocks that they free. Call it before the first import of pyarrow.

    Arrow's own allocator keeps what it once had, so Arrow takes the C library's, unless ARROW_DEFAULT_MEMORY_POOL names another.
    The C library of Linux (glibc) raises its idea of a large block up to 32 MiB, and then keeps blocks like those of a batch of
    rows, with gaps between them. Here the limit stays. Other C libraries have no such limit.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        set_limit = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for limit in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
        set_limit(limit, LARGE_BYTES)
