"""What the texts of statements and views say: whether only base tables change a result, and which column is the day."""

from __future__ import annotations

import pytest

from pulso_etl.bigquery.views import NotUnderstood, day_column, tables_in, unsteady
from pulso_etl.sync.spec import fill
from pulso_etl.tables import TABLES

NAMES = {name: f"p.d.{name}" for name in ("dashboard_cobranzas", "asignaciones_clean", "gestiones_unificadas", "agentes")}
BOT, HUMAN, AGENTS = "p.base.bot", "p.base.humano", "p.d.agentes"
VIEWS = {
    "p.d.gestiones_unificadas": "SELECT fecha_gestion, a, 'BOT' AS canal FROM `p.base.bot` UNION ALL "
    "SELECT fecha_gestion, a, 'HUMANO' FROM base.humano",
    "p.d.dashboard_cobranzas": "SELECT *, CURRENT_TIMESTAMP() AS fecha_procesamiento FROM base.tablero",
    "p.d.asignaciones_clean": "WITH limpias AS (SELECT * FROM `p.base.asignaciones` WHERE deuda > 0) SELECT * FROM limpias",
}


def test_a_text_names_what_it_reads() -> None:
    assert tables_in(VIEWS["p.d.gestiones_unificadas"], "p") == {BOT, HUMAN}
    assert tables_in(VIEWS["p.d.asignaciones_clean"], "p") == {"p.base.asignaciones"}
    assert tables_in("SELECT * FROM a-b.c.d", "p") == {"a-b.c.d"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("SELECT * FROM `p.d.t_*`", r"the wildcard table t_\*"),
        ("SELECT * FROM d.by_day(1)", "the function"),
        ("SELECT * FROM EXTERNAL_QUERY('c', 'SELECT 1')", "the function"),
        ("SELECT * FROM nowhere", "names nowhere without a dataset"),
        ("SELECT FROM WHERE", "not understood"),
        ("SELECT 1; SELECT 2", "more than one query"),
        ("DROP TABLE d.t", "more than one query"),
    ],
)
def test_a_text_that_can_not_be_followed_says_why(text: str, why: str) -> None:
    with pytest.raises(NotUnderstood, match=why):
        tables_in(text, "p")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("SELECT CURRENT_TIMESTAMP() AS seen FROM d.t", "CURRENT_TIMESTAMP"),
        ("SELECT day FROM d.t WHERE day < CURRENT_DATE('America/Lima')", "CURRENT_DATE"),
        ("SELECT RAND() AS stamp FROM d.t", "RAND"),
        ("SELECT GENERATE_UUID() AS id FROM d.t", "GENERATE_UUID"),
        ("SELECT SESSION_USER() AS who FROM d.t", "SESSION_USER"),
        ("SELECT d.clean(x) AS x FROM d.t", "d.clean, which may be a user's function"),
        ("SELECT clean(x) AS x FROM d.t", "which may be a user's function"),
        ("SELECT * FROM d.t TABLESAMPLE SYSTEM (10 PERCENT)", "TABLESAMPLE"),
        ("SELECT * FROM d.t FOR SYSTEM_TIME AS OF TIMESTAMP '2026-01-01'", "TIMESTAMP"),
        ("SELECT @@project_id AS p FROM d.t", "@@"),
        ("SELECT * FROM d.INFORMATION_SCHEMA.TABLES", "INFORMATION_SCHEMA"),
        # A clock may fill the stamp. Nothing else may use the stamp.
        (
            "SELECT * FROM (SELECT *, CURRENT_TIMESTAMP() AS stamp FROM d.t) WHERE stamp > '2026-01-01'",
            "stamp, which a clock may fill",
        ),
        ("SELECT DATE(STAMP) AS day FROM d.v", "STAMP, which a clock may fill"),
        ("SELECT d.t.x FROM d.t JOIN d.u USING (stamp)", "stamp, which a clock may fill"),
        # A whole row holds the stamp, too.
        ("SELECT TO_JSON_STRING(v) AS text FROM d.v", "the whole row v, whose stamp a clock may fill"),
        ("SELECT ARRAY_AGG(r LIMIT 1) AS rows FROM (SELECT * FROM d.v) AS R", "the whole row r"),
        ("WITH r AS (SELECT * FROM d.v) SELECT r AS whole FROM r", "the whole row r"),
        ("SELECT TO_JSON_STRING((SELECT AS STRUCT v.*)) AS text FROM d.v", "the whole row"),
        # Apostrophes in comments hide no text.
        ("-- it doesn't\nSELECT @@project_id AS p FROM d.t -- can't", "@@"),
        ('SELECT """it\'s""" AS a, @@project_id AS p, \'it\' AS b FROM d.t', "@@"),
    ],
)
def test_what_else_may_change_a_result_is_found(text: str, why: str) -> None:
    assert why in (unsteady(text, ("stamp",)) or "")


@pytest.mark.parametrize(
    "text",
    [
        "SELECT *, CURRENT_TIMESTAMP() AS stamp FROM d.t",
        "SELECT DATETIME(CURRENT_TIMESTAMP(), 'UTC') AS Stamp, x FROM d.t GROUP BY x",
        "SELECT stamp, x AS y FROM d.v",
        "SELECT v.*, item FROM d.v, UNNEST(items) AS item -- INFORMATION_SCHEMA",
        "SELECT 'RAND() @@x' AS text, SAFE.SUBSTR(a, 1), SAFE_DIVIDE(a, b), FARM_FINGERPRINT(a), COUNTIF(a) FROM d.t",
        *(fill(spec.source.query, NAMES, "America/Lima") for spec in TABLES.values()),
    ],
)
def test_a_steady_text_is_told_apart(text: str) -> None:
    assert unsteady(text, ("stamp", "fecha_procesamiento")) is None


@pytest.mark.parametrize(
    ("table", "base", "column"),
    [
        ("operation_data", BOT, "fecha_gestion"),
        ("operation_data", HUMAN, "fecha_gestion"),
        ("productivity_data", BOT, "fecha_gestion"),
        ("productivity_data", AGENTS, None),
        ("dashboard_data", "p.base.tablero", "fecha_foto"),
        ("evolution_data", "p.base.tablero", "fecha_foto"),
        ("assignment_data", "p.base.asignaciones", "fecha_foto"),
        ("assignment_data", BOT, None),
    ],
)
def test_the_day_of_each_table_comes_unchanged_from_its_base_table(table: str, base: str, column: str | None) -> None:
    spec = TABLES[table]
    statement = fill(spec.source.query, NAMES, "America/Lima")
    assert day_column(statement, VIEWS, base, spec.partition_column, "p") == column


@pytest.mark.parametrize(
    ("statement", "column"),
    [
        ("SELECT t.day, u.x FROM d.t AS t LEFT JOIN d.u AS u ON u.k = t.k", "day"),
        ("SELECT DISTINCT day, x FROM d.t", "day"),
        ("SELECT day AS d1, COUNT(*) AS day FROM d.t GROUP BY 1", None),
        ("SELECT d AS day, COUNT(*) AS n FROM (SELECT day AS d FROM d.t) GROUP BY 1", "day"),
        ("SELECT day, x FROM d.t UNION ALL SELECT x, y FROM d.u", "day"),
        # Rows of other days meet in one row, or in one day.
        ("SELECT DATE_ADD(day, INTERVAL 1 DAY) AS day FROM d.t", None),
        ("SELECT MAX(day) AS day FROM d.t", None),
        ("SELECT day, COUNT(*) AS n FROM d.t GROUP BY x, day", "day"),
        ("SELECT MAX(day) AS day FROM d.t GROUP BY x", None),
        ("SELECT day, x AS k FROM d.t GROUP BY k, day", "day"),
        ("SELECT x AS day, day AS other FROM d.t GROUP BY day, other", "x"),
        ("SELECT other AS day, COUNT(*) FROM (SELECT day AS other, x FROM d.t) GROUP BY x", None),
        ("SELECT x AS other, other AS day FROM (SELECT day AS other, x FROM d.t) GROUP BY other", None),
        ("SELECT day, SUM(x) OVER () AS total FROM d.t", None),
        ("SELECT day FROM d.t QUALIFY ROW_NUMBER() OVER (ORDER BY x) = 1", None),
        ("SELECT day FROM d.t LIMIT 10", None),
        ("SELECT day FROM d.t WHERE x > (SELECT AVG(x) FROM d.t)", None),
        ("SELECT a.day FROM d.t AS a JOIN d.t AS b ON b.day < a.day", None),
        ("WITH w AS (SELECT * FROM d.t) SELECT a.day FROM w AS a JOIN w AS b ON b.day < a.day", None),
        ("SELECT t.day FROM d.u AS u LEFT JOIN d.t AS t ON u.k = t.k", None),
        ("SELECT t.day FROM d.t AS t FULL JOIN d.u AS u ON u.k = t.k", None),
        ("SELECT day FROM d.t UNION DISTINCT SELECT x FROM d.u", None),
        ("SELECT day FROM d.t EXCEPT DISTINCT SELECT x FROM d.u", None),
        ("SELECT day FROM d.t UNION ALL SELECT x AS day FROM d.t", None),
        ("SELECT * REPLACE (x AS day) FROM d.t", None),
        ("SELECT * EXCEPT (day), x AS day FROM d.t", None),
        ("SELECT day FROM d.t JOIN d.u USING (k)", None),
        ("SELECT * FROM d.t PIVOT (SUM(x) FOR k IN ('a'))", None),
    ],
)
def test_a_column_is_the_day_only_if_days_stay_apart(statement: str, column: str | None) -> None:
    assert day_column(statement, {}, "p.d.t", "day", "p") == column
