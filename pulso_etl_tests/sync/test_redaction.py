"""Secrets are blanked wherever something is recorded: planted in every setting, and every part made to fail and to tell them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from pydantic import SecretStr

from pulso_etl.access.tokens import Role, make_token
from pulso_etl.alerts.incidents import short_detail as alert_text
from pulso_etl.cli.main import main
from pulso_etl.definitions import build_defs
from pulso_etl.doctor import _check
from pulso_etl.logs import JsonFormatter, TextFormatter
from pulso_etl.refreshing.execution import run_plan
from pulso_etl.refreshing.plan import RefreshPlan
from pulso_etl.settings import Settings, load_settings
from pulso_etl.sync import redaction
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import SourceError, first_line
from pulso_etl.sync.redaction import BLANK, clean, clean_errors, scrub, scrub_logs, scrubbed
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.clock import TABLES, TODAY
from pulso_etl_tests.serving import serving

PASSWORD, OTHER = "pl4nted-DB-p@ss", "pl4nted-dagster-pass"
KEY = "-----BEGIN PRIVATE KEY-----\\nMIIEpl4ntedKeyMaterialThatNobodyMaySeeAnywhere0123456789\\n-----END PRIVATE KEY-----\\n"
HOOK = "T0pl4nted/B0pl4nted/pl4ntedHook"
GRAPHQL = "pl4nted-graphql-token-0123456789abcdef"
PLANTED = [
    PASSWORD,
    "pl4nted-DB-p%40ss",
    OTHER,
    "MIIEpl4ntedKeyMaterialThatNobodyMaySeeAnywhere0123456789",
    "pl4nted-key-id",
    "pl4ntedHook",
    "pl4nted-mail-pass",
    GRAPHQL,
    make_token("one", Role.READ)[0],
]


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Settings]:
    """Settings. Each setting that may hold a secret holds one."""
    file = tmp_path / "key.json"
    file.write_text(json.dumps({"private_key": KEY.replace("\\n", "\n"), "private_key_id": "pl4nted-key-id"}), encoding="utf-8")
    before = set(redaction._known)
    yield Settings(
        database_url=SecretStr("postgresql://pulso:pl4nted-DB-p%40ss@127.0.0.1:5432/pulso"),
        dagster_postgres_url=SecretStr(f"postgresql://pulso:{OTHER}@127.0.0.1:5432/dagster"),
        alert_urls=SecretStr(
            f"https://hooks.slack.com/services/{HOOK} mailtos://pulso:pl4nted-mail-pass@smtp.example.com?to=a@b.pe"
        ),
        dagster_graphql_token=SecretStr(GRAPHQL),
        google_application_credentials=file,
    )
    redaction._known.clear()
    redaction._known.update(before)


def told(text: str) -> list[str]:
    """The planted secrets that the text shows."""
    return [secret for secret in PLANTED if secret in text]


def test_every_secret_of_the_settings_is_blanked_and_nothing_else(planted: Settings) -> None:
    text = " and ".join(PLANTED)
    assert told(scrub(text)) == []
    assert told(scrub(planted.alert_urls.get_secret_value())) == []
    assert told(scrub(KEY)) == []
    fault = "connection to pulso@127.0.0.1:5432/pulso failed; dashboard_data 2026-11-25"
    assert scrub(fault) == fault
    assert scrubbed({"a": [text, 1, None], "b": (text,)}) == {"a": [scrub(text), 1, None], "b": (scrub(text),)}


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user:{}@host/db",
        "connection failed: host=x password={} user=y",
        "password = '{}'",
        "Authorization: Bearer {}",
        "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
        "http://u:{}@proxy:8080 refuses",
    ],
)
def test_what_looks_like_a_secret_is_blanked_though_nobody_told_of_it(text: str) -> None:
    assert "n0b0dy-told-of-it" not in scrub(text.format("n0b0dy-told-of-it"))


@clean_errors()
def fail() -> None:
    try:
        raise psycopg.OperationalError(f"could not connect with {PASSWORD}")
    except psycopg.OperationalError as error:
        failure = dg.Failure(f"no way in: {OTHER}")
        failure.__cause__ = error
        raise SourceError(f"BigQuery says {GRAPHQL}") from failure


def test_an_error_is_cleaned_with_all_that_it_came_of(planted: Settings) -> None:
    with pytest.raises(SourceError) as raised:
        fail()
    chain: list[BaseException] = [raised.value]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    texts = [f"{one} {one!r} {vars(one)}" for one in chain]
    assert len(texts) == 3
    assert told(" ".join(texts)) == []
    assert all(BLANK in text for text in texts)


def test_lines_of_logs_alerts_and_findings_hold_none(planted: Settings, caplog: pytest.LogCaptureFixture) -> None:
    factory = logging.getLogRecordFactory()
    scrub_logs()
    try:
        logging.getLogger("pulso_etl.any").warning("refused %s", PASSWORD)
        try:
            raise ValueError(f"bad {OTHER}")
        except ValueError:
            logging.getLogger("google.any").exception("failed")
    finally:
        logging.setLogRecordFactory(factory)
    lines = [formatter.format(record) for record in caplog.records for formatter in (TextFormatter(), JsonFormatter())]
    assert len(lines) == 4
    assert told("\n".join(lines)) == []
    error = ValueError(f"no {PASSWORD}\nat {OTHER}")

    def probe() -> str:
        raise error

    assert told(alert_text(str(error)) + first_line(error) + _check("part", probe).text) == []
    clean(error)
    assert told(str(error)) == []


@pytest.fixture
def telling_source() -> Iterator[str]:
    """A BigQuery that refuses every request with an error that shows every secret."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            reason = {"code": 400, "message": f"refused: {' '.join(PLANTED)} {KEY}", "errors": [{"reason": "invalid"}]}
            body = json.dumps({"error": reason}).encode()
            self.send_response(400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}"


def test_a_run_that_fails_records_no_secret(
    planted: Settings, settings: Settings, conn: psycopg.Connection, telling_source: str, capfd: pytest.CaptureFixture[str]
) -> None:
    here = settings.model_copy(update={"bigquery_emulator_host": telling_source})
    plan = RefreshPlan("operation_data", DayRange(TODAY - timedelta(days=1), TODAY), "explicit range")
    with dg.DagsterInstance.get() as instance:
        outcome = run_plan(build_defs(here), instance, TABLES["operation_data"], plan)
        assert outcome.run_id is not None
        events = [dg.serialize_value(entry) for entry in instance.all_logs(outcome.run_id)]
    rows = conn.execute("SELECT error_message, metadata::text FROM etl_extractions").fetchall()
    rows += conn.execute("SELECT error_message, metadata::text FROM etl_watermarks").fetchall()
    assert rows
    recorded = [str(outcome.error), *events, *map(str, rows), *capfd.readouterr()]
    assert outcome.error is not None
    assert "refused" in outcome.error
    assert {secret for text in recorded for secret in told(text)} == set()


def test_answers_of_the_api_and_the_command_line_tell_no_secret(
    planted: Settings,
    settings: Settings,
    conn: psycopg.Connection,
    telling_source: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """BigQuery, Dagster's webserver and an alert channel answer with every secret that they were given, and with others."""
    hook = telling_source.replace("http://", "json://pulso:pl4nted-mail-pass@") + f"/{HOOK}"
    telling = {"BIGQUERY_EMULATOR_HOST": telling_source, "DAGSTER_GRAPHQL_URL": f"{telling_source}/graphql", "ALERT_URLS": hook}
    for name, value in telling.items():
        monkeypatch.setenv(name, value)

    def typed(*command: str) -> str:
        monkeypatch.setattr("sys.argv", ["pulso-etl", *command])
        with suppress(SystemExit):
            main()
        return "".join(capfd.readouterr())

    said = {words: typed(*words.split()) for words in ("refresh operation_data --force", "reconcile operation_data", "alert-test")}
    assert "refused" in said["refresh operation_data --force"]
    assert "FAIL" in said["alert-test"]
    # Rows of an older version.
    for table in ("etl_watermarks", "etl_extractions"):
        conn.execute(f"UPDATE {table} SET error_message = %s", (f"left: {' '.join(PLANTED)}",))
    said |= {words: typed(*words.split()) for words in ("status", "doctor", "cleanup")}
    assert "left" in said["status"]
    with ApiServer(load_settings()) as api:
        for method, path in (
            ("GET", "/api/v1/etl/status"),
            ("GET", "/api/v1/etl/status/table/operation_data"),
            ("GET", "/api/v1/etl/health"),
            ("GET", "/metrics"),
            ("GET", "/api/v1/etl/config/tables"),
            ("POST", "/api/v1/etl/refresh/table/operation_data?force=true"),
            ("POST", "/api/v1/etl/refresh/dashboard"),
        ):
            said[path] = api.call(method, path).text
    assert "left" in said["/api/v1/etl/status"]
    said["log"] = "".join(capfd.readouterr())
    assert {source: found for source, text in said.items() if (found := told(text))} == {}
