"""Dagster's Celery application with our lines: `celery -q -A pulso_etl.instance.celery_app worker …`.

It needs the extra `celery`.
"""

from __future__ import annotations

from typing import Any

from celery.signals import setup_logging, worker_init
from dagster_celery.app import app

from pulso_etl.instance import lines
from pulso_etl.instance.preload import preload

__all__ = ["app"]
MODULE = "pulso_etl.definitions"
"""A worker imports it before it forks the processes of its runs. A run of another module imports that itself."""


def _serve(**_: Any) -> None:
    lines.serve("INFO")


def _warm_up(**_: Any) -> None:
    preload(MODULE)


worker_init.connect(_warm_up, weak=False)
# With a receiver of this signal, Celery sets up no logging of its own. It warns earlier, so the lines are ours from now on.
setup_logging.connect(_serve, weak=False)
_serve()
