"""The kinds of faults. A seed chooses the point of each."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from random import Random

import psycopg
import time_machine

from chaos.wire import Connection, WireProxy
from pulso_etl_tests.faulty_proxy import Fault, FaultyProxy, delayed, error, reset, truncated

REQUEST = r"^(GET|POST) "
PAGE = 8192
SMALL_DISK = 4096 * PAGE


class Kind(StrEnum):
    """What goes wrong, and where."""

    BIGQUERY_RESET = "BigQuery: connection reset"
    BIGQUERY_DELAY = "BigQuery: delay"
    BIGQUERY_TRUNCATED = "BigQuery: answer cut short"
    BIGQUERY_BURST = "BigQuery: burst of 429 and 503"
    POSTGRES_RESET = "PostgreSQL: connection reset"
    POSTGRES_DELAY = "PostgreSQL: delay"
    POSTGRES_TRUNCATED = "PostgreSQL: stream cut short"
    BACKEND_KILLED = "PostgreSQL: server process ended"
    DISK_FULL = "PostgreSQL: disk full"
    WORKER_KILLED = "the run's process killed"
    CLOCK_JUMP = "clock jumps in the middle"
    CLOCK_WRONG = "clock is wrong from the start"


@dataclass
class Injected:
    """A fault of one refresh: its point, and whether the refresh reached it."""

    point: str
    happened: bool = False


class SmallDisk:
    """A file system of 32 MiB for the data of the database of `conn`. It needs the right to mount a file system."""

    def __init__(self, conn: psycopg.Connection) -> None:
        """Raises OSError if that right is missing."""
        self.folder = Path(tempfile.mkdtemp(prefix="pulso-chaos-disk-"))
        options = f"size={SMALL_DISK},mode=0755"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)], capture_output=True, check=False
        )
        if mounted.returncode:
            self.folder.rmdir()
            raise OSError("a small file system can't be mounted here")
        space, self._filler = self.folder / "space", self.folder / "filler"
        space.mkdir()
        owner = Path(conn.execute("SHOW data_directory").fetchone()[0]).stat()  # type: ignore[index]
        os.chown(space, owner.st_uid, owner.st_gid)
        conn.execute(f"CREATE TABLESPACE small LOCATION '{space}'")
        for setting in ("default_tablespace", "temp_tablespaces"):
            conn.execute(f"ALTER DATABASE {conn.info.dbname} SET {setting} = small")

    def fill(self, pages: int) -> None:
        """Leaves this many pages of 8 KiB free."""
        found = os.statvfs(self.folder)
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, found.f_bavail * found.f_frsize - pages * PAGE))

    def clear(self) -> None:
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmounts the file system. The server no longer needs it."""
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)
        with suppress(OSError):
            self.folder.rmdir()


@dataclass
class Boundary:
    """Where faults are injected: the ways to BigQuery and PostgreSQL, a disk (if one can be had), and a session to end others."""

    bigquery: FaultyProxy
    postgres: WireProxy
    conn: psycopg.Connection
    disk: SmallDisk | None = None
    worker: subprocess.Popen[bytes] | None = None
    ended: bool = True
    """Whether there was a session or a process to end when the point came."""

    def kinds(self) -> list[Kind]:
        """The faults that are possible on this machine."""
        return [kind for kind in Kind if kind is not Kind.DISK_FULL or self.disk is not None]

    @contextmanager
    def inject(self, kind: Kind, random: Random, requests: int, size: int) -> Iterator[Injected]:
        """Brings the fault about within the block: there a refresh asks BigQuery `requests` times, and exchanges `size` bytes with
        PostgreSQL, if it is like the one before.
        """
        self.bigquery.call_off()
        self.postgres.arm()
        # Points are shares of the last refresh's size. So later draws stay the same if that size differs a little.
        skip, at = int(random.random() * requests), int(random.random() * size)
        on_the_wire: dict[Kind, Callable[[Connection], None]] = {
            Kind.POSTGRES_RESET: Connection.reset,
            Kind.POSTGRES_DELAY: lambda connection: connection.stall(0.3),
            Kind.POSTGRES_TRUNCATED: Connection.close,
            Kind.BACKEND_KILLED: lambda _: self._end_session(),
            Kind.WORKER_KILLED: lambda _: self._kill_worker(),
        }
        if kind in on_the_wire:
            injected = Injected(f"after {at:,} bytes")
            self.postgres.arm(at, on_the_wire[kind])
            self.ended = True
            yield injected
            injected.happened = self.postgres.happened and self.ended
        elif kind in (Kind.CLOCK_JUMP, Kind.CLOCK_WRONG):
            sign, seconds = random.choice("+-"), random.choice((90, 7_200, 200_000, 3_000_000))
            jump = timedelta(seconds=seconds if sign == "+" else -seconds)
            injected = Injected(f"by {sign}{abs(jump)}" + f" after {at:,} bytes" * (kind is Kind.CLOCK_JUMP))
            with _clock() as shift:
                if kind is Kind.CLOCK_WRONG:
                    shift(jump)
                else:
                    self.postgres.arm(at, lambda _: shift(jump))
                yield injected
            injected.happened = kind is Kind.CLOCK_WRONG or self.postgres.happened
        elif kind is Kind.DISK_FULL:
            assert self.disk is not None
            disk, pages = self.disk, random.randrange(6)
            injected = Injected(f"{pages} pages free after {at:,} bytes")
            self.postgres.arm(at, lambda _: disk.fill(pages))
            try:
                yield injected
            finally:
                disk.clear()
        else:
            times = random.choice((1, 3, 12))
            injected = Injected(f"{times} time(s) after {skip} request(s)")
            by_kind: dict[Kind, list[Fault]] = {
                Kind.BIGQUERY_RESET: [reset],
                Kind.BIGQUERY_DELAY: [delayed(0.3)],
                Kind.BIGQUERY_TRUNCATED: [truncated],
                Kind.BIGQUERY_BURST: [error(429, "rateLimitExceeded"), error(503, "backendError")],
            }
            for fault in by_kind[kind]:
                self.bigquery.inject(REQUEST, fault, times=times, skip=skip)
            yield injected
            injected.happened = self.bigquery.call_off()
        self.bigquery.call_off()
        self.postgres.arm()

    def _end_session(self) -> None:
        found = self.conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pulso-etl %' "
            "AND datname = current_database() AND pid <> pg_backend_pid()"
        )
        self.ended = found.rowcount > 0

    def _kill_worker(self) -> None:
        self.ended = self.worker is not None and self.worker.poll() is None
        if self.worker is not None:
            self.worker.kill()


@contextmanager
def _clock() -> Iterator[Callable[[timedelta], None]]:
    """This process's clock. The function that this gives shifts it once."""
    travels: list[time_machine.travel] = []

    def shift(jump: timedelta) -> None:
        travel = time_machine.travel(jump, tick=True)
        travel.start()
        travels.append(travel)

    try:
        yield shift
    finally:
        for travel in reversed(travels):
            travel.stop()
