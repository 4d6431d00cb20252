"""No column of a source has a name that a statement of ours takes for another."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from pulso_etl.sync.errors import SchemaRefused
from pulso_etl.sync.ledger import migrations
from pulso_etl.sync.loading.quality import inspect, statement
from pulso_etl.sync.loading.rules import rules
from pulso_etl.sync.loading.strategies import STRATEGIES, statements_in_order
from pulso_etl.sync.schema.statements import Statements
from pulso_etl.sync.spec import LONGEST_PARTITIONED, MOST_COLUMNS, Column, ColumnType, Strategy, TableSpec
from pulso_etl_tests.declarations import declare
from pulso_etl_tests.sync.samples import D1, D2, WINDOW, Loads, row, table, things

EARLIER = {"copy", "staged", "copies", "day", "sid", "tid", "at", "n", "key", "duplicated"}
"""Names that statements once gave to columns."""


def words() -> list[str]:
    """Every word of the statements of a load and of a look at the table. A column can have such a word as its name."""
    texts = [(files(migrations) / "009_quarantine.sql").read_text(encoding="utf-8")]
    for strategy in Strategy:
        for changes in ({}, {"partition_by": "month"}):
            spec = things(strategy=strategy, **changes)
            texts += [one.as_string() for one in statements_in_order(Statements(spec, "s"))]
            texts.append(statement(spec, "s", rules(spec)).as_string())
    spec = things(strategy=Strategy.SCD2)
    found = {word for text in texts for word in re.findall(r"[a-z_][a-z0-9_]*", text.lower())} | EARLIER
    return sorted(name for name in found if not spec.is_reserved(name) and name != "partition_day")


def spec_of(names: tuple[str, ...], **changes: Any) -> TableSpec:
    """A table whose key columns have all of the names. Its other columns are `others`."""
    return declare(
        name="n",
        description="For tests.",
        primary_key=("partition_day", *names),
        partition_column="partition_day",
        columns=(
            Column(name="partition_day", type=ColumnType.DATE),
            *(Column(name=name, type=ColumnType.TEXT) for name in names),
            *(Column(name=f"{name}_v"[:63], type=ColumnType.INTEGER) for name in names),
        ),
        minimum_kept_share=0,
        **changes,
    )


def rows_of(spec: TableSpec, **values: Any) -> pa.Table:
    given = {"partition_day": D1} | {c.name: "k" if c.type == "text" else 1 for c in spec.columns[1:]} | values
    kinds = {"date": pa.date32(), "text": pa.string(), "bigint": pa.int64()}
    schema = pa.schema([(c.name, kinds[c.type]) for c in spec.columns])
    return pa.Table.from_pylist([given, given | {"partition_day": D2}], schema=schema)


@pytest.mark.parametrize("strategy", Strategy)
def test_a_key_may_have_any_name_that_a_statement_has(loads: Loads, schema: str, strategy: Strategy) -> None:
    quarantining = {"on_reject": "quarantine", "maximum_quarantined_share": 1} if STRATEGIES[strategy].unique else {}
    names = words()
    assert set(names) >= EARLIER
    for start in range(0, len(names), 30):
        group = tuple(names[start : start + 30])
        spec = spec_of(group, strategy=strategy, **quarantining)
        first = rows_of(spec)
        loads(first, spec)
        changed = pa.concat_tables([rows_of(spec, **{f"{group[0]}_v"[:63]: 2}), first.slice(1)]) if quarantining else first
        loads(changed, spec)
        current = " WHERE valid_to IS NULL" if strategy is Strategy.SCD2 else ""
        assert loads.rows(f'SELECT partition_day, "{group[0]}_v" FROM n{current} ORDER BY 1') == (
            [(D1, 2), (D2, 1)] if quarantining else [(D1, 1), (D2, 1)]
        )
        assert inspect(loads.target(spec), WINDOW, WINDOW).rows_by_day == {D1: 1, D2: 1}
        loads.conn.execute("DROP TABLE n")


def test_a_table_of_as_many_columns_as_can_be_declared_is_loaded_and_loaded_again(loads: Loads) -> None:
    count = MOST_COLUMNS - len(things().columns)
    more = tuple(Column(name=f"c{number}", type=ColumnType.BOOLEAN) for number in range(count))
    spec = things(*more, strategy=Strategy.SCD2)
    source = table([row(D1, "a")])
    for column in more:
        source = source.append_column(column.name, pa.array([True]))
    loads(source, spec)
    changed = source.set_column(len(source.schema) - 1, more[-1].name, pa.array([False]))
    assert loads(changed, spec).total.updated == 1
    assert loads.rows(f"SELECT {more[-1].name} FROM things ORDER BY valid_from") == [(True,), (False,)]


@pytest.mark.parametrize("strategy", [Strategy.UPSERT, Strategy.APPEND, Strategy.SCD2])
@pytest.mark.parametrize("months", [False, True])
def test_names_that_differ_in_their_last_character_alone_share_no_index_and_no_copy(
    loads: Loads, server_url: str, strategy: Strategy, months: bool
) -> None:
    """PostgreSQL cuts the names of tables, indexes and partitions at 63 characters."""
    width = LONGEST_PARTITIONED if months else 63
    long = {name: f"{'k' * 62}{end}" for name, end in (("name", "a"), ("hour", "b"))}
    renamed = tuple(c.model_copy(update={"name": long.get(c.name, c.name)}) for c in things().columns)
    plain = table([row(D1, "a"), row(D2, "b")])
    source = plain.rename_columns([long.get(name, name) for name in plain.column_names])
    specs = [
        things(
            name=f"{'t' * (width - 1)}{end}",
            columns=renamed,
            primary_key=(*long.values(), "day"),
            strategy=strategy,
            partition_by="month" if months else None,
        )
        for end in "ab"
    ]
    for _ in range(2):
        for spec in specs:
            loads(source, spec)
            again = loads(source, spec)
            assert (again.migration, again.total.written) == ([], 0)
    narrower = [spec.model_copy(update={"primary_key": (long["name"], "day")}) for spec in specs]
    for spec in narrower:
        if strategy is not Strategy.APPEND:
            with pytest.raises(SchemaRefused) as refused:
                loads(source, spec)
            with psycopg.connect(server_url, autocommit=True) as conn:
                conn.execute(str(refused.value).partition("in this order:")[2].encode())
        assert loads(source, spec, allow_shrink=True).total.read == 2
    assert [loads.rows(f"SELECT count(*) FROM {spec.name}") for spec in narrower] == [[(2,)], [(2,)]]
