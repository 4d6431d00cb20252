"""The API as a process."""

from __future__ import annotations

import gc
import logging

import uvicorn

from pulso_etl.api.tenants import application
from pulso_etl.settings import Settings


def serve(settings: Settings) -> None:
    """Listens until an interrupt or SIGTERM. Requests that are under way then have a few seconds to end."""
    # Each request to Dagster would leave a line.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    app = application(settings)
    # What the imports left is there to stay: the garbage collector need not look through it again, which takes a tenth of a second.
    gc.collect()
    gc.freeze()
    config = uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,
        access_log=False,
        # Who asks is the one who connects: what a proxy says of it can be made up.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    uvicorn.Server(config).run()
