"""What the texts of a statement and of the views under it say, parsed and never run. Pure functions.

They say whether a result depends on anything but the base tables' rows, and whether each day of a result is made of one day of a
base table. Where a text is not understood, the answer is the careful one: there is no signal.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache

import sqlglot
from sqlglot import TokenType, exp
from sqlglot.errors import SqlglotError
from sqlglot.optimizer.scope import Scope, build_scope

from pulso_etl.sync.errors import SourceError

CLOCKS = (exp.CurrentTimestamp, exp.CurrentDate, exp.CurrentDatetime, exp.CurrentTime)
UNSTEADY = (exp.Rand, exp.Uuid, exp.SessionUser, exp.TableSample, exp.Predict, exp.Version)
"""What gives another result over the same rows: chance, the reader, a sample, a model, an instant of the past."""
UNKNOWN_BUILT_IN = {"IEEE_DIVIDE", "ST_GEOGPOINT", "ST_ASTEXT", "SEARCH", "ERROR", "RANGE", "RANGE_START", "RANGE_END"}
"""Functions of BigQuery that the parser does not know, and that depend on their arguments alone."""
OUTSIDE = re.compile(r"@ ?@|\bINFORMATION_SCHEMA\b|\bEXTERNAL_QUERY\b", re.IGNORECASE)
"""What no base table holds: system variables, metadata, other databases."""
TEXTS = {TokenType.STRING, TokenType.RAW_STRING, TokenType.BYTE_STRING}


class NotUnderstood(SourceError):
    """A text that the parser does not understand, or that names what cannot be followed. The message says which, for people."""


@lru_cache(maxsize=256)
def parsed(text: str) -> exp.Query:
    """The query in the text, which nobody may change. Raises NotUnderstood."""
    try:
        found = sqlglot.parse(text, read="bigquery")
    except SqlglotError as error:
        raise NotUnderstood(f"its SQL is not understood ({str(error).splitlines()[0]})") from None
    if len(found) != 1 or not isinstance(found[0], exp.Query):
        raise NotUnderstood("its SQL is more than one query")
    return found[0]


def full_name(table: exp.Table, project: str) -> str:
    """`project.dataset.table` of a table in a text; a name without project belongs to `project`."""
    return ".".join((table.catalog or project, table.db, table.name))


def tables_in(text: str, project: str) -> set[str]:
    """The full names of the tables and views that the text names. Raises NotUnderstood."""
    query = parsed(text)
    own = {cte.alias.lower() for cte in query.find_all(exp.CTE)}
    found = set()
    for table in query.find_all(exp.Table):
        if not isinstance(table.this, exp.Identifier):
            raise NotUnderstood(f"it reads the function {table.sql('bigquery')}")
        if table.db:
            if "*" in table.name:
                raise NotUnderstood(f"it reads the wildcard table {table.name}")
            found.add(full_name(table, project))
        elif table.name.lower() not in own:
            raise NotUnderstood(f"it names {table.name} without a dataset")
    return found


def unsteady(text: str, stamps: Collection[str]) -> str | None:
    """Why the text's result may change although no row of its tables does; None if it can't. Raises NotUnderstood.

    A clock may fill a column of `stamps`, which marks no row as changed. Then nothing but the column itself may use it.
    """
    query, stamped = parsed(text), {name.lower() for name in stamps}
    words = " ".join(token.text for token in sqlglot.tokenize(text, read="bigquery") if token.token_type not in TEXTS)
    if found := OUTSIDE.search(words):
        return f"it uses {found[0].replace(' ', '')}"
    for node in query.walk():
        if isinstance(node, UNSTEADY):
            return f"it uses {node.sql('bigquery')}"
        if (isinstance(node, exp.Dot) and node.find(exp.Func)) or isinstance(node, exp.Anonymous):
            name = node.sql("bigquery")
            if not (isinstance(node, exp.Anonymous) and str(node.this).upper() in UNKNOWN_BUILT_IN):
                return f"it calls {name.split('(')[0]}, which may be a user's function"
        if isinstance(node, CLOCKS) and _filled_by(node) not in stamped:
            return f"it uses {node.sql('bigquery')}"
    return _use_of_a_stamp(query, stamped) if stamped else None


def _use_of_a_stamp(query: exp.Query, stamped: Collection[str]) -> str | None:
    """Why a column that a clock may fill may change another column; None if it is only passed on."""
    rows = {source.alias_or_name.lower() for source in query.find_all(exp.Table, exp.Subquery, exp.CTE)}
    for column in query.find_all(exp.Column):
        name = column.name.lower()
        if name in stamped and not _only_passed(column):
            return f"it uses {column.name}, which a clock may fill"
        if name in rows and not column.table:
            return f"it uses the whole row {column.name}, whose {min(stamped)} a clock may fill"
    for select in query.find_all(exp.Select):
        if select.args.get("kind") == "STRUCT" and any(item.is_star for item in select.selects):
            return f"it uses the whole row of SELECT AS STRUCT, whose {min(stamped)} a clock may fill"
    joined = {name.name.lower() for join in query.find_all(exp.Join) for name in join.args.get("using") or ()}
    return next((f"it uses {name}, which a clock may fill" for name in sorted(joined & set(stamped))), None)


def _filled_by(node: exp.Expr) -> str | None:
    """The output column of a SELECT that the node helps to make; None if it does something else."""
    while node.parent is not None and not isinstance(node.parent, exp.Select):
        node = node.parent
    return node.alias_or_name.lower() if node.parent is not None and node.arg_key == "expressions" else None


def _only_passed(column: exp.Column) -> bool:
    item = column.parent if isinstance(column.parent, exp.Alias) else column
    return isinstance(item.parent, exp.Select) and item.arg_key == "expressions" and item.alias_or_name == column.name


def day_column(statement: str, views: Mapping[str, str], table: str, column: str, project: str) -> str | None:
    """The column of the base table `table` that arrives unchanged as the output column `column` of the statement.

    Then each day of the result is made of rows of that day of the base table (and of other tables). None if that is not certain.
    `views` has the texts by full name. Raises NotUnderstood.
    """
    return _Path(views, table, project).of(_scope(statement), column)


def _scope(text: str) -> Scope:
    scope = build_scope(parsed(text))
    if scope is None:
        raise NotUnderstood("its SQL is no query")
    return scope


class _Path:
    """The way of one column from a base table up to a query's output."""

    def __init__(self, views: Mapping[str, str], table: str, project: str) -> None:
        self.views, self.table, self.project = views, table, project

    def of(self, scope: Scope, column: str) -> str | None:
        """The base table's column that is this column of the scope; None if rows of several days may meet in one row."""
        query = scope.expression
        if isinstance(query, exp.Union) and not query.args.get("distinct"):
            return self._of_union(query, scope.union_scopes, column)
        if not isinstance(query, exp.Select) or any(query.args.get(part) for part in ("limit", "offset", "qualify", "pivots")):
            return None
        if any(item.find(exp.Window) for item in query.selects):
            return None
        given = self._given(query, column)
        if given is None or not self._is_one_day(query, given, column):
            return None
        sources = scope.selected_sources
        name = given.table or (next(iter(sources)) if len(sources) == 1 else "")
        if name not in sources or not self._keeps_rows(query, name):
            return None
        others = [source for other, (_, source) in sources.items() if other != name]
        if any(map(self.reads, others)) or any(map(self.reads, scope.subquery_scopes)):
            return None
        return self._of_source(sources[name][1], given.name)

    def _of_union(self, query: exp.Union, branches: list[Scope], column: str) -> str | None:
        """UNION ALL, in whose branches columns go by place."""
        names = query.named_selects
        if column not in names or "*" in names:
            return None
        place = names.index(column)
        found: set[str | None] = set()
        for branch in filter(self.reads, branches):
            own = branch.expression.named_selects if isinstance(branch.expression, exp.Query) else ["*"]
            found.add(None if "*" in own else self.of(branch, own[place]))
        return found.pop() if len(found) == 1 else None

    def _of_source(self, source: exp.Expr | Scope, column: str) -> str | None:
        if isinstance(source, Scope):
            return self.of(source, column)
        if not isinstance(source, exp.Table) or source.args.get("pivots"):
            return None
        name = full_name(source, self.project)
        if name == self.table:
            return column
        return self.of(_scope(self.views[name]), column) if name in self.views else None

    def _given(self, query: exp.Select, column: str) -> exp.Column | None:
        """The column of a source that this output column is."""
        for item in query.selects:
            if item.is_star:
                changes = [*item.find_all(exp.Star)]
                if any(star.args.get("except_") or star.args.get("except") or star.args.get("replace") for star in changes):
                    return None
                table = item.args.get("table") if isinstance(item, exp.Column) else None
                return exp.column(column, table=table.copy() if table else None)
            if item.alias_or_name == column:
                given = item.unalias()
                return given if isinstance(given, exp.Column) else None
        return None

    def _is_one_day(self, query: exp.Select, given: exp.Column, column: str) -> bool:
        """Whether a row of the query is made of rows that agree in that column."""
        group = query.args.get("group")
        if group is None:
            return not any(item.find(exp.AggFunc) for item in query.selects)
        if any(group.args.get(part) for part in ("all", "rollup", "cube", "grouping_sets")):
            return False
        items = {item.alias_or_name: (str(number), item.unalias()) for number, item in enumerate(query.selects, 1)}
        place, _ = items.get(column, ("*", None))
        for key in group.expressions:
            if isinstance(key, exp.Literal) and key.name == place:
                return True
            # Without a table before it, the name of an output column wins over that of a source's column.
            if isinstance(key, exp.Column) and not key.table and key.name in items:
                key = items[key.name][1]
            if isinstance(key, exp.Column) and key.name == given.name and key.table in ("", given.table):
                return True
        return False

    def _keeps_rows(self, query: exp.Select, name: str) -> bool:
        """Whether each row of the query has a row of that source: no outer join adds rows without one."""
        for join in query.args.get("joins") or ():
            outer = join.side in ("RIGHT", "FULL") or (join.side == "LEFT" and join.alias_or_name == name)
            if outer or join.kind in ("SEMI", "ANTI"):
                return False
        return True

    def reads(self, source: exp.Expr | Scope) -> bool:
        """Whether anything in that source reads the base table."""
        if isinstance(source, Scope):
            return any(self.reads(table) for table in self._tables_of(source))
        if not isinstance(source, exp.Table) or not source.db:
            return False
        name = full_name(source, self.project)
        return name == self.table or (name in self.views and self.reads(_scope(self.views[name])))

    def _tables_of(self, scope: Scope) -> Iterator[exp.Table]:
        """The tables and views that the scope reads, also through what it names WITH."""
        seen: set[int] = set()
        waiting = [scope]
        while waiting:
            one = waiting.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            waiting += [*one.union_scopes, *one.subquery_scopes]
            for _, source in one.selected_sources.values():
                if isinstance(source, Scope):
                    waiting.append(source)
                elif isinstance(source, exp.Table):
                    yield source
