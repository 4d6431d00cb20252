"""productivity_data's query: an attempt without agent, and an agent whose e-mail is literally SISTEMA."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pyarrow as pa
from google.cloud import bigquery

from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import BIGQUERY_TYPES, SCHEMAS, load_table
from pulso_etl.sync.days import DayRange
from pulso_etl.tables import TABLES

DAY = date(2026, 7, 15)
NAMES = {name: f"mibot-222814.SISTEMA_TESTS.{name}" for name in ("gestiones_unificadas", "agentes")}


def attempt(mail: str | None) -> dict[str, object]:
    return {
        "fecha_gestion": DAY,
        "timestamp_gestion": datetime(2026, 7, 15, 15, tzinfo=UTC),
        "canal_origen": "HUMANO",
        "archivo": "a.txt",
        "correo_agente": mail,
        "es_contacto_efectivo": True,
        "es_compromiso": mail is None,
        "peso": 0.5,
    }


def test_an_e_mail_that_is_literally_sistema_is_the_same_group_as_none(emulator: BigQueryEmulator) -> None:
    client = emulator.client()
    client.create_dataset("SISTEMA_TESTS", exists_ok=True)
    rows = {"gestiones_unificadas": [attempt(None), attempt("SISTEMA"), attempt("SISTEMA")], "agentes": []}
    for name, full in NAMES.items():
        fields = [bigquery.SchemaField(field.name, BIGQUERY_TYPES[field.type]) for field in SCHEMAS[name]]
        client.create_table(bigquery.Table(full, fields), exists_ok=True)
        load_table(client, full, pa.Table.from_pylist(rows[name], schema=SCHEMAS[name]))
    source = BigQuerySource(project="mibot-222814", sources=NAMES, emulator_host=emulator.rest_url)
    with source.stream(TABLES["productivity_data"], DayRange(DAY, DAY), "run-1").open() as reader:
        (row,) = reader.read_all().to_pylist()
    assert (row["correo_agente"], row["total_gestiones"], row["total_pdp"], row["peso_total"]) == ("SISTEMA", 3, 1, 1.5)
