"""The BigQuery emulator with the sample data, read back through the client."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlglot
from google.cloud import bigquery
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError

from pulso_etl.local.double import parse_once
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import PARTITIONED, SCHEMAS, SampleData, base_of
from pulso_etl_tests.lima import LIMA

pytestmark = pytest.mark.usefixtures("processes")

NAMES = {name: f"mibot-222814.BI_USA.{name}" for name in SCHEMAS}
DATA = SampleData(NAMES, date(2026, 7, 15))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bigquery.Client]:
    with BigQueryEmulator(tmp_path_factory.mktemp("emulator") / "log") as emulator:
        client = emulator.client()
        DATA.seed_into(client)
        yield client


def test_row_counts_read_back_even_when_seeded_twice(client: bigquery.Client) -> None:
    DATA.seed_into(client)
    for name, table in DATA.tables().items():
        (row,) = client.query(f"SELECT COUNT(*) AS n FROM `{NAMES[name]}`").result()
        assert row.n == table.num_rows, name


def test_tables_are_partitioned_by_day(client: bigquery.Client) -> None:
    for name, column in PARTITIONED.items():
        view, base = client.get_table(NAMES[name]), base_of(NAMES, name)
        assert (view.table_type, view.view_query) == ("VIEW", f"SELECT * FROM `{base}`")
        partitioning = client.get_table(base).time_partitioning
        assert (partitioning.type_, partitioning.field) == ("DAY", column)


def test_lima_hours_and_sums_are_right(client: bigquery.Client) -> None:
    found = client.query(
        "SELECT EXTRACT(HOUR FROM DATETIME(timestamp_gestion, 'America/Lima')) AS hora, COUNT(*) AS n,"
        f" SUM(peso) AS peso FROM `{NAMES['gestiones_unificadas']}`"
        " WHERE fecha_gestion BETWEEN @start AND @end GROUP BY hora",
        job_config=bigquery.QueryJobConfig(
            query_parameters=[
                bigquery.ScalarQueryParameter("start", "DATE", date(2026, 7, 10)),
                bigquery.ScalarQueryParameter("end", "DATE", date(2026, 7, 12)),
            ]
        ),
    ).result()
    rows = {row.hora: (row.n, row.peso) for row in found}
    counts: Counter[int] = Counter()
    weights: Counter[int] = Counter()
    for row in DATA.tables()["gestiones_unificadas"].to_pylist():
        if date(2026, 7, 10) <= row["fecha_gestion"] <= date(2026, 7, 12):
            hour = row["timestamp_gestion"].astimezone(LIMA).hour
            counts[hour] += 1
            weights[hour] += row["peso"]
    assert rows == {hour: (n, weights[hour]) for hour, n in counts.items()}


def test_a_statement_is_translated_by_the_types_that_its_table_has_now(client: bigquery.Client) -> None:
    table = f"{base_of(NAMES, 'gestiones_unificadas')}_amounts"
    for kind, average in (("NUMERIC", Decimal("1.5")), ("FLOAT64", 1.5)):
        client.query(f"CREATE OR REPLACE TABLE `{table}` AS SELECT CAST(1.5 AS {kind}) AS amount").result()
        for _ in range(2):
            [row] = client.query(f"SELECT AVG(amount) AS average FROM `{table}`").result()
            assert (type(row.average), row.average) == (type(average), average)


def test_geography_is_there_when_it_is_asked_for(client: bigquery.Client) -> None:
    asked = "SELECT ST_ASTEXT(ST_GEOGPOINT(-77, -12)) AS place, ST_X(ST_GEOGFROMTEXT('POINT(-77 -12)')) AS x"
    (row,) = client.query(asked).result()
    assert (row.place, row.x) == ("POINT (-77 -12)", -77)


def test_failed_start_shows_the_log_and_leaves_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pulso_etl.local.emulator.CHILD", "raise SystemExit('no such thing')")
    emulator = BigQueryEmulator(tmp_path / "log")
    with pytest.raises(RuntimeError, match="no such thing"):
        emulator.start()
    assert emulator.child is None


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_child_ends_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from pulso_etl.local.emulator import BigQueryEmulator;"
        "e = BigQueryEmulator(pathlib.Path(sys.argv[1])).start(); print(e.child.pid, flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, timeout=60)
    assert ended.returncode == -9
    pid = int(ended.stdout)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and _running(pid):
        time.sleep(0.1)
    assert not _running(pid)


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_text_is_parsed_once_and_each_tree_is_the_asker_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    text, parse = "SELECT `a`, 1 AS b FROM t", Dialect.parse
    parsed: list[str] = []

    def counted(self: Dialect, sql: str, **options: Any) -> list[exp.Expr | None]:
        parsed.extend([sql] if sql == text else [])  # sqlglot also parses texts of its own
        return parse(self, sql, **options)

    monkeypatch.setattr(Dialect, "parse", counted)
    parse_once()
    first = sqlglot.parse_one(text, read="bigquery")
    first.find(exp.Table).replace(exp.to_table("u"))  # type: ignore[union-attr]
    assert sqlglot.parse_one(text, read="bigquery").sql("duckdb") == 'SELECT "a", 1 AS b FROM t'
    assert len(parsed) == 1
    # Another dialect reads the same text in another way.
    assert sqlglot.parse_one(text, read="mysql").sql("duckdb") == 'SELECT "a", 1 AS b FROM t'
    assert len(parsed) == 2
    for _ in range(2):
        with pytest.raises(SqlglotError):
            sqlglot.parse_one("SELECT FROM WHERE", read="bigquery")
