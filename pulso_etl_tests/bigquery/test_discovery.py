"""The double's answers have the shapes that Google publishes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
import requests

from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import CostCapExceeded
from pulso_etl_tests.bigquery.discovery import faults
from pulso_etl_tests.clock import TABLES

PROJECT = "mibot-222814"
DATASET = "SHAPES"


@pytest.fixture(scope="module")
def rest(emulator: BigQueryEmulator) -> Iterator[str]:
    client = emulator.client()
    client.create_dataset(f"{PROJECT}.{DATASET}", exists_ok=True)
    client.query_and_wait(f"CREATE OR REPLACE TABLE `{PROJECT}.{DATASET}.base` (d DATE, n NUMERIC) PARTITION BY d")
    client.query_and_wait(f"INSERT INTO `{PROJECT}.{DATASET}.base` (d, n) VALUES ('2026-07-15', 1.5)")
    client.query_and_wait(f"CREATE OR REPLACE VIEW `{PROJECT}.{DATASET}.top` AS SELECT * FROM `{PROJECT}.{DATASET}.base`")
    yield f"{emulator.rest_url}/bigquery/v2/projects/{PROJECT}"
    client.delete_dataset(f"{PROJECT}.{DATASET}", delete_contents=True)


def asked(rest: str, dry: bool) -> dict[str, Any]:
    query: dict[str, Any] = {
        "query": f"SELECT d, n FROM `{PROJECT}.{DATASET}.top` WHERE d BETWEEN @start AND @end",
        "useLegacySql": False,
    }
    day = {"parameterType": {"type": "DATE"}, "parameterValue": {"value": "2026-07-15"}}
    query |= {"queryParameters": [{"name": name, **day} for name in ("start", "end")], "maximumBytesBilled": str(2**30)}
    body: dict[str, Any] = {"configuration": {"query": query, "dryRun": dry, "labels": {"app": "pulso-etl"}}}
    return requests.post(f"{rest}/jobs", json=body, timeout=30).json()


def test_the_answers_of_the_double_have_the_published_shapes(rest: str) -> None:
    dry, job = asked(rest, True), asked(rest, False)
    number = job["jobReference"]["jobId"]
    found = {
        "jobs.insert, dry run": faults(dry, "Job"),
        "jobs.insert": faults(job, "Job"),
        "jobs.get": faults(requests.get(f"{rest}/jobs/{number}", timeout=30).json(), "Job"),
        "jobs.getQueryResults": faults(requests.get(f"{rest}/queries/{number}", timeout=30).json(), "GetQueryResultsResponse"),
        "jobs.query": faults(
            requests.post(f"{rest}/queries", json={"query": "SELECT 1 AS n", "useLegacySql": False}, timeout=30).json(),
            "QueryResponse",
        ),
    } | {
        f"tables.get of {name}": faults(requests.get(f"{rest}/datasets/{DATASET}/tables/{name}", timeout=30).json(), "Table")
        for name in ("base", "top")
    }
    assert {name: told for name, told in found.items() if told} == {}
    # What the product reads is there.
    statistics = dry["statistics"]
    assert statistics["query"]["referencedTables"] == [{"projectId": PROJECT, "datasetId": DATASET, "tableId": "base"}]
    assert int(statistics["totalBytesProcessed"]) == 24
    assert (statistics["query"]["totalBytesBilled"], job["statistics"]["query"]["totalBytesBilled"]) == ("0", str(10 * 2**20))


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"numBytes": 5}, "Table.numBytes: 5 is no int64"),
        ({"numBytes": "many"}, "Table.numBytes: 'many' is no int64"),
        ({"rows": "5"}, "Table.rows: not in the API"),
        ({"schema": {"fields": {"name": "d"}}}, "Table.schema.fields: {'name': 'd'} is no list"),
        ({"timePartitioning": "DAY"}, "Table.timePartitioning: 'DAY' is no object"),
        ({"requirePartitionFilter": "true"}, "Table.requirePartitionFilter: 'true' is no boolean"),
    ],
)
def test_another_shape_is_told(value: dict[str, Any], fault: str) -> None:
    assert faults(value, "Table") == [fault]
    assert faults({"labels": {"team": "a"}, "numRows": "5"}, "Table") == []


def test_a_query_above_its_limit_of_bytes_is_refused_as_bigquery_documents(rest: str, emulator: BigQueryEmulator) -> None:
    body: dict[str, Any] = {
        "query": f"SELECT n FROM `{PROJECT}.{DATASET}.top`",
        "useLegacySql": False,
        "maximumBytesBilled": "1000",
    }
    answer = requests.post(f"{rest}/queries", json=body, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"]["errors"][0] == {
        "message": "Query exceeded limit for bytes billed: 1000. 10485760 or higher required.",
        "domain": "global",
        "reason": "bytesBilledLimitExceeded",
    }
    job = requests.post(f"{rest}/jobs", json={"configuration": {"query": body}}, timeout=30).json()
    again = requests.get(f"{rest}/jobs/{job['jobReference']['jobId']}", timeout=30).json()
    assert (job, job["status"]["errorResult"]["reason"]) == (again, "bytesBilledLimitExceeded")
    assert faults(job, "Job") == []
    # The product tells it as what it is, and no retry repairs it.
    names = {"gestiones_unificadas": f"{PROJECT}.{DATASET}.top"}
    source = BigQuerySource(project=PROJECT, sources=names, emulator_host=emulator.rest_url, maximum_bytes_billed=1000)
    spec = TABLES["operation_data"].with_query("SELECT d, n FROM `{gestiones_unificadas}` WHERE d BETWEEN @start AND @end")
    day = DayRange(date(2026, 7, 15), date(2026, 7, 15))
    clear = r"operation_data .* would bill more than the cap; .*MAXIMUM_BYTES_BILLED.* 10485760"
    with pytest.raises(CostCapExceeded, match=clear), source.stream(spec, day, "run").open():
        pass
    # A dry run has no limit, and a query within its limit runs.
    assert source.size(spec, day).bytes_billed == 10 * 2**20
    with source.model_copy(update={"maximum_bytes_billed": 10 * 2**20}).stream(spec, day, "run").open() as reader:
        assert reader.read_all().num_rows == 1
