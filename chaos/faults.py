"""The kinds of faults, each brought about at a point that a seed chooses."""

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

import psutil
import psycopg
import time_machine

from chaos.wire import Connection, WireProxy
from pulso_etl_tests.faulty_proxy import Fault, FaultyProxy, delayed, error, reset, truncated

REQUEST = r"^(GET|POST) "
PAGE = 8192
SMALL_DISK = 64 * PAGE


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
    CLOCK_JUMP = "clock jumps"


@dataclass
class Injected:
    """A fault of one refresh: at which point, and whether the refresh came to it."""

    point: str
    happened: bool = False


class SmallDisk:
    """A file system of half a MiB of which the server makes a tablespace. Needs the right to mount one."""

    def __init__(self, conn: psycopg.Connection) -> None:
        """Raises OSError where that right is missing."""
        self.folder = Path(tempfile.mkdtemp(prefix="pulso-chaos-disk-"))
        options = f"size={SMALL_DISK},mode=0777"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)], capture_output=True, check=False
        )
        if mounted.returncode:
            self.folder.rmdir()
            raise OSError("a small file system can't be mounted here")
        (self.folder / "space").mkdir()
        (self.folder / "space").chmod(0o777)
        self._own(conn)
        conn.execute(f"CREATE TABLESPACE small LOCATION '{self.folder / 'space'}'")  # type: ignore[call-overload]
        conn.execute("GRANT CREATE ON TABLESPACE small TO PUBLIC")
        self.conn = conn

    def _own(self, conn: psycopg.Connection) -> None:
        row = conn.execute("SHOW data_directory").fetchone()
        assert row is not None
        owner = Path(row[0]).stat()
        os.chown(self.folder / "space", owner.st_uid, owner.st_gid)

    @contextmanager
    def with_free_pages(self, pages: int) -> Iterator[None]:
        """Temporary tables of new sessions stand on the disk, which has so many free pages of 8 KiB."""
        filler = self.folder / "filler"
        free = os.statvfs(self.folder)
        filler.write_bytes(b"\0" * max(0, free.f_bavail * free.f_frsize - pages * PAGE))
        database = self.conn.info.dbname
        self.conn.execute(f"ALTER DATABASE {database} SET temp_tablespaces = small")  # type: ignore[call-overload]
        try:
            yield
        finally:
            self.conn.execute(f"ALTER DATABASE {database} RESET temp_tablespaces")  # type: ignore[call-overload]
            filler.unlink()

    def close(self) -> None:
        """Gives the mount back; the server no longer needs it."""
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

    def kinds(self) -> list[Kind]:
        """Those that can be brought about on this machine."""
        return [kind for kind in Kind if kind is not Kind.DISK_FULL or self.disk is not None]

    @contextmanager
    def inject(self, kind: Kind, random: Random, requests: int, size: int) -> Iterator[Injected]:
        """Brings the fault about within the block: there a refresh asks BigQuery `requests` times, and exchanges `size` bytes with
        PostgreSQL, if it is like the one before.
        """
        self.bigquery.call_off()
        self.postgres.arm()
        skip, at = random.randrange(max(1, requests)), random.randrange(max(1, size))
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
            yield injected
            injected.happened = self.postgres.happened
        elif kind is Kind.CLOCK_JUMP:
            jump = random.choice((-1, 1)) * timedelta(seconds=random.choice((90, 7_200, 200_000, 3_000_000)))
            injected = Injected(f"by {jump} after {at:,} bytes")
            with _clock() as shift:
                self.postgres.arm(at, lambda _: shift(jump))
                yield injected
            injected.happened = self.postgres.happened
        elif kind is Kind.DISK_FULL:
            assert self.disk is not None
            pages = random.randrange(6)
            injected = Injected(f"{pages} pages free")
            with self.disk.with_free_pages(pages):
                yield injected
            injected.happened = True
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
        self.conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pulso-etl %' "
            "AND datname = current_database() AND pid <> pg_backend_pid()"
        )

    def _kill_worker(self) -> None:
        if self.worker is not None:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(self.worker.pid).kill()


@contextmanager
def _clock() -> Iterator[Callable[[timedelta], None]]:
    """This process's clock, which the function that is given shifts once."""
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
