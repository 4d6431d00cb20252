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
    """Listens until an interrupt or SIGTERM. Requests that are under way then have a few seconds to end. Raises SettingsError."""
    if not settings.guarded:
        # A proxy on this machine, or another user of it, can't be told from its owner.
        raise SettingsError(NO_TOKENS.format(door="the HTTP API"))
    # Each request to Dagster would leave a line.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    app = application(settings)
    # What the imports left is there to stay: the garbage collector need not look through it again, which takes a tenth of a second.
    gc.collect()
    gc.freeze()
    uvicorn.Server(configuration(app, settings.api_host, settings.api_port)).run()
