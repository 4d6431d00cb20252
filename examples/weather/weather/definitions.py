"""The table, its asset and its schedule. Nothing here knows BigQuery, and of pulso_etl only the library is used."""

import os
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pyarrow as pa

from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.resources import fixed
from pulso_etl.sync.spec import Column, ColumnType, TableSpec
from pulso_etl.sync.tags import SPEC_KEY
from pulso_etl.sync.zone import Zone
from weather.stations import readings

ZONE = Zone("Europe/Madrid")
"""The days of the stations."""

WEATHER_DAYS = TableSpec(
    name="weather_days",
    description="Temperatures and rain by day and station.",
    primary_key=("day", "station"),
    partition_column="day",
    columns=(
        Column(name="day", type=ColumnType.DATE),
        Column(name="station", type=ColumnType.TEXT),
        Column(name="coldest_c", type=ColumnType.DOUBLE, required=True, minimum=-90, maximum=60),
        Column(name="warmest_c", type=ColumnType.DOUBLE, required=True, minimum=-90, maximum=60),
        Column(name="rain_mm", type=ColumnType.NUMERIC, precision=5, scale=1, minimum=0, description="Read on the next morning"),
    ),
    timezone=ZONE.name,
)

SCHEMA = pa.schema(
    [
        ("day", pa.date32()),
        ("station", pa.string()),
        ("coldest_c", pa.float64()),
        ("warmest_c", pa.float64()),
        ("rain_mm", pa.decimal128(5, 1)),
    ]
)


def today() -> date:
    """The day that it is at the stations."""
    return ZONE.day(datetime.now(UTC))


@dg.asset(
    partitions_def=dg.DailyPartitionsDefinition("2026-01-01", timezone=ZONE.name, end_offset=1),
    backfill_policy=dg.BackfillPolicy.single_run(),
    metadata={SPEC_KEY: WEATHER_DAYS.as_metadata()},
    io_manager_key="postgres",
)
def weather_days(context: dg.AssetExecutionContext) -> pa.Table:
    """The readings of the run's days."""
    days = [date.fromisoformat(key) for key in context.partition_keys]
    return pa.Table.from_pylist([one for day in days for one in readings(day, today())], schema=SCHEMA)


@dg.schedule(cron_schedule="0 8 * * *", execution_timezone=ZONE.name, target=[weather_days])
def every_morning() -> dg.RunRequest:
    """Reads yesterday, whose rain is known now, and today."""
    last = today()
    return dg.RunRequest(
        tags={
            "dagster/asset_partition_range_start": (last - timedelta(days=1)).isoformat(),
            "dagster/asset_partition_range_end": last.isoformat(),
        }
    )


defs = dg.Definitions(
    assets=[weather_days],
    schedules=[every_morning],
    resources={
        "postgres": fixed(
            PostgresUpsertIOManager(
                database_url=os.environ["DATABASE_URL"], database_schema=os.environ.get("DATABASE_SCHEMA", "public")
            )
        )
    },
)
