"""Structured logs, as text or as JSON. Each line of a run carries the run's id, tenant, table and range of partitions."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime

import dagster as dg
import dagster._utils.log
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG, PARTITION_NAME_TAG

from pulso_etl.sync.redaction import scrub, scrub_logs, scrubbed
from pulso_etl.sync.spec import qualified
from pulso_etl.sync.tags import TABLE_TAG, TENANT_TAG

FORMAT_VARIABLE = "PULSO_LOG_FORMAT"
"""Environment variable; "json" asks for one JSON object a line."""


def run_fields(record: logging.LogRecord) -> dict[str, str]:
    """Run id, tenant, table and partitions of a run's line; sensor or schedule of its line (`automation`); nothing for others."""
    meta = getattr(record, "dagster_meta", None)
    if not meta:
        return {}
    if "job_tags" not in meta:
        # A line of a sensor or a schedule.
        return {"automation": meta["name"]}
    tags = meta["job_tags"]
    start, end = tags.get(ASSET_PARTITION_RANGE_START_TAG), tags.get(ASSET_PARTITION_RANGE_END_TAG)
    tenant = tags.get(TENANT_TAG)
    fields = {
        "run_id": meta["run_id"],
        "tenant": tenant,
        "table": (meta["step_key"] or tags.get(TABLE_TAG) or "").removeprefix(qualified(tenant or "", "")),
        "partitions": f"{start}..{end}" if start else tags.get(PARTITION_NAME_TAG),
    }
    return {key: value for key, value in fields.items() if value}


class TextFormatter(logging.Formatter):
    """One line for people, with the run's fields at its end. Times are UTC."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={value}" for key, value in run_fields(record).items())
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        text = f"{at} {record.levelname} {record.name}: {_message(record)}{fields}"
        return scrub(f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for machines. Times are UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **run_fields(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(scrubbed(line), ensure_ascii=False)


def _message(record: logging.LogRecord) -> str:
    # Dagster also writes job, run and step into its message. Here they are fields.
    meta = getattr(record, "dagster_meta", None)
    return meta["orig_message"] if meta else record.getMessage()


def as_json() -> bool:
    """Whether the environment asks for JSON."""
    return os.environ.get(FORMAT_VARIABLE) == "json"


def _handler(level: str | int) -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setLevel(level)
    handler.setFormatter(JsonFormatter() if as_json() else TextFormatter())
    return handler


def configure(level: str = "WARNING") -> None:
    """Sets up the root logger of this process: lines from outside of runs go to standard error."""
    scrub_logs()
    lines = _handler(level)
    lines.addFilter(lambda record: not hasattr(record, "dagster_meta"))
    lines.addFilter(OnlyChanges())
    logging.basicConfig(level=level, handlers=[lines], force=True)


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
        others = _handler(logging.WARNING)
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
    logger.addHandler(_handler(logger.level))
    return logger


class OnlyChanges(logging.Filter):
    """Lets a line of Dagster's daemon through only if it says something new. Numbers, which are mostly ages, do not count as new.

    The daemon says several times a minute that each sensor has nothing to do. The first three words of a line are its subject.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], str] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.INFO or not record.name.startswith("dagster.daemon"):
            return True
        text = re.sub(r"\d+", "#", record.getMessage())
        if text.startswith("Checking for new runs for "):
            return False
        subject = (record.name, " ".join(text.split()[:3]))
        if self._said.get(subject) == text:
            return False
        self._said[subject] = text
        return True


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
    lines = _handler(context.logger_config["log_level"].upper())
    if not context.logger_config["events"]:
        lines.addFilter(lambda record: record.__dict__["dagster_meta"]["dagster_event"] is None)
    logger = logging.Logger("pulso_etl.run")
    logger.addHandler(lines)
    return logger
