"""productivity_data: what each agent did on each day, by campaign file."""

from datetime import timedelta

from pulso_etl.sync.spec import ChangeLog, Column, ColumnType, Loading, Quality, Schedule, Source, TableSpec
from pulso_etl.tables.columns import ARCHIVO, FECHA_FOTO, FECHA_PROCESAMIENTO, count, query, ratio, share, text

PRODUCTIVITY_DATA = TableSpec(
    name="productivity_data",
    title="Productividad de agentes",
    subtitle="Gestiones y promesas de pago por agente",
    description="Contact attempts and promises by day, agent and campaign file.",
    primary_key=("fecha_foto", "correo_agente", "archivo"),
    partition_column="fecha_foto",
    columns=(
        FECHA_FOTO,
        text("correo_agente", "E-mail of the agent; SISTEMA if the attempt had no agent"),
        ARCHIVO,
        count("total_gestiones", "Contact attempts", required=True),
        count("contactos_efectivos", "Attempts that reached the customer", required=True),
        count("total_pdp", "Promises to pay", required=True),
        Column(
            name="peso_total",
            type=ColumnType.DOUBLE,
            description="Sum of the weights of the attempts' outcomes",
            unit="weight",
            expected_minimum=0,
        ),
        share("tasa_contacto", "Effective contacts per attempt"),
        ratio("tasa_conversion", "Promises per effective contact"),
        text("nombre_agente", "Name of the agent; SISTEMA if the agents' table does not have the e-mail"),
        text("dni_agente", "Identity document of the agent"),
        text("equipo", "Team; SISTEMA if the agents' table does not have the e-mail"),
        FECHA_PROCESAMIENTO,
    ),
    group="operation",
    tags={"domain": "operations", "cadence": "8h"},
    stamp_columns=("fecha_procesamiento",),
    reading_stamps=("fecha_procesamiento",),
    source=Source(query=query("productivity_data")),
    loading=Loading(timeout=timedelta(minutes=30)),
    change_log=ChangeLog(changes_counted_by="archivo"),
    schedule=Schedule(lookback_days=5, refresh_every=timedelta(hours=8)),
    quality=Quality(minimum_records=1),
)
