"""Whether BigQuery reads only the partitions of the days that are asked for, or the whole table at every refresh.

Dry runs tell it for free. Where it reads everything, the texts of the views say at which place the partition column is hidden:
under a function, a cast, or a part of a query that needs all rows first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, timedelta

from google.cloud import bigquery
from sqlglot import exp

from pulso_etl.bigquery.look import NO_DAYS, Look
from pulso_etl.bigquery.pricing import LEAST_BYTES
from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.bigquery.views import NotUnderstood, parsed
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.spec import TableSpec

SECONDS = 30.0
"""Limit of each question."""
SHOWN = 5
"""Places that are named."""
NEEDS_ALL = ("limit", "offset", "qualify", "pivots")
"""Parts of a query that need all rows before a filter around them can apply."""


def fault(source: BigQuerySource, spec: TableSpec, today: date) -> str | None:
    """Why a refresh of one day reads as much as one of the whole lookback, with the place in the view; None if it does not, or if
    BigQuery bills its least amount anyway. Raises the errors of `BigQuerySource.look`."""
    window = DayRange(today - timedelta(days=max(1, spec.schedule.lookback_days - 1)), today)
    whole = source.size(spec, window, SECONDS)
    if whole.bytes_processed <= LEAST_BYTES * whole.tables:
        return None
    # All rows may be of one day. A day without data tells both apart.
    for less in (DayRange(window.start, window.start), NO_DAYS):
        if source.size(spec, less, SECONDS).bytes_processed < whole.bytes_processed:
            return None
    places = list(hidden(source.look(spec, window, SECONDS)))
    told = "; ".join(places[:SHOWN]) or "no place in the views' texts tells why"
    return f"one day reads {whole.bytes_processed / 2**20:,.1f} MiB, as much as the whole lookback: {told}"


def hidden(look: Look) -> Iterator[str]:
    """Where the partition columns of the base tables are hidden, for people; then the base tables without partitions. Pure."""
    texts = {**look.texts, "the statement": look.statement}
    columns = {name: _partition_column(table) for name, table in sorted(look.tables.items())}
    for column in dict.fromkeys(filter(None, columns.values())):
        yield from _places(texts, column)
    yield from (f"{name} is not partitioned" for name, column in columns.items() if column is None)


def _partition_column(table: bigquery.Table) -> str | None:
    if table.time_partitioning is not None:
        return table.time_partitioning.field or "_PARTITIONDATE"
    return table.range_partitioning.field if table.range_partitioning is not None else None


def _places(texts: Mapping[str, str], column: str) -> Iterator[str]:
    names, seen = {column.lower()}, set[tuple[str, str]]()
    # A view gives the column another name, and the next view hides it under that name.
    for _ in texts:
        for text, query in _queries(texts):
            for item in query.find_all(exp.Alias):
                if names & _columns(item):
                    names.add(item.alias.lower())
            for place in _hiding(query, names):
                seen.add((text, place))
    for text, place in sorted(seen):
        yield f"{text} hides {column}: {place}"


def _queries(texts: Mapping[str, str]) -> Iterator[tuple[str, exp.Query]]:
    for text, sql in texts.items():
        try:
            yield text, parsed(sql)
        except NotUnderstood:
            continue


def _columns(node: exp.Expr) -> set[str]:
    return {column.name.lower() for column in node.find_all(exp.Column)}


def _hiding(query: exp.Query, names: set[str]) -> Iterator[str]:
    """What hides one of the columns in the query."""
    for select in query.find_all(exp.Select):
        where = select.args.get("where")
        tested = [test.this for test in where.find_all(exp.Predicate)] if where else []
        replaced = [item for star in select.find_all(exp.Star) for item in star.args.get("replace") or ()]
        for value in (*(item.unalias() for item in (*select.selects, *replaced)), *tested):
            wraps = isinstance(value, exp.Func) and not isinstance(value, exp.AggFunc) and names & _columns(value)
            if wraps or isinstance(value, exp.Window):
                yield value.sql("bigquery")
        yield from (select.args[part].sql("bigquery") for part in NEEDS_ALL if select.args.get(part))
