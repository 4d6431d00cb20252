"""The five tables of Pulso ETL, with one asset below `dashboard_data` and one beside the five."""

from datetime import date

import dagster as dg
import pyarrow as pa

from pulso_etl.assets import daily_partitions
from pulso_etl.definitions import defs as pulso
from pulso_etl.settings import load_settings
from pulso_etl.sync.spec import Column, ColumnType, TableSpec
from pulso_etl.sync.tags import SPEC_KEY

RECOVERY = TableSpec(
    name="recovery_by_portfolio",
    description="Recovered amount by day and portfolio.",
    primary_key=("fecha_foto", "cartera"),
    partition_column="fecha_foto",
    columns=(
        Column(name="fecha_foto", type=ColumnType.DATE, description="Day"),
        Column(name="cartera", type=ColumnType.TEXT, description="Portfolio"),
        Column(name="recupero", type=ColumnType.NUMERIC, description="Recovered amount"),
    ),
)
HOLIDAYS = {date(2026, 7, 28): "Independence Day", date(2026, 7, 29): "Parade Day"}


def recovered(dashboard: pa.Table) -> pa.Table:
    """The sums of `recupero`, exact to the last digit because Arrow adds decimals."""
    return (
        dashboard.group_by(["fecha_foto", "cartera"]).aggregate([("recupero", "sum")]).rename_columns({"recupero_sum": "recupero"})
    )


def below(days: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """An asset that reads `dashboard_data`, with the same partitions, into a table of its own."""

    @dg.asset(
        name=RECOVERY.name,
        description=RECOVERY.description,
        partitions_def=days,
        backfill_policy=dg.BackfillPolicy.single_run(),
        ins={"dashboard_data": dg.AssetIn(metadata={"columns": ["fecha_foto", "cartera", "recupero"]})},
        metadata={SPEC_KEY: RECOVERY.as_metadata()},
        io_manager_key="postgres",
    )
    def recovery_by_portfolio(dashboard_data: pa.Table) -> pa.Table:
        return recovered(dashboard_data)

    return recovery_by_portfolio


@dg.asset
def holidays() -> dg.MaterializeResult:  # type: ignore[type-arg]
    """An asset beside the five. It writes wherever it wants to, so it needs no IO manager."""
    return dg.MaterializeResult(metadata={"holidays": len(HOLIDAYS)})


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions of Pulso ETL and those of this project."""
    settings = load_settings()
    own = dg.Definitions(assets=[below(daily_partitions(settings.partitions_start, settings.zone)), holidays])
    return dg.Definitions.merge(pulso(), own)
