"""Made-up readings of weather stations: the same readings for the same day, whenever somebody asks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from random import Random
from typing import Any

STATIONS = ("Gijón", "Madrid", "Sevilla")


def readings(day: date, today: date) -> Iterator[dict[str, Any]]:
    """The reading of each station on that day: degrees Celsius, and millimetres of rain.

    A gauge is read on the morning after the day, so a reading has no rain before.
    """
    for station in STATIONS:
        random = Random(f"{station} {day}")
        coldest = random.gauss(8, 5)
        yield {
            "day": day,
            "station": station,
            "coldest_c": round(coldest, 1),
            "warmest_c": round(coldest + random.uniform(2, 14), 1),
            "rain_mm": Decimal(random.choice((0, 0, 0, random.randrange(400)))).scaleb(-1) if day < today else None,
        }
