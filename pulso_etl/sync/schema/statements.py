"""Every SQL statement of a load, built from the declaration with quoted names and bound values. Nothing runs here."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from datetime import date

from psycopg import sql

from pulso_etl.sync.postgres.identifiers import equal, listed
from pulso_etl.sync.schema.migration import create_table, version
from pulso_etl.sync.spec import DELETED, Column, Strategy, TableSpec

STAGE = sql.Identifier("pulso_stage")
DIFF = sql.Identifier("pulso_diff")
KEYS = sql.Identifier("pulso_keys")
"""The keys of all of the source's rows of some days, in a load that stages only some of these rows."""
MOST_COUNTED = 8
"""PostgreSQL counts the values of so many columns together, at most."""
VALUES = sql.Identifier("pulso_values")
"""The values that a load settles, in a table with `snapshot_of`; see `snapshots`."""


class Statements:
    """The statements for one table in one schema.

    `captured`: the stage holds only changed rows, with a mark on those that the source has deleted. The differences then look at
    the table's rows of these keys only. `carried` names the columns whose values a new version takes from the version before.
    `days`: the only days that the stage has; None if it has all days of the window. `in_full`: the days of which it has all rows;
    None if these are all its days. If the stage lacks a row of the table of another day, that row has not vanished.
    """

    def __init__(
        self,
        spec: TableSpec,
        schema: str,
        *,
        captured: bool = False,
        carried: tuple[str, ...] = (),
        days: Sequence[date] | None = None,
        in_full: Sequence[date] | None = None,
    ) -> None:
        self.spec = spec
        self.schema = schema
        self.carried = carried
        self.target = sql.Identifier(schema, spec.name)
        self.partition = sql.Identifier(spec.partition_column)
        self.columns = listed(spec.column_names)
        self.keys = listed(spec.primary_key)
        self.values = listed(spec.snapshot_of)
        self.same_key = equal(spec.primary_key, "t", "s")
        self.staged_values = listed(spec.column_names, "s")
        partitioned = spec.retention.partition_by is not None
        # Each partition has addresses of its own. With the window, the server skips the other partitions.
        self.part = sql.SQL(", tableoid AS pulso_part" if partitioned else "")
        self.diff_part = sql.SQL(", pulso_part" if partitioned else "")
        self.in_window = sql.SQL(" AND t.{} BETWEEN %(start)s AND %(end)s" if partitioned else "").format(self.partition)
        self.same_row = self._has_address("t")
        self.staged_days = (
            sql.SQL("{} BETWEEN %(start)s AND %(end)s").format(self.partition) if days is None else self._one_of(days)
        )
        self.in_full = in_full
        # Closed versions are history: a load never compares, counts or closes them again.
        self.current = sql.SQL("valid_to IS NULL" if spec.loading.strategy is Strategy.SCD2 else "true")
        self.kept = sql.SQL("WHERE NOT {}").format(sql.Identifier(DELETED.name)) if captured else sql.SQL("")
        self.with_old = sql.SQL("").format()
        self.told = sql.SQL("AND ({0}) IN (SELECT {0} FROM {1})").format(self.keys, STAGE) if captured else sql.SQL("")

    def beside_old(self) -> Statements:
        """The same statements. Those that update a row also join it as it was before, under the name `o`."""
        joined = copy(self)
        joined.with_old = sql.SQL(" JOIN {} o ON {}").format(self.target, self._has_address("o"))
        return joined

    def create_table(self) -> list[sql.Composed]:
        """The table with its key, checks and indexes."""
        return create_table(self.spec, self.schema)

    def lock_target(self, sole_writer: bool) -> sql.Composed:
        """Locks the table; readers go on. A sole writer makes every other writer wait. Without it, only changes of the table's
        definition wait."""
        mode = "SHARE ROW EXCLUSIVE" if sole_writer else "ROW EXCLUSIVE"
        return sql.SQL("LOCK TABLE {} IN {} MODE").format(self.target, sql.SQL(mode))

    def rows_by_day(self) -> sql.Composed:
        return sql.SQL("SELECT {0}, count(*) FROM {1} WHERE {0} BETWEEN %(start)s AND %(end)s AND {2} GROUP BY 1").format(
            self.partition, self.target, self.current
        )

    def imprint_by_day(self, sums: Sequence[sql.Composable] = ()) -> sql.Composed:
        """Of each day: the number of rows, a sum that tells where each row lies and which transaction wrote it, how many rows were
        written by the transaction %(since)s and later ones, and `sums`: aggregates over the rows that add up.

        The number of a transaction has to become text before it becomes a number. Few transactions write the rows of a day, so this
        happens once for each of them, and not for each row. Numbers of transactions begin anew after 2^32: of two numbers, the one
        is younger that is less than half of that ahead. The function `age` says the same, but keeps parallel workers out.
        """
        names = [sql.Identifier(f"pulso_sum{place}") for place in range(len(sums))]
        return sql.SQL(
            "SELECT {0}, sum(pulso_rows)::bigint, sum(hash_numeric_extended(pulso_places, xmin::text::bigint)), "
            "coalesce(sum(pulso_rows) FILTER (WHERE (xmin::text::bigint - %(since)s::bigint) & 4294967295 < 2147483648), 0)::bigint"
            "{4} FROM (SELECT {0}, xmin, count(*) AS pulso_rows, sum(hashtidextended(ctid, 0)) AS pulso_places{5} "
            "FROM {1} WHERE {2} AND {3} GROUP BY 1, 2) AS pulso_written GROUP BY 1"
        ).format(
            *(self.partition, self.target, self.staged_days, self.current),
            sql.Composed([sql.SQL(", sum({})").format(name) for name in names]),
            sql.Composed([sql.SQL(", {} AS {}").format(one, name) for one, name in zip(sums, names, strict=True)]),
        )

    def holds_rows(self) -> sql.Composed:
        """Whether the table has rows, history included, that can conflict with rows of the range."""
        # If a key can be in several partitions, rows outside of the range can conflict too.
        where = (
            sql.SQL("{} BETWEEN %(start)s AND %(end)s").format(self.partition) if self.spec.partition_in_key else sql.SQL("true")
        )
        return sql.SQL("SELECT FROM {} WHERE {} LIMIT 1").format(self.target, where)

    def copy(self, into: sql.Identifier, columns: Sequence[str] | None = None) -> sql.Composed:
        """`columns`: the columns that come; all of them unless they are given."""
        named = self.columns if columns is None else listed(columns)
        return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(into, named)

    def create_stage(self, text_columns: frozenset[str]) -> sql.Composed:
        """`text_columns` are the columns whose values arrive as text and have another type."""
        # Columns of a fixed width come first: the server finds them in a row without reading other columns.
        lines = [
            sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(_as_text(c) if c.name in text_columns else c.sql_type))
            for c in sorted(self.spec.columns, key=lambda column: not column.has_width)
        ]
        return sql.SQL("CREATE TEMP TABLE {} ({}) ON COMMIT DROP").format(STAGE, sql.SQL(", ").join(lines))

    def read_text(self, text_columns: frozenset[str]) -> sql.Composed:
        changes = [
            sql.SQL("ALTER COLUMN {0} TYPE {1} USING {0}::{1}").format(
                sql.Identifier(name), sql.SQL(self.spec.column(name).sql_type)
            )
            for name in sorted(text_columns)
        ]
        return sql.SQL("ALTER TABLE {} {}").format(STAGE, sql.SQL(", ").join(changes))

    def analyze_stage(self) -> sql.Composed:
        """Collects statistics of the columns by which the stage is joined. The planner needs no other statistics.

        If the stage has only a part of a day's rows, a wrong plan costs most: the server would read the whole table.
        """
        return (
            sql.SQL("ANALYZE {} ({})").format(STAGE, self.keys)
            if self.in_full is None
            else self._analyze_by_key(STAGE, "pulso_stage_by_key")
        )

    def analyze_keys(self) -> sql.Composed:
        """Collects statistics of KEYS, as of the stage."""
        return self._analyze_by_key(KEYS, "pulso_keys_by_key")

    def _analyze_by_key(self, staged: sql.Identifier, counted: str) -> sql.Composed:
        """Collects statistics of the keys of a temporary table that has each key once, or nearly so.

        From the columns one by one, the planner takes each key for many rows, and looks rows up from the wrong side, or sorts both
        sides. PostgreSQL 18 and later versions use how many keys there are.
        """
        analyze = sql.SQL("ANALYZE {} ({})").format(staged, self.keys)
        if not 1 < len(self.spec.primary_key) <= MOST_COUNTED:
            return analyze
        return sql.SQL("CREATE STATISTICS {} (ndistinct) ON {} FROM {}; {}").format(
            *(sql.Identifier("pg_temp", counted), self.keys, staged, analyze)
        )

    def deletions_by_day(self) -> sql.Composed:
        """How many staged rows of each day the source has deleted."""
        return sql.SQL("SELECT {}, count(*) FROM {} WHERE {} GROUP BY 1").format(
            self.partition, STAGE, sql.Identifier(DELETED.name)
        )

    def duplicates(self) -> sql.Composed:
        """Keys that occur more than once (with a version column: more than once with the same version), and their number."""
        version = self.spec.version_column
        by = self.keys if version is None else sql.SQL("{}, {}").format(self.keys, sql.Identifier(version))
        return sql.SQL(
            "SELECT {keys}, count(*) AS pulso_copies, count(*) OVER () AS pulso_duplicated FROM {stage} "
            "GROUP BY {by} HAVING count(*) > 1 LIMIT 1"
        ).format(keys=self.keys, stage=STAGE, by=by)

    def days_with_duplicates(self, days: Sequence[date]) -> sql.Composed:
        """Those of these days of which the stage has a key more than once."""
        return sql.SQL("SELECT DISTINCT {} FROM {} WHERE {} GROUP BY {} HAVING count(*) > 1").format(
            self.partition, STAGE, self._one_of(days), self.keys
        )

    def taken_keys(self) -> sql.Composed:
        """Whether the table has rows of keys that are new by the differences."""
        return sql.SQL(
            "SELECT FROM {} d JOIN {} s ON s.ctid = d.pulso_sid JOIN {} t ON {} WHERE d.pulso_tid IS NULL AND {} LIMIT 1"
        ).format(DIFF, STAGE, self.target, self.same_key, self.current)

    def keys_by_day(self) -> sql.Composed:
        """The number of keys of each day in the stage, for tables whose days own their rows."""
        return sql.SQL("SELECT {}, count(*) FROM (SELECT DISTINCT {} FROM {}) k GROUP BY 1").format(
            self.partition, self.keys, STAGE
        )

    def create_diff(self) -> sql.Composed:
        """One pass over stage and table. A new row has only `pulso_sid`, a vanished row only `pulso_tid`, a changed row both."""
        changed = (
            sql.SQL("({}) IS DISTINCT FROM ({})").format(
                listed(self.spec.compared_columns, "t"), listed(self.spec.compared_columns, "s")
            )
            if self.spec.compared_columns
            else sql.SQL("false")
        )
        stage, looked_at = self.newest_staged(), sql.SQL("true").format()
        target = sql.SQL("(SELECT ctid AS pulso_tid, * FROM {} WHERE {})").format(self.target, self.current)
        join, day = sql.SQL("LEFT JOIN"), sql.SQL("s.{}").format(self.partition)
        if self.spec.version_column is not None and not self.spec.partition_in_key:
            changed = sql.SQL("{} >= {} AND {}").format(version(self.spec, "s"), version(self.spec, "t"), changed)
        if self.spec.snapshot_of:
            stage = sql.SQL("(SELECT s.ctid AS pulso_sid, pulso_day, s.* FROM {} s JOIN {} v ON {})").format(
                STAGE, VALUES, self.same_value("s")
            )
            target = sql.SQL("(SELECT t.ctid AS pulso_tid, pulso_day, t.* FROM {} t JOIN {} v ON {} WHERE {})").format(
                self.target, VALUES, self.same_value("t"), self.current
            )
            join, day = sql.SQL("FULL JOIN"), sql.SQL("coalesce(s.pulso_day, t.pulso_day)").format()
        if self.spec.partition_in_key:
            target = sql.SQL("(SELECT ctid AS pulso_tid{}, * FROM {} WHERE {} AND {} {})").format(
                self.part, self.target, self.staged_days, self.current, self.told
            )
            join, day = sql.SQL("FULL JOIN"), sql.SQL("coalesce(s.{0}, t.{0})").format(self.partition)
        if self.in_full:
            looked_at = sql.SQL("(pulso_sid IS NOT NULL OR {})").format(self._one_of(self.in_full, "t"))
        elif self.in_full is not None:
            # No day is staged as a whole, so the stage does not show which rows have vanished.
            join, day = sql.SQL("LEFT JOIN"), sql.SQL("s.{}").format(self.partition)
        return sql.SQL(
            "CREATE TEMP TABLE {diff} ON COMMIT DROP AS SELECT pulso_sid, pulso_tid{part}, {day} AS pulso_day "
            "FROM {stage} s {join} {target} t ON {same} "
            "WHERE {looked_at} AND (pulso_sid IS NULL OR pulso_tid IS NULL OR ({changed}))"
        ).format(
            diff=DIFF,
            part=self.diff_part,
            day=day,
            stage=stage,
            join=join,
            target=target,
            same=self.same_key,
            looked_at=looked_at,
            changed=changed,
        )

    def create_keys(self) -> sql.Composed:
        """An empty table for the keys of rows, in the types of the stage."""
        return sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(KEYS, self.keys, STAGE)

    def add_vanished(self, days: Sequence[date]) -> sql.Composed:
        """Adds the rows of these days to the differences that the source no longer has. KEYS has the keys of those that it has."""
        return sql.SQL(
            "INSERT INTO {diff} SELECT NULL, ctid{part}, {day} FROM {target} t "
            "WHERE {those} AND {current} AND NOT EXISTS (SELECT FROM {keys} s WHERE {same})"
        ).format(
            diff=DIFF,
            part=sql.SQL(", tableoid" if self.spec.retention.partition_by else ""),
            day=self.partition,
            target=self.target,
            those=self._one_of(days, "t"),
            current=self.current,
            keys=KEYS,
            same=self.same_key,
        )

    def newest_staged(self) -> sql.Composed:
        """The staged rows with their addresses; only the newest version of each key."""
        if self.spec.version_column is None:
            return sql.SQL("(SELECT ctid AS pulso_sid, * FROM {} {})").format(STAGE, self.kept)
        return sql.SQL("(SELECT DISTINCT ON ({0}) s.ctid AS pulso_sid, s.* FROM {1} s ORDER BY {0}, {2} DESC)").format(
            self.keys, STAGE, version(self.spec, "s")
        )

    def same_value(self, alias: str) -> sql.Composed:
        """The condition that a row has the value of the row `v` of VALUES."""
        return equal(self.spec.snapshot_of, alias, "v")

    def create_values(self, kept: sql.Identifier | None, newer: sql.Composable | None = None) -> sql.Composed:
        """Creates VALUES: the values in the stage, in `kept` and in the table's rows of the range.

        It leaves out values of which the table holds a snapshot after the range, and values `v` that meet the condition `newer`.
        """
        rows = sql.SQL("SELECT {}, {} FROM {}")
        given = sql.SQL(" UNION ALL ").join(
            rows.format(self.values, self.partition, staged) for staged in (STAGE, kept) if staged is not None
        )
        return sql.SQL(
            "CREATE TEMP TABLE {result} ON COMMIT DROP AS SELECT v.* FROM ("
            "WITH pulso_given AS (SELECT {values}, max({day}) AS pulso_newest FROM ({given}) g GROUP BY {values}), "
            "pulso_known AS (SELECT {values} FROM pulso_given "
            "UNION SELECT {values} FROM {target} WHERE {day} BETWEEN %(start)s AND %(end)s AND {current}) "
            "SELECT {values}, pulso_newest, "
            "coalesce(CASE WHEN pulso_newest < %(start)s THEN %(start)s ELSE pulso_newest END, max({day})) AS pulso_day, "
            "count({day}) AS pulso_held FROM pulso_known LEFT JOIN pulso_given USING ({values}) "
            "LEFT JOIN (SELECT {values}, {day} FROM {target} WHERE {current}) t USING ({values}) "
            "GROUP BY {values}, pulso_newest HAVING max({day}) IS NULL OR max({day}) <= %(end)s) v WHERE NOT {newer}"
        ).format(
            result=VALUES,
            values=self.values,
            day=self.partition,
            given=given,
            target=self.target,
            current=self.current,
            newer=newer or sql.SQL("false"),
        )

    def withdrawn_values(self) -> sql.Composed:
        """The values that rows of the range have in the table and that the source no longer has."""
        return sql.SQL("SELECT {} FROM {} WHERE pulso_newest IS NULL").format(self.values, VALUES)

    def drop_superseded(self, staged: sql.Identifier) -> sql.Composed:
        """Deletes rows that belong to no newest snapshot from the stage, or from a table with the stage's columns."""
        return sql.SQL("DELETE FROM {} s WHERE NOT EXISTS (SELECT FROM {} v WHERE {} AND v.pulso_newest = s.{})").format(
            staged, VALUES, self.same_value("s"), self.partition
        )

    def rows_by_value(self) -> sql.Composed:
        """The number of the table's rows of each value, before and after the differences."""
        return sql.SQL(
            "SELECT {values}, pulso_held, pulso_held + coalesce(pulso_more, 0) FROM {known} LEFT JOIN "
            "(SELECT {values}, sum(pulso_more)::bigint AS pulso_more FROM ("
            "SELECT {staged}, 1 AS pulso_more FROM {diff} d JOIN {stage} s ON s.ctid = d.pulso_sid WHERE d.pulso_tid IS NULL "
            "UNION ALL SELECT {held}, -1 FROM {diff} d JOIN {target} t ON {same_row} WHERE d.pulso_sid IS NULL) m "
            "GROUP BY {values}) m USING ({values}) WHERE pulso_held > 0 ORDER BY {values}"
        ).format(
            values=self.values,
            known=VALUES,
            staged=listed(self.spec.snapshot_of, "s"),
            held=listed(self.spec.snapshot_of, "t"),
            diff=DIFF,
            stage=STAGE,
            target=self.target,
            same_row=self.same_row,
        )

    def staged_by_day(self) -> sql.Composed:
        """How many rows the stage has of each day."""
        return sql.SQL("SELECT {}, count(*) FROM {} GROUP BY 1").format(self.partition, STAGE)

    def settled_by_day(self) -> sql.Composed:
        """How many rows the table holds of each day, counting only the values that the load settles."""
        return sql.SQL("SELECT t.{}, count(*) FROM {} t JOIN {} v ON {} WHERE {} GROUP BY 1").format(
            self.partition, self.target, VALUES, self.same_value("t"), self.current
        )

    def count_diff(self) -> sql.Composed:
        return sql.SQL(
            "SELECT pulso_day, count(*) FILTER (WHERE pulso_tid IS NULL), "
            "count(*) FILTER (WHERE pulso_sid IS NOT NULL AND pulso_tid IS NOT NULL), "
            "count(*) FILTER (WHERE pulso_sid IS NULL) FROM {} GROUP BY pulso_day"
        ).format(DIFF)

    def delete_vanished(self) -> sql.Composed:
        return sql.SQL("DELETE FROM {} t USING {} d WHERE {} AND d.pulso_sid IS NULL").format(self.target, DIFF, self.same_row)

    def update_changed(self) -> sql.Composed:
        pairs = [sql.SQL("{0} = s.{0}").format(sql.Identifier(name)) for name in self.spec.value_columns]
        return sql.SQL("UPDATE {} t SET {}, updated_at = now() FROM {} d JOIN {} s ON s.ctid = d.pulso_sid{} WHERE {}").format(
            self.target, sql.SQL(", ").join(pairs), DIFF, STAGE, self.with_old, self.same_row
        )

    def insert_new(self) -> sql.Composed:
        return sql.SQL(
            "INSERT INTO {target} AS n ({columns}) SELECT {values} FROM {stage} s JOIN {diff} d ON s.ctid = d.pulso_sid "
            "WHERE d.pulso_tid IS NULL"
        ).format(
            target=self.target,
            columns=self.columns,
            values=self.staged_values,
            stage=STAGE,
            diff=DIFF,
        )

    def select(self, names: Sequence[str]) -> sql.Composed:
        """The columns of those names, for the rows of the range."""
        return sql.SQL("SELECT {} FROM {} WHERE {} BETWEEN %(start)s AND %(end)s AND {} ORDER BY {}").format(
            listed(names), self.target, self.partition, self.current, self.keys
        )

    def _one_of(self, days: Sequence[date], alias: str | None = None) -> sql.Composed:
        """The condition that a row is of one of these days."""
        return sql.SQL("{} = ANY ({}::date[])").format(listed([self.spec.partition_column], alias), sql.Literal(list(days)))

    def _has_address(self, alias: str) -> sql.Composed:
        """The condition that a row of the table is the one of the row `d` of DIFF."""
        same = sql.SQL("{0}.ctid = d.pulso_tid").format(sql.Identifier(alias))
        if self.spec.retention.partition_by is None:
            return same
        return same + sql.SQL(" AND {0}.tableoid = d.pulso_part AND {0}.{1} BETWEEN %(start)s AND %(end)s").format(
            sql.Identifier(alias), self.partition
        )


def _as_text(column: Column) -> str:
    return "text[]" if column.repeated else "text"
