"""The fault-injecting proxy: faults take their turn, the rest goes through."""

from __future__ import annotations

import time

import requests

from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl_tests.faulty_proxy import FaultyProxy, delayed, error


def test_faults_take_their_turn_and_the_rest_goes_through(bigquery_proxy: FaultyProxy, emulator: BigQueryEmulator) -> None:
    emulator.client().create_dataset("PROXIED", exists_ok=True)
    bigquery_proxy.inject("GET .*/datasets", error(503, "backendError"), skip=1, times=2)
    bigquery_proxy.inject("GET .*/datasets", error(404, "notFound"), skip=1)
    url = f"{bigquery_proxy.url}/bigquery/v2/projects/mibot-222814/datasets"
    answers = [requests.get(url, timeout=10) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 503, 503, 404, 200]
    assert answers[1].json()["error"]["errors"][0]["reason"] == "backendError"
    assert answers[0].json()["kind"] == "bigquery#datasetList"
    assert len(bigquery_proxy.seen("/datasets$")) == 5


def test_a_delay_delays(bigquery_proxy: FaultyProxy) -> None:
    bigquery_proxy.inject("GET", delayed(0.3))
    began = time.monotonic()
    requests.get(bigquery_proxy.url, timeout=10)
    assert time.monotonic() - began >= 0.3
