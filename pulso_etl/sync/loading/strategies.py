"""The write strategies: how staged rows become rows of the table.

A strategy is a way to find the differences, and the statements that write them. Differences are rows of `pulso_diff`: `pulso_sid`
is the address of a row in the stage, `pulso_tid` the address of a row in the table. The first alone is a row to insert, both
together are a row to change, and the second alone is a row to remove. The statements decide what to write for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg import sql

from pulso_etl.sync.postgres.identifiers import listed
from pulso_etl.sync.schema.statements import DIFF, STAGE, Statements
from pulso_etl.sync.spec import Strategy

Build = Callable[[Statements], sql.Composed]
INSTANT = sql.Identifier("pulso_instant")


@dataclass(frozen=True)
class Write:
    """A statement that is run if one of these counts (`inserted`, `updated`, `deleted`) is above zero.

    `by_address`: it finds the rows by their addresses, and writes exactly as many as the counts add up to. `old` and `new`: how
    the statement calls the row as it was and the row as it is; empty if there is none. With `o`, it needs `beside_old`.
    """

    counts: tuple[str, ...]
    statement: Build
    by_address: bool = False
    old: str = ""
    new: str = ""


@dataclass(frozen=True)
class WriteStrategy:
    """The statements of a strategy. `unique`: a key occurs once. `removes`: rows can leave the table, and the guard watches them.

    `counts_duplicates`: a key that the stage holds twice shows in the number of differences, or breaks the primary key.
    """

    create_diff: Build
    writes: tuple[Write, ...]
    unique: bool = True
    removes: bool = True
    counts_duplicates: bool = False


def replacement(s: Statements) -> sql.Composed:
    """Every row of the range is deleted and every row of the stage is inserted; nothing is compared."""
    return sql.SQL(
        "CREATE TEMP TABLE {diff} ON COMMIT DROP AS SELECT NULL::tid AS pulso_sid, ctid AS pulso_tid{part}, {day} AS pulso_day "
        "FROM {target} WHERE {day} BETWEEN %(start)s AND %(end)s UNION ALL SELECT ctid, NULL{none}, {day} FROM {stage}"
    ).format(
        diff=DIFF,
        part=s.part,
        none=sql.SQL(", NULL" if s.spec.retention.partition_by else ""),
        day=s.partition,
        target=s.target,
        stage=STAGE,
    )


def missing(s: Statements) -> sql.Composed:
    """For each key, the staged rows that the range lacks. If the stage has three rows of a key and the range two, it lacks one.

    Rows with equal values are matched first. Every other row of the range is an earlier state of one of the other staged rows, and
    nobody can tell which. So the greatest staged rows are added. Rows are compared by their values in the order of the
    declaration; null is greatest.
    """
    return sql.SQL(
        "CREATE TEMP TABLE {diff} ON COMMIT DROP AS "
        "WITH pulso_rows AS NOT MATERIALIZED (SELECT ctid AS pulso_sid, {columns} FROM {stage} "
        "UNION ALL SELECT NULL, {columns} FROM {target} WHERE {staged_days}), "
        "pulso_keys AS (SELECT {keys} FROM pulso_rows GROUP BY {keys} HAVING count(pulso_sid) > count(*) - count(pulso_sid)), "
        "pulso_copies AS (SELECT *, row_number() OVER (PARTITION BY {values}, pulso_sid IS NULL) AS pulso_copy "
        "FROM pulso_rows WHERE ({keys}) IN (SELECT {keys} FROM pulso_keys)), "
        "pulso_pairs AS (SELECT *, count(*) OVER (PARTITION BY {values}, pulso_copy) AS pulso_sides FROM pulso_copies), "
        "pulso_rest AS (SELECT pulso_sid, {day}, row_number() OVER (PARTITION BY {keys}, pulso_sid IS NULL ORDER BY {order}) "
        "AS pulso_place, count(*) FILTER (WHERE pulso_sid IS NULL) OVER (PARTITION BY {keys}) AS pulso_changed "
        "FROM pulso_pairs WHERE pulso_sides = 1) "
        "SELECT pulso_sid, NULL::tid AS pulso_tid{part}, {day} AS pulso_day FROM pulso_rest "
        "WHERE pulso_sid IS NOT NULL AND pulso_place > pulso_changed"
    ).format(
        diff=DIFF,
        columns=s.columns,
        stage=STAGE,
        target=s.target,
        staged_days=s.staged_days,
        day=s.partition,
        keys=s.keys,
        values=listed((*s.spec.primary_key, *s.spec.compared_columns)),
        order=listed((*s.spec.compared_columns, *s.spec.stamp_columns, *s.spec.primary_key)),
        part=sql.SQL(", NULL::oid AS pulso_part" if s.spec.retention.partition_by else ""),
    )


def instant(s: Statements) -> sql.Composed:
    """The instant at which this load closes and opens versions: now, or later if the history of their keys ends later than now."""
    return sql.SQL(
        "CREATE TEMP TABLE {instant} ON COMMIT DROP AS SELECT greatest(clock_timestamp(), "
        "(SELECT max(t.valid_from) + interval '1 microsecond' FROM {target} t JOIN {diff} d ON {same_row}), "
        "(SELECT max(t.valid_to) FROM {diff} d JOIN {stage} s ON s.ctid = d.pulso_sid JOIN {target} t ON {same}{in_window} "
        "WHERE d.pulso_tid IS NULL)) AS at"
    ).format(instant=INSTANT, target=s.target, diff=DIFF, stage=STAGE, same=s.same_key, same_row=s.same_row, in_window=s.in_window)


def close_versions(s: Statements) -> sql.Composed:
    return sql.SQL("UPDATE {} t SET valid_to = i.at, updated_at = now() FROM {} i, {} d{} WHERE {}").format(
        s.target, INSTANT, DIFF, s.with_old, s.same_row
    )


def open_versions(s: Statements) -> sql.Composed:
    # The previous version, closed at the same instant, has the values that the source no longer gives.
    carried = sql.SQL("LEFT JOIN {} t ON {} AND t.valid_to = i.at").format(s.target, s.same_key) if s.carried else sql.SQL("")
    return sql.SQL(
        "INSERT INTO {} AS n ({}, valid_from) SELECT {}, i.at FROM {} s JOIN {} d ON s.ctid = d.pulso_sid CROSS JOIN {} i {}"
    ).format(
        s.target,
        listed((*s.spec.column_names, *s.carried)),
        sql.SQL(", ").join([s.staged_values, *(sql.Identifier("t", name) for name in s.carried)]),
        *(STAGE, DIFF, INSTANT, carried),
    )


DELETE = Write(("deleted",), Statements.delete_vanished, by_address=True, old="t")
INSERT = Write(("inserted",), Statements.insert_new, new="n")

STRATEGIES: dict[Strategy, WriteStrategy] = {
    Strategy.UPSERT: WriteStrategy(
        Statements.create_diff,
        (
            DELETE,
            Write(("updated",), Statements.update_changed, by_address=True, old="o", new="t"),
            INSERT,
        ),
        counts_duplicates=True,
    ),
    Strategy.REPLACE_PARTITION: WriteStrategy(
        replacement,
        (DELETE, INSERT),
    ),
    Strategy.APPEND: WriteStrategy(missing, (INSERT,), unique=False, removes=False),
    Strategy.SCD2: WriteStrategy(
        Statements.create_diff,
        (
            Write(("inserted", "updated", "deleted"), instant),
            Write(("updated", "deleted"), close_versions, by_address=True, old="o", new="t"),
            Write(("inserted", "updated"), open_versions, new="n"),
        ),
    ),
}


def statements_in_order(s: Statements) -> list[sql.Composed]:
    """The main statements of a load that compares whole days which hold rows, for people to read."""
    strategy = STRATEGIES[s.spec.loading.strategy]
    return [
        *s.create_table(),
        s.lock_target(not s.spec.partition_in_key),
        s.rows_by_day(),
        s.create_stage(frozenset()),
        s.copy(STAGE),
        *([s.duplicates()] if strategy.unique else []),
        strategy.create_diff(s),
        s.count_diff(),
        *(write.statement(s) for write in strategy.writes),
    ]
