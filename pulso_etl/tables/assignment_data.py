"""assignment_data: the accounts and debt that each month's newest snapshot shows as assigned."""

from datetime import timedelta

from pulso_etl.sync.spec import ChangeLog, Column, ColumnType, Loading, Quality, Schedule, Source, TableSpec
from pulso_etl.tables.columns import (
    ARCHIVO,
    CARTERA,
    FECHA_FOTO,
    FECHA_PROCESAMIENTO,
    SERVICIO,
    count,
    money,
    query,
    text,
)

ASSIGNMENT_DATA = TableSpec(
    name="assignment_data",
    title="Asignación mensual",
    subtitle="Cuentas y deuda asignadas por mes",
    description="Monthly assignment by campaign file, portfolio and service, from the month's newest snapshot day.",
    primary_key=("periodo", "archivo", "cartera", "servicio"),
    partition_column="fecha_foto",
    columns=(
        text("periodo", "Month of the assignment, YYYY-MM"),
        ARCHIVO,
        CARTERA,
        SERVICIO,
        FECHA_FOTO,
        Column(name="fecha_vencimiento", type=ColumnType.DATE, description="Due date (the latest of the accounts)"),
        count("clientes", "Customers assigned", required=True),
        count("cuentas", "Accounts assigned", required=True),
        money("deuda_asig", "Debt assigned", minimum=0),
        money("deuda_actual", "Debt today"),
        money("ticket_promedio", "Debt assigned per account"),
        FECHA_PROCESAMIENTO,
    ),
    group="assignment",
    tags={"domain": "collections", "cadence": "24h"},
    snapshot_of=("periodo",),
    stamp_columns=("fecha_procesamiento",),
    reading_stamps=("fecha_procesamiento",),
    source=Source(query=query("assignment_data")),
    loading=Loading(timeout=timedelta(minutes=30)),
    change_log=ChangeLog(changes_counted_by="archivo"),
    schedule=Schedule(lookback_days=30, refresh_every=timedelta(hours=24)),
    quality=Quality(minimum_records=20),
)
