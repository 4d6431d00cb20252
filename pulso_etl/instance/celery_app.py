"""Dagster's Celery application with our lines: `celery -q -A pulso_etl.instance.celery_app worker …`.

It needs the extra `celery`.
"""

from __future__ import annotations

from typing import Any

from celery.signals import setup_logging
from dagster_celery.app import app

from pulso_etl import logs

__all__ = ["app"]


def _serve(**_: Any) -> None:
    logs.serve("INFO")


# With a receiver of this signal, Celery sets up no logging of its own. It warns earlier, so the lines are ours from now on.
setup_logging.connect(_serve, weak=False)
_serve()
