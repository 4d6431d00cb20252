"""A deployment on a database, and from a shell, whose settings are not ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import psycopg
import pytest
from typer.testing import CliRunner

from pulso_etl.cli.main import app
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.settings import Settings, load_settings
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.conftest import seed
from pulso_etl_tests.databases import ENVIRONMENT, database, otherwise
from pulso_etl_tests.oldest_postgres import needs_oldest_postgres, oldest_postgres

NAMES = {"María Peña", "José Núñez", "Lucía Ibáñez", "Ángel Quispe", "Rocío Muñoz", "Iván Cáceres", "Noemí Ríos", "SISTEMA"}


@pytest.fixture(params=["the usual", pytest.param("the oldest", marks=needs_oldest_postgres)])
def server(request: pytest.FixtureRequest, server_url: str) -> Iterator[str]:
    """The URL of a server: the session's, or one of the oldest version."""
    with oldest_postgres() if request.param == "the oldest" else nullcontext(server_url) as url:
        yield url


@pytest.fixture
def foreign(server: str, settings: Settings, emulator: BigQueryEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a database in LATIN1. Its sessions and this process's environment have other settings."""
    monkeypatch.setenv("BIGQUERY_DATASET", "FOREIGN")
    seed(load_settings(), emulator)
    with database(server, "LATIN1") as url, otherwise(url, "DATABASE"):
        for name, value in (ENVIRONMENT | {"DATABASE_URL": url}).items():
            monkeypatch.setenv(name, value)
        yield url


def test_a_table_is_refreshed_looked_at_and_compared_as_anywhere(foreign: str) -> None:
    def pulso(*arguments: str) -> str:
        ended = CliRunner().invoke(app, arguments)
        assert ended.exit_code == 0, (arguments, ended.output, ended.exception)
        return ended.output

    first, again = (_counts(pulso("refresh", "productivity_data", *options)) for options in ([], ["--force"]))
    assert (first["inserted"], again["inserted"], again["updated"]) == (first["read"], 0, 0)
    assert first["read"] > 0
    assert "success" in pulso("status")
    assert "0 attempt(s) ended" in pulso("cleanup")
    assert "yes" in pulso("reconcile", "productivity_data")
    with psycopg.connect(foreign, client_encoding="UTF8") as conn:
        schema = load_settings().database_schema
        found = {name for (name,) in conn.execute(f"SELECT DISTINCT nombre_agente FROM {schema}.productivity_data")}
    assert found <= NAMES
    assert len(found) > 2
    with ApiServer(load_settings(dagster_graphql_url="http://127.0.0.1:9/graphql")) as api:
        answer = api.call("GET", "/api/v1/etl/status")
        assert answer.status_code == 200, answer.text
        assert {one["status"] for one in answer.json()["tables"] if one["table"] == "productivity_data"} == {"success"}


def _counts(report: str) -> dict[str, int]:
    """The counts of the table in the last lines of `refresh`."""
    (line,) = [words for words in map(str.split, report.splitlines()) if words[:1] == ["productivity_data"]]
    return dict(zip(("read", "inserted", "updated", "unchanged", "deleted"), map(int, line[2:7]), strict=True))
