"""GoogleSQL judges every statement that BigQuery is asked, and refuses wrong ones with their place."""

from __future__ import annotations

import ast
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from typer.testing import CliRunner

import pulso_etl
from pulso_etl import doctor
from pulso_etl.bigquery import googlesql
from pulso_etl.bigquery.analysis import StatementRefused, analyse
from pulso_etl.bigquery.capture import Interval
from pulso_etl.bigquery.googlesql import EngineFailed, EngineMissing
from pulso_etl.checks.reconciliation import Measure, measures, source_query
from pulso_etl.checks.statements import Statement, faults, statements, unfit
from pulso_etl.cli.main import app
from pulso_etl.sync.spec import Column, ColumnType, TableSpec
from pulso_etl.tables import TABLES
from pulso_etl.tables.sources import SOURCES
from pulso_etl_tests.bigquery.conftest import DATA, WINDOW, MakeSource
from pulso_etl_tests.change_history import CALLS
from pulso_etl_tests.declarations import altered, declare
from pulso_etl_tests.faulty_proxy import FaultyProxy, Request

CATALOGUE = {f"{{{name}}}": columns for name, columns in SOURCES.items()}
DAYS = {"start": "DATE", "end": "DATE"}
PARTITIONS = {
    **dict.fromkeys(("table_catalog", "table_schema", "table_name", "partition_id", "storage_tier"), "STRING"),
    **dict.fromkeys(("total_rows", "total_logical_bytes", "total_billable_bytes"), "INT64"),
    "last_modified_time": "TIMESTAMP",
}
"""INFORMATION_SCHEMA.PARTITIONS, by BigQuery's documentation."""

TYPES = {
    ColumnType.TEXT: "STRING",
    ColumnType.DATE: "DATE",
    ColumnType.INTEGER: "INT64",
    ColumnType.NUMERIC: "NUMERIC",
    ColumnType.DOUBLE: "FLOAT64",
    ColumnType.TIMESTAMP: "TIMESTAMP",
    ColumnType.BOOLEAN: "BOOL",
    ColumnType.DATETIME: "DATETIME",
    ColumnType.TIME: "TIME",
    ColumnType.BYTES: "BYTES",
    ColumnType.JSON: "JSON",
}
KINDS = (
    Column(name="day", type=ColumnType.DATE),
    Column(name="agent", type=ColumnType.TEXT),
    *(Column(name=kind.name.lower(), type=kind) for kind in TYPES),
    *(Column(name=f"{kind.name.lower()}s", type=kind, repeated=True) for kind in TYPES if kind is not ColumnType.JSON),
)
ALL = {one.name: f"ARRAY<{TYPES[one.type]}>" if one.repeated else TYPES[one.type] for one in KINDS}


def kinds(**fields: Any) -> TableSpec:
    """A table with a column of every type."""
    usual: dict[str, Any] = {
        "name": "kinds",
        "description": "For tests.",
        "primary_key": ("day", "agent"),
        "partition_column": "day",
        "columns": KINDS,
        "query": f"SELECT {', '.join(ALL)} FROM `{{all}}` WHERE day BETWEEN @start AND @end",
    }
    return declare(**usual | fields)


SHAPES = {
    "upsert": {},
    "replace_partition": {"strategy": "replace_partition"},
    "append": {"strategy": "append"},
    "scd2": {"strategy": "scd2"},
    "newest version of a day": {"version_column": "integer"},
    "newest version of all days": {"primary_key": ("agent",), "version_column": "timestamp"},
    "snapshots": {"primary_key": ("agent",), "snapshot_of": ("agent",)},
    "changes": {"change_capture": "changes"},
    "appends": {"change_capture": "appends"},
    "appends to a log": {"change_capture": "appends", "strategy": "append"},
}


def sums(spec: TableSpec) -> list[str]:
    """The types of a reconciliation's columns. The first column is the day, and the others are numbers."""

    def kind(measure: Measure) -> str:
        if measure.function == "weighted sum" or measure.type is ColumnType.DOUBLE:
            return "FLOAT64"
        return "NUMERIC" if measure.function == "sum" else "INT64"

    return ["DATE", *map(kind, measures(spec))]


@pytest.mark.parametrize("spec", TABLES.values(), ids=TABLES)
def test_the_statements_of_the_tables_are_accepted_and_fit_the_declarations(spec: TableSpec) -> None:
    assert faults(spec, SOURCES) == []
    assert list(analyse(*statements(spec)["reconciliation"], CATALOGUE).values()) == sums(spec)


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_the_statements_of_every_strategy_are_accepted_with_a_column_of_every_type(fields: dict[str, Any]) -> None:
    spec = kinds(**fields)
    assert faults(spec, {"all": ALL}) == []
    assert list(analyse(*statements(spec)["reconciliation"], {"{all}": ALL}).values()) == sums(spec)
    assert ("changes" in statements(spec)) == ("change_capture" in fields)


@pytest.mark.parametrize(
    ("wrong", "right", "fault"),
    [
        ("timestamp_gestio,", "timestamp_gestion,", r"operation_data.sql:3:30: Unrecognized name: timestamp_gestio; Did you mean"),
        ("BETWEEN @begin", "BETWEEN @start", r"operation_data.sql:\d+:29: Query parameter 'begin' not found"),
        ("GROUP BY fecha_foto, hora, canal", "GROUP BY fecha_foto, hora, canal, archivo", r"operation_data.sql:5:3: .*archivo"),
        ("COUNT(*) AS total_gestione,", "COUNT(*) AS total_gestiones,", r"does not fit the declaration: total_gestiones: missing"),
        (
            "CAST(COUNT(*) AS STRING) AS total_gestiones,",
            "COUNT(*) AS total_gestiones,",
            "declared bigint, the source gives string",
        ),
        ("SUM(archivo) AS total_gestiones,", "COUNT(*) AS total_gestiones,", r":6:3: No matching signature for aggregate .*SUM"),
        ("archivo, 1 AS HORA,", "archivo,", "operation_data.sql:\\d+:\\d+: Name hora in GROUP BY clause is ambiguous"),
        ("FRON", "FROM `{gestiones_unificadas}`", r"operation_data.sql:\d+:\d+: Syntax error"),
        ("`{gestiones}`", "`{gestiones_unificadas}`", r"operation_data.sql reads `\{gestiones\}`, whose columns are not declared"),
    ],
)
def test_a_wrong_query_is_told_with_the_place_in_its_file(wrong: str, right: str, fault: str) -> None:
    query = TABLES["operation_data"].source.query
    assert right in query
    (told,) = faults(TABLES["operation_data"].with_query(query.replace(right, wrong, 1)), SOURCES)
    assert re.search(fault, told), told


@pytest.mark.parametrize(
    ("statement", "line", "column"),
    [
        ("SELECT correo FROM `{agente}`", 1, 20),
        ("SELECT 'ñandú' AS a,\n  'ñ' || b", 2, 10),
        ("SELECT 1 AS a; SELECT 2 AS a", 1, 16),
        ("DELETE FROM `{agentes}` WHERE TRUE", 1, 1),
        ("SELECT correo FROM CHANGES(TABLE `{agentes}`, @start, @end)", 1, 20),
        ("SELECT correo, _CHANGE_TYPE FROM `{agentes}`", 1, 16),
        ("", 1, 1),
        ("SELECT 1 AS a, 2 AS A", None, None),
    ],
)
def test_a_wrong_statement_is_refused_at_its_line_and_column(statement: str, line: int | None, column: int | None) -> None:
    with pytest.raises(StatementRefused) as refused:
        analyse(statement, DAYS, CATALOGUE)
    assert (refused.value.line, refused.value.column) == (line, column), refused.value


def test_the_columns_of_a_result_come_in_order_by_bigquery_s_names_of_types() -> None:
    sql = "SELECT JSON '1' AS j, [1.5] AS f, TRUE AS b, PARSE_BIGNUMERIC('1') AS n, CURRENT_DATETIME('America/Lima') AS d"
    assert list(analyse(sql, {}, {}).items()) == [
        *(("j", "JSON"), ("f", "ARRAY<FLOAT64>"), ("b", "BOOL"), ("n", "BIGNUMERIC"), ("d", "DATETIME"))
    ]
    with pytest.raises(StatementRefused, match="TEXT is no type of a column; known are BIGNUMERIC, BOOL"):
        analyse(sql, {}, {"t": {"a": "TEXT"}})


def test_a_statement_that_breaks_the_engine_is_one_error_and_the_next_one_is_analysed() -> None:
    with pytest.raises(EngineFailed, match="nested very deeply"):
        analyse(f"SELECT {'+'.join('1' * 4_000)} AS a", {}, {})
    assert analyse("SELECT 1 AS a", {}, {}) == {"a": "INT64"}


@pytest.mark.parametrize(("before", "after"), [("(", ")"), ("COALESCE(NULL, ", ")"), ("(SELECT ", ")"), ("- ", "")])
def test_a_statement_may_be_nested_a_hundred_times(before: str, after: str) -> None:
    assert analyse(f"SELECT {before * 100}1{after * 100} AS a", {}, {}) == {"a": "INT64"}


# What is sent


def calls_of_the_client() -> set[str]:
    """The functions of the package that send a statement to BigQuery. `local` is left out, because it writes sample data."""
    root = Path(pulso_etl.__file__).parent
    texts = {path.relative_to(root): path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    return {
        f"{path.with_suffix('')}.{function.name}".replace("/__init__", "").replace("/", ".")
        for path, text in texts.items()
        if "google.cloud" in text and path.parts[0] != "local"
        for function in ast.walk(ast.parse(text))
        if isinstance(function, ast.FunctionDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ("query", "query_and_wait")
    }


def test_no_statement_is_sent_but_by_the_functions_that_are_recorded_here() -> None:
    """Whoever adds such a function adds it to the recording below. `source.query` sends the statement of its caller, and
    `source._sent` that of a table's host."""
    assert calls_of_the_client() == {
        *("bigquery.source._finished", "bigquery.source._sent", "bigquery.look.dry_run", "bigquery.look._partitions"),
        *("bigquery.source.query", "doctor._bigquery", "doctor._source"),
        # They send the points of `pulso-etl verify-source`, which `test_verify.py` runs.
        *("bigquery.verify.run", "bigquery.verify._twice"),
    }


def sent(request: Request) -> Statement | None:
    """The statement in a request of the client."""
    if not request.line.startswith("POST ") or not request.body.startswith(b"{"):
        return None
    body = request.json
    query = body if isinstance(body.get("query"), str) else body.get("configuration", {}).get("query")
    if query is None:
        return None
    names = {"INTEGER": "INT64"}
    parameters = query.get("queryParameters", [])
    kinds = {one["name"]: one["parameterType"]["type"] for one in parameters}
    return Statement(query["query"], {name: names.get(kind, kind) for name, kind in kinds.items()})


@pytest.fixture
def recorded(bigquery_proxy: FaultyProxy, make_source: MakeSource) -> list[Statement]:
    """What the real client sends for the five tables, the look at changes, a reconciliation and the doctor."""
    source = make_source(emulator_host=bigquery_proxy.url, sources=DATA.names | {"calls": DATA.names["agentes"]})
    for spec in TABLES.values():
        for asked in (spec, spec.with_query(source_query(spec, measures(spec)))):
            with source.stream(asked, WINDOW, "run-1").open():
                pass
        look = source.look(spec, WINDOW, 30)
        source.partitions(spec, WINDOW, list(look.tables.values()), 30)
        doctor._source(source, spec)
    doctor._bigquery(source)
    for function in ("changes", "appends"):
        stream = source.stream(altered(CALLS, change_capture=function), WINDOW, "run-1")
        # The emulator does not know the functions, so it refuses the statement.
        stream._changes = Interval(datetime(2026, 7, 15, 1, tzinfo=UTC), datetime(2026, 7, 15, 2, tzinfo=UTC))
        with pytest.raises(Exception, match="rejects the query"), stream.open():
            pass
    return [one for request in bigquery_proxy.requests if (one := sent(request)) is not None]


def test_every_statement_that_the_client_sends_is_accepted(recorded: list[Statement]) -> None:
    calls = {"fecha": "DATE", "agente": "STRING", "monto": "INT64"}
    dataset = DATA.names["agentes"].rpartition(".")[0]
    tables = {full: SOURCES[name] for name, full in DATA.names.items()}
    tables[f"{dataset}.INFORMATION_SCHEMA.PARTITIONS"] = PARTITIONS
    accepted = {one.sql: analyse(*one, tables) for one in recorded if "TABLE `" not in one.sql}
    captured = {one.sql: analyse(*one, {DATA.names["agentes"]: calls}) for one in recorded if "TABLE `" in one.sql}
    assert len(accepted) == 2 * len(TABLES) + 2
    assert [one for one in captured if "CHANGES(" in one]
    assert [one for one in captured if "APPENDS(" in one]
    for spec in TABLES.values():
        (columns,) = [columns for columns in accepted.values() if list(columns) == [one.name for one in spec.query_columns]]
        assert unfit(spec, columns) == []
    states = {"partition_id": "STRING", "modified": "INT64", "total_rows": "INT64", "total_logical_bytes": "INT64"}
    assert states in accepted.values()
    assert set(map(tuple, map(dict.items, captured.values()))) == {
        (("day", "DATE"), ("agent", "STRING"), ("amount", "INT64"), ("pulso_deleted", "BOOL"))
    }


# The command


def test_the_command_checks_a_new_table_without_any_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    good = CliRunner().invoke(app, ["check"])
    assert (good.exit_code, good.output.count("ok   ")) == (0, len(TABLES))
    query = TABLES["operation_data"].source.query
    more = query.replace("SELECT", "SELECT 1 AS otra,", 1)
    monkeypatch.setitem(TABLES, "more_data", altered(TABLES["operation_data"], name="more_data", query=more))
    wide = CliRunner().invoke(app, ["check", "more_data"])
    assert (wide.exit_code, "; not loaded, because not declared: otra;" in wide.output) == (0, True)
    monkeypatch.setitem(TABLES, "channel_data", altered(TABLES["operation_data"], name="channel_data", query=f"{query},\n nada"))
    bad = CliRunner().invoke(app, ["check", "channel_data"])
    line = query.count("\n") + 2
    assert (bad.exit_code, bad.output) == (1, f"FAIL channel_data.sql:{line}:2: Unrecognized name: nada\n")


def test_without_the_optional_packages_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    googlesql.engine.cache_clear()
    monkeypatch.setitem(sys.modules, "wasmtime", None)
    monkeypatch.setitem(
        TABLES, "other_data", altered(TABLES["operation_data"], name="other_data", query="SELECT 1 AS a FROM `{agentes}`")
    )
    result = CliRunner().invoke(app, ["check", "other_data"])
    assert isinstance(result.exception, EngineMissing)
    assert "run: pip install 'pulso-etl[googlesql]'" in str(result.exception)


def test_the_doctor_tells_of_a_wrong_query_where_the_engine_starts_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert googlesql.is_kept()
    assert doctor._sql(TABLES.values()) == "GoogleSQL accepts 5 queries, and their columns fit"
    wrong = altered(TABLES["operation_data"], query="SELECT nada FROM `{agentes}`")
    with pytest.raises(RuntimeError, match=r"^operation_data.sql:1:8: Unrecognized name: nada$"):
        doctor._sql([wrong])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert doctor._sql([wrong]).startswith("not analysed here; `pulso-etl check`")


# The machine code that is kept


def test_machine_code_is_read_only_from_a_file_that_nobody_else_can_write(tmp_path: Path) -> None:
    file, link = tmp_path / "code", tmp_path / "link"
    file.write_bytes(b"code")
    link.symlink_to(file)
    for mode, expected in ((0o600, b"code"), (0o644, b"code"), (0o620, None), (0o602, None)):
        file.chmod(mode)
        assert googlesql._own(file) == expected, oct(mode)
    file.chmod(0o600)
    assert googlesql._own(link) is None
    assert googlesql._own(tmp_path / "none") is None


def test_a_damaged_file_is_not_loaded_and_a_whole_one_takes_its_place(tmp_path: Path) -> None:
    new, old = tmp_path / "googlesql-2.bin", tmp_path / "googlesql-1.bin"
    for file in (new, old):
        file.write_bytes(b"half of a module")
    engine = wasmtime.Engine()
    assert googlesql._loaded(engine, new) is None
    googlesql._keep(new, wasmtime.Module(engine, "(module)").serialize())
    assert googlesql._loaded(engine, new) is not None
    assert (list(tmp_path.iterdir()), new.stat().st_mode & 0o077) == ([new], 0)
