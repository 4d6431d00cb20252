"""The imports of a fork server (of `code_server` and of `backfill`), and of a Celery worker, before it forks a run.

They open no thread, socket or connection.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
from pathlib import Path
from types import ModuleType

from dagster.components.definitions import LazyDefinitions

MODULE_VARIABLE = "PULSO_ETL_PRELOAD"
"""Environment variable of the fork server: the module to import, such as the one with the definitions."""
NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of the imports. It stops libraries from starting threads at import, because a thread does not survive a fork."""
RUNS_NEED = (
    "dagster._core.execution.api",
    "dagster._core.instance.factory",
    "dagster._grpc.impl",
    "dagster_postgres",
    "google.cloud.bigquery",
    "google.cloud.bigquery_storage",
    "psycopg",
    "psycopg2.extras",
    "pulso_etl.instance.coordinator",
    "sqlglot.dialects.bigquery",
    "upath.implementations.local",
    # A process of multiprocessing imports its parent's main program.
    "pulso_etl.__main__",
)
"""Modules that a run imports late, beside the definitions."""


def preload(module: str) -> None:
    """Imports the module of the definitions and the modules that runs need. A run that meets a fault in them reports it."""
    for name, value in NO_THREADS.items():
        os.environ.setdefault(name, value)
    gc.disable()  # what is imported stays, so there is no garbage to look for
    for name in (*RUNS_NEED, module):
        try:
            build(importlib.import_module(name))
        except Exception:
            logging.getLogger(__name__).warning("%s can't be loaded before the runs", name, exc_info=True)
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if len(threads) > 1:
        logging.getLogger(__name__).warning("threads before the fork: %s", ", ".join(sorted(threads)))
    # All runs share the memory of these objects. Without this, the garbage collector of a run would write to each of them.
    gc.freeze()
    gc.enable()


def build(module: ModuleType) -> None:
    """Builds the module's definitions, once for all forked runs."""
    for name, found in list(vars(module).items()):
        if isinstance(found, LazyDefinitions) and not found.has_context_arg:
            definitions = found()
            definitions.get_repository_def().load_all_definitions()
            setattr(module, name, definitions)
