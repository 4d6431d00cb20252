"""Every statement that is sent to BigQuery for a table, and whether it is right, without BigQuery: GoogleSQL analyses it.

The statements keep their placeholders, so a fault of the query has the place that it has in the table's `.sql` file.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import NamedTuple

import pyarrow as pa

from pulso_etl.bigquery.analysis import Catalogue, Columns, StatementRefused, analyse
from pulso_etl.bigquery.arrow import arrow_type
from pulso_etl.bigquery.capture import captured_sql
from pulso_etl.checks.reconciliation import measures, source_query
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import ContractError
from pulso_etl.sync.loading.contract import Drift, fit
from pulso_etl.sync.postgres.catalog import Table
from pulso_etl.sync.spec import DELETED, TableSpec
from pulso_etl.sync.streams import with_stamps

DAYS = {"start": "DATE", "end": "DATE"}
INSTANTS = {"since": "TIMESTAMP", "until": "TIMESTAMP"}
ANY = DayRange(date(2000, 1, 1), date(2000, 1, 1))
"""Stands for the days of a query, which its columns do not depend on."""


class Statement(NamedTuple):
    """A statement with placeholders, and the types of its parameters."""

    sql: str
    parameters: Columns


def statements(spec: TableSpec) -> dict[str, Statement]:
    """The table's statements by their purpose, its query first."""
    found = {
        "query": Statement(spec.source.query, DAYS),
        "reconciliation": Statement(source_query(spec, measures(spec)), DAYS),
    }
    if spec.source.change_capture is not None:
        found["changes"] = Statement(captured_sql(spec), DAYS | INSTANTS)
    return found


def faults(spec: TableSpec, sources: Mapping[str, Columns]) -> list[str]:
    """What is wrong with the table's statements, in the words of the person who writes its query; empty if nothing is.

    The arguments and errors are those of `query_faults`. The other statements follow from the query. They are analysed once it is
    right.
    """
    _, *others = statements(spec).items()
    return query_faults(spec, sources) or [fault for one in others if (fault := _fault(spec, *one, _catalogue(sources)))]


def query_faults(spec: TableSpec, sources: Mapping[str, Columns]) -> list[str]:
    """What is wrong with the table's query.

    `sources` has the columns of the source tables by placeholder. Raises EngineMissing if GoogleSQL is not installed.
    """
    if unknown := [name for name in spec.sources if name not in sources]:
        named = ", ".join(f"`{{{name}}}`" for name in unknown)
        return [f"{spec.name}.sql reads {named}, whose columns are not declared; add them to pulso_etl/tables/sources.py"]
    try:
        return unfit(spec, _columns(spec, sources))
    except StatementRefused as error:
        return [f"{spec.name}.sql:{error}" if error.line else f"{spec.name}.sql: {error}"]


def not_loaded(spec: TableSpec, sources: Mapping[str, Columns]) -> list[str]:
    """The columns of a query without faults that a load leaves out, because they are not declared."""
    return _drift(spec, _columns(spec, sources)).not_loaded


def unfit(spec: TableSpec, columns: Columns) -> list[str]:
    """How columns of a query, by their types, differ from what the table declares and needs."""
    try:
        _drift(spec, columns)
    except ContractError as error:
        told = str(error).partition("the source does not fit the declaration: ")[2].partition("\n")[0]
        return [f"{spec.name}.sql does not fit the declaration: {told}"]
    return []


def _columns(spec: TableSpec, sources: Mapping[str, Columns]) -> dict[str, str]:
    return analyse(*statements(spec)["query"], _catalogue(sources))


def _drift(spec: TableSpec, columns: Columns) -> Drift:
    """Raises ContractError."""
    returned = pa.schema([pa.field(name, arrow_type(kind)) for name, kind in columns.items()])
    return fit(spec, with_stamps(returned, spec.reading_stamps), Table({}), ANY).drift


def _catalogue(sources: Mapping[str, Columns]) -> Catalogue:
    """The sources under the names that stand in back-ticks in a query."""
    return {f"{{{name}}}": columns for name, columns in sources.items()}


def _fault(spec: TableSpec, purpose: str, statement: Statement, catalogue: Catalogue) -> str | None:
    try:
        columns = analyse(*statement, catalogue)
    except StatementRefused as error:
        return f"{spec.name}: the statement of the {purpose} is refused at {error}"
    if purpose == "changes" and (wrong := unfit(spec.with_columns((DELETED,)), columns)):
        return f"{spec.name}: the statement of the changes: {wrong[0]}"
    return None
