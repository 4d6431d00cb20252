"""The day and the time zone of a session of tests. No session meets a midnight, at whatever hour it begins.

Real processes run by the machine's clock, so their day cannot be chosen. Their time zone can: it is the setting TIMEZONE. A test
that depends on today takes TODAY from here, and its deployment has the zone ZONE.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pulso_etl import tables
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.zone import Zone

ZONES = ("Asia/Manila", "America/La_Paz")
"""Their clocks are 12 hours apart and never change: when it is midnight in one zone, it is noon in the other.

Neither is the default zone: a test that takes the default zone by mistake should fail at any hour.
"""
MARGIN = timedelta(hours=3)
"""A session takes minutes, and tests look some time ahead and back."""


def zone_at(instant: datetime) -> Zone:
    """The first zone whose last midnight and next midnight are both further away than the margin."""
    return next(zone for zone in map(Zone, ZONES) if zone.day(instant - MARGIN) == zone.day(instant + MARGIN))


ZONE = zone_at(datetime.now(UTC))
TODAY = ZONE.day(datetime.now(UTC))
"""It is the day of ZONE for as long as the session lasts."""
TABLES: dict[str, TableSpec] = {name: spec.in_zone(ZONE.name) for name, spec in tables.TABLES.items()}
"""The tables of a deployment in ZONE."""
