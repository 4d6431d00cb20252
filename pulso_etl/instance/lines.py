"""The lines of Dagster's own code and of runs, written as ours: see `logs`."""

from __future__ import annotations

import logging
import sys

import dagster as dg
import dagster._utils.log

from pulso_etl.logs import as_json, configure, handler
from pulso_etl.sync.redaction import scrub_logs


def serve(level: str) -> None:
    """Sets up a process of this deployment: all lines, also those of Dagster's own code, go to standard error once and as ours."""
    configure(level)
    # It tells of each of its parts when it is imported.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    _take_over()


def take_over() -> None:
    """Lets Dagster's own code of this process write its lines as ours, if they are JSON or nobody reads them at a terminal.

    Dagster's processes otherwise write coloured text, whatever reads it. Lines of runs carry the run's fields, too.
    """
    if as_json() or not sys.stderr.isatty():
        _take_over()


def tell_once() -> None:
    """Keeps a process that Dagster has set up from writing every line of Dagster twice.

    While the database is away, Dagster logs to the root logger. Python then gives that a handler of its own, which from then on
    also writes each line that Dagster's own handler writes.
    """
    if not logging.root.handlers:
        others = handler(logging.WARNING)
        others.addFilter(lambda record: not record.name.startswith("dagster"))
        logging.root.addHandler(others)


def _take_over() -> None:
    scrub_logs()
    for name, ours in (("configure_loggers", _configure), ("create_console_logger", _console_logger)):
        theirs = getattr(dagster._utils.log, name)
        # Modules that are imported later find ours in Dagster's module.
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("dagster") and vars(module).get(name) is theirs:
                setattr(module, name, ours)
    logging.captureWarnings(True)


def _configure(handler: str = "default", formatter: str = "", log_level: str | int = "INFO") -> None:
    """In place of Dagster's `configure_loggers`: its lines go to the root logger's handlers."""
    for name in ("dagster", "dagster-webserver"):
        logging.getLogger(name).setLevel(log_level)


def _console_logger(name: str, level: str | int) -> logging.Logger:
    """In place of Dagster's `create_console_logger`."""
    logger = logging.Logger(name, level if isinstance(level, int) else level.upper())
    logger.addHandler(handler(logger.level))
    return logger


@dg.logger(
    config_schema={
        "log_level": dg.Field(str, is_required=False, default_value="INFO"),
        "events": dg.Field(bool, is_required=False, default_value=True, description="Dagster's own events too."),
    },
    description="The lines of a run to standard error, as text or as JSON.",
)
def run_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Dagster's `console` logger of every run."""
    scrub_logs()
    # The handler has the level, because Dagster filters lines of managed Python loggers by the logger's level.
    lines = handler(context.logger_config["log_level"].upper())
    if not context.logger_config["events"]:
        lines.addFilter(lambda record: record.__dict__["dagster_meta"]["dagster_event"] is None)
    logger = logging.Logger("pulso_etl.run")
    logger.addHandler(lines)
    return logger
