"""Alerts of outages that stop the sensors: if Dagster's own storage is on the PostgreSQL server that is away, no sensor runs."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

import psycopg

from pulso_etl.alerts.service import Alerts
from pulso_etl.api.dagster_client import DagsterClient, DagsterUnavailable
from pulso_etl.settings import Settings
from pulso_etl.sync.patience import CONNECT_SECONDS, TICK_SECONDS, cut_after
from pulso_etl.sync.postgres.sessions import Session

logger = logging.getLogger(__name__)
SENSORS = "SENSOR"
"""Dagster's daemon that runs the sensors."""


class OutageWatch:
    """Checks PostgreSQL like the alert sensor, and sends the alert of an outage while that sensor cannot run."""

    def __init__(self, settings: Settings, dagster: DagsterClient) -> None:
        self.settings = settings
        self.dagster = dagster
        self.alerts = Alerts(settings)

    async def run(self) -> None:
        """Checks without end. Raises nothing."""
        while True:
            await asyncio.sleep(self.settings.sensor_interval_seconds)
            try:
                await self.look(datetime.now(UTC))
            except Exception:
                logger.exception("the check for an outage of PostgreSQL failed")

    async def look(self, now: datetime) -> None:
        """One check, at the instant `now`."""
        error = await asyncio.to_thread(self._fault)
        if error is None:
            # This process sent the alert, so it also reports the end: the sensor may not know of the outage.
            if self.alerts.remembers_outage:
                await asyncio.to_thread(self.alerts.flush, now)
        elif not await self._sensors_are_asked():
            await asyncio.to_thread(self.alerts.away, now, error)

    def _fault(self) -> psycopg.Error | None:
        session = Session(self.settings.database_url.get_secret_value(), "outages", connect_seconds=CONNECT_SECONDS)
        try:
            with session.open() as conn, cut_after(TICK_SECONDS, conn):
                conn.execute("SELECT 1")
        except psycopg.OperationalError as error:
            return error
        return None

    async def _sensors_are_asked(self) -> bool:
        try:
            _, healthy = await self.dagster.daemons()
        except DagsterUnavailable:
            return False
        return healthy.get(SENSORS, False)
