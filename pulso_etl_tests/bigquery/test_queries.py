"""The `.sql` files: what they read, and that they read no more than the range of days that is asked for."""

from __future__ import annotations

from collections import Counter
from datetime import date

import pytest
from sqlglot import exp, parse_one
from sqlglot.optimizer.scope import traverse_scope

from pulso_etl.local.sample_data import PARTITIONED, SampleData
from pulso_etl.sync.days import DayRange
from pulso_etl.tables import TABLES
from pulso_etl_tests.bigquery.conftest import MakeSource

FIRST, LAST = date(2026, 7, 6), date(2026, 7, 15)


@pytest.mark.parametrize("spec", TABLES.values(), ids=TABLES)
def test_every_scan_of_a_partitioned_source_is_pruned_by_its_partition_column(make_source: MakeSource, spec: object) -> None:
    source = make_source()
    stream = source.stream(spec, DayRange(FIRST, LAST), "run-1")  # type: ignore[arg-type]
    columns = {full: PARTITIONED.get(name) for name, full in source.tables(spec).items()}  # type: ignore[arg-type]
    scanned = []
    for scope in traverse_scope(parse_one(stream.sql(), dialect="bigquery")):
        for table in scope.tables:
            if table.name in scope.cte_sources:
                continue
            full = ".".join(part.name for part in table.parts)
            scanned.append(full)
            if (column := columns[full]) is None:
                continue
            where = scope.expression.args["where"].this
            # A bare column between the two parameters, joined with AND. BigQuery can prune by that.
            conditions = list(where.flatten()) if isinstance(where, exp.And) else [where]
            pruning = [c for c in conditions if isinstance(c, exp.Between) and c.this == exp.column(column)]
            assert [c.sql(dialect="bigquery") for c in pruning] == [f"{column} BETWEEN @start AND @end"]
    assert sorted(scanned) == sorted(columns)


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("dashboard_data", {"dashboard_cobranzas"}),
        ("evolution_data", {"dashboard_cobranzas"}),
        ("assignment_data", {"asignaciones_clean"}),
        ("operation_data", {"gestiones_unificadas"}),
        ("productivity_data", {"gestiones_unificadas", "agentes"}),
    ],
)
def test_the_sources_of_a_table_are_the_placeholders_of_its_query(
    make_source: MakeSource, data: SampleData, name: str, sources: set[str]
) -> None:
    assert make_source().tables(TABLES[name]) == {source: data.names[source] for source in sources}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    "window", [DayRange(date(2026, 7, 9), date(2026, 7, 11)), DayRange(LAST, LAST)], ids=["three-days", "one-day"]
)
def test_rows_of_the_range_s_days_come_all_and_alone(make_source: MakeSource, name: str, window: DayRange) -> None:
    def rows_by_day(asked: DayRange) -> Counter[date]:
        with make_source().stream(TABLES[name], asked, "run-1").open() as reader:
            return Counter(reader.read_all()[TABLES[name].partition_column].to_pylist())

    everything = rows_by_day(DayRange(FIRST, LAST))
    assert len(everything) == 10
    assert rows_by_day(window) == {day: rows for day, rows in everything.items() if day in window}
