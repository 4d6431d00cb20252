"""Measures likely queries of the dashboard on tables of two years, with the primary key alone and with one more index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.loads import Say, drop, settle
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.tables import TABLES

SCHEMA = "bench_indexes"
RUNS = 5
ARCHIVO = "format('Cartera_Agencia_Cobranzas_Peru_%s.txt', lpad(({})::text, 6, '0'))"
DAYS = "generate_series(0, 729) AS n, LATERAL (SELECT date '2024-01-01' + n AS fecha_foto) AS d"
CARTERAS = "unnest(ARRAY['TEMPRANA', 'ALTAS NUEVAS', 'CUOTA FRACCIONADA', 'GESTIÓN ESPECIAL', 'REINCIDENTE']) AS cartera"
SERVICIOS = "unnest(ARRAY['FIJA', 'MOVIL']) AS servicio"

KEYS = {
    "dashboard_data": (
        f"SELECT fecha_foto, {ARCHIVO.format('n / 90 * 137 + a')} AS archivo, cartera, servicio "
        f"FROM {DAYS}, generate_series(0, 136) AS a, {CARTERAS}, {SERVICIOS} ORDER BY fecha_foto, random()"
    ),
    "evolution_data": (
        f"SELECT fecha_foto, {ARCHIVO.format('n / 90 * 137 + a')} AS archivo, cartera, servicio "
        f"FROM {DAYS}, generate_series(0, 136) AS a, {CARTERAS}, {SERVICIOS} ORDER BY n / 92, random()"
    ),
    "assignment_data": (
        "SELECT to_char(fecha_foto, 'YYYY-MM') AS periodo, fecha_foto, "
        f"{ARCHIVO.format('n * 4167 + a')} AS archivo, cartera, servicio "
        "FROM generate_series(0, 23) AS n, LATERAL (SELECT (date '2024-01-31' + make_interval(months => n))::date AS fecha_foto) "
        f"AS d, generate_series(0, 4166) AS a, {CARTERAS}, {SERVICIOS} ORDER BY fecha_foto, random()"
    ),
    "operation_data": (
        f"SELECT fecha_foto, hora, canal, {ARCHIVO.format('n / 90 * 53 + a')} AS archivo "
        f"FROM {DAYS}, generate_series(8, 20) AS hora, unnest(ARRAY['BOT', 'HUMANO']) AS canal, generate_series(0, 52) AS a "
        "ORDER BY fecha_foto, random()"
    ),
    "productivity_data": (
        "SELECT fecha_foto, format('agente%s@example.com', g) AS correo_agente, "
        f"{ARCHIVO.format('n / 90 * 53 + (g + a) % 53')} AS archivo "
        f"FROM {DAYS}, generate_series(1, 137) AS g, generate_series(0, 9) AS a ORDER BY fecha_foto, random()"
    ),
}
"""The keys of each table, about 1,000,000, in the order in which daily loads leave them: by day, and any order within one.

`evolution_data` is as a back-fill in chunks of 92 days leaves it: any order within a chunk. A campaign file lives for 90 days, and
an `assignment_data` of that size has far more of them than the others.
"""


@dataclass(frozen=True)
class Query:
    """A query of the dashboard, and the indexes (as CREATE INDEX names them, after ON the table) that may help it."""

    name: str
    table: str
    text: str
    indexes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Read:
    """One query with the primary key alone (no `index`), or with one more index.

    `used` are the indexes of the plan; `rows` those that its scans gave or threw away, `blocks` pages of 8 KiB of the whole plan,
    in memory or not; both of one run, summed over loops. `milliseconds` is a median. `index_mb` in MB (10^6 bytes).
    """

    query: Query
    index: str
    used: tuple[str, ...]
    milliseconds: float
    rows: int
    blocks: int
    index_mb: float = 0.0


QUERIES = (
    Query(
        "newest day of a cartera and servicio",
        "dashboard_data",
        "SELECT * FROM dashboard_data WHERE fecha_foto = (SELECT max(fecha_foto) FROM dashboard_data) "
        "AND cartera = 'TEMPRANA' AND servicio = 'MOVIL'",
        ("(cartera, servicio, fecha_foto)",),
    ),
    Query(
        "one archivo over time",
        "dashboard_data",
        "SELECT fecha_foto, sum(recupero) FROM dashboard_data WHERE archivo = 'Cartera_Agencia_Cobranzas_Peru_000700.txt' "
        "GROUP BY fecha_foto ORDER BY fecha_foto",
        ("(archivo, fecha_foto)",),
    ),
    Query(
        "totals of a month by cartera",
        "dashboard_data",
        "SELECT cartera, sum(cuentas_gestionadas), sum(recupero) FROM dashboard_data "
        "WHERE fecha_foto BETWEEN '2025-11-01' AND '2025-11-30' GROUP BY cartera",
        ("(fecha_foto, cartera) INCLUDE (cuentas_gestionadas, recupero)", "USING brin (fecha_foto)"),
    ),
    Query(
        "the same after a back-fill",
        "evolution_data",
        "SELECT cartera, sum(cuentas), sum(recupero) FROM evolution_data "
        "WHERE fecha_foto BETWEEN '2025-11-01' AND '2025-11-30' GROUP BY cartera",
        ("(fecha_foto, cartera) INCLUDE (cuentas, recupero)", "USING brin (fecha_foto)"),
    ),
    Query(
        "a periodo by cartera",
        "assignment_data",
        "SELECT cartera, sum(cuentas), sum(deuda_asig) FROM assignment_data WHERE periodo = '2025-11' GROUP BY cartera",
        ("(periodo, cartera) INCLUDE (cuentas, deuda_asig)",),
    ),
    Query(
        "hours of a day by canal",
        "operation_data",
        "SELECT hora, canal, sum(total_gestiones), sum(contactos_efectivos) FROM operation_data "
        "WHERE fecha_foto = '2025-11-28' GROUP BY hora, canal ORDER BY hora, canal",
    ),
    Query(
        "ranking of agents on a day",
        "productivity_data",
        "SELECT correo_agente, sum(total_pdp) AS pdp FROM productivity_data WHERE fecha_foto = '2025-11-28' "
        "GROUP BY correo_agente ORDER BY pdp DESC LIMIT 20",
    ),
    Query(
        "ranking of agents in a month",
        "productivity_data",
        "SELECT correo_agente, sum(total_pdp) AS pdp FROM productivity_data "
        "WHERE fecha_foto BETWEEN '2025-11-01' AND '2025-11-30' GROUP BY correo_agente ORDER BY pdp DESC LIMIT 20",
        ("(fecha_foto, correo_agente) INCLUDE (total_pdp)",),
    ),
    Query(
        "one agent over time",
        "productivity_data",
        "SELECT fecha_foto, sum(total_pdp) FROM productivity_data WHERE correo_agente = 'agente77@example.com' "
        "GROUP BY fecha_foto ORDER BY fecha_foto",
        ("(correo_agente, fecha_foto)",),
    ),
)


def measure_indexes(url: str, *, say: Say, queries: Sequence[Query] = QUERIES, limit: int | None = None) -> list[Read]:
    """Fills the tables with `limit` rows each (all without it) and explains each query, first with the primary key alone."""
    measured = []
    with psycopg.connect(url, autocommit=True) as conn:
        drop(conn, SCHEMA)
        conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
        conn.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(SCHEMA)))
        for table in dict.fromkeys(query.table for query in queries):
            fill(conn, table, limit)
            say(f"{table} is filled")
            for query in (query for query in queries if query.table == table):
                reads = _measure(conn, query)
                measured += reads
                for read in reads:
                    say(f"{query.name}, {read.index or 'primary key'}: {read.milliseconds:.1f} ms, {read.blocks:,} blocks")
        drop(conn, SCHEMA)
    return measured


def fill(conn: psycopg.Connection, table: str, limit: int | None = None) -> None:
    """The table as production makes it, in the search path's schema, with made-up values beside the keys of `KEYS`."""
    spec = TABLES[table]
    for statement in Statements(spec, SCHEMA).create_table():
        conn.execute(statement)
    made = {
        "bigint": "(random() * 1000)::bigint",
        "double precision": "random() * 100",
        "numeric": "(random() * 100000)::numeric(12, 2)",
        "text": "format('%s %s', 'texto', (random() * 1000)::int)",
        "date": "fecha_foto",
        "timestamp with time zone": "fecha_foto + interval '1 day'",
    }
    names = {*spec.primary_key, spec.partition_column}
    values = [name if name in names else made[spec.column(name).type.value] for name in spec.column_names]
    conn.execute(
        f"INSERT INTO {table} ({', '.join(spec.column_names)}) "
        f"SELECT {', '.join(values)} FROM ({KEYS[table]} LIMIT {limit or 'ALL'}) AS k".encode()
    )
    conn.execute(f"VACUUM (ANALYZE) {table}".encode())
    settle(conn)


def _measure(conn: psycopg.Connection, query: Query) -> list[Read]:
    reads = [_read(conn, query, "")]
    for index in query.indexes:
        conn.execute(f"CREATE INDEX extra ON {query.table} {index}".encode())
        conn.execute(f"VACUUM (ANALYZE) {query.table}".encode())
        reads.append(_read(conn, query, index))
        conn.execute("DROP INDEX extra")
    return reads


def _read(conn: psycopg.Connection, query: Query, index: str) -> Read:
    def explain() -> dict[str, Any]:
        row = conn.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query.text}".encode()).fetchone()
        assert row is not None
        return row[0][0]  # type: ignore[no-any-return]

    explain()
    runs = [explain() for _ in range(RUNS)]
    top = runs[-1]["Plan"]
    size = conn.execute("SELECT pg_relation_size(to_regclass('extra'))").fetchone()
    nodes = _nodes(top)
    return Read(
        query,
        index,
        tuple(dict.fromkeys(node["Index Name"] for node in nodes if "Index Name" in node)),
        median(run["Execution Time"] for run in runs),
        sum(_rows(node) for node in nodes if "Relation Name" in node),
        top["Shared Hit Blocks"] + top["Shared Read Blocks"],
        (size[0] or 0) / 1e6 if size else 0.0,
    )


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in _nodes(child))]


def _rows(node: dict[str, Any]) -> int:
    thrown_away = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return int((node["Actual Rows"] + thrown_away) * node["Actual Loops"])
