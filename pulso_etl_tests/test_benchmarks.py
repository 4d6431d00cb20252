"""The benchmark's ways of loading give the right table; nothing is timed here."""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import distributions
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from benchmarks import cost, loads, page, wire
from benchmarks.indexes import SCHEMA, Query, measure_indexes
from benchmarks.job import Job
from benchmarks.loads import CHANGED, FIRST, UNCHANGED, LoadBench, Measurement, checksum
from benchmarks.rows import CHANGED_DAYS, DAYS, SPEC, WINDOW, Edition, reader, write_inputs
from benchmarks.ways import WAYS
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.tables import TABLES

pytestmark = pytest.mark.usefixtures("processes")

ROWS = 2_000
needs_files = pytest.mark.skipif("DATABASE_URL" in os.environ, reason="the server must see this machine's files")


def needs(package: str) -> pytest.MarkDecorator:
    """For a way whose package `make bench` installs in its own environment: its Python runs this test as well."""
    missing = not list(distributions(name=package))
    return pytest.mark.skipif(missing, reason=f"{package} is in the environment of `make bench`")


def let_the_server_in(folder: Path) -> None:
    """Lets every user read the folder, and pass through the folders above it that are ours."""
    folder.chmod(0o755)
    for above in folder.parents:
        if above == Path(tempfile.gettempdir()) or above.stat().st_uid != os.geteuid():
            break
        above.chmod(above.stat().st_mode | 0o011)


@pytest.fixture(autouse=True)
def beside_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests check no seconds. So their loads do not wait until the processor is free."""
    monkeypatch.setattr(loads, "IDLE_PERCENT", 100)


@pytest.mark.parametrize(
    "way",
    [
        "pulso",
        "psycopg",
        "sqlalchemy",
        pytest.param("copy_direct", marks=needs_files),
        pytest.param("copy_upsert", marks=needs_files),
        pytest.param("sling", marks=needs("sling-linux-amd64")),
        pytest.param("ingestr", marks=needs("ingestr")),
        pytest.param("duckdb", marks=needs("duckdb-extension-postgres-scanner")),
        pytest.param("adbc", marks=needs("adbc-driver-postgresql")),
    ],
)
def test_a_way_leaves_the_rows_that_it_was_given(
    way: str, conn: psycopg.Connection, server_url: str, schema: str, tmp_path: Path
) -> None:
    let_the_server_in(tmp_path)
    base, changed = (write_inputs(tmp_path, ROWS, edition) for edition in (Edition.BASE, Edition.SPREAD))
    statements = Statements(SPEC, schema)
    for statement in statements.create_table():
        conn.execute(statement)
    sums = []
    for inputs in (base, base, changed) if WAYS[way].upserts else (base,):
        WAYS[way].load(Job(way, server_url, schema, str(inputs.arrow), str(inputs.binary), str(tmp_path)))
        sums.append(checksum(conn, statements.target))
        with inputs.binary.open("rb") as file, conn.transaction(force_rollback=True), conn.cursor() as cursor:
            cursor.execute(sql.SQL("TRUNCATE {}").format(statements.target))
            with cursor.copy(statements.copy(statements.target)) as copy:
                copy.write(file.read())
            assert checksum(conn, statements.target) == sums[-1]
    assert {rows for rows, _ in sums} == {ROWS}
    assert len(set(sums)) == (2 if WAYS[way].upserts else 1)


def test_one_row_in_a_hundred_changes_over_all_days_and_before_it_a_tenth_of_two_days(
    conn: psycopg.Connection, schema: str, tmp_path: Path
) -> None:
    for edition in Edition:
        name = sql.Identifier(edition.name)
        conn.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(name, _target(conn, schema)))
        with conn.cursor() as cursor, cursor.copy(Statements(SPEC, schema).copy(name)) as copy:
            copy.write(write_inputs(tmp_path, ROWS, edition).binary.read_bytes())
    columns = sql.SQL(", ").join(sql.Identifier(name) for name in SPEC.column_names)
    query = sql.SQL("SELECT array_agg(fecha_foto) FROM (SELECT {c} FROM {} EXCEPT SELECT {c} FROM {}) d")
    changed = [
        conn.execute(query.format(sql.Identifier(one.name), sql.Identifier(other.name), c=columns)).fetchall()[0][0]
        for one, other in pairwise(Edition)
    ]
    assert {(day - WINDOW.start).days for day in changed[0]} == set(CHANGED_DAYS)
    assert len(changed[0]) == ROWS // DAYS // 10 * len(CHANGED_DAYS)
    assert len(changed[1]) == len(set(changed[1])) == ROWS // 100


def test_a_load_that_takes_too_long_or_fails_is_told_and_its_re_loads_are_left_out(server_url: str, tmp_path: Path) -> None:
    told: list[str] = []
    bench = LoadBench(server_url, tmp_path, ROWS, timeout=0.01, say=told.append)
    assert bench.measure(["psycopg"], 1) == [Measurement("psycopg", FIRST, ROWS, error="took longer than 0 s")]
    assert told[-1] == "2,000 rows, 1 of 1, first load, psycopg: took longer than 0 s"


def test_rows_arrive_whole_over_the_wire_and_smaller_where_they_are_compressed(emulator: BigQueryEmulator, tmp_path: Path) -> None:
    rows = 2 * SPEC.source.batch_rows
    table = reader(write_inputs(tmp_path, rows).arrow).read_all()
    sent, total = [0], sum(table[wire.CHECKED].to_pylist())
    with wire.RowsServer(emulator.client(), table) as server:
        for compression in ("zstd", "lz4", "none"):
            told = wire.read(emulator.rest_url, server.address, compression, rows)
            assert (told["rows"], told["sum"]) == (rows, total)
            sent.append(server.sent)
    zstd, lz4, none = (after - before for before, after in pairwise(sent))
    assert 0 < zstd < lz4 < none
    measured = [wire.Download(name, rows, size, 1.0, 0.5) for name, size in (("none", 2_000_000), ("zstd", 1_000_000))]
    assert "| zstd | 1.0 MB, 50 a row | 2.00 | 1.00 s | 0.50 s |" in page.wire(measured)


def test_a_query_is_told_with_the_primary_key_alone_and_with_one_more_index(server_url: str, conn: psycopg.Connection) -> None:
    query = Query("promises", "operation_data", "SELECT count(*) FROM operation_data WHERE total_pdp = 7", ("(total_pdp)",))
    alone, extra = measure_indexes(server_url, say=lambda _: None, queries=[query], limit=2_000)
    assert (alone.index, alone.used, alone.rows) == ("", (), 2_000)
    assert (extra.index, extra.used) == ("(total_pdp)", ("extra",))
    assert extra.rows < alone.rows
    assert extra.blocks < alone.blocks
    assert conn.execute("SELECT to_regnamespace(%s)", (SCHEMA,)).fetchone() == (None,)

    loaded = [Measurement("pulso", FIRST, 1_000, 2.0), Measurement("pulso_indexed", FIRST, 1_000, 3.0)]
    text = page.indexes([alone, extra], loaded)
    assert f"-- promises\n{query.text};\n" in text
    assert f"| promises | `(total_pdp)`, {extra.index_mb:.1f} MB | the extra one |" in text
    assert "| 2,000 |" in text
    assert "| primary key alone | 2.0 s | failed | failed | failed |" in text


def test_medians_and_ratios_stand_in_the_page(tmp_path: Path) -> None:
    seconds = {
        ("pulso", FIRST): (9, 5, 1),
        ("copy_direct", FIRST): (3, 4, 5),
        ("pulso", UNCHANGED): (2, 2, 2),
        ("copy_upsert", UNCHANGED): (1, 1, 9),
        ("pulso", CHANGED): (1, 1, 1),
        ("dlt", CHANGED): (20, 9, 7),
    }
    measured = [Measurement(way, scenario, 1_000, s, 250.0) for (way, scenario), values in seconds.items() for s in values]
    text = page.loads(measured)
    assert "| Pulso ETL | 5.0 s, 200/s | 2.0 s, 500/s | - | 1.0 s, 1,000/s | 250 MB |" in text
    assert "| first load: times the physical limit's seconds, at most 1.25 | 1.25 | yes |" in text
    assert "| unchanged re-load: times the seconds of the upsert by hand, less than 1 | 2.00 | no |" in text
    assert "| re-load, 1% changed: times as fast as dlt over CSV, at least 8 | 9.00 | yes |" in text

    file = tmp_path / "page.md"
    file.write_text("Before.\n<!-- measured: loads -->old<!-- end: loads -->\nAfter.\n", encoding="utf-8")
    page.write(file, "loads", text)
    page.write(file, "loads", text)
    assert file.read_text(encoding="utf-8") == f"Before.\n<!-- measured: loads -->\n\n{text}\n\n<!-- end: loads -->\nAfter.\n"
    with pytest.raises(ValueError, match="0 blocks"):
        page.write(file, "memory", text)


def _target(conn: psycopg.Connection, schema: str) -> sql.Identifier:
    statements = Statements(SPEC, schema)
    for statement in statements.create_table():
        conn.execute(statement)
    return statements.target


def test_a_day_without_change_bills_nothing_between_two_re_checks(emulator: BigQueryEmulator) -> None:
    outcome = cost.simulate(emulator, 1, 0, {"productivity_data": TABLES["productivity_data"]}, rows_per_day=4)
    every, before, this = outcome.bills.values()
    # Two refreshes a day read a window of two base tables, and so does the re-check, after the source's own jobs.
    assert [outcome.billed_on_quiet_days(bill) for bill in outcome.bills.values()] == [40 * cost.MIB, 40 * cost.MIB, 0]
    assert [bill.bytes["re-checks"] for bill in (every, before, this)] == [20 * cost.MIB] * 3
    assert [bill.total for bill in (every, before, this)] == [60 * cost.MIB, 60 * cost.MIB, 20 * cost.MIB]
    assert [met for _, _, met in cost.targets(outcome)] == ["yes", "no", "yes"]
    assert "| this version | 0 MiB | 20 MiB | 0 MiB | 20 MiB (33%) |" in cost.as_markdown(outcome)
