"""An asset that does nothing, in a code location of its own. It shows the cost of a run in Dagster alone."""

from __future__ import annotations

import sys
from datetime import date

import dagster as dg


@dg.asset(
    partitions_def=dg.DailyPartitionsDefinition(start_date=date(2024, 1, 1).isoformat(), timezone="America/Lima", end_offset=1),
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def empty() -> None:
    """Does nothing."""


@dg.definitions
def defs() -> dg.Definitions:
    """The one asset, with the project's executor."""
    return dg.Definitions([empty], executor=dg.in_process_executor)


def main(first: str, last: str) -> None:
    """Materializes the range in this process, recorded in the instance of DAGSTER_HOME, as `pulso-etl refresh` does."""
    with dg.DagsterInstance.get() as instance:
        defs().resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[empty.key],
            tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
            instance=instance,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
