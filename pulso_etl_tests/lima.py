"""The days and hours of the default time zone."""

from __future__ import annotations

from pulso_etl.sync.zone import DEFAULT

LIMA = DEFAULT.tzinfo
lima_day = DEFAULT.day
