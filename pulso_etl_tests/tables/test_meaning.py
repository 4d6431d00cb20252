"""What the five statements mean: of hostile sources, GoogleSQL's evaluator gives the rows that the pipeline lands in PostgreSQL."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import product
from random import Random
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from google.cloud import bigquery
from psycopg import sql
from psycopg.rows import dict_row

from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.checks.reconciliation import differences, measures, source_query
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SCHEMAS, load_table
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.loading.load import load
from pulso_etl.sync.loading.request import LoadRequest, Past, Source
from pulso_etl.sync.spec import TableSpec, fill
from pulso_etl.sync.streams import as_stream
from pulso_etl.sync.target import Target
from pulso_etl.tables import TABLES
from pulso_etl.tables.sources import SOURCES
from pulso_etl_tests.bigquery.evaluation import Row, evaluate

NAMES = {name: f"mibot-222814.MEANING_TESTS.{name}" for name in SOURCES}
LAST = date(2026, 8, 2)
DAYS = [date(2026, 7, 30) + timedelta(days=n) for n in range(4)]
"""The days of the sources. The first is before the window, and the last but one has no rows."""
WINDOW = DayRange(DAYS[1], LAST)
FILES = ("a.txt", "A.txt", "ñ.txt", "")
MAILS = (None, "SISTEMA", "sistema", "", "ana@x.pe", "ANA@x.pe", "ana@x.pe ", "ñandú@x.pe")
MIDNIGHT = datetime(2026, 8, 1, 5, tzinfo=UTC)
"""Midnight in Lima, at the edge of two months."""
EDGES = [MIDNIGHT + timedelta(microseconds=n) for n in (-1, 0, 1)] + [MIDNIGHT + timedelta(hours=n) for n in (-5, 4, 23, 24)]
GREAT = Decimal("9999999999999999999999999999.999999999")
"""Ten of them are beyond NUMERIC."""
AMOUNTS = tuple(map(Decimal, ("0", "0.01", "0.005", "0.015", "0.025", "2.675", "1.000000001", "0.000000001")))
COUNTS = (None, 0, 1, 2**53 + 1, 2**63 - 1)
RATES = (None, 0.0, 0.1, 100 / 3, 100.0, 5e-324)


def attempts(random: Random) -> Iterator[Row]:
    for n, (mail, contact, promise) in enumerate(product(MAILS, (None, True, False), (None, True, False))):
        yield {
            "fecha_gestion": random.choice(DAYS[:2] + DAYS[3:]),
            "timestamp_gestion": random.choice(EDGES) if n % 2 else MIDNIGHT + timedelta(seconds=random.randrange(-90_000, 90_000)),
            "canal_origen": random.choice(("BOT", "HUMANO")),
            "archivo": random.choice(FILES),
            "correo_agente": mail,
            "es_contacto_efectivo": contact,
            "es_compromiso": promise,
            "peso": random.choice((None, 0.1, 0.25, -0.5, 1e15)),
            "fecha_procesamiento": MIDNIGHT,
        }


def agents() -> Iterator[Row]:
    for mail, name, team in (
        ("ana@x.pe", "Ana", None),
        ("ana@x.pe", "ana", "B"),
        ("ana@x.pe", None, "Ñ"),
        ("ñandú@x.pe", None, None),
        ("", "Nadie", "C"),
        (None, "Nulo", "D"),
        ("SISTEMA", "El sistema", "E"),
    ):
        yield {"correo": mail, "nombre": name, "dni": None if team is None else f"4{ord(team):07}", "equipo": team}


def assignments(random: Random) -> Iterator[Row]:
    rows: list[tuple[str, Decimal | None, str | None]] = [
        (file, Decimal(random.choice(AMOUNTS)), f"c{random.randrange(7)}") for file in FILES for _ in range(9)
    ]
    # One cent over two accounts is half a cent, over three a periodic fraction. Over no account there is no quotient.
    rows += [("half", Decimal("0.01"), "c1"), ("half", Decimal("0"), "c2"), ("none", Decimal("5"), None)]
    rows += [("third", Decimal("0.01"), "c1"), ("third", Decimal("0.01"), "c2"), ("third", Decimal("0"), "c3")]
    # Beyond a million the emulator divides inexactly (see docs/emulator-differences.md).
    rows += [("great", Decimal("999999.99"), "c1"), ("great", Decimal("999999.98"), "c2")]
    rows += [("nulls", None, "c1"), ("nulls", None, None)]
    for day, (file, amount, account) in product((DAYS[0], DAYS[1], DAYS[3]), rows):
        yield {
            "fecha_foto": day,
            "periodo_mes": random.choice((f"{day:%Y-%m}", "2026-07")),
            "archivo": file,
            "tipo_cartera": random.choice(("TEMPRANA", "temprana")),
            "servicio": "MOVIL",
            "cuenta": account,
            "cliente": random.choice((None, "1", "01")),
            "deuda_inicial": amount,
            "deuda_actual": GREAT.copy_negate() if account == "c1" and file == "great" else amount,
            "fecha_vencimiento": random.choice((None, date(1, 1, 1), date(9999, 12, 31), day)),
            "fecha_procesamiento": MIDNIGHT,
        }


def indicators(random: Random) -> Iterator[Row]:
    amounts = (None, *AMOUNTS, GREAT)
    for n, (day, file) in enumerate(product(DAYS, FILES)):
        row: Row = {"fecha_foto": day, "archivo": file, "cartera": f"c{n}", "servicio": "FIJA"}
        for name, kind in SOURCES["dashboard_cobranzas"].items():
            chosen = {"INT64": COUNTS, "NUMERIC": amounts, "FLOAT64": RATES, "TIMESTAMP": EDGES}.get(kind)
            row |= {name: random.choice(chosen)} if chosen else {}
        yield row


@pytest.fixture(scope="module")
def sources(emulator: BigQueryEmulator) -> dict[str, list[Row]]:
    """The rows of each source, which the emulator holds too."""
    random = Random(22)
    made: dict[str, Iterable[Row]] = {
        "dashboard_cobranzas": indicators(random),
        "asignaciones_clean": assignments(random),
        "gestiones_unificadas": attempts(random),
        "agentes": agents(),
    }
    rows = {name: list(some) for name, some in made.items()}
    client = emulator.client()
    client.create_dataset("MEANING_TESTS", exists_ok=True)
    for name, columns in SOURCES.items():
        fields = [bigquery.SchemaField(*column) for column in columns.items()]
        client.create_table(bigquery.Table(NAMES[name], fields), exists_ok=True)
        load_table(client, NAMES[name], pa.Table.from_pylist(rows[name], schema=SCHEMAS[name]))
    return rows


def asked(spec: TableSpec, statement: str, sources: dict[str, list[Row]]) -> list[Row]:
    """The answer of GoogleSQL to a statement of the table over the window."""
    return evaluate(
        fill(statement, spec.source_tables(NAMES), spec.timezone),
        {"start": ("DATE", WINDOW.start), "end": ("DATE", WINDOW.end)},
        {NAMES[name]: sources[name] for name in spec.sources},
        {NAMES[name]: SOURCES[name] for name in spec.sources},
    )


def evaluated(spec: TableSpec, sources: dict[str, list[Row]]) -> list[Row]:
    """The rows that the table holds after a load, by GoogleSQL and the declaration."""
    rows = asked(spec, spec.source.query, sources)
    if not spec.snapshot_of:
        return rows
    newest: dict[Any, date] = {}
    for row in rows:
        value = tuple(row[name] for name in spec.snapshot_of)
        newest[value] = max(newest.get(value, date.min), row[spec.partition_column])
    return [row for row in rows if row[spec.partition_column] == newest[tuple(row[name] for name in spec.snapshot_of)]]


def landed(spec: TableSpec, emulator: BigQueryEmulator, conn: psycopg.Connection, schema: str) -> list[Row]:
    """The rows that PostgreSQL holds after a load of the window from the emulator."""
    source = BigQuerySource(project="mibot-222814", sources=NAMES, emulator_host=emulator.rest_url)
    stream = source.stream(spec, WINDOW, "run-1")
    with conn.transaction():
        load(Target(conn, spec, schema), LoadRequest(WINDOW, Source(as_stream(spec, WINDOW, stream).open, past=Past(WINDOW.start))))
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(f"SELECT * FROM {spec.name}").fetchall()


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal. A sum of doubles may differ by the order of its terms."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-12)
    return bool(left == right)


GUESTS = [spec for spec in TABLES.values() if spec.source.reads_with]


@pytest.mark.parametrize("guest", GUESTS, ids=[spec.name for spec in GUESTS])
def test_the_query_of_a_host_gives_the_rows_of_its_guest(guest: TableSpec, sources: dict[str, list[Row]]) -> None:
    host = TABLES[guest.source.reads_with or ""]
    own, wider = (asked(spec, spec.source.query, sources) for spec in (guest, host))
    projected = [{column.name: row[column.name] for column in guest.query_columns} for row in wider]
    assert sorted(map(repr, own)) == sorted(map(repr, projected))
    assert len(own) > len(FILES)


@pytest.mark.parametrize("spec", TABLES.values(), ids=TABLES)
def test_googlesql_and_the_pipeline_give_the_same_rows(
    spec: TableSpec,
    sources: dict[str, list[Row]],
    emulator: BigQueryEmulator,
    conn: psycopg.Connection,
    schema: str,
) -> None:
    def by_key(rows: list[Row]) -> dict[tuple[Any, ...], Row]:
        found = {tuple(row[name] for name in spec.primary_key): row for row in rows}
        assert len(found) == len(rows)
        return found

    told, held = by_key(evaluated(spec, sources)), by_key(landed(spec, emulator, conn, schema))
    assert told.keys() == held.keys()
    assert len(told) > 5
    columns = [name for name in spec.column_names if name not in spec.stamp_columns]
    differing = [
        (key, name, row[name], held[key][name])
        for key, row in told.items()
        for name in columns
        if not same(row[name], held[key][name])
    ]
    assert differing == []

    # The reconciliation adds up the same figures on both sides.
    by = measures(spec)
    figures = {row["pulso_day"]: tuple(row.values())[1:] for row in asked(spec, source_query(spec, by), sources)}
    kept = sql.SQL("SELECT {}, {} FROM {} GROUP BY 1").format(
        sql.Identifier(spec.partition_column), sql.SQL(", ").join(one.in_postgres() for one in by), sql.Identifier(spec.name)
    )
    for day, *values in conn.execute(kept):
        assert differences(by, day, figures.pop(day), values) == []
    assert figures == {}
