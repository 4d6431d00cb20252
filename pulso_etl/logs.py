"""Structured logs, as text or as JSON. Each line of a run carries the run's id, tenant, table and range of partitions."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG, PARTITION_NAME_TAG

from pulso_etl.sync.redaction import scrub, scrub_logs, scrubbed
from pulso_etl.sync.spec import qualified
from pulso_etl.sync.tags import TABLE_TAG, TENANT_TAG

FORMAT_VARIABLE = "PULSO_LOG_FORMAT"
"""Environment variable; "json" asks for one JSON object a line."""


def run_fields(record: logging.LogRecord) -> dict[str, str]:
    """Run id, tenant, table and partitions of a Dagster run's line; nothing for other lines."""
    meta = getattr(record, "dagster_meta", None)
    if not meta:
        return {}
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


def _handler(level: str) -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setLevel(level)
    handler.setFormatter(JsonFormatter() if as_json() else TextFormatter())
    return handler


def configure(level: str = "WARNING") -> None:
    """Sets up the root logger of this process: lines from outside of runs go to standard error."""
    scrub_logs()
    lines = _handler(level)
    lines.addFilter(lambda record: not hasattr(record, "dagster_meta"))
    logging.basicConfig(level=level, handlers=[lines], force=True)


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
