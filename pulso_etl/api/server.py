"""The API as a process."""

from __future__ import annotations

import gc
import logging

import uvicorn

from pulso_etl.api.access import NO_TOKENS
from pulso_etl.api.listening import configuration
from pulso_etl.api.tenants import application
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import SettingsError


def serve(settings: Settings) -> None:
    """Listens until an interrupt or SIGTERM. Open requests then have a few seconds to end. Raises SettingsError."""
    if not settings.guarded:
        # The server cannot distinguish the machine's owner from a proxy or another user on this machine.
        raise SettingsError(NO_TOKENS.format(door="the HTTP API"))
    # Otherwise the log gets a line for each request to Dagster.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    app = application(settings)
    # Objects of the imports stay for ever. The garbage collector skips them from now on, which saves a tenth of a second each time.
    gc.collect()
    gc.freeze()
    uvicorn.Server(configuration(app, settings.api_host, settings.api_port)).run()
