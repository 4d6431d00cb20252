"""Source tables in a query: which braces are placeholders, and which are the query's own."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from pulso_etl.bigquery.capture import captured_sql
from pulso_etl.definitions import build_defs
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import SourceError
from pulso_etl.sync.spec import TableSpec, fill
from pulso_etl.tables import TABLES
from pulso_etl_tests.bigquery.conftest import DATA, WINDOW, MakeSource
from pulso_etl_tests.change_history import CALLS
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.sync.samples import things

OWN_BRACES = [
    r"REGEXP_CONTAINS(archivo, r'^\d{1,3}$')",
    """JSON '{"a": {"b": [1]}}' IS NULL""",
    "'{}' = '{0}' OR '{archivo!r:>{x}}' = ''",
    "/* STRUCT{a: 1} {gestiones_unificadas} } { */ FALSE",
    "'{gestiones_unificadas}' = '`{' OR FALSE",
]


def reading(condition: str) -> TableSpec:
    """A count of contact attempts. Its query has one more condition."""
    return altered(
        TABLES["operation_data"],
        query="SELECT COUNT(*) AS n FROM `{gestiones_unificadas}` AS g\n"
        f"WHERE fecha_gestion BETWEEN @start AND @end AND (fecha_gestion IS NOT NULL OR {condition})",
    )


@pytest.mark.parametrize("condition", OWN_BRACES)
def test_braces_that_are_no_placeholder_are_left_alone(condition: str) -> None:
    settings = Settings(database_url=SecretStr("postgresql://nowhere/none"))
    spec = reading(condition)
    assert spec.sources == ("gestiones_unificadas",)
    build_defs(settings, tables={spec.name: spec})
    full = settings.sources()["gestiones_unificadas"]
    told = fill(spec.source.query, spec.source_tables(settings.sources()), "UTC")
    assert told == spec.source.query.replace("`{gestiones_unificadas}`", f"`{full}`")


@pytest.mark.parametrize("condition", OWN_BRACES)
def test_bigquery_gets_the_query_with_its_own_braces(make_source: MakeSource, condition: str) -> None:
    with make_source().stream(reading(condition), WINDOW, "run-1").open() as reader:
        assert reader.read_all()["n"].to_pylist() == [len(DATA.tables()["gestiones_unificadas"])]


def test_a_query_that_is_fed_with_changes_keeps_its_own_braces() -> None:
    spec = altered(CALLS, query=f"{CALLS.source.query} AND {OWN_BRACES[0]}")
    TableSpec.model_validate(spec.model_dump())
    told = fill(captured_sql(spec), {"calls": "p.d.calls"}, "UTC")
    assert OWN_BRACES[0] in told
    assert "CHANGES(TABLE `p.d.calls`, @since, @until)" in told


def test_the_time_zone_of_a_query_is_that_of_its_table() -> None:
    spec = TABLES["operation_data"].in_zone("America/Santiago")
    assert "DATETIME(timestamp_gestion, 'America/Santiago')" in fill(
        spec.source.query, {"gestiones_unificadas": "p.d.g"}, spec.timezone
    )


def test_an_unknown_placeholder_is_one_error_that_names_table_and_known_sources(make_source: MakeSource) -> None:
    settings = Settings(database_url=SecretStr("postgresql://nowhere/none"))
    spec = things(query="SELECT * FROM `{visitas}` JOIN `{agentes}` USING (id)")
    message = r"things: the query names the sources \['visitas'\], which no setting describes; known are \['agentes', 'asig"
    with pytest.raises(SourceError, match=message):
        build_defs(settings, tables={**TABLES, spec.name: spec})
    with pytest.raises(SourceError, match=message), make_source().stream(spec, WINDOW, "run-1").open():
        pass
