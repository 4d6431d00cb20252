"""operation_data: the contact attempts of each hour, by channel and campaign file."""

from datetime import timedelta

from pulso_etl.sync.spec import ChangeLog, Column, ColumnType, Figure, Loading, Quality, Schedule, Source, TableSpec, Unit
from pulso_etl.tables.columns import ARCHIVO, FECHA_FOTO, FECHA_PROCESAMIENTO, count, query, ratio, share, text

OPERATION_DATA = TableSpec(
    name="operation_data",
    title="Gestiones por hora",
    subtitle="Gestiones y contactos por hora y canal",
    description="Contact attempts by day, hour of the day, channel and campaign file.",
    primary_key=("fecha_foto", "hora", "canal", "archivo"),
    partition_column="fecha_foto",
    columns=(
        FECHA_FOTO,
        Column(
            name="hora",
            type=ColumnType.INTEGER,
            description="Hour of the day in the deployment's time zone, 0 to 23",
            minimum=0,
            maximum=23,
        ),
        text("canal", "Channel: BOT or HUMANO"),
        ARCHIVO,
        count("total_gestiones", "Contact attempts", required=True),
        count("contactos_efectivos", "Attempts that reached the customer", required=True),
        count("contactos_no_efectivos", "Attempts that did not reach the customer", required=True),
        count("total_pdp", "Promises to pay", required=True),
        share("tasa_contacto", "Effective contacts per attempt"),
        ratio("tasa_conversion", "Promises per effective contact"),
        FECHA_PROCESAMIENTO,
    ),
    group="operation",
    tags={"domain": "operations", "cadence": "2h"},
    stamp_columns=("fecha_procesamiento",),
    reading_stamps=("fecha_procesamiento",),
    hour_column="hora",
    figures=(
        Figure(name="gestiones", title="Gestiones", unit=Unit.COUNT, of=("total_gestiones",)),
        Figure(name="contactos", title="Contactos efectivos", unit=Unit.COUNT, of=("contactos_efectivos",)),
        Figure(name="pdp", title="Promesas de pago", unit=Unit.COUNT, of=("total_pdp",)),
    ),
    source=Source(query=query("operation_data"), batch_rows=5_000),
    loading=Loading(timeout=timedelta(minutes=15)),
    change_log=ChangeLog(changes_counted_by="archivo"),
    schedule=Schedule(lookback_days=2, refresh_every=timedelta(hours=2)),
    quality=Quality(minimum_records=10),
)
