"""Structured logs, as text or as JSON. Each line of a run carries the run's id, tenant, table and range of partitions.

Every process uses them, so this module does not import Dagster. `instance.lines` lets Dagster write its lines the same way.
"""

from __future__ import annotations

import json
import logging
import os
import re
from datetime import UTC, datetime

from pulso_etl.sync.redaction import scrub, scrub_logs, scrubbed
from pulso_etl.sync.spec import qualified
from pulso_etl.sync.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
    TABLE_TAG,
    TENANT_TAG,
)

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


def handler(level: str | int) -> logging.Handler:
    """Writes lines from the level on to standard error, as text or as JSON."""
    lines = logging.StreamHandler()
    lines.setLevel(level)
    lines.setFormatter(JsonFormatter() if as_json() else TextFormatter())
    return lines


def configure(level: str = "WARNING") -> None:
    """Sets up the root logger of this process: lines from outside of runs go to standard error."""
    scrub_logs()
    lines = handler(level)
    lines.addFilter(lambda record: not hasattr(record, "dagster_meta"))
    lines.addFilter(OnlyChanges())
    logging.basicConfig(level=level, handlers=[lines], force=True)


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
