"""Whether a refresh of a day reads only its own partitions, and where a view hides them."""

from __future__ import annotations

from datetime import date

import pytest
from google.cloud import bigquery

from pulso_etl.bigquery.pruning import fault
from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl_tests.clock import TABLES

DATASET = "mibot-222814.PRUNING"
TODAY = date(2026, 7, 15)
SPEC = TABLES["operation_data"].with_query(
    "SELECT fecha AS fecha_foto, n FROM `{gestiones_unificadas}` WHERE fecha BETWEEN @start AND @end"
)


@pytest.mark.parametrize(
    ("view", "place"),
    [
        ("SELECT * FROM `{base}`", None),
        ("SELECT dia AS fecha, n FROM (SELECT fecha AS dia, n FROM `{base}`)", None),
        ("SELECT DATE(CAST(fecha AS TIMESTAMP)) AS fecha, n FROM `{base}`", "DATE(CAST(fecha AS TIMESTAMP))"),
        ("SELECT * REPLACE (DATE(CAST(fecha AS TIMESTAMP)) AS fecha) FROM `{base}`", "DATE(CAST(fecha AS TIMESTAMP))"),
        ("SELECT CAST(dia AS DATE) AS fecha, n FROM (SELECT fecha AS dia, n FROM `{base}`)", "CAST(dia AS DATE)"),
    ],
)
def test_a_view_that_hides_the_partition_column_is_named_with_its_text(
    emulator: BigQueryEmulator, view: str, place: str | None
) -> None:
    client = emulator.client()
    client.create_dataset(DATASET, exists_ok=True)
    base = bigquery.Table(f"{DATASET}.base", [bigquery.SchemaField("fecha", "DATE"), bigquery.SchemaField("n", "STRING")])
    base.time_partitioning = bigquery.TimePartitioning(field="fecha")
    client.create_table(base, exists_ok=True)
    if client.get_table(base).num_rows == 0:
        days = "GENERATE_DATE_ARRAY('2026-07-10', '2026-07-15')"
        client.query_and_wait(f"INSERT INTO `{DATASET}.base` (fecha, n) SELECT d, REPEAT('x', 2000000) FROM UNNEST({days}) AS d")
    client.query_and_wait(f"CREATE OR REPLACE VIEW `{DATASET}.top` AS {view.format(base=f'{DATASET}.base')}")
    source = BigQuerySource(
        project="mibot-222814", sources={"gestiones_unificadas": f"{DATASET}.top"}, emulator_host=emulator.rest_url
    )
    found = fault(source, SPEC, TODAY)
    if place is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith("one day reads 11.4 MiB, as much as the whole lookback: ")
        assert f"{DATASET}.top hides fecha: {place}" in found
