"""The README and the pages of `docs/`: what they name exists, and their examples do what they say."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from pydantic import SecretStr

from pulso_etl.access.tokens import Role, make_token
from pulso_etl.cli.main import COMMANDS, Commands
from pulso_etl.definitions import build_defs
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.refreshing.runs import RECONCILIATION_JOB, job_tables
from pulso_etl.settings import Settings
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.loading.rules import Check
from pulso_etl.sync.spec import PART_OF
from pulso_etl.tables import TABLES
from pulso_etl.words import CAUSES, STATES
from pulso_etl_tests.api.conftest import settings_of
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.conftest import seed
from pulso_etl_tests.dagster_stack import DagsterStack
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.generated import generated

ROOT = Path(__file__).parents[1]
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES[ROOT / "README.md"]
CHECKS, OPERATIONS = PAGES[ROOT / "docs" / "checks.md"], PAGES[ROOT / "docs" / "operations.md"]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return [text for _, found, text in FENCE.findall(page) if found == language]


def snippets(page: str) -> list[str]:
    """The code on a page: each line of a block, and each span."""
    lines = [line for _, _, text in FENCE.findall(page) for line in text.splitlines()]
    rest = FENCE.sub("", page)
    return lines + re.findall(r"^ {4,}(\S.*)$", rest, re.MULTILINE) + re.findall(r"`([^`\n]+)`", rest)


def rows(page: str, header: str) -> list[list[str]]:
    """The cells of the table whose header begins so, without back-ticks."""
    (body,) = re.findall(rf"^\| {re.escape(header)} \|.*\n\|[ |-]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")] for line in body.splitlines()]


CODE = [snippet for page in PAGES.values() for snippet in snippets(page)]


def test_every_make_target_that_is_named_exists() -> None:
    rules = re.findall(r"^([\w$()/.]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    targets = {rule.replace("$(VENV)", ".venv") for rule in rules}
    named = {target for snippet in CODE for target in re.findall(r"\bmake ([a-z./]+)", snippet)}
    assert {"run", "test", "dev"} <= named <= targets


def test_every_command_and_option_is_named_and_every_one_named_exists() -> None:
    group = Commands()
    options = {
        name: {option for parameter in group.get_command(None, name).params for option in parameter.opts if option.startswith("--")}
        for name in COMMANDS
    }
    named: dict[str, set[str]] = {}
    for snippet in CODE:
        for name, rest in re.findall(r"\bpulso-etl (?:--env-file \S+ )?([a-z]+(?:-[a-z]+)*)([^`;#]*)", snippet):
            named.setdefault(name, set()).update(re.findall(r"(?<!\S)\[?(--[a-z-]+)", rest))
    assert set(named) == set(options)
    assert {name: found - options[name] - {"--help"} for name, found in named.items()} == {name: set() for name in named}
    assert {
        option for found in options.values() for option in found if f"`{option}`" not in README and f"[{option}" not in README
    } == set()


def test_every_setting_that_is_named_exists_and_defaults_are_as_told() -> None:
    fields = {name.upper(): field for name, field in Settings.model_fields.items()}
    named = {found[1] for snippet in CODE if (found := re.fullmatch(r"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(=.*)?", snippet))}
    told = rows(README, "setting")
    assert named - {default for _, default, _ in told} <= set(fields)
    for name, default, _ in told:
        value = fields[name].get_default()
        empty = fields[name].is_required() or value in (None, SecretStr(""))
        assert default == ("none" if empty else str(value).lower() if isinstance(value, bool) else str(value)), name


def test_what_follows_from_the_declarations_is_current() -> None:
    """`make docs` writes it anew."""
    for path, text in generated().items():
        assert path.read_text(encoding="utf-8") == text, path.name


def test_a_declaration_that_changes_changes_what_is_written_of_it() -> None:
    more = TABLES | {"dashboard_data": altered(TABLES["dashboard_data"], lookback_days=9, minimum_records=77)}
    changed = {path.name for path, text in generated(more).items() if path.read_text(encoding="utf-8") != text}
    assert changed == {"README.md", "checks.md"}
    more = TABLES | {"more_data": altered(TABLES["operation_data"], name="more_data")}
    changed = {path.name for path, text in generated(more).items() if path.read_text(encoding="utf-8") != text}
    assert changed == {"README.md", "checks.md", "columns.md", "tables.json"}


def test_sensors_schedules_jobs_checks_and_alerts_are_those_that_there_are() -> None:
    defs = build_defs(Settings(database_url=SecretStr("postgresql://nowhere/none")))
    running = {one.name for one in (*(defs.sensors or ()), *(defs.schedules or ()))}
    assert {name for name, *_ in rows(README, "what")} == running
    jobs = {snippet for snippet in CODE if re.fullmatch(r"re(fresh|concile)_\w+", snippet)} - running
    assert jobs <= {*job_tables(TABLES), RECONCILIATION_JOB, *PART_OF}
    assert {name for name, *_ in rows(CHECKS, "check")} == set(Check)
    told = {**CAUSES, **STATES}
    assert [row[:2] for row in rows(OPERATIONS, "title")] == [[words.title, key] for key, words in told.items()]


def test_every_claim_about_security_names_a_test_that_there_is() -> None:
    page, folder = PAGES[ROOT / "docs" / "security.md"], Path(__file__).parent
    tables = re.findall(r"^\| claim \| test \|\n\|[ |-]+\n((?:\|.*\n?)+)", page, re.MULTILINE)
    claims = [line for table in tables for line in table.splitlines()]
    assert len(tables) == len(re.findall(r"^\| claim", page, re.MULTILINE))
    assert len(claims) > 40
    for line in claims:
        file = ""
        named = re.findall(r"`([\w/]*(?:\.py)?)::(test_\w+)`", line)
        assert named, line
        for path, name in named:
            file = path or file
            text = (folder / file).read_text(encoding="utf-8")
            assert re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE), f"{file}::{name}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", FENCE.sub("", PAGES[path])):
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", PAGES[page]), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("example", blocks(README, "python"), ids=["table", "asset"])
def test_the_examples_pass_the_project_s_lint(example: str) -> None:
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--stdin-filename", "example.py", "-"]
        subprocess.run(command, cwd=ROOT, input=example, text=True, check=True)


def test_a_table_that_is_added_as_the_readme_says_is_loaded(
    settings: Settings, emulator: BigQueryEmulator, conn: psycopg.Connection, tmp_path: Path
) -> None:
    package, tables = tmp_path / "pulso_etl", tmp_path / "pulso_etl" / "tables"
    shutil.copytree(ROOT / "pulso_etl", package, ignore=shutil.ignore_patterns("__pycache__"))
    (tables / "channel_data.sql").write_text(blocks(README, "sql")[0], encoding="utf-8")
    (tables / "channel_data.py").write_text(blocks(README, "python")[0], encoding="utf-8")

    data = seed(settings, emulator)
    ended = subprocess.run(
        [sys.executable, "-m", "pulso_etl", "refresh", "channel_data"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    attempts = data.tables()["gestiones_unificadas"]
    found = conn.execute("SELECT sum(total_gestiones), array_agg(DISTINCT canal ORDER BY canal) FROM channel_data").fetchone()
    assert found == (attempts.num_rows, ["BOT", "HUMANO"])


def test_an_asset_of_one_s_own_needs_the_library_alone() -> None:
    imported = re.findall(r"^from (pulso_etl[\w.]*) import", blocks(README, "python")[1], re.MULTILINE)
    assert imported
    assert [module for module in imported if not module.startswith("pulso_etl.sync.")] == []


def test_an_asset_that_is_written_as_the_readme_says_is_loaded(
    settings: Settings, conn: psycopg.Connection, schema: str, tmp_path: Path
) -> None:
    (tmp_path / "visits.py").write_text(blocks(README, "python")[1], encoding="utf-8")
    module = runpy.run_path("visits.py")
    dg.Definitions.validate_loadable(module["defs"])
    # A user who may launch can't send it to another server.
    job = module["defs"].resolve_implicit_global_asset_job_def()
    for elsewhere in ("postgresql://elsewhere/db", {"env": "HOME"}):
        with pytest.raises(dg.DagsterInvalidConfigError):
            dg.validate_run_config(job, {"resources": {"postgres": {"config": {"database_url": elsewhere}}}})
    ((first, last),) = re.findall(r"--partition-range (\S+)\.\.\.(\S+)", README)
    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize(
            [module["visits"]],
            # The README's own, in the test's schema.
            resources={"postgres": PostgresUpsertIOManager(database_url=os.environ["DATABASE_URL"], database_schema=schema)},
            tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
            instance=instance,
        )
    found = conn.execute("SELECT min(day), max(day), count(*), sum(visits) FROM visits").fetchone()
    assert found == (date.fromisoformat(first), date.fromisoformat(last), 3, 300)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("curl"), reason="needs curl, and GNU date")
def test_what_the_docs_type_launches_a_job_and_watches_it(dagster_stack: DagsterStack, tmp_path: Path) -> None:
    secret, token = make_token("dev", Role.ADMIN)
    (tmp_path / ".pulso").mkdir()
    (tmp_path / ".pulso" / "token").write_text(secret, encoding="utf-8")
    launch, watch = blocks(OPERATIONS, "sh")

    def typed(api: ApiServer, text: str) -> dict[str, dict[str, str]]:
        # Other tests look at the history of the dashboard's tables.
        here = text.replace("http://127.0.0.1:8000", api.url).replace("refresh_dashboard", "refresh_productivity_data")
        return json.loads(subprocess.run(["sh", "-c", here], cwd=tmp_path, capture_output=True, check=True, timeout=60).stdout)[
            "data"
        ]

    with ApiServer(settings_of(dagster_stack, api_tokens=SecretStr(str(token)))) as api:
        answer = typed(api, launch)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess"
        run_id = answer["run"]["runId"]  # type: ignore[index]
        assert dagster_stack.wait(run_id) == "SUCCESS"
        assert typed(api, re.sub(r"RUN=.*", f"RUN={run_id}", watch))["runOrError"]["status"] == "SUCCESS"
