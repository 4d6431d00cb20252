"""The doctor on a healthy deployment, and with each of its parts broken in turn."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from dagster._daemon.types import DaemonHeartbeat
from google.cloud import bigquery
from pydantic import SecretStr
from sqlalchemy import make_url
from typer.testing import CliRunner

from pulso_etl.bigquery.source import build_source
from pulso_etl.cli.main import app
from pulso_etl.doctor import Diagnosis, diagnose
from pulso_etl.doctor.server import ServerSettings, clock_faults, clocks, disk_faults
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SampleData
from pulso_etl.local.stack import configuration
from pulso_etl.settings import Settings, load_settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import LedgerMismatch
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.preparing import grants, needed
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.tables import TABLES
from pulso_etl_tests.databases import database
from pulso_etl_tests.pooler import needs_pgbouncer, pooler

PASSWORD = "s3cr3t-xyzzy"
PARTS = [
    *("settings", "SQL", "credentials", "BigQuery", *(f"source of {table}" for table in TABLES)),
    *(
        "PostgreSQL",
        "server settings",
        "clocks",
        "disks",
        "trial",
        "ledger",
        *(f"rows of {table}" for table in TABLES),
        "retention",
    ),
    *("Dagster home", "Dagster storage", "Dagster daemon"),
]


@pytest.fixture(scope="module")
def dagster_url(server_url: str) -> str:
    """A database for Dagster's own storage."""
    url = make_url(server_url).set(database=f"dagster_{uuid.uuid4().hex[:8]}")
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {url.database}")
    return url.render_as_string(hide_password=False)


def sources(emulator: BigQueryEmulator) -> str:
    """A new dataset with a few rows in every source."""
    name = f"d_{uuid.uuid4().hex[:8]}"
    names = Settings(database_url=SecretStr("postgresql://nowhere"), bigquery_dataset=name).sources()
    SampleData(names, date(2026, 7, 15), days=1, dashboard_rows_per_day=2).seed_into(emulator.client())
    return name


@pytest.fixture(scope="module")
def dataset(emulator: BigQueryEmulator) -> str:
    """The dataset of all tests that change nothing in it."""
    return sources(emulator)


@pytest.fixture
def deployment(settings: Settings, dataset: str, dagster_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A deployment in good order, as the environment describes it."""
    monkeypatch.setenv("BIGQUERY_DATASET", dataset)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", dagster_url)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text(configuration("dagster.yaml"), encoding="utf-8")
    return load_settings()


@pytest.fixture
def changing(deployment: Settings, emulator: BigQueryEmulator, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The deployment with a dataset of its own, whose sources the test changes."""
    monkeypatch.setenv("BIGQUERY_DATASET", sources(emulator))
    return load_settings()


@pytest.fixture
def role(server_url: str) -> Iterator[str]:
    """A role that may connect with the password, and nothing else."""
    name = f"role_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
        yield name
        conn.execute(f"DROP OWNED BY {name}")
        conn.execute(f"DROP ROLE {name}")


def failed(part: str) -> str:
    """The text of the one part that fails. Checks that the text shows no secret."""
    findings = list(diagnose())
    assert PASSWORD not in str(findings)
    assert [finding.part for finding in findings if not finding.ok] == [part], findings
    (text,) = [finding.text for finding in findings if not finding.ok]
    assert "\n" not in text
    return text


def test_a_deployment_in_good_order_has_a_line_for_each_part(deployment: Settings) -> None:
    findings = list(diagnose())
    assert [finding.part for finding in findings] == PARTS
    assert [finding for finding in findings if not finding.ok] == []


def test_the_command_prints_each_part_and_fails_with_one_of_them(deployment: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    good = CliRunner().invoke(app, ["doctor"])
    assert (good.exit_code, good.output.count("ok   ")) == (0, len(PARTS))
    monkeypatch.setenv("BIGQUERY_DATASET", "nowhere")
    bad = CliRunner().invoke(app, ["doctor"])
    assert (bad.exit_code, bad.output.count("FAIL ")) == (1, len(TABLES))


def test_rows_that_have_gone_are_found_whoever_deleted_them(deployment: Settings, conn: psycopg.Connection, schema: str) -> None:
    marks, window = Watermarks(schema), DayRange(date(2026, 3, 1), date(2026, 3, 2))
    extraction = RunningAttempt("operation_data", window, "run", 1, datetime.now(UTC))
    for statement in Statements(TABLES["operation_data"], schema).create_table():
        conn.execute(statement)
    with conn.transaction():
        marks.create(conn)
        marks.start(conn, extraction)
        marks.succeed(conn, extraction, Loaded(datetime.now(UTC), dict.fromkeys(window, 5), 10, 1.0, True))
    found = {finding.part: finding for finding in diagnose()}
    assert not found["rows of operation_data"].ok
    assert "10 rows of 2026-03-01..2026-03-02 that were loaded are no longer in the table" in found["rows of operation_data"].text
    assert "pulso-etl refresh operation_data --from 2026-03-01 --to 2026-03-02" in found["rows of operation_data"].text
    assert found["rows of dashboard_data"].text == "never loaded"


def test_a_ledger_of_another_release_is_told(deployment: Settings, conn: psycopg.Connection) -> None:
    def ledger() -> Diagnosis:
        return next(finding for finding in diagnose() if finding.part == "ledger")

    conn.execute((Path(__file__).parent / "sync" / "states" / "01_first_day.sql").read_bytes())
    assert not ledger().ok
    assert ledger().text.startswith("an earlier release of Pulso ETL wrote the ledger")
    status = CliRunner().invoke(app, ["status"])
    assert (status.exit_code, type(status.exception)) == (1, LedgerMismatch)
    Watermarks(deployment.database_schema).create(conn)
    assert ledger().ok
    conn.execute("DROP TABLE etl_refreshes")
    assert "tables are missing: etl_refreshes" in ledger().text
    conn.execute("INSERT INTO etl_migrations (number, name) VALUES (998, 'of_tomorrow')")
    assert "998_of_tomorrow" in ledger().text


def test_a_malformed_setting_ends_it_there(deployment: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://u:{PASSWORD}@h:54x2/d")
    (finding,) = diagnose()
    assert finding.text.startswith("DATABASE_URL: must read postgresql://")
    assert PASSWORD not in finding.text


def test_nothing_is_left_in_postgresql(deployment: Settings, conn: psycopg.Connection, schema: str) -> None:
    list(diagnose())
    assert conn.execute("SELECT count(*) FROM pg_tables WHERE schemaname = %s", (schema,)).fetchone() == (0,)


# BigQuery


def credentials(monkeypatch: pytest.MonkeyPatch, file: Path) -> Diagnosis:
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    return next(finding for finding in diagnose() if finding.part == "credentials")


def test_a_key_file_that_is_missing_is_named(deployment: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    finding = credentials(monkeypatch, tmp_path / "key.json")
    assert not finding.ok
    assert str(tmp_path / "key.json") in finding.text
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in finding.text


def test_a_key_file_that_holds_no_key_is_not_quoted(deployment: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for content in (PASSWORD, json.dumps({"type": "service_account", "private_key": PASSWORD})):
        (tmp_path / "key.json").write_text(content)
        finding = credentials(monkeypatch, tmp_path / "key.json")
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "http://127.0.0.1:9")
        assert not finding.ok
        assert PASSWORD not in finding.text


def test_kind_and_place_of_credentials_are_told_and_nothing_of_them(
    deployment: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    info = {
        "type": "service_account",
        "client_email": "someone@project.example",
        "private_key_id": PASSWORD,
        "private_key": key.decode(),
        "token_uri": "http://127.0.0.1:9/token",
    }
    (tmp_path / "key.json").write_text(json.dumps(info))
    finding = credentials(monkeypatch, tmp_path / "key.json")
    assert finding.ok
    assert finding.text == f"the key of a service account, from GOOGLE_APPLICATION_CREDENTIALS: {tmp_path / 'key.json'}"


def test_a_wrong_port_of_bigquery_fails_at_once_and_leaves_the_sources_out(
    deployment: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "http://127.0.0.1:9")
    began = time.monotonic()
    text = failed("BigQuery")
    assert time.monotonic() - began < 15
    assert "check the network, BIGQUERY_PROJECT_ID" in text
    assert "Connection refused" in text


def test_a_missing_view_is_named(changing: Settings, emulator: BigQueryEmulator) -> None:
    emulator.client().delete_table(changing.sources()["asignaciones_clean"])
    text = failed("source of assignment_data")
    assert "check dataset, prefix and location" in text
    assert "asignaciones_clean" in text


@pytest.mark.parametrize(
    ("view", "column", "new_type", "words"),
    [
        ("gestiones_unificadas", "es_compromiso", None, "es_compromiso"),
        ("dashboard_cobranzas", "cuentas", "FLOAT64", "cuentas: declared bigint, the source gives double"),
        ("dashboard_cobranzas", "pct_cierre", "GEOGRAPHY", "pct_cierre: declared double precision"),
    ],
)
def test_a_missing_or_changed_column_is_named(
    changing: Settings, emulator: BigQueryEmulator, view: str, column: str, new_type: str | None, words: str
) -> None:
    client, name = emulator.client(), changing.sources()[view]
    fields = [field for field in client.get_table(name).schema if field.name != column]
    client.delete_table(name)
    client.create_table(bigquery.Table(name, [*fields, *([bigquery.SchemaField(column, new_type)] if new_type else [])]))
    broken = [finding for finding in diagnose() if not finding.ok]
    readers = [table for table, spec in TABLES.items() if f"{{{view}}}" in spec.source.query and column in spec.source.query]
    assert [finding.part for finding in broken] == [f"source of {table}" for table in readers]
    assert all(words in finding.text for finding in broken), broken


def test_a_new_column_of_a_source_is_no_fault(changing: Settings, emulator: BigQueryEmulator) -> None:
    client, name = emulator.client(), changing.sources()["dashboard_cobranzas"]
    fields = [*client.get_table(name).schema, bigquery.SchemaField("nueva", "JSON")]
    # The source is a view, which the emulator does not change.
    client.delete_table(name)
    client.create_table(bigquery.Table(name, fields))
    assert [finding for finding in diagnose() if not finding.ok] == []


# PostgreSQL


def test_a_wrong_port_of_postgresql(deployment: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://u:{PASSWORD}@127.0.0.1:9/d")
    text = failed("PostgreSQL")
    assert text.startswith("DATABASE_URL: cannot connect")
    assert "port 9 failed" in text


def test_a_database_that_is_not_there(deployment: Settings, server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = make_url(server_url).set(database="nowhere").render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", url)
    assert 'database "nowhere" does not exist' in failed("PostgreSQL")


def test_a_wrong_password(deployment: Settings, server_url: str, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with psycopg.connect(server_url, autocommit=True) as conn:
        (file,) = conn.execute("SHOW hba_file").fetchone() or ("",)
        if not os.access(file, os.W_OK):
            pytest.skip("the server is not on this machine")
        before = Path(file).read_text()
        Path(file).write_text(f"local all {role} scram-sha-256\nhost all {role} all scram-sha-256\n{before}")
        conn.execute("SELECT pg_reload_conf()")
        try:
            url = make_url(server_url).set(username=role, password=f"{PASSWORD}-wrong")
            monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
            deadline = time.monotonic() + 5
            while "password authentication failed" not in (text := failed("PostgreSQL")) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert f'password authentication failed for user "{role}"' in text
        finally:
            Path(file).write_text(before)
            conn.execute("SELECT pg_reload_conf()")


def test_a_role_without_rights_is_told_what_to_grant_and_that_is_enough(
    deployment: Settings, server_url: str, schema: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_SCHEMA", schema)
    url = make_url(server_url).set(username=role, password=PASSWORD)
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"CREATE TABLE {schema}.dashboard_data (n int)")
        conn.execute(f"REVOKE TEMPORARY ON DATABASE {url.database} FROM PUBLIC")
        try:
            text = failed("PostgreSQL")
            opening, *statements = text.split("; ")
            assert opening == f"role {role} lacks rights"
            assert statements == [
                f"run as an administrator: GRANT TEMPORARY ON DATABASE {url.database} TO {role}",
                f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}",
                f"ALTER TABLE {schema}.dashboard_data OWNER TO {role}",
            ]
            for statement in statements:
                conn.execute(statement.removeprefix("run as an administrator: "))
            assert [finding for finding in diagnose() if not finding.ok] == []
        finally:
            conn.execute(f"GRANT TEMPORARY ON DATABASE {url.database} TO PUBLIC")


def test_a_role_that_may_create_nothing_is_in_order_once_an_administrator_has_made_the_tables(
    deployment: Settings, server_url: str, schema: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_SCHEMA", schema)
    url = make_url(server_url).set(username=role, password=PASSWORD)
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    with psycopg.connect(server_url, autocommit=True) as conn:
        made = needed(conn, schema, TABLES.values())
        for statement in made:
            conn.execute(statement.encode())
        assert "lacks rights" in failed("PostgreSQL")
        for statement in grants(conn, schema, TABLES.values(), role):
            conn.execute(statement.encode())
        (told,) = [finding for finding in diagnose() if finding.part == "PostgreSQL"]
        assert told.ok
        assert f"role {role} may load into schema {schema}, but create no table: run `pulso-etl schema`" in told.text
        conn.execute(f"REVOKE DELETE ON {schema}.evolution_data FROM {role}")
        opening, *statements = failed("PostgreSQL").split("; ")
        assert opening == f"role {role} lacks rights"
        # A statement for each of many tables: all of them are whole.
        for statement in statements:
            conn.execute(statement.removeprefix("run as an administrator: ").encode())
        assert all(finding.ok for finding in diagnose())


def test_a_missing_schema_that_the_role_may_not_create(
    deployment: Settings, server_url: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_SCHEMA", "not_there")
    found = {finding.part: finding for finding in diagnose()}
    assert [finding for finding in found.values() if not finding.ok] == []
    assert found["trial"].text.endswith("no load was tried, because the first refresh makes the schema not_there")
    url = make_url(server_url).set(username=role, password=PASSWORD)
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    assert failed("PostgreSQL").endswith(f"CREATE SCHEMA not_there AUTHORIZATION {role}")


def test_a_server_that_is_read_only(deployment: Settings, server_url: str, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = make_url(server_url).update_query_dict({"options": "-cdefault_transaction_read_only=on"})
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    assert "connect to the primary" in failed("PostgreSQL")


@needs_pgbouncer
def test_a_pooler_that_shares_sessions(deployment: Settings, server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pooler(server_url, "transaction") as url:
        monkeypatch.setenv("DATABASE_URL", url)
        assert "set pool_mode=session, or name the server itself in DATABASE_URL" in failed("PostgreSQL")
    with pooler(server_url, "session") as url:
        monkeypatch.setenv("DATABASE_URL", url)
        assert [finding for finding in diagnose() if not finding.ok] == []


def test_a_database_without_an_encoding(deployment: Settings, server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with database(server_url, "SQL_ASCII") as url:
        monkeypatch.setenv("DATABASE_URL", url)
        assert "has the encoding SQL_ASCII" in failed("PostgreSQL")


# What fails later


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (ServerSettings(False, True, None, 50), "set autovacuum = on"),
        (ServerSettings(True, True, 2**20, 50), "temp_file_limit allows 1 MiB"),
        (ServerSettings(True, True, None, 3), "only 3 connections are free"),
    ],
)
def test_a_setting_of_the_server_that_fails_later_is_named_with_its_repair(found: ServerSettings, fault: str) -> None:
    assert [fault in told for told in found.faults] == [True]
    assert ServerSettings(True, False, None, 50).faults == []


def test_clocks_that_differ_are_named(deployment: Settings) -> None:
    def ahead(server: float, bigquery: float) -> dict[str, timedelta]:
        return {"PostgreSQL": timedelta(seconds=server), "BigQuery": timedelta(seconds=bigquery)}

    assert clock_faults(ahead(2, -2), 600) == []
    assert "PostgreSQL's clock is 90.0 s behind" in clock_faults(ahead(-90, 0), 600)[0]
    assert "BigQuery's clock is 700.0 s ahead of PostgreSQL's" in clock_faults(ahead(0, 700), 600)[0]
    assert "BigQuery 0.0 s" in clocks(deployment, build_source(deployment)).replace("0.1", "0.0")


def test_a_full_disk_is_named() -> None:
    assert disk_faults({"DAGSTER_HOME": 3 * 2**30, "temporary files": 2**30}) == [
        "temporary files: only 1.0 GiB are free, at least 2 are needed; make room"
    ]


# Dagster


def test_dagster_home_is_not_set_or_not_there_or_without_its_file(
    deployment: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DAGSTER_HOME")
    assert failed("Dagster home").startswith("DAGSTER_HOME is not set")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "gone"))
    assert "not the absolute path of an existing folder" in failed("Dagster home")
    (tmp_path / "old").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "old"))
    assert "copy this project's dagster.yaml" in failed("Dagster home")


def test_an_old_dagster_yaml(deployment: Settings, tmp_path: Path) -> None:
    file = tmp_path / "dagster.yaml"
    good = file.read_text()
    file.write_text(good.replace("freshness:\n  enabled: true", "freshness:\n  enabled: false"))
    assert "freshness policies are off" in failed("Dagster storage")
    file.write_text(good + "\nold_section:\n  some: thing\n")
    assert "old_section" in failed("Dagster storage")


def test_dagster_storage_that_is_not_reachable_fails_at_once(deployment: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"postgresql://u:{PASSWORD}@127.0.0.1:9/d")
    began = time.monotonic()
    assert failed("Dagster storage").startswith("DAGSTER_POSTGRES_URL: cannot connect")
    assert time.monotonic() - began < 10
    monkeypatch.delenv("DAGSTER_POSTGRES_URL")
    assert "DAGSTER_POSTGRES_URL" in failed("Dagster storage")


def test_dagster_s_own_storage_class_under_settings_that_it_does_not_expect(
    deployment: Settings, dagster_url: str, tmp_path: Path
) -> None:
    file, database = tmp_path / "dagster.yaml", make_url(dagster_url).database
    ours = file.read_text()
    before, _, after = ours.partition("storage:")
    _, _, rest = after.partition("run_coordinator:")
    theirs = "storage:\n  postgres:\n    postgres_url:\n      env: DAGSTER_POSTGRES_URL\n\nrun_coordinator:"
    with psycopg.connect(dagster_url, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {database} SET timezone = 'America/Lima'")
        conn.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")
        try:
            # The project's class states what it needs.
            assert next(one for one in diagnose() if one.part == "Dagster storage").ok
            file.write_text(before + theirs + rest)
            told = failed("Dagster storage")
            assert "its sessions have timezone = America/Lima, default_transaction_isolation = serializable" in told
            mends = told.partition("run: ")[2].split("; ")
            assert len(mends) == 2
            for statement in mends:
                conn.execute(statement)
            assert next(one for one in diagnose() if one.part == "Dagster storage").ok
        finally:
            conn.execute(f"ALTER DATABASE {database} RESET ALL")
            conn.execute(f"ALTER ROLE {conn.info.user} IN DATABASE {database} RESET ALL")


def test_dagster_storage_of_an_older_version(deployment: Settings, dagster_url: str) -> None:
    list(diagnose())
    with psycopg.connect(dagster_url, autocommit=True) as conn:
        (head,) = conn.execute("SELECT version_num FROM alembic_version").fetchone() or ("",)
        conn.execute("UPDATE alembic_version SET version_num = '17154c80d885'")
        try:
            assert "dagster instance migrate" in failed("Dagster storage")
        finally:
            conn.execute("UPDATE alembic_version SET version_num = %s", (head,))


def test_a_daemon_that_was_never_seen_is_no_fault_but_one_that_has_stopped_is(deployment: Settings) -> None:
    with dg.DagsterInstance.get() as instance:
        daemons = instance.get_required_daemon_types()
        assert "never seen" in list(diagnose())[-1].text
        try:
            for daemon in daemons:
                instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), daemon, None))
            assert list(diagnose())[-1] == Diagnosis("Dagster daemon", True, f"{len(daemons)} healthy")
            instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 7200, "SENSOR", None))
            assert failed("Dagster daemon").startswith("no heartbeat of SENSOR since 2")
        finally:
            instance.wipe_daemon_heartbeats()
