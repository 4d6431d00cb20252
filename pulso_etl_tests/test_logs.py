"""The lines of every process: one format, the fields of what they belong to, and only what is new."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from pulso_etl.logs import OnlyChanges, run_fields

TAKEN = """
from pulso_etl.instance import lines
from pulso_etl.logs import configure
configure("INFO")
lines.take_over()
import logging, warnings
from dagster._core.definitions.instigation_logger import InstigationLogger
from dagster._loggers import default_system_loggers
from dagster._utils.log import configure_loggers
configure_loggers(formatter="colored", log_level="INFO")
logging.getLogger("dagster.daemon").info("of the daemon")
with InstigationLogger(repository_name="repository", instigator_name="refresh_sensor") as logger:
    logger.info("of a sensor")
warnings.warn("a warning")
"""


@pytest.mark.usefixtures("processes")
def test_dagsters_own_lines_are_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULSO_LOG_FORMAT", "json")
    ended = subprocess.run([sys.executable, "-c", TAKEN], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in (ended.stdout + ended.stderr).splitlines()]
    assert [(line["message"].split("\n")[0], line.get("automation")) for line in lines[:2]] == [
        ("of the daemon", None),
        ("of a sensor", "refresh_sensor"),
    ]
    assert "a warning" in lines[2]["message"]
    assert len(lines) == 3


TOLD_ONCE = """
import logging
from dagster._utils.log import configure_loggers
from pulso_etl.instance.lines import tell_once
configure_loggers(formatter="colored", log_level="INFO")
tell_once()
logging.warning("Retrying failed database connection")
logging.getLogger("dagster.daemon.SensorDaemon").info("of the daemon")
"""


@pytest.mark.usefixtures("processes")
def test_after_an_outage_a_daemon_that_dagster_set_up_says_each_line_once() -> None:
    ended = subprocess.run([sys.executable, "-c", TOLD_ONCE], capture_output=True, text=True, check=True)
    told = ended.stdout + ended.stderr
    assert (told.count("Retrying failed database connection"), told.count("of the daemon")) == (1, 1)


def test_a_line_of_a_sensor_names_it() -> None:
    meta = {"repository_name": "repository", "name": "alert_sensor", "orig_message": "told"}
    assert run_fields(logging.makeLogRecord({"dagster_meta": meta})) == {"automation": "alert_sensor"}


def test_the_daemon_says_only_what_is_new() -> None:
    said = OnlyChanges()

    def passes(text: str, level: int = logging.INFO, name: str = "dagster.daemon.SensorDaemon") -> bool:
        return said.filter(logging.makeLogRecord({"name": name, "levelno": level, "msg": text}))

    idle = "Sensor refresh_sensor skipped: operation_data: fresh, loaded 0:01:12 ago"
    assert not passes("Checking for new runs for sensor: refresh_sensor")
    assert [passes(idle), passes(idle.replace("0:01:12", "1:02:13"))] == [True, False]
    assert passes("Sensor alert_sensor skipped: 0 message(s) due")
    assert passes("Sensor refresh_sensor skipped: PostgreSQL is away, the next tick tries again")
    assert passes(idle)
    assert all(passes("an error", logging.ERROR) for _ in range(2))
    assert all(passes(idle, name="dagster.code_server") for _ in range(2))
