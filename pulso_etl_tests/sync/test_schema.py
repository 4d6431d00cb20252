"""The table against its declaration: created, migrated, or refused with what to run by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import ContractError, SchemaRefused
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.postgres.catalog import Index, Limit, Table, TableColumn, read_table
from pulso_etl.sync.schema.migration import create_table, needed_changes
from pulso_etl.sync.schema.schema import ensure_table
from pulso_etl.sync.spec import Column, ColumnType, Strategy, TableSpec
from pulso_etl.sync.target import Target
from pulso_etl.tables import TABLES
from pulso_etl_tests.sync.samples import COLUMNS, D1, D2, Loads, row, things, wider

COLOUR = Column(name="colour", type=ColumnType.TEXT)
WEIGHT = Column(name="weight", type=ColumnType.INTEGER, minimum=-5, maximum=10)
ID = Column(name="id", type=ColumnType.INTEGER, required=True)

AS_DECLARED = Table(
    columns={
        column.name: TableColumn(column.name, column.type.value, things().required(column), column in things().kept_columns)
        for column in (*things().columns, *things().kept_columns)
    },
    primary_key=("day", "name"),
    primary_key_name="things_pkey",
    limits={("hour", ">="): Limit("things_hour_check", 0), ("hour", "<="): Limit("things_hour_check1", 23)},
)


def changed(**columns: TableColumn | None) -> Table:
    """The declaration with other columns, or without one column."""
    return replace(AS_DECLARED, columns={name: c for name, c in {**AS_DECLARED.columns, **columns}.items() if c is not None})


def changes(spec: TableSpec, table: Table) -> list[tuple[str, str | None]]:
    return [(change.statement.as_string(), change.refusal) for change in needed_changes(spec, "s", table)]


def test_nothing_changes_where_the_table_is_as_declared() -> None:
    assert changes(things(), AS_DECLARED) == []


def test_new_columns_are_added_with_their_checks() -> None:
    assert changes(things(COLOUR, WEIGHT), AS_DECLARED) == [
        ('ALTER TABLE "s"."things" ADD COLUMN "colour" text', None),
        ('ALTER TABLE "s"."things" ADD COLUMN "weight" bigint CHECK ("weight" >=  -5) CHECK ("weight" <= 10)', None),
    ]


def test_a_new_required_column_is_added_to_an_empty_table_and_refused_where_rows_would_be_without_it() -> None:
    assert changes(things(ID), replace(AS_DECLARED, holds_rows=False)) == [
        ('ALTER TABLE "s"."things" ADD COLUMN "id" bigint NOT NULL', None)
    ]
    ((statement, refusal),) = changes(things(ID), AS_DECLARED)
    assert statement == 'ALTER TABLE "s"."things" ADD COLUMN "id" bigint NOT NULL'
    assert refusal is not None
    assert "id: required" in refusal


@pytest.mark.parametrize(
    ("spec", "table", "statement", "refusal"),
    [
        (
            things(),
            changed(money=TableColumn("money", "bigint")),
            'ALTER COLUMN "money" TYPE numeric USING "money"::numeric',
            "money: declared numeric, the table has bigint",
        ),
        (
            things(),
            changed(hour=TableColumn("hour", "integer")),
            'ALTER COLUMN "hour" TYPE bigint USING "hour"::bigint',
            "hour: declared bigint, the table has integer",
        ),
        (things(), changed(colour=TableColumn("colour", "text")), 'DROP COLUMN "colour"', "colour: in the table but not declared"),
        (
            things(columns=(*COLUMNS[:-1], Column(name="stamp", type=ColumnType.TIMESTAMP, required=True))),
            AS_DECLARED,
            'ALTER COLUMN "stamp" SET NOT NULL',
            "stamp: required",
        ),
        (
            things(),
            replace(AS_DECLARED, primary_key=()),
            'ADD PRIMARY KEY ("day", "name")',
            "primary key: declared (day, name), the table has (none)",
        ),
        (
            things(contract="evolve"),
            changed(colour=TableColumn("colour", "text", not_null=True)),
            'ALTER COLUMN "colour" DROP NOT NULL',
            "colour: the table requires a value",
        ),
    ],
)
def test_what_may_lose_data_or_rewrite_the_table_is_refused_with_its_statement(
    spec: TableSpec, table: Table, statement: str, refusal: str
) -> None:
    ((got, why),) = changes(spec, table)
    assert got == f'ALTER TABLE "s"."things" {statement}'
    assert why is not None
    assert why.startswith(refusal)


def test_a_key_is_taken_off_before_its_columns_change_and_put_on_after() -> None:
    columns = (*COLUMNS[:2], Column(name="hour", type=ColumnType.NUMERIC), *COLUMNS[3:])
    table = replace(changed(hour=TableColumn("hour", "bigint", not_null=True)), limits={})
    got = changes(things(primary_key=("day", "hour"), columns=columns), table)
    why = "primary key: declared (day, hour), the table has (day, name)"
    assert got == [
        ('ALTER TABLE "s"."things" DROP CONSTRAINT "things_pkey"', why),
        ('ALTER TABLE "s"."things" ALTER COLUMN "name" DROP NOT NULL', None),
        (
            'ALTER TABLE "s"."things" ALTER COLUMN "hour" TYPE numeric USING "hour"::numeric',
            "hour: declared numeric, the table has bigint",
        ),
        ('ALTER TABLE "s"."things" ADD PRIMARY KEY ("day", "hour")', why),
    ]


def test_the_order_of_the_key_columns_is_no_change() -> None:
    assert changes(things(primary_key=("name", "day")), replace(AS_DECLARED, indexes={"things_day_idx": Index(("day",))})) == []


@pytest.mark.parametrize(
    "spec",
    [*TABLES.values(), *(things(COLOUR, WEIGHT, strategy=strategy) for strategy in Strategy)],
    ids=lambda spec: f"{spec.name}-{spec.loading.strategy}",
)
def test_a_table_that_was_just_created_is_as_declared(spec: TableSpec, conn: psycopg.Connection, schema: str) -> None:
    for statement in create_table(spec, schema):
        conn.execute(statement)
    table = read_table(conn, schema, spec.name)
    assert table is not None
    assert [change.statement.as_string() for change in needed_changes(spec, schema, table)] == []


def test_one_query_is_all_where_nothing_is_to_be_done(conn: psycopg.Connection, schema: str) -> None:
    ensure_table(Target(conn, things(), schema))
    queries: list[Any] = []

    class Counting(psycopg.Cursor[Any]):
        def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
            queries.append(query)
            return super().execute(query, *arguments, **options)

    conn.cursor_factory = Counting
    ensure_table(Target(conn, things(), schema))
    assert len(queries) == 1


def test_a_gained_column_is_added_with_the_data_and_earlier_rows_have_null(loads: Loads, plan: PlanName) -> None:
    loads([row(D1, "a")], things())
    window = {"direct": DayRange(D2, D2), "merge": DayRange(D1, D1)}[plan]
    source = wider([row(window.start, "b")], colour=["red"], weight=[3])
    result = loads(source, things(COLOUR, WEIGHT), window, allow_shrink=True)
    assert result.plan == plan
    assert [statement.partition("ADD COLUMN ")[2] for statement in result.migration] == [
        '"colour" text',
        '"weight" bigint CHECK ("weight" >=  -5) CHECK ("weight" <= 10)',
    ]
    assert loads.rows("SELECT name, colour, weight FROM things WHERE name = 'b'") == [("b", "red", 3)]
    assert loads.rows("SELECT colour FROM things WHERE name = 'a'") == ([(None,)] if plan == "direct" else [])
    assert loads(source, things(COLOUR, WEIGHT), window).migration == []


def test_an_index_that_was_added_by_hand_outlives_loads_and_migrations(
    loads: Loads, conn: psycopg.Connection, plan: PlanName
) -> None:
    loads([row(D1, "a")], things())
    conn.execute("CREATE INDEX by_name ON things (name, day) INCLUDE (money)")
    conn.execute("CREATE INDEX by_day ON things USING brin (day)")
    window = {"direct": DayRange(D2, D2), "merge": DayRange(D1, D1)}[plan]
    result = loads(wider([row(window.start, "a", "2")], colour=["red"]), things(COLOUR), window)
    assert (result.plan, len(result.migration)) == (plan, 1)
    indexes = (
        "SELECT relname::text FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE indrelid = 'things'::regclass ORDER BY 1"
    )
    assert loads.rows(indexes) == [("by_day",), ("by_name",), ("things_pkey",)]
    conn.execute("SET enable_seqscan = off")
    assert loads.rows("SELECT money::int FROM things WHERE name = 'a' AND colour = 'red'") == [(2,)]


def test_a_migration_is_undone_with_the_load_that_needed_it(loads: Loads, plan: PlanName) -> None:
    loads([row(D1, "a")], things())
    bad = wider([row(D1, "b"), row(D1, "c"), row(D1, "d", rate=float("nan"))], colour=["red"] * 3)
    with pytest.raises(ContractError, match="NaN"):
        loads(bad, things(COLOUR), plan=plan)
    assert "colour" not in loads.columns()


def test_a_required_column_on_a_table_with_rows_is_refused_and_what_it_says_to_run_helps(loads: Loads) -> None:
    loads([row(D1, "a")], things())
    source = wider([row(D1, "a")], id=[7])
    with pytest.raises(SchemaRefused, match=r"things.*\n  id: required(.|\n)*run these statements by hand") as caught:
        loads(source, things(ID))
    assert loads.rows("SELECT name FROM things") == [("a",)]
    run_by_hand(loads, str(caught.value))
    assert loads.rows("SELECT name FROM things_before") == [("a",)]
    loads(source, things(ID))
    assert loads.rows("SELECT name, id FROM things") == [("a", 7)]


def test_a_required_column_is_added_to_a_table_without_rows(loads: Loads) -> None:
    loads([], things())
    loads(wider([row(D1, "a")], id=[7]), things(ID))
    assert loads.rows("SELECT name, id FROM things") == [("a", 7)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (things(COLOUR), things()),
        (things(), things(columns=(*COLUMNS[:3], Column(name="money", type=ColumnType.DOUBLE), *COLUMNS[4:]))),
        (things(), things(primary_key=("day", "name", "hour"))),
        (things(), things(strategy="append")),
        (things(), things(strategy="scd2")),
        (things(strategy="scd2"), things()),
    ],
    ids=["column dropped", "type changed", "key changed", "to append", "to scd2", "from scd2"],
)
def test_a_refused_change_leaves_the_table_and_works_once_it_was_run_by_hand(
    loads: Loads, before: TableSpec, after: TableSpec
) -> None:
    source = wider([row(D1, "a")], colour=["red"])
    loads(source, before)
    was, columns = loads.addresses(), loads.columns()
    numbers = (
        source.set_column(3, "money", source["money"].cast("float64"))
        if after.column("money").type == "double precision"
        else source
    )
    with pytest.raises(SchemaRefused) as caught:
        loads(numbers, after)
    assert (loads.addresses(), loads.columns()) == (was, columns)
    run_by_hand(loads, str(caught.value))
    loads(numbers, after, allow_shrink=True)
    assert loads.rows("SELECT name FROM things") == [("a",)]


def test_types_that_only_lose_a_length_are_widened_without_a_rewrite(loads: Loads, conn: psycopg.Connection) -> None:
    loads([row(D1, "a", "2.50")], things())
    conn.execute("ALTER TABLE things ALTER money TYPE numeric(12, 2), ALTER name TYPE varchar(40), ALTER stamp TYPE timestamptz(3)")
    node = loads.rows("SELECT relfilenode FROM pg_class WHERE oid = 'things'::regclass")
    migration = loads([row(D1, "a", "2.505")], things()).migration
    assert len(migration) == 3
    assert loads.rows("SELECT relfilenode FROM pg_class WHERE oid = 'things'::regclass") == node
    assert loads.columns()["name"] == "text"
    assert [str(money) for (money,) in loads.rows("SELECT money FROM things")] == ["2.505000000"]


@pytest.mark.parametrize(
    ("limits", "accepted", "refused"),
    [({"minimum": 0, "maximum": 47}, 40, 48), ({"minimum": -1}, 99, -2), ({}, -99, None), ({"minimum": 0, "maximum": 8}, 8, 9)],
)
def test_limits_follow_the_declaration_for_rows_written_from_now_on(
    loads: Loads, conn: psycopg.Connection, limits: dict[str, int], accepted: int, refused: int | None
) -> None:
    loads([row(D1, "a", hour=23)], things())
    other = things(columns=(*COLUMNS[:2], Column(name="hour", type=ColumnType.INTEGER, **limits), *COLUMNS[3:]))
    loads([row(D1, "a", hour=accepted)], other)
    assert loads([row(D1, "a", hour=accepted)], other).migration == []
    if refused is not None:
        with pytest.raises(psycopg.errors.CheckViolation):
            conn.execute(sql.SQL("UPDATE things SET hour = {}").format(refused))


def test_a_column_that_is_no_longer_required_takes_null(loads: Loads) -> None:
    required = Column(name="money", type=ColumnType.NUMERIC, required=True)
    loads([row(D1, "a")], things(columns=(*COLUMNS[:3], required, *COLUMNS[4:])))
    loads([row(D1, "a", None)], things())
    assert loads.rows("SELECT money FROM things") == [(None,)]


def test_a_view_of_the_same_name_is_refused(loads: Loads, conn: psycopg.Connection) -> None:
    conn.execute("CREATE VIEW things AS SELECT 1 AS day")
    with pytest.raises(SchemaRefused, match="not an ordinary table"):
        loads([], things())


def test_a_role_that_may_not_create_tables_can_load_one_that_is_there(loads: Loads, conn: psycopg.Connection, schema: str) -> None:
    loads([row(D1, "a")], things())
    role = sql.Identifier(f"loader_{schema}")
    conn.execute(sql.SQL("CREATE ROLE {0}; GRANT {0} TO CURRENT_USER").format(role))
    conn.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), role))
    conn.execute(sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON things TO {}").format(role))
    try:
        conn.execute(sql.SQL("SET ROLE {}").format(role))
        loads([row(D1, "a", "2")], things())
    finally:
        conn.execute("RESET ROLE")
        conn.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))
    assert loads.rows("SELECT money::int FROM things") == [(2,)]


def run_by_hand(loads: Loads, message: str) -> None:
    """Runs the statements that a refusal ends with."""
    loads.conn.execute(message.partition("in this order:")[2].encode())
