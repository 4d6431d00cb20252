"""dashboard_data: the collection indicators of each portfolio and day."""

from datetime import timedelta

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
)
from pulso_etl.tables.spec import TableSpec

DASHBOARD_DATA = TableSpec(
    name="dashboard_data",
    description="Collection indicators by snapshot day, campaign file, portfolio and service.",
    primary_key=("fecha_foto", "archivo", "cartera", "servicio"),
    partition_column="fecha_foto",
    columns=(
        FECHA_FOTO,
        ARCHIVO,
        CARTERA,
        SERVICIO,
        count("cuentas", "Accounts assigned"),
        count("clientes", "Customers assigned"),
        count("cuentas_gestionadas", "Accounts with at least one contact attempt"),
        count("cuentas_cd", "Accounts with direct contact"),
        count("cuentas_ci", "Accounts with indirect contact"),
        count("cuentas_sc", "Accounts attempted without contact"),
        count("cuentas_sg", "Accounts without any attempt"),
        count("cuentas_pdp", "Accounts with a promise to pay"),
        money("deuda_asig", "Debt assigned"),
        money("deuda_act", "Debt today"),
        money("recupero", "Amount recovered"),
        ratio("pct_cober", "Coverage"),
        ratio("pct_contac", "Contact rate"),
        ratio("pct_cd", "Direct contact"),
        ratio("pct_ci", "Indirect contact"),
        ratio("pct_conversion", "Contacts that became promises"),
        ratio("pct_efectividad", "Effectiveness"),
        ratio("pct_cierre", "Closing rate"),
        ratio("inten", "Intensity: attempts per attempted account", unit="attempts"),
        FECHA_PROCESAMIENTO,
    ),
    query=query("dashboard_data"),
    group="dashboard",
    priority=10,
    tags={"domain": "collections", "cadence": "6h"},
    lookback_days=7,
    refresh_every=timedelta(hours=6),
    timeout=timedelta(minutes=30),
    stamp_columns=("fecha_procesamiento",),
)
