"""What the file of tenants says, and how it is refused."""

from __future__ import annotations

import pickle
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from pulso_etl.api.tenants import application
from pulso_etl.settings import Owner, Settings
from pulso_etl.sync.errors import PlanError, SettingsError
from pulso_etl.tables import TABLES
from pulso_etl.tenancy.tenants import EXAMPLES, OVERRIDABLE, Tenant, chosen, deployed, grants, passwords, select, sharing
from pulso_etl_tests import clock

URL = "postgresql://pulso:secreto@db.example/dashboard?options=-csearch_path%3Dx"
ACME = "tenants:\n  - name: acme\n    database_schema: acme\n"


@pytest.fixture(autouse=True)
def logins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The login of each tenant, under the variable that is read if the file names none."""
    monkeypatch.setenv("ACME_DATABASE_URL", URL.replace("pulso:", "acme:"))
    monkeypatch.setenv("GLOBEX_DATABASE_URL", URL.replace("pulso:", "globex:"))


def settings(tmp_path: Path, text: str, name: str = "tenants.yaml") -> Settings:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return Settings(database_url=SecretStr(URL), tenants_file=file, bigquery_daily_budget_bytes=1000)


def test_a_tenant_has_its_own_settings_and_tables_and_the_deployment_s_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_ALERTS", "jsons://hooks.example/acme")
    text = """
    [[tenants]]
    name = "acme"
    database_schema = "acme_data"
    database_role = "pulso_acme"
    bigquery_dataset = "ACME"
    bigquery_daily_budget_bytes = 7
    alert_urls_env = "ACME_ALERTS"
    [tenants.tables.operation_data]
    refresh_every = "00:30:00"
    lookback_days = 4
    [tenants.tables.evolution_data]
    enabled = false
    [[tenants]]
    name = "globex"
    database_schema = "globex"
    """
    acme, globex = deployed(settings(tmp_path, text, "tenants.toml"))
    assert (acme.tenant, globex.tenant) == ("acme", "globex")
    assert acme.settings.sources()["agentes"].startswith("mibot-222814.ACME.")
    assert (acme.settings.database_schema, acme.settings.bigquery_daily_budget_bytes) == ("acme_data", 7)
    assert acme.settings.alert_urls.get_secret_value() == "jsons://hooks.example/acme"
    assert acme.settings.owner == Owner("acme", "pulso_acme")
    assert "options='-csearch_path=x -c role=pulso_acme'" in acme.settings.database_url.get_secret_value()
    assert (globex.settings.bigquery_dataset, globex.settings.bigquery_daily_budget_bytes) == ("BI_USA", 1000)
    assert globex.settings.database_url.get_secret_value() == URL.replace("pulso:", "globex:")
    assert list(globex.tables) == list(TABLES)
    assert list(acme.tables) == [name for name in TABLES if name != "evolution_data"]
    operation = acme.tables["operation_data"]
    assert (operation.schedule.refresh_every, operation.schedule.lookback_days) == (timedelta(minutes=30), 4)
    assert operation.columns == TABLES["operation_data"].columns
    # A worker's process has them, too.
    assert pickle.loads(pickle.dumps(acme.settings)).owner == acme.settings.owner


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tenants: []", "tenants: List should have at least 1 item"),
        ("- acme", "Input should be a valid dictionary"),
        ("tenants: [", "expected the node content"),
        (ACME + "    database_schema: other\n", "database_schema is given twice (line 4)"),
        (ACME + "    tables:\n      operation_data: {}\n      operation_data: {}\n", "operation_data is given twice (line 6)"),
        (ACME + "  - name: globex\n", "tenant globex: database_schema: is not given"),
        (ACME + "  - name: globex\n    database_schema: acme\n", "tenants acme, globex: database_schema: acme is given 2 times"),
        (ACME.replace("acme\n    d", "Acme\n    d"), "tenant Acme: name: String should match pattern"),
        (ACME.replace("acme\n    d", "a__b\n    d"), "tenant a__b: name: String should match pattern"),
        (ACME.replace("schema: acme", "schema: A-B"), "tenant acme: database_schema: String should match pattern"),
        (
            ACME + "    api_host: 0.0.0.0\n",
            "tenant acme: api_host: there is no such field; known are name, ",
        ),
        (ACME + "    bigquery_dataset: a.b\n", "tenant acme: bigquery_dataset: String should match pattern"),
        (ACME + "    alert_urls_env: NOT_THERE\n", "tenant acme: alert_urls_env: the environment variable NOT_THERE is not set"),
        (ACME + "    alert_urls_env: json://x\n", "tenant acme: alert_urls_env: String should match pattern"),
        (ACME + "    tables: {nothing: {}}\n", "tenant acme: tables.nothing: unknown table"),
        (ACME + "    tables: {operation_data: {columns: []}}\n", "tenant acme: tables.operation_data.columns: can't be set here"),
        (
            ACME + "    tables: {operation_data: {lookback_days: 0}}\n",
            "tenant acme: tables.operation_data.lookback_days: Input should be greater than or equal to 1",
        ),
        (ACME + f"    tables: {{{', '.join(f'{name}: {{enabled: false}}' for name in TABLES)}}}\n", "every table is turned off"),
    ],
)
def test_a_fault_is_one_line_that_names_tenant_and_field(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(SettingsError) as raised:
        deployed(settings(tmp_path, text))
    assert reason in str(raised.value)
    assert "secreto" not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tenants: []", "for example tenants: [{name: acme, database_schema: acme}]"),
        ("- acme", "for example tenants: [{name: acme, database_schema: acme}]"),
        ("tenant: []", "tenant: there is no such field; known are tenants; for example tenants: [{name: acme"),
        (ACME + "    database_shema: x\n", "database_shema: there is no such field; known are name, database_schema, "),
        (ACME + "  - name: globex\n", "database_schema: is not given; for example database_schema: acme"),
        (ACME.replace("acme\n    d", "Acme\n    d"), "name: String should match pattern"),
        (ACME.replace("acme\n    d", "Acme\n    d"), "; for example name: acme"),
        (ACME + "    retry_limit: often\n", "; for example retry_limit: 5"),
        (ACME + "    bigquery_dataset: a.b\n", "; for example bigquery_dataset: BI_ACME"),
        (ACME + "    tables: {nothing: {}}\n", "known are dashboard_data, "),
        (ACME + "    tables: {operation_data: {lookback_days: 0}}\n", "; for example lookback_days: 3"),
        (ACME + "    tables: {operation_data: {colums: 0}}\n", "; for example tables: {operation_data: {"),
        (ACME + "    tables: {operation_data: {enabled: perhaps}}\n", "; for example enabled: false"),
    ],
)
def test_a_fault_names_the_known_fields_and_an_example(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SettingsError) as raised:
        deployed(settings(tmp_path, text))
    assert told in str(raised.value)


def test_every_example_of_a_message_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_ALERT_URLS", "jsons://hooks.example/acme")
    of_table = {"enabled", *OVERRIDABLE}
    assert EXAMPLES.keys() == {"tenants", *Tenant.model_fields, *of_table}
    own = {name: value for name, value in EXAMPLES.items() if name in Tenant.model_fields and name != "tables"}
    lines = [f"{name}: {value}" for name, value in own.items()]
    table = ", ".join(f"{name}: {EXAMPLES[name]}" for name in of_table - {"retention_months"})
    text = "tenants:\n  - " + "\n    ".join([*lines, f"tables: {{operation_data: {{{table}}}}}"])
    assert deployed(settings(tmp_path, text))[0].tenant == "acme"
    assert deployed(settings(tmp_path, f"tenants: {EXAMPLES['tenants']}"))[0].tenant == "acme"


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"TENANTS_FILE: .* can't be read: No such file"):
        deployed(Settings(database_url=SecretStr(URL), tenants_file=tmp_path / "none.yaml"))


def test_a_command_must_name_its_tenant_where_there_are_any_and_not_where_there_are_none(tmp_path: Path) -> None:
    many = settings(tmp_path, ACME)
    assert chosen(many, "acme").tenant == "acme"
    assert [part.tenant for part in select(many, None)] == ["acme"]
    with pytest.raises(PlanError, match="--tenant NAME; known are acme"):
        chosen(many, None)
    with pytest.raises(PlanError, match="unknown tenant globex; known are acme"):
        chosen(many, "globex")
    alone = Settings(database_url=SecretStr(URL))
    assert chosen(alone, None) == (alone, clock.TABLES)
    with pytest.raises(PlanError, match="TENANTS_FILE is not set"):
        select(alone, "acme")


def test_a_copy_of_a_table_under_another_name_has_the_names_of_that() -> None:
    spec = TABLES["operation_data"]
    assert (spec.asset_name, spec.as_argument) == ("operation_data", "operation_data")
    copy = spec.model_copy(update={"name": "calls", "tenant": "acme"})
    assert (copy.asset_name, copy.as_argument) == ("acme/calls", "calls --tenant acme")


def test_a_url_of_its_own_is_the_tenant_s_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_URL", "postgresql://acme:otro@db.example/acme")
    (part,) = deployed(settings(tmp_path, ACME + "    database_url_env: ACME_URL\n"))
    assert part.settings.database_url.get_secret_value() == "postgresql://acme:otro@db.example/acme"
    assert part.settings.owner == Owner("acme")
    assert [statement.as_string() for statement in grants([part])] == [
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        'CREATE ROLE "acme" LOGIN',
        'GRANT CONNECT, TEMPORARY ON DATABASE "acme" TO "acme"',
        'CREATE SCHEMA "acme" AUTHORIZATION "acme"',
        'REVOKE ALL ON SCHEMA "acme" FROM PUBLIC',
    ]
    assert passwords([part]) == [r'\password "acme"']


def test_a_login_per_tenant_is_the_default_and_one_that_is_shared_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    both = ACME + "  - {name: globex, database_schema: globex}\n"
    acme, globex = deployed(settings(tmp_path, both))
    assert [part.settings.database_url.get_secret_value().partition(":secreto")[0] for part in (acme, globex)] == [
        "postgresql://acme",
        "postgresql://globex",
    ]
    assert sharing([acme, globex]) == {}

    roles = ACME + "    database_role: pulso_acme\n  - {name: globex, database_schema: globex, database_role: pulso_globex}\n"
    assert sharing(deployed(settings(tmp_path, roles))) == {"acme": ["globex"], "globex": ["acme"]}
    application(settings(tmp_path, roles))
    assert "tenant acme: its login works for globex too" in caplog.text
    # Two variables with one login are one login.
    monkeypatch.setenv("GLOBEX_DATABASE_URL", URL.replace("pulso:", "acme:"))
    assert sharing(deployed(settings(tmp_path, both))) == {"acme": ["globex"], "globex": ["acme"]}

    monkeypatch.delenv("ACME_DATABASE_URL")
    with pytest.raises(SettingsError, match="tenant acme: database_url_env: the environment variable ACME_DATABASE_URL is not set"):
        deployed(settings(tmp_path, ACME))
