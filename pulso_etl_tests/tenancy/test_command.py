"""The command line with tenants, and the page of the docs about them."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest
import yaml
from pydantic import SecretStr

from pulso_etl.access.tokens import Role, make_token, opening, parse_tokens
from pulso_etl.api.tenants import application
from pulso_etl.settings import Settings
from pulso_etl.tenancy.tenants import OVERRIDABLE, Tenant, deployed, grants, passwords
from pulso_etl_tests.cli.conftest import Pulso, in_this_process
from pulso_etl_tests.dagster_stack import CHECKOUT
from pulso_etl_tests.tenancy.conftest import Tenancy
from pulso_etl_tests.test_docs import blocks, rows

DOCS = (CHECKOUT / "docs" / "tenants.md").read_text(encoding="utf-8")


@pytest.fixture
def pulso(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pulso:
    """Commands in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    return in_this_process(capsys, monkeypatch)


def test_commands_are_for_the_tenant_that_is_named(environment: Tenancy, pulso: Pulso) -> None:
    missing = pulso("refresh", "operation_data")
    assert (missing.code, missing.err) == (2, "pulso-etl: say whose tables: --tenant NAME; known are acme, globex\n")
    assert "unknown tenant initech" in pulso("status", "--tenant", "initech").err
    assert pulso("refresh", "operation_data", "--tenant", "acme").code == 0
    assert environment.history("acme") == [("operation_data", "success")]
    assert "success" in pulso("status", "--tenant", "acme").out
    assert "success" not in pulso("status", "--tenant", "globex").out
    assert pulso("reconcile", "operation_data", "--tenant", "acme").code == 0
    schema = environment.schema("globex")
    assert f'"{schema}"."dashboard_data"' in pulso("sql", "dashboard_data", "--tenant", "globex").out
    assert "operation_data: keeps every month" in pulso("retention", "operation_data", "--tenant", "acme").out
    assert "say whose tables" in pulso("retention", "--drop").err
    assert pulso("cleanup").out == "0 attempt(s) ended\n"
    assert "ALERT_URLS is not set" in pulso("alert-test", "--tenant", "acme").out
    listed = pulso("tenants").out
    assert [line.split()[0] for line in listed.splitlines()[1:3]] == ["acme", "globex"]
    assert "tenant acme: its login works for globex too" in listed
    assert pulso("tenants", "--sql").out.splitlines() == [
        f"{statement.as_string()};" for statement in grants(list(environment.parts.values()))
    ]


def test_the_doctor_looks_at_every_tenant_and_at_the_queue(environment: Tenancy, pulso: Pulso) -> None:
    told = pulso("doctor")
    role = environment.parts["globex"].settings.owner.database_role
    assert f"role {role} may load into schema {environment.schema('globex')}; its login works for acme too" in told.out
    assert "ok   acme: source of dashboard_data: columns fit" in told.out
    # This Dagster home sets no limits.
    assert told.code == 1
    assert "FAIL Dagster queue: does not know tenants; use deploy/dagster.tenants.yaml" in told.out


def test_the_doctor_tells_of_what_no_load_will_run_with(environment: Tenancy, pulso: Pulso) -> None:
    part = environment.parts["acme"]
    schema, role = part.settings.database_schema, part.settings.owner.database_role
    with psycopg.connect(environment.admin_url, autocommit=True) as admin:
        admin.execute(f"SET ROLE {role}; CREATE TABLE {schema}.etl_note (n int DEFAULT pg_backend_pid())".encode())
        try:
            told = pulso("doctor", "--tenant", "acme")
        finally:
            admin.execute(f"DROP TABLE {schema}.etl_note".encode())
    found = f"{schema}.etl_note: default of the column n: ALTER TABLE {schema}.etl_note ALTER COLUMN n DROP DEFAULT"
    assert f"FAIL acme: PostgreSQL: tables carry objects that Pulso ETL has not made, and no load will run: {found}" in told.out


def test_there_are_no_tenants_to_name_without_a_file(environment: Tenancy, pulso: Pulso, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENANTS_FILE")
    for command in (("status",), ("refresh",), ("cleanup",), ("token", "ana", "read")):
        ended = pulso(*command, "--tenant", "acme")
        assert (ended.code, "TENANTS_FILE is not set" in ended.err) == (2, True)
    assert "there are no tenants" in pulso("tenants").err


def test_a_token_of_a_tenant_opens_that_tenant_and_an_operator_s_all(environment: Tenancy, pulso: Pulso) -> None:
    made = [
        pulso("token", "dashboard", "refresh", "--tenant", "acme"),
        pulso("token", "dashboard", "read", "--tenant", "globex"),
        pulso("token", "operator", "admin"),
        pulso("token", "reader", "read"),
    ]
    tokens = parse_tokens(" ".join(re.findall(r"API_TOKENS: +(\S+)", "".join(one.out for one in made))))
    opened = {tenant: [token.caller.name for token in opening(tokens, tenant)] for tenant in ("acme", "globex", "")}
    assert opened == {
        "acme": ["dashboard@acme", "operator"],
        "globex": ["dashboard@globex", "operator"],
        "": ["operator", "reader"],
    }
    assert [token.caller.role for token in tokens] == [Role.REFRESH, Role.READ, Role.ADMIN, Role.READ]
    for nobody in ("Ac me", "initech"):
        refused = pulso("token", "dashboard", "read", "--tenant", nobody)
        assert (refused.code, f"unknown tenant {nobody}; known are acme, globex" in refused.err) == (2, True), refused.err


def test_a_token_of_a_tenant_that_there_is_not_is_told(environment: Tenancy, caplog: pytest.LogCaptureFixture) -> None:
    _, entry = make_token("dashboard", Role.READ, "initech")
    application(environment.settings.model_copy(update={"api_tokens": SecretStr(str(entry))}))
    told = [record.getMessage() for record in caplog.records if record.name == "pulso_etl.api.tenants"]
    assert [text for text in told if text.startswith("API_TOKENS")] == [
        "API_TOKENS: the tenant of dashboard@initech does not exist, so the token opens nothing"
    ]


def test_the_file_of_the_docs_is_taken_and_its_sql_is_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_ALERT_URLS", "jsons://hooks.example/acme")
    file = tmp_path / "tenants.yaml"
    file.write_text(blocks(DOCS, "yaml")[0], encoding="utf-8")
    url = SecretStr("postgresql://pulso@localhost/dashboard")
    for name in ("acme", "globex"):
        monkeypatch.setenv(f"{name.upper()}_DATABASE_URL", f"postgresql://pulso_{name}@localhost/dashboard")
    parts = deployed(Settings(database_url=url, tenants_file=file))
    told = [f"{statement.as_string()};" for statement in grants(parts)] + [f"-- in psql: {one}" for one in passwords(parts)]
    assert told == blocks(DOCS, "sql")[0].splitlines()
    listed = [
        [part.tenant, f"{part.settings.bigquery_project_id}.{part.settings.bigquery_dataset}", part.settings.database_schema]
        for part in parts
    ]
    assert all(re.search(r"^ +" + r" +".join(map(re.escape, line)), DOCS, re.MULTILINE) for line in listed)


def test_every_field_of_the_file_is_in_the_docs() -> None:
    told = {name for names, *_ in rows(DOCS, "field") for name in names.split(", ")}
    assert told == set(Tenant.model_fields)
    ((_, _, tables),) = [row for row in rows(DOCS, "field") if row[0] == "tables"]
    assert f"by table: {', '.join(('enabled', *OVERRIDABLE))};" in tables


def test_the_instance_of_tenants_has_queue_and_limits_of_its_own_and_all_else_as_ever() -> None:
    alone, many = (
        yaml.safe_load((CHECKOUT / path).read_text(encoding="utf-8")) for path in ("dagster.yaml", "deploy/dagster.tenants.yaml")
    )
    assert {key for key in many if many[key] != alone.get(key)} == {"run_coordinator", "concurrency", "sensors"}
    assert many["run_coordinator"]["config"] == alone["run_coordinator"]["config"]
    assert many["concurrency"]["pools"] == alone["concurrency"]["pools"]
    keys = [[limit["key"] for limit in file["concurrency"]["runs"]["tag_concurrency_limits"]] for file in (alone, many)]
    assert set(keys[1]) - set(keys[0]) == {"pulso_etl/tenant", "pulso_etl/tenant_backfill"}
    assert set(keys[0]) - set(keys[1]) == {"dagster/backfill"}
