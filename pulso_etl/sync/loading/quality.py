"""Reads the data for all checks of a table, in one statement. It does not decide whether they pass."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from psycopg import sql

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.loading.rules import Rule, rules
from pulso_etl.sync.loading.strategies import STRATEGIES
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.target import Target

WEEKS = 4
"""The number of earlier weeks to compare a day's rows with."""


@dataclass(frozen=True)
class Breach:
    """How many rows break a rule, and an example by its key and partition."""

    rule: Rule
    rows: int
    example: dict[str, Any]


@dataclass(frozen=True)
class Inspection:
    """What was found: the rows of each day that has any, how many rows share a key, an example of these, and the broken rules."""

    rows_by_day: dict[date, int]
    duplicates: int
    duplicate: dict[str, Any]
    breaches: tuple[Breach, ...]


def inspect(target: Target, window: DayRange, lookback: DayRange) -> Inspection:
    """Looks at the window's rows, and counts the rows of the lookback and of the weeks before the window. Errors are psycopg's."""
    by_rule = rules(target.spec)
    row = target.conn.execute(
        statement(target.spec, target.schema, by_rule),
        {
            "start": window.start,
            "end": window.end,
            "counted_from": window.start - timedelta(weeks=WEEKS),
            "lookback_start": lookback.start,
            "lookback_end": lookback.end,
        },
    ).fetchone()
    assert row is not None
    rows_by_day, duplicates, duplicate, *pairs = row
    breaches = zip(by_rule, pairs[::2], pairs[1::2], strict=True)
    return Inspection(
        {date.fromisoformat(day): rows for day, rows in (rows_by_day or {}).items()},
        int(duplicates),
        json.loads(duplicate or "{}"),
        tuple(Breach(rule, rows, json.loads(example)) for rule, rows, example in breaches if rows),
    )


def statement(spec: TableSpec, schema: str, by_rule: tuple[Rule, ...]) -> sql.Composed:
    """The statement. It gives one row: the rows by day as JSON, the number of rows that share a key with an example, and for each
    rule the number of rows that break it with an example.

    It looks for repeated keys in the window if a key belongs to one partition, and otherwise in the whole table. It looks for none
    if keys may repeat. In a table that keeps history, it looks only at current rows.
    """
    names = Statements(spec, schema)
    partition = names.partition
    in_window = sql.SQL("{} BETWEEN %(start)s AND %(end)s").format(partition)
    scope = in_window if spec.partition_in_key else sql.SQL("true")
    shown = dict.fromkeys((spec.partition_column, *spec.primary_key))
    # The server builds an example only for broken rows, because it evaluates a FILTER before the argument.
    per_rule = [
        sql.SQL("count(*) FILTER (WHERE {broken}), min({example}) FILTER (WHERE {broken})").format(
            broken=rule.broken, example=_json(tuple(shown))
        )
        for rule in by_rule
    ]
    return sql.SQL(
        "SELECT (SELECT jsonb_object_agg(day, n) FROM (SELECT {partition} AS day, count(*) AS n FROM {target} "
        "WHERE ({partition} BETWEEN %(counted_from)s AND %(end)s OR {partition} BETWEEN %(lookback_start)s AND %(lookback_end)s) "
        "AND {current} GROUP BY 1) AS days), duplicates.*, broken.* FROM "
        "(SELECT coalesce(sum(n), 0), min(key) FROM (SELECT {key} AS key, count(*) AS n FROM {target} WHERE {scope} AND {current} "
        "GROUP BY {keys} HAVING count(*) > 1) AS k) AS duplicates, "
        "(SELECT {per_rule} FROM {target} WHERE ({in_window} OR {partition} IS NULL) AND {current} AND ({any_broken})) AS broken"
    ).format(
        partition=partition,
        target=names.target,
        current=names.current,
        key=_json(spec.primary_key),
        scope=scope if STRATEGIES[spec.loading.strategy].unique else sql.SQL("false"),
        keys=names.keys,
        per_rule=sql.SQL(", ").join(per_rule),
        in_window=in_window,
        any_broken=sql.SQL(" OR ").join(rule.broken for rule in by_rule),
    )


def _json(columns: tuple[str, ...]) -> sql.Composed:
    pairs = sql.SQL(", ").join(sql.SQL("{}, {}").format(sql.Literal(name), sql.Identifier(name)) for name in columns)
    return sql.SQL("jsonb_build_object({})::text").format(pairs)
