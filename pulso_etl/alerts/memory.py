"""Keeps what is known of an outage of PostgreSQL while it lasts, because the incidents are in the database that is away.

It is a small file in Dagster's home. The process that looks for alerts is replaced now and then, and Dagster's own storage may be
on the server that is away. If that folder does not exist or cannot be written, the process's memory keeps it.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from pulso_etl.alerts.incidents import Incident
from pulso_etl.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outage:
    """`stored` is the open incident of the database as last stored there. `away` is the incident of the current outage."""

    stored: Incident | None = None
    away: Incident | None = None


_OUTAGE = TypeAdapter(Outage)


class OutageMemory:
    """The file of one deployment, or of one of its tenants."""

    def __init__(self, settings: Settings) -> None:
        name = ".".join(filter(None, ("outage", settings.owner.tenant, settings.database_schema, "json")))
        self._file = settings.dagster_home / "storage" / "pulso_etl" / name if settings.dagster_home else None
        self._known = Outage()

    def read(self) -> Outage:
        """What is known. Nothing if the file is missing or cannot be read."""
        if self._file is not None:
            try:
                self._known = _OUTAGE.validate_json(self._file.read_bytes())
            except FileNotFoundError:
                # There was no outage yet.
                pass
            except (OSError, ValidationError) as error:
                log.warning("alerts: %s can't be read: %s", self._file, type(error).__name__)
        return self._known

    def write(self, known: Outage) -> None:
        """Writes it whole or not at all. If it cannot be written, this process keeps it in memory."""
        if known == self.read():
            return
        self._known = known
        if self._file is None:
            return
        written = self._file.with_suffix(f".{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            written.write_bytes(_OUTAGE.dump_json(known))
            written.replace(self._file)
        except OSError as error:
            log.warning("alerts: %s can't be written, an outage may be sent twice: %s", self._file, error.strerror)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes that share the file from sending the outage meanwhile."""
        with ExitStack() as stack:
            if self._file is not None:
                with suppress(OSError):
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                    fcntl.flock(stack.enter_context(self._file.with_suffix(".lock").open("wb")), fcntl.LOCK_EX)
            yield
