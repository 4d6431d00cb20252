"""evolution_data: how the main indicators of each portfolio change from day to day."""

from datetime import timedelta

from pulso_etl.sync.spec import ChangeLog, Loading, Quality, Schedule, Source, TableSpec
from pulso_etl.tables.columns import (
    ARCHIVO,
    CARTERA,
    FECHA_FOTO,
    FECHA_PROCESAMIENTO,
    SERVICIO,
    count,
    money,
    query,
    ratio,
    share,
)

EVOLUTION_DATA = TableSpec(
    name="evolution_data",
    title="Evolución diaria",
    subtitle="Cobertura, contacto, cierre y recupero por día",
    description="Daily evolution of the main indicators by campaign file, portfolio and service.",
    primary_key=("fecha_foto", "archivo", "cartera", "servicio"),
    partition_column="fecha_foto",
    columns=(
        FECHA_FOTO,
        ARCHIVO,
        CARTERA,
        SERVICIO,
        share("pct_cober", "Coverage"),
        share("pct_contac", "Contact rate"),
        ratio("pct_efectividad", "Effectiveness"),
        ratio("pct_cierre", "Closing rate"),
        money("recupero", "Amount recovered", expected=False),
        count("cuentas", "Accounts assigned"),
        FECHA_PROCESAMIENTO,
    ),
    group="dashboard",
    tags={"domain": "collections", "cadence": "6h"},
    stamp_columns=("fecha_procesamiento",),
    source=Source(query=query("evolution_data"), batch_rows=50_000, reads_with="dashboard_data"),
    loading=Loading(timeout=timedelta(minutes=30)),
    change_log=ChangeLog(changes_counted_by="archivo"),
    schedule=Schedule(priority=10, lookback_days=3, refresh_every=timedelta(hours=6)),
    quality=Quality(minimum_records=50),
)
