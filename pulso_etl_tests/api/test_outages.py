"""The API tells of an outage of PostgreSQL where no sensor can, once and with its end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import SecretStr

from pulso_etl.alerts.service import Alerts
from pulso_etl.api.dagster_client import DagsterClient
from pulso_etl.api.outages import OutageWatch
from pulso_etl_tests.alerts.receivers import MakeSettings, Receiver
from pulso_etl_tests.gate import Gate, Way

START = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Dagster(DagsterClient):
    """A webserver that reports its daemons as `healthy`. If that is None, it does not answer."""

    healthy: dict[str, bool] | None = None

    async def daemons(self) -> tuple[str, dict[str, bool]]:
        return await super().daemons() if self.healthy is None else ("1", self.healthy)


def test_an_outage_that_takes_dagster_with_it_is_told_once_and_so_is_its_end(
    receiver: Receiver, make_settings: MakeSettings, server_url: str, tmp_path: Path
) -> None:
    with Gate.before_postgres(server_url) as gate:
        given = {"database_url": SecretStr(gate.postgres_url), "dagster_home": tmp_path}
        settings = make_settings(f"json://127.0.0.1:{receiver.port}/hook", **given)

        def look(minute: int, healthy: dict[str, bool] | None = None) -> None:
            dagster = Dagster("http://127.0.0.1:9/graphql")
            dagster.healthy = healthy
            asyncio.run(OutageWatch(settings, dagster).look(START + minute * MINUTE))

        look(0)
        gate.turn(Way.REFUSED)
        for minute in range(1, 5):
            # The sensors send the messages, so the test runs them.
            look(minute, {"SENSOR": True})
        assert receiver.titles() == []
        for minute in range(5, 20):
            look(minute)
            # A sensor that shares the file sends no message twice.
            Alerts(settings).flush(START + minute * MINUTE)
        assert receiver.titles() == ["[Pulso] PostgreSQL no está disponible"]
        gate.turn(Way.OPEN)
        look(20, {"SENSOR": True})
        for minute in range(21, 25):
            Alerts(settings).flush(START + minute * MINUTE)
            look(minute)
        assert receiver.titles()[1:] == ["[Pulso] Recuperado: PostgreSQL volvió a estar disponible"]
        assert "Duró: 15 min" in receiver.posts[1][1]["message"]
