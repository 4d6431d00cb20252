"""Credentials: a key by path or by dagster-gcp's field reaches BigQuery; what is missing or broken is said, never shown."""

from __future__ import annotations

import base64
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import SourceError, SourceUnavailable
from pulso_etl.tables import TABLES
from pulso_etl_tests.bigquery.conftest import MakeSource
from pulso_etl_tests.faulty_proxy import FaultyProxy, answer, error

WINDOW = DayRange(date(2026, 7, 15), date(2026, 7, 15))
SPEC = TABLES["dashboard_data"]
SECRET = "c2VjcmV0LWtleS1tYXRlcmlhbA"


@pytest.fixture
def key(bigquery_proxy: FaultyProxy) -> dict[str, str]:
    """The key of a service account that does not exist. The proxy issues its tokens."""
    private = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "type": "service_account",
        "project_id": "mibot-222814",
        "client_email": "etl@mibot-222814.iam.gserviceaccount.com",
        "private_key": private.decode(),
        "token_uri": f"{bigquery_proxy.url}/token",
    }


@pytest.fixture
def source(make_source: MakeSource, bigquery_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BigQuerySource:
    """A source as in production, without the address of an emulator. The client's own variable leads it to the proxy."""
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", bigquery_proxy.url)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    return make_source(emulator_host=None, use_storage_api=False, retry_timeout_seconds=0.5)


def read(source: BigQuerySource) -> int:
    with source.stream(SPEC, WINDOW, "run-1").open() as reader:
        return sum(batch.num_rows for batch in reader)


def encoded(key: object) -> str:
    return base64.b64encode(json.dumps(key).encode()).decode()


def give_tokens(bigquery_proxy: FaultyProxy) -> None:
    bigquery_proxy.inject("^POST /token", answer(200, {"access_token": "t0ken", "expires_in": 3600}), times=None)


@pytest.mark.parametrize("how", ["field", "file"])
def test_a_key_reaches_bigquery(
    source: BigQuerySource,
    bigquery_proxy: FaultyProxy,
    key: dict[str, str],
    how: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_tokens(bigquery_proxy)
    if how == "field":
        source = source.model_copy(update={"gcp_credentials": encoded(key)})
    else:
        (tmp_path / "key.json").write_text(json.dumps(key))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    assert read(source) == 40
    asked = bigquery_proxy.seen("/bigquery/v2/")
    assert {request.headers["Authorization"] for request in asked} == {"Bearer t0ken"}


def test_the_storage_client_finds_the_same_key(source: BigQuerySource, key: dict[str, str]) -> None:
    given = source.model_copy(update={"gcp_credentials": encoded(key), "use_storage_api": True})
    with given.get_client():
        client = given.read_client(stream_seconds=1)
        assert client is not None
        credentials: Any = client.transport._credentials
        assert credentials.service_account_email == key["client_email"]
        client.transport.close()


def test_without_credentials_the_error_says_what_to_set(source: BigQuerySource) -> None:
    with pytest.raises(SourceError, match=r"no usable credentials; set GOOGLE_APPLICATION_CREDENTIALS") as caught:
        read(source)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "content",
    [
        f"{SECRET} is no JSON",
        json.dumps({"type": "service_account", "private_key": SECRET}),
        json.dumps({"type": "service_account", "client_email": "a@b", "token_uri": "https://x", "private_key": SECRET}),
        json.dumps({"no": "type", "private_key": SECRET}),
        json.dumps(SECRET),
        "",
    ],
)
@pytest.mark.parametrize("how", ["field", "file"])
def test_a_malformed_key_is_said_and_not_shown(
    source: BigQuerySource, content: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "field":
        source = source.model_copy(update={"gcp_credentials": base64.b64encode(content.encode()).decode() or "?"})
    else:
        (tmp_path / "key.json").write_text(content)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(SourceError, match=r"credentials.*set GOOGLE_APPLICATION_CREDENTIALS") as caught:
        read(source)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_field_that_is_not_base64_is_said(source: BigQuerySource) -> None:
    with pytest.raises(SourceError, match="the credentials are malformed"):
        read(source.model_copy(update={"gcp_credentials": f"{{{SECRET}"}))


def test_a_key_given_twice_is_refused(
    source: BigQuerySource, key: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(SourceError, match="keep one of them"):
        read(source.model_copy(update={"gcp_credentials": encoded(key)}))


def test_a_key_that_was_revoked_is_permanent(source: BigQuerySource, bigquery_proxy: FaultyProxy, key: dict[str, str]) -> None:
    refusal = answer(400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
    bigquery_proxy.inject("^POST /token", refusal, times=None)
    with pytest.raises(SourceError, match=r"refuses the account's key.*Invalid JWT Signature") as caught:
        read(source.model_copy(update={"gcp_credentials": encoded(key)}))
    assert not caught.value.retryable


def test_a_token_server_that_is_down_is_retryable(source: BigQuerySource, bigquery_proxy: FaultyProxy, key: dict[str, str]) -> None:
    dead = key | {"token_uri": "http://127.0.0.1:9/token"}
    with pytest.raises(SourceUnavailable, match="is failing for now"):
        read(source.model_copy(update={"gcp_credentials": encoded(dead)}))
    assert not bigquery_proxy.requests


def test_a_probe_that_is_refused_names_the_table(make_source: MakeSource, bigquery_proxy: FaultyProxy) -> None:
    bigquery_proxy.inject("^POST", error(403, "accessDenied"))
    with pytest.raises(SourceError, match=r"^dashboard_data 2026-07-15: BigQuery refuses access"):
        read(make_source(emulator_host=bigquery_proxy.url))
