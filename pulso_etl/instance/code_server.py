"""Dagster's code server, whose runs start warm: `pulso-etl code-server`.

Dagster's own starts a new Python for each run, and most of a small run's time goes into its imports. Here a fork server imports
Dagster, the clients and the definitions once, and each run is a fork of it. All else stays Dagster's: how a run's process is
watched, terminated and told of, its logs, and the reload of the code, which starts a new code server and a new fork server.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any

import dagster._grpc.server as dagster_server
from dagster._cli.api import grpc_command
from dagster._grpc.server import DagsterApiServer

from pulso_etl.instance.preload import MODULE_VARIABLE

NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of the fork server: libraries that would start threads when they are imported. A thread does not survive a fork."""
TRIAL_SECONDS = 120.0
"""The first fork has so long; it waits for the imports."""


def serve(host: str, port: int, module: str) -> None:
    """Serves the definitions of the module to Dagster's daemon and webserver, until a signal ends the process."""
    for name, value in NO_THREADS.items():
        os.environ.setdefault(name, value)
    os.environ[MODULE_VARIABLE] = module
    dagster_server.DagsterApiServer = WarmApiServer  # type: ignore[misc]
    grpc_command.main(["--host", host, "--port", str(port), "--module-name", module, "--location-name", module])


class WarmApiServer(DagsterApiServer):
    """Dagster's code server with a fork server for its runs. Until a trial has worked, runs start as Dagster has it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def _warm_up(self) -> None:
        """Starts the fork server and forks once; from then on the runs are its forks."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pulso_etl.instance.preload"])
        trial = context.Process(target=int, name="trial of the fork server")
        try:
            trial.start()
            trial.join(TRIAL_SECONDS)
            fault = None if trial.exitcode == 0 else f"the trial ended with {trial.exitcode}"
        except (OSError, EOFError) as error:
            fault = str(error) or type(error).__name__
        if fault is None:
            # `StartRun` makes a run's process, queue and event by it.
            self._mp_ctx = context  # type: ignore[assignment]
            self._logger.info("runs start warm: the fork server is ready")
        else:
            self._logger.warning("the fork server does not work, so that each run starts a Python of its own: %s", fault)
