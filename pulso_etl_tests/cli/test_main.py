"""The command line: `pulso-etl refresh`, `status` and `sql`, with real servers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from pulso_etl import local
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SampleData, base_of, load_table
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange, first_kept_day
from pulso_etl.sync.ledger.locks import table_lock
from pulso_etl.sync.loading import months
from pulso_etl.sync.schema.migration import create_table
from pulso_etl.sync.target import Target
from pulso_etl.tables import TABLES, TableSpec
from pulso_etl_tests.cli.conftest import Ended, Pulso
from pulso_etl_tests.clock import TODAY
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.dagster_stack import CHECKOUT
from pulso_etl_tests.declarations import altered

SECRET = "un-secreto-9f3c"


@pytest.fixture(scope="module")
def data(emulator: BigQueryEmulator) -> SampleData:
    """Five days of sample data, 30 dashboard rows each."""
    names = Settings(database_url=SecretStr("postgresql://nowhere"), bigquery_dataset="CLI").sources()
    data = SampleData(names, TODAY, days=5, dashboard_rows_per_day=30)
    data.seed_into(emulator.client())
    return data


@pytest.fixture(autouse=True)
def deployment(settings: Settings, data: SampleData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings in the environment, a password in the database's address among them."""
    url = settings.database_url.get_secret_value()
    monkeypatch.setenv("DATABASE_URL", f"{url}{'&' if '?' in url else '?'}password={SECRET}")
    monkeypatch.setenv("BIGQUERY_DATASET", "CLI")


@pytest.fixture
def pulso(pulso: Pulso) -> Pulso:
    """Runs `pulso-etl` with the arguments in this process. It must print neither the password nor a trace."""

    def run(*arguments: str) -> Ended:
        ended = pulso(*arguments)
        assert SECRET not in ended.out + ended.err
        assert "Traceback" not in ended.out + ended.err
        return ended

    return run


def windows(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    query = "SELECT table_name, %s::date - partition_start, status FROM etl_extractions"
    return conn.execute(f"{query} ORDER BY id", (TODAY,)).fetchall()


def count(conn: psycopg.Connection, table: str) -> int:
    return conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # type: ignore[index]


@pytest.fixture
def week(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first load of a table takes the last week, or the table's lookback if that is longer."""
    monkeypatch.setenv("INITIAL_WINDOW_DAYS", "7")


@pytest.mark.usefixtures("week")
def test_all_tables_are_refreshed_then_fresh_and_named_ones_alone_are_forced(pulso: Pulso, conn: psycopg.Connection) -> None:
    days = {name: max(7, spec.schedule.lookback_days) for name, spec in TABLES.items()}
    first = pulso("refresh")
    assert first.code == 0
    for name in TABLES:
        assert f"{name}: {TODAY - timedelta(days=days[name] - 1)}..{TODAY} (first load, {days[name]} days)" in first.out
        (line,) = [words for words in first.words if words[:1] == [name]]
        read, inserted, updated, unchanged, deleted = map(int, line[2:7])
        assert (read, updated, deleted) == (inserted + unchanged, 0, 0)
        assert count(conn, name) > 0
    assert windows(conn) == [(name, days[name] - 1, "success") for name in TABLES]

    second = pulso("refresh")
    assert second.code == 0
    for name in TABLES:
        assert f"{name}: skipped (fresh: loaded " in second.out
        (line,) = [words for words in second.words if words[:1] == [name]]
        assert line[1] == "fresh"
    assert len(windows(conn)) == len(TABLES)

    third = pulso("refresh", "operation_data", "evolution_data", "--force")
    assert third.code == 0
    assert windows(conn)[len(TABLES) :] == [("operation_data", 1, "success"), ("evolution_data", 2, "success")]


@pytest.mark.parametrize(
    ("options", "days_back"),
    [
        (["--mode", "sliding_window"], 6),
        (["--mode", "sliding_window", "--days", "2"], 1),
        (["--mode", "full_refresh"], 8),
        (["--from", str(TODAY - timedelta(days=3)), "--to", str(TODAY - timedelta(days=1))], 3),
        (["--from", str(TODAY - timedelta(days=4))], 4),
    ],
)
def test_mode_days_and_range_choose_the_partitions(
    pulso: Pulso, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, options: list[str], days_back: int
) -> None:
    monkeypatch.setenv("PARTITIONS_START", str(TODAY - timedelta(days=8)))
    assert pulso("refresh", "dashboard_data", *options).code == 0
    assert windows(conn) == [("dashboard_data", days_back, "success")]


def test_a_range_of_the_past_ends_where_it_was_told(pulso: Pulso, conn: psycopg.Connection) -> None:
    past = TODAY - timedelta(days=2)
    ended = pulso("refresh", "dashboard_data", "--from", str(past), "--to", str(past))
    assert f"dashboard_data: {past} (explicit range)" in ended.out
    assert conn.execute("SELECT DISTINCT fecha_foto FROM dashboard_data").fetchall() == [(past,)]
    before, after = f"{TODAY - timedelta(days=6)}..{past - timedelta(days=1)}", f"{past + timedelta(days=1)}..{TODAY}"
    assert f"dashboard_data: the watermark stays; days still owed, which the next refresh reads: {before}, {after}" in ended.out
    whole = pulso("refresh", "dashboard_data", "--mode", "sliding_window")
    assert whole.code == 0
    assert "still owed" not in whole.out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["refresh", "tabla"], f"unknown table tabla; known are {', '.join(TABLES)}"),
        (["sql", "tabla"], f"unknown table tabla; known are {', '.join(TABLES)}"),
        (["refresh", "--days", "3"], "days goes with the mode sliding_window"),
        (["refresh", "--mode", "sliding_window", "--days", "0"], "--days must be 1 or more"),
        (["refresh", "--from", "2026-01-02", "--to", "2026-01-01"], "starts on 2026-01-02, after its end"),
        (["refresh", "--to", "2999-01-01"], "is not within the partitions"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_nothing_runs(
    pulso: Pulso, conn: psycopg.Connection, arguments: list[str], reason: str
) -> None:
    ended = pulso(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("pulso-etl: ")
    assert reason in ended.err
    assert conn.execute("SELECT to_regclass('etl_extractions')").fetchone() == (None,)


@pytest.mark.usefixtures("week")
def test_checks_that_fail_and_stop_nothing_are_named(pulso: Pulso, conn: psycopg.Connection) -> None:
    assert "warning" not in pulso("refresh", "evolution_data").out
    names = [name for name in TABLES["evolution_data"].column_names if name not in ("fecha_foto", "archivo")]
    others = ", ".join(names)
    conn.execute(
        f"INSERT INTO evolution_data (fecha_foto, archivo, {others}) SELECT fecha_foto - 7 * week, archivo || copy, {others} "
        "FROM evolution_data, generate_series(1, 2) AS week, generate_series(1, 4) AS copy".encode()
    )
    ended = pulso("refresh", "evolution_data", "--force")
    assert ended.code == 0
    [line] = [line for line in ended.out.splitlines() if line.startswith("warning: evolution_data: ")]
    days = [TODAY - timedelta(days=n) for n in (2, 1)]
    assert line.removeprefix("warning: evolution_data: check volume failed: ") == "; ".join(
        f"{day}: 30 rows, usually 120" for day in days
    )


@pytest.mark.parametrize("arguments", [["refresh", "--mode", "often"], ["refresh", "--from", "ayer"], ["refrescar"]])
def test_what_the_command_line_does_not_know_is_a_usage_error(pulso: Pulso, arguments: list[str]) -> None:
    assert pulso(*arguments).code == 2


@pytest.mark.usefixtures("week")
def test_a_table_that_fails_is_named_and_does_not_stop_the_others(
    pulso: Pulso, conn: psycopg.Connection, data: SampleData, emulator: BigQueryEmulator
) -> None:
    with emulator.client() as client:
        client.delete_table(data.names["asignaciones_clean"])
        try:
            ended = pulso("refresh", "operation_data", "assignment_data", "evolution_data")
        finally:
            data.seed_into(client)
    assert ended.code == 1
    (reason,) = [line for line in ended.out.splitlines() if line.startswith("failed: ")]
    assert reason.startswith("failed: assignment_data: assignment_data ")
    assert "BigQuery does not know the table" in reason
    assert [(name, status) for name, _, status in windows(conn)] == [
        ("operation_data", "success"),
        ("assignment_data", "failed"),
        ("evolution_data", "success"),
    ]
    told = pulso("status")
    assert told.code == 0
    assert [words[1] for words in told.words if words[:1] == ["assignment_data"]] == ["failed"]
    assert reason in told.out.splitlines()


@pytest.mark.usefixtures("week")
def test_a_shrinking_source_is_refused_until_it_is_allowed(
    pulso: Pulso, conn: psycopg.Connection, data: SampleData, emulator: BigQueryEmulator
) -> None:
    assert pulso("refresh", "dashboard_data").code == 0
    whole = data.tables()["dashboard_cobranzas"]
    with emulator.client() as client:
        load_table(client, base_of(data.names, "dashboard_cobranzas"), whole.slice(0, 10))
        try:
            refused = pulso("refresh", "dashboard_data", "--force")
            assert refused.code == 1
            assert "refused to delete" in refused.out
            assert "--allow-shrink" in refused.out
            assert count(conn, "dashboard_data") == whole.num_rows
            allowed = pulso("refresh", "dashboard_data", "--force", "--allow-shrink")
            assert allowed.code == 0
            assert count(conn, "dashboard_data") == 10
        finally:
            load_table(client, base_of(data.names, "dashboard_cobranzas"), whole)


def test_status_tells_every_table_before_and_after(pulso: Pulso) -> None:
    before = pulso("status")
    assert before.code == 0
    assert [words for words in before.words[1:] if words] == [[name, "never", "loaded"] for name in TABLES]
    assert pulso("refresh", "dashboard_data").code == 0
    lines = {words[0]: words for words in pulso("status").words if words}
    assert lines["dashboard_data"][:4] == ["dashboard_data", "success", "yes", str(TODAY)]
    assert lines["dashboard_data"][5] == "150"
    assert lines["operation_data"] == ["operation_data", "never", "loaded"]


@pytest.mark.usefixtures("week")
def test_status_names_rows_that_have_gone_and_the_command_that_brings_them_back(pulso: Pulso, conn: psycopg.Connection) -> None:
    assert pulso("refresh", "operation_data").code == 0
    held = count(conn, "operation_data")
    conn.execute("TRUNCATE operation_data")
    told = pulso("status")
    (words,) = [words for words in told.words if words[:1] == ["operation_data"]]
    assert words[2] == "no"
    first = TODAY - timedelta(days=4)
    command = f"pulso-etl refresh operation_data --from {first} --to {TODAY}"
    line = f"rows are missing: operation_data: {held} rows of {first}..{TODAY} that were loaded are no longer in the table"
    assert f"{line}; load them again: {command}" in told.out
    assert pulso(*command.split()[1:]).code == 0
    assert "rows are missing" not in pulso("status").out
    assert count(conn, "operation_data") == held


def test_sql_prints_the_query_and_every_statement(pulso: Pulso, data: SampleData, schema: str) -> None:
    ended = pulso("sql", "operation_data")
    assert ended.code == 0
    assert f"FROM `{data.names['gestiones_unificadas']}`" in ended.out
    assert "BETWEEN @start AND @end" in ended.out
    for text in (f'CREATE TABLE IF NOT EXISTS "{schema}"."operation_data"', "COPY ", "DELETE FROM", "UPDATE ", "INSERT INTO"):
        assert text in ended.out
    assert not [line for line in ended.out.splitlines() if line.endswith("...")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"DATABASE_URL": None}, "DATABASE_URL: is not set"),
        ({"DATABASE_URL": f"postgresql://u:{SECRET}@127.0.0.1:1/x"}, "PostgreSQL is away"),
        ({"DATABASE_URL": f"mysql://u:{SECRET}@127.0.0.1:1/x"}, "DATABASE_URL: must start with postgresql://"),
        ({"DAGSTER_HOME": None}, "DAGSTER_HOME"),
        ({"DAGSTER_HOME": "/no/such/folder"}, "DAGSTER_HOME"),
    ],
)
def test_a_deployment_that_is_not_set_up_is_told_in_one_line(
    pulso: Pulso, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], reason: str
) -> None:
    for name, value in changes.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    ended = pulso("refresh", "dashboard_data")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert reason in ended.err


def test_dagster_s_storage_that_is_not_set_up_is_told_in_one_line(
    pulso: Pulso, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dagster.yaml").write_text((CHECKOUT / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv("DAGSTER_POSTGRES_URL", raising=False)
    ended = pulso("refresh", "dashboard_data")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "DAGSTER_POSTGRES_URL" in ended.err


NAMES = ("DATABASE_URL", "DATABASE_SCHEMA", "BIGQUERY_EMULATOR_HOST", "BIGQUERY_DATASET", "DAGSTER_HOME")


def test_settings_may_stand_in_the_file_env_of_the_folder_alone(
    pulso: Pulso, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text("\n".join(f"{name}='{os.environ[name]}'" for name in NAMES))
    for name in NAMES:
        monkeypatch.delenv(name)
    assert pulso("refresh", "evolution_data").code == 0
    assert count(conn, "evolution_data") == 150


def test_a_process_takes_settings_from_an_env_file_and_logs_json(conn: psycopg.Connection, tmp_path: Path) -> None:
    lines = [f"{name}='{os.environ[name]}'" for name in NAMES]
    (tmp_path / "prod.env").write_text("\n".join([*lines, "PULSO_LOG_FORMAT=json"]))
    ended = subprocess.run(
        [sys.executable, "-m", "pulso_etl", "--env-file", "prod.env", "refresh", "dashboard_data"],
        env={name: value for name, value in os.environ.items() if name not in NAMES},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    assert count(conn, "dashboard_data") == 150
    logged = [json.loads(line) for line in ended.stderr.splitlines()]
    (run_id,) = conn.execute("SELECT extraction_id FROM etl_extractions").fetchone() or ("",)
    window = f"{TODAY - timedelta(days=29)}..{TODAY}"
    assert logged
    assert {(line.get("run_id"), line.get("table"), line.get("partitions")) for line in logged} == {
        (run_id, "dashboard_data", window)
    }
    assert {"time", "level", "message"} <= logged[0].keys()


@pytest.fixture
def by_month(monkeypatch: pytest.MonkeyPatch) -> TableSpec:
    """dashboard_data in monthly partitions. It keeps the current month and two months before it."""
    spec = altered(TABLES["dashboard_data"], partition_by="month", retention_months=2)
    monkeypatch.setitem(TABLES, spec.name, spec)
    return spec


OLD = ("dashboard_data_y2024m01", "dashboard_data_y2024m02")


@pytest.fixture
def long_ago(by_month: TableSpec, conn: psycopg.Connection, schema: str) -> TableSpec:
    """Three rows in each of two months of 2024, and three of today. The server has statistics of the first month."""
    for statement in create_table(by_month, schema):
        conn.execute(statement)
    for day in (date(2024, 1, 31), date(2024, 2, 1), TODAY):
        with conn.transaction():
            months.create_months(Target(conn, by_month, schema), DayRange(day, day))
        conn.execute(
            "INSERT INTO dashboard_data (fecha_foto, archivo, cartera, servicio) SELECT %s, n::text, 'x', 'FIJA' "
            "FROM generate_series(1, 3) AS n",
            (day,),
        )
    conn.execute("ANALYZE dashboard_data_y2024m01")
    return by_month


def attached(conn: psycopg.Connection) -> list[str]:
    """The table's months of 2024."""
    found = conn.execute(
        "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid "
        "WHERE inhparent = 'dashboard_data'::regclass AND relname LIKE '%%2024%%' ORDER BY 1"
    )
    return [name for (name,) in found]


def test_retention_shows_the_months_that_would_go_and_changes_nothing(
    pulso: Pulso, conn: psycopg.Connection, long_ago: TableSpec
) -> None:
    told = pulso("retention")
    days, dagster, ledger, kept, first, second, *others, end = told.out.splitlines()
    assert told.code == 0
    assert days == "kept for days: logs=14 runs=90 attempts=400 queries=400 alerts=400 refreshes=90"
    assert dagster.startswith("Dagster: 0 run(s), ")
    assert dagster.endswith(": would be deleted (--records)")
    assert ledger == "ledger: 0 attempts, 0 queries, 0 alerts, 0 refreshes: would be deleted (--records)"
    assert kept == f"dashboard_data: keeps days from {first_kept_day(long_ago, TODAY)} on"
    assert first == (
        "dashboard_data: dashboard_data_y2024m01, 2024-01-01 to before 2024-02-01, about 3 rows, 0.0 MiB: would be removed"
    )
    assert second.startswith("dashboard_data: dashboard_data_y2024m02, 2024-02-01 to before 2024-03-01, rows not counted yet, ")
    assert others == [f"{name}: keeps every month (no retention_months)" for name in TABLES if name != "dashboard_data"]
    assert end == "2 month(s); nothing was removed: give --detach or --drop"
    assert count(conn, "dashboard_data") == 9
    assert attached(conn) == list(OLD)


@pytest.mark.parametrize(("option", "left"), [("--detach", list(OLD)), ("--drop", [None, None])])
def test_retention_takes_old_months_off_and_leaves_them_as_tables_or_drops_them(
    pulso: Pulso, conn: psycopg.Connection, long_ago: TableSpec, option: str, left: list[str | None]
) -> None:
    told = pulso("retention", "dashboard_data", option)
    assert (told.code, told.out.splitlines()[-1]) == (0, "2 month(s)")
    assert conn.execute("SELECT DISTINCT fecha_foto, count(*) OVER () FROM dashboard_data").fetchall() == [(TODAY, 3)]
    assert [conn.execute("SELECT to_regclass(%s)::text", (name,)).fetchone() for name in OLD] == [(name,) for name in left]
    if option == "--detach":
        assert count(conn, OLD[0]) == 3
    assert pulso("retention", "dashboard_data").out.splitlines()[1:] == ["0 month(s)"]


def test_retention_waits_for_the_load_that_is_under_way(
    pulso: Pulso, conn: psycopg.Connection, long_ago: TableSpec, schema: str, server_url: str
) -> None:
    key = table_lock(schema, "dashboard_data")
    seen: list[list[str]] = []

    def load(loading: psycopg.Connection) -> None:
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid::bigint = %s & 4294967295"
        wait_until(lambda: loading.execute(waiting, (key,)).fetchone() == (1,))
        seen.append(attached(conn))
        loading.execute("SELECT pg_advisory_unlock_shared(%s)", (key,))

    with psycopg.connect(server_url, autocommit=True) as loading:
        loading.execute("SELECT pg_advisory_lock_shared(%s)", (key,))
        thread = threading.Thread(target=load, args=(loading,))
        thread.start()
        told = pulso("retention", "dashboard_data", "--drop")
        thread.join(20)
    assert (told.code, seen) == (0, [list(OLD)])
    assert attached(conn) == []


def test_a_reader_or_a_view_that_keeps_a_month_from_being_removed_is_one_line_and_what_was_told_is_done(
    pulso: Pulso, conn: psycopg.Connection, long_ago: TableSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(months, "DETACH_SECONDS", 1)
    with conn.transaction():
        conn.execute("SELECT FROM dashboard_data")
        busy = pulso("retention", "dashboard_data", "--detach")
    assert (busy.code, busy.err.count("\n")) == (2, 1)
    assert "a reader held the table longer than 1 s; dashboard_data_y2024m01 and later months were not removed" in busy.err
    assert attached(conn) == list(OLD)

    conn.execute("CREATE VIEW february AS SELECT FROM dashboard_data_y2024m02")
    used = pulso("retention", "dashboard_data", "--drop")
    assert (used.code, used.err.count("\n")) == (2, 1)
    assert "february depends on table" in used.err
    assert [line.split()[1] for line in used.out.splitlines() if line.endswith(": dropped")] == ["dashboard_data_y2024m01,"]
    assert attached(conn) == [OLD[1]]


def test_a_table_in_months_is_refreshed_reconciled_and_looked_at_as_any_other(
    pulso: Pulso, conn: psycopg.Connection, by_month: TableSpec, emulator: BigQueryEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGQUERY_DATASET", "CLI_MONTHS")
    names = Settings(database_url=SecretStr("postgresql://nowhere"), bigquery_dataset="CLI_MONTHS").sources()
    data = SampleData(names, TODAY, days=35, dashboard_rows_per_day=4)
    with emulator.client() as client:
        data.seed_into(client)
    border = TODAY.replace(day=1)
    days = ("--from", str(border - timedelta(days=1)), "--to", str(border))
    for counts in (["8", "8", "0", "0", "0"], ["8", "0", "0", "8", "0"]):
        loaded = pulso("refresh", "dashboard_data", *days)
        assert loaded.code == 0, loaded.out
        assert [words[2:7] for words in loaded.words if words[:1] == ["dashboard_data"]] == [counts]
    assert conn.execute("SELECT count(*) FROM pg_inherits WHERE inhparent = 'dashboard_data'::regclass").fetchone() == (2,)
    agreed = pulso("reconcile", "dashboard_data", *days)
    assert (agreed.code, agreed.words[1][:2]) == (0, ["dashboard_data", "yes"])
    kept = first_kept_day(by_month, TODAY)
    early = ("--from", str(kept - timedelta(days=1)), "--to", str(TODAY))
    for told in (pulso("reconcile", "dashboard_data", *early), pulso("refresh", "dashboard_data", *early)):
        text = " ".join((told.out + told.err).split())
        assert told.code in (1, 2)
        assert "retention_months=2" in text
        assert str(kept) in text
    assert "success" in pulso("status").out
    assert "FAIL source of dashboard_data" not in pulso("doctor").out
    parts = {finding["part"]: finding["ok"] for finding in json.loads(pulso("doctor", "--json").out)}
    assert parts["source of dashboard_data"] is True


def test_the_version_and_the_short_help_need_nothing(pulso: Pulso, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    assert pulso("--version").out == f"pulso-etl {version('pulso-etl')}\n"
    for arguments in (("-h",), ("status", "-h")):
        assert "Usage: " in pulso(*arguments).out
    assert "--install-completion" in pulso("-h").out


def test_statements_are_shown_with_the_settings_that_embedded_servers_left_though_none_runs(
    pulso: Pulso, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DATABASE_URL")
    (tmp_path / ".pulso").mkdir()
    left = f"DATABASE_URL='postgresql:///none'\nPULSO_EMBEDDED_HOME='{tmp_path / '.pulso'}'\n"
    (tmp_path / ".pulso" / "env").write_text(left, encoding="utf-8")
    monkeypatch.setenv("PULSO_EMBEDDED_HOME", "")
    monkeypatch.delenv("PULSO_EMBEDDED_HOME")
    shown = pulso("sql", "operation_data")
    assert (shown.code, shown.err) == (0, "")
    assert "-- PostgreSQL" in shown.out


def test_the_embedded_default_without_its_packages_says_what_to_install(pulso: Pulso, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("pulso_etl.local.")]:
        monkeypatch.delitem(sys.modules, name)
        # The package's attribute comes back, too.
        monkeypatch.delattr(local, name.rpartition(".")[2], raising=False)
    monkeypatch.setitem(sys.modules, "psutil", None)
    for command in ("run", "dev", "servers"):
        ended = pulso(command)
        assert ended.code == 2
        assert "needs the package psutil, which is not installed: pip install 'pulso-etl[local]'" in ended.err


def test_the_schema_is_printed_and_made_only_on_request(pulso: Pulso, conn: psycopg.Connection) -> None:
    printed = pulso("schema", "operation_data")
    assert printed.code == 0
    assert printed.out.startswith("BEGIN;\n")
    assert '"operation_data" (' in printed.out
    assert re.search(r'GRANT SELECT, INSERT, UPDATE, DELETE ON "\w+"."operation_data" TO', printed.out)
    assert "nothing was changed" in printed.out
    exists = "SELECT to_regclass('operation_data') IS NOT NULL, to_regclass('etl_watermarks') IS NOT NULL"
    assert conn.execute(exists).fetchone() == (False, False)
    assert pulso("schema", "operation_data", "--apply").code == 0
    assert conn.execute(exists).fetchone() == (True, True)
    assert "CREATE TABLE" not in pulso("schema", "operation_data").out
