"""BigQuery's bookkeeping, which the emulator lacks: change times, sizes, referenced tables, the result cache, what is billed.

It stands at the emulator's boundary, in its process, and edits the answers of its REST API. The emulator gives the rows. Every rule
here is a sentence of BigQuery's documentation; docs/source-changes.md lists them, and says which were seen on a real account.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

import sqlglot
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError
from sqlglot.expressions import core
from sqlglot.optimizer.pushdown_predicates import pushdown_predicates
from sqlglot.optimizer.pushdown_projections import pushdown_projections
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import traverse_scope
from starlette.middleware import Middleware

MEBIBYTE = 1024**2
LEAST_BILLED = 10 * MEBIBYTE
"""What each referenced table bills at least, and what each query does."""
CACHED_SECONDS = 24 * 3600
STREAMING_SECONDS = 90 * 60
"""How long rows that were streamed may stay in the buffer."""
FIXED = {"BOOL": 1, "BOOLEAN": 1, "NUMERIC": 16, "DECIMAL": 16, "BIGNUMERIC": 32, "BIGDECIMAL": 32, "INTERVAL": 16}
"""Bytes of a value; of other types 8. Texts and bytes take their length and 2."""
UNCACHED = re.compile(
    r"\b(CURRENT_(TIMESTAMP|DATE|DATETIME|TIME)|RAND|GENERATE_UUID|SESSION_USER|INFORMATION_SCHEMA)\b", re.IGNORECASE
)
"""What keeps a result out of the cache."""
GEOGRAPHY = re.compile(r"\bST_\w+\s*\(", re.IGNORECASE)
"""A call of a function of DuckDB's extension for geography."""
FORMATS = {"HOUR": "%Y%m%d%H", "DAY": "%Y%m%d", "MONTH": "%Y%m", "YEAR": "%Y"}
NO_DATE = "__NULL__"
ROW_WEIGHT = "PULSO_ROW_WEIGHT"
"""Environment variable: each row counts as so many rows in the bytes of a query."""
LONGEST_KEPT = 50_000
"""Characters of the longest text whose tree is kept: rows that a statement inserts come once."""
JOBS = re.compile(r"^/bigquery/v2/projects/([^/]+)/(?:jobs|queries)(?:/([^/]+))?$")
UPLOADS = re.compile(r"^/upload/bigquery/v2/projects/([^/]+)/jobs$")
RESULTS = re.compile(r"^(/bigquery/v2/projects/[^/]+)/datasets/_bqemu_anonymous/tables/([^/]+)/data$")
TABLES = re.compile(r"^/bigquery/v2/projects/([^/]+)/datasets/([^/]+)/tables(?:/([^/]+))?(/insertAll)?$")

Response = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body."""


@dataclass
class Partition:
    """Rows of one partition: their digest, their number, when they last changed (milliseconds), and the bytes of each column."""

    digest: int
    rows: int
    modified: int
    sizes: dict[str, int]


@dataclass
class Kept:
    """What BigQuery keeps of a base table. Times are milliseconds; `buffered` is when rows were last streamed, in seconds."""

    created: int
    modified: int
    partitions: dict[str, Partition] = field(default_factory=dict)
    buffered: float = 0.0

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.partitions.values())

    def bytes_of(self, columns: set[str] | None = None, first: str = "", last: str = "~") -> int:
        """Bytes of columns (None: of all) in the partitions from `first` to `last`."""
        return sum(
            size
            for name, part in self.partitions.items()
            if first <= name <= last
            for column, size in part.sizes.items()
            if columns is None or column in columns
        )

    @property
    def is_buffered(self) -> bool:
        return time.time() - self.buffered < STREAMING_SECONDS


@dataclass(frozen=True)
class Scan:
    """One base table that a statement reads: which columns (None: all), and which partitions by their ids."""

    table: str
    columns: frozenset[str] | None = None
    first: str = ""
    last: str = "~"


@dataclass(frozen=True)
class Filtered:
    """One base table that a statement reads, with the texts that bound its partitions: of dates, or "@" and a parameter's name."""

    table: str
    columns: frozenset[str]
    form: str = ""
    low: tuple[str, ...] = ()
    high: tuple[str, ...] = ()

    def scan(self, parameters: Mapping[str, str]) -> Scan:
        """The scan with these parameters."""
        first, last = (
            [at for text in texts if (at := _partition(parameters.get(text[1:], "") if text.startswith("@") else text, self.form))]
            for texts in (self.low, self.high)
        )
        return Scan(self.table, self.columns, max(first, default=""), min(last, default="~"))


@dataclass(frozen=True)
class Base:
    """What a plan knows of a base table: names and types of its columns, the partition column, and the form of a partition's id."""

    columns: tuple[tuple[str, str], ...]
    by: str = ""
    form: str = ""

    @classmethod
    def of(cls, meta: Any) -> Base:
        """Of the emulator's own record of the table."""
        columns = tuple((one.name, one.type) for one in meta.schema_.fields)
        by = meta.time_partitioning
        return cls(columns, by.field, FORMATS[by.type]) if by and by.field else cls(columns)


@dataclass(frozen=True)
class Asked:
    """What a query asks for: base tables, the bytes that it reads and would bill, and its place in the cache."""

    tables: Sequence[str]
    size: int
    billed: int
    key: tuple[Any, ...]
    may_be_kept: bool
    may_be_cached: bool


class Books:
    """What the double keeps, over the emulator's own catalog and engine."""

    def __init__(self, catalog: Any, engine: Any) -> None:
        self.catalog, self.engine = catalog, engine
        self.tables: dict[str, Kept] = {}
        self.cache: dict[tuple[Any, ...], float] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, dict[str, Any]] = {}
        self.begun: dict[str, asyncio.Event] = {}
        """The jobs that were sent by their ids. The event says that the emulator has run the job."""
        self.configurations: dict[str, dict[str, Any]] = {}
        self.results: dict[str, str] = {}
        """The jobs by the ids of the tables with their results."""
        self.row_weight = int(os.environ.get(ROW_WEIGHT, "1"))
        self._last = 0

    def now(self) -> int:
        """Milliseconds; each call gives a greater number, so that no two changes share one."""
        self._last = max(int(time.time() * 1000), self._last + 1)
        return self._last

    def meta(self, name: str) -> Any:
        """The emulator's own record of a table or view; None if there is none."""
        parts = name.split(".")
        return self.catalog.get_table(*parts) if len(parts) == 3 else None

    def kept(self, name: str) -> Kept:
        """What is kept of a base table. A table that was made without the double's notice counts as made when it was made."""
        if name not in self.tables:
            meta = self.meta(name)
            at = int(meta.creation_time.timestamp() * 1000)
            self.tables[name] = Kept(at, at)
            self._count(name, at)
        return self.tables[name]

    def written(self, name: str, *, whole: bool = False) -> None:
        """A statement or a load has changed the table; `whole`: it has replaced all rows."""
        meta = self.meta(name)
        if meta is None:
            self.tables.pop(name, None)
            return
        if meta.table_type != "TABLE":
            return
        created = int(meta.creation_time.timestamp() * 1000)
        known, at = self.tables.get(name), self.now()
        if known is None or known.created != created:
            known = self.tables[name] = Kept(created, at)
        known.modified = at
        if whole:
            known.partitions, known.buffered = {}, 0.0
        self._count(name, at)

    def drop_view(self, name: str) -> None:
        """Drops a view, if the name is one. The emulator drops only tables."""
        from bqemulator.storage.sql_identifiers import quoted_table_ref

        meta = self.meta(name)
        if meta is not None and meta.view_query is not None:
            self.engine.execute(f"DROP VIEW IF EXISTS {quoted_table_ref(*name.split('.'))}")

    def streamed(self, name: str) -> None:
        """Rows were streamed into the table. Until they leave the buffer, its time of change does not tell of them."""
        self.kept(name).buffered = time.time()

    def _count(self, name: str, at: int) -> None:
        """Counts the partitions anew; `at` is the time of those whose rows are others than before."""
        from bqemulator.storage.sql_identifiers import quoted_table_ref

        meta, kept = self.meta(name), self.tables[name]
        columns = [(one.name, _size(one)) for one in meta.schema_.fields]
        by = meta.time_partitioning
        part = "''"
        if by is not None and by.field:
            part = f"coalesce(strftime(\"{by.field}\", '{FORMATS[by.type]}'), '{NO_DATE}')"
        sizes = "".join(f", {size}" for _, size in columns)
        table = quoted_table_ref(*name.split("."))
        rows = self.engine.execute(f"SELECT {part}, count(*), bit_xor(hash(t)){sizes} FROM {table} t GROUP BY 1").fetchall()  # noqa: S608 - names of the catalog
        before = kept.partitions
        kept.partitions = {}
        for found, count, digest, *bytes_of in rows:
            known = before.get(found)
            same = known is not None and (known.digest, known.rows) == (digest, count)
            modified = known.modified if same and known is not None else at
            sized = {column: int(size) for (column, _), size in zip(columns, bytes_of, strict=True)}
            kept.partitions[found] = Partition(digest, count, modified, sized)

    def described(self, body: dict[str, Any]) -> None:
        """Completes the answer of tables.get."""
        ref = body["tableReference"]
        name = f"{ref['projectId']}.{ref['datasetId']}.{ref['tableId']}"
        meta = self.meta(name)
        if meta is None:
            return
        if meta.view_query is not None:
            body["view"] = {"query": meta.view_query, "useLegacySql": False}
            for number in ("numRows", "numBytes"):
                body.pop(number, None)
        elif meta.table_type == "TABLE":
            kept = self.kept(name)
            body |= {"creationTime": str(kept.created), "lastModifiedTime": str(kept.modified)}
            body |= {"numRows": str(kept.rows), "numBytes": str(kept.bytes_of())}
            if kept.is_buffered:
                since = str(int(kept.buffered * 1000))
                body["streamingBuffer"] = {"estimatedRows": "1", "estimatedBytes": "1", "oldestEntryTime": since}

    def partitions(self, name: str, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """The emulator's partitions of a table, with their times."""
        kept = self.kept(name) if self.meta(name) is not None else None
        if kept is None:
            return given
        by_id = {one.partition_id: one for one in given}
        return tuple(
            by_id[found].model_copy(update={"last_modified_time": datetime.fromtimestamp(part.modified / 1000, UTC)})
            for found, part in kept.partitions.items()
            if found in by_id
        )

    def scans(self, statement: str, parameters: Mapping[str, str], project: str) -> list[Scan]:
        """The base tables that the statement reads through every view."""
        views: dict[str, str] = {}
        bases: dict[str, Base] = {}
        waiting = _named(statement, project)
        while waiting:
            name = waiting.pop()
            meta = self.meta(name)
            if meta is None or name in views or name in bases:
                continue
            if meta.view_query is not None:
                views[name] = meta.view_query
                waiting |= _named(meta.view_query, meta.project_id)
            else:
                bases[name] = Base.of(meta)
        try:
            planned = _planned(statement, project, tuple(views.items()), tuple(bases.items()))
            return [one.scan(parameters) for one in planned]
        except (SqlglotError, ValueError, KeyError):
            return [Scan(name) for name in bases]

    def query(self, statement: str, config: Mapping[str, Any], project: str) -> dict[str, Any]:
        """The statistics of a query job over the tables as they are now: referenced tables, bytes, cache. Counts as its run."""
        asked = self._asked(statement, config, project)
        refs = [dict(zip(("projectId", "datasetId", "tableId"), name.split("."), strict=True)) for name in asked.tables]
        if config.get("dryRun"):
            return {"totalBytesProcessed": str(asked.size), "totalBytesBilled": "0", "cacheHit": False, "referencedTables": refs}
        hit = self._is_cached(asked)
        if asked.may_be_kept and not hit:
            self.cache[asked.key] = time.time()
        return {
            "totalBytesProcessed": str(0 if hit else asked.size),
            "totalBytesBilled": str(0 if hit else asked.billed),
            "cacheHit": hit,
            "referencedTables": refs,
        }

    def refusal(self, statement: str, config: Mapping[str, Any], project: str) -> str | None:
        """What BigQuery says to a query that would bill more than its `maximumBytesBilled`; None if it runs."""
        limit = int(config.get("maximumBytesBilled") or 0)
        if not limit or config.get("dryRun"):
            return None
        asked = self._asked(statement, config, project)
        if asked.billed <= limit or self._is_cached(asked):
            return None
        return f"Query exceeded limit for bytes billed: {limit}. {asked.billed} or higher required."

    def _asked(self, statement: str, config: Mapping[str, Any], project: str) -> Asked:
        given = config.get("queryParameters") or ()
        parameters = {one["name"]: str((one.get("parameterValue") or {}).get("value") or "") for one in given if one.get("name")}
        scans = self.scans(statement, parameters, project)
        names = sorted({scan.table for scan in scans})
        size = self.row_weight * sum(
            self.kept(one.table).bytes_of(set(one.columns) if one.columns is not None else None, one.first, one.last)
            for one in scans
        )
        texts = [statement, *(meta.view_query for name in self._views(statement, project) if (meta := self.meta(name)))]
        steady = bool(names) and not any(map(UNCACHED.search, texts)) and not any(self.kept(name).is_buffered for name in names)
        return Asked(
            tables=names,
            size=size,
            billed=_billed(size, len(names)) if names or "INFORMATION_SCHEMA" in statement.upper() else 0,
            key=(*texts, json.dumps(config.get("queryParameters")), *((name, self.kept(name).modified) for name in names)),
            may_be_kept=steady,
            may_be_cached=steady and bool(config.get("useQueryCache", True)),
        )

    def _is_cached(self, asked: Asked) -> bool:
        return asked.may_be_cached and time.time() - self.cache.get(asked.key, 0.0) < CACHED_SECONDS

    def _views(self, statement: str, project: str) -> Iterator[str]:
        seen: set[str] = set()
        waiting = _named(statement, project)
        while waiting:
            name = waiting.pop()
            meta = self.meta(name)
            if name not in seen and meta is not None and meta.view_query is not None:
                seen.add(name)
                waiting |= _named(meta.view_query, meta.project_id)
        yield from sorted(seen)


def _billed(size: int, tables: int) -> int:
    """What a query bills: rounded up to whole MiB, and at least 10 MiB a table."""
    return max(-(-size // MEBIBYTE) * MEBIBYTE, LEAST_BILLED * max(tables, 1))


def _size(column: Any) -> str:
    """The bytes of a column's values, as DuckDB adds them up. A null takes none."""
    name = f'"{column.name}"'
    if column.mode != "REPEATED" and column.type == "STRING":
        return f"coalesce(sum(2 + strlen({name})), 0)"
    if column.mode != "REPEATED" and column.type == "BYTES":
        return f"coalesce(sum(2 + octet_length({name})), 0)"
    return f"count({name}) * {FIXED.get(column.type, 8)}"


@lru_cache(maxsize=512)
def _parsed(text: str) -> tuple[exp.Expr | None, ...]:
    try:
        return tuple(sqlglot.parse(text, read="bigquery"))
    except SqlglotError:
        return ()


def _full(table: exp.Table, project: str) -> str:
    return ".".join((table.catalog or project, table.db, table.name))


def _named(text: str, project: str) -> set[str]:
    return {_full(table, project) for query in _parsed(text) if query for table in query.find_all(exp.Table) if table.db}


@lru_cache(maxsize=512)
def _planned(
    statement: str, project: str, views: tuple[tuple[str, str], ...], bases: tuple[tuple[str, Base], ...]
) -> tuple[Filtered, ...]:
    """What a single query reads, with its columns and filters pushed down to the tables. Raises SqlglotError."""
    (parsed,) = _parsed(statement)
    if not isinstance(parsed, exp.Query):
        raise ValueError("no query")
    query: exp.Expr = parsed.copy()
    viewing, known = dict(views), dict(bases)
    for parameter in list(query.find_all(exp.Parameter)):
        parameter.replace(exp.Literal.string(f"@{parameter.name}"))
    while viewed := [table for table in query.find_all(exp.Table) if table.db and _full(table, project) in viewing]:
        for table in viewed:
            (inner,) = _parsed(viewing[_full(table, project)])
            assert isinstance(inner, exp.Query)
            table.replace(inner.copy().subquery(table.alias_or_name))
    schema: dict[str, Any] = {}
    for name, base in bases:
        first, second, third = name.split(".")
        schema.setdefault(first, {}).setdefault(second, {})[third] = dict(base.columns)
    query = qualify(query, catalog=project, dialect="bigquery", schema=schema, validate_qualify_columns=False)
    query = pushdown_projections(pushdown_predicates(query, dialect="bigquery"), schema=schema)
    return tuple(
        Filtered(
            name,
            frozenset(column.name for column in scope.columns if column.table == alias),
            known[name].form,
            *_bounds(scope.expression, alias, known[name].by),
        )
        for scope in traverse_scope(query)
        for alias, source in scope.sources.items()
        if isinstance(source, exp.Table) and source.db and (name := _full(source, project)) in known
    )


def _bounds(select: exp.Expr, alias: str, column: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a filter on the partition column says of the first and of the last partition."""
    low, high = [], []
    where = select.args.get("where")
    for part in where.this.flatten() if where and isinstance(where.this, exp.And) else [where.this] if where else []:
        test = part.unnest()
        given = test.this
        if not column or not (isinstance(given, exp.Column) and given.table == alias and given.name == column):
            continue
        if isinstance(test, exp.Between):
            low.append(test.args["low"])
            high.append(test.args["high"])
        if isinstance(test, (exp.GTE, exp.EQ)):
            low.append(test.expression)
        if isinstance(test, (exp.LTE, exp.EQ)):
            high.append(test.expression)
    return _texts(low), _texts(high)


def _texts(values: Sequence[exp.Expr]) -> tuple[str, ...]:
    literals = (value if isinstance(value, exp.Literal) else value.find(exp.Literal) for value in values)
    return tuple(literal.name for literal in literals if literal is not None)


def _partition(text: str, form: str) -> str | None:
    try:
        return datetime.fromisoformat(text).strftime(form)
    except ValueError:
        return None


class Double:
    """ASGI middleware around the emulator's REST API."""

    def __init__(self, app: Any, books: Books) -> None:
        self.app, self.books = app, books

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        if method == "GET" and (found := RESULTS.match(path)) and (job := self.books.results.get(found[2])):
            await self._send(send, *self._columns(scope, *await self._answer(_at(scope, f"{found[1]}/queries/{job}"), b"")))
            return
        edit = self._edit_of(method, path)
        if edit is None:
            await self.app(scope, receive, send)
            return
        asked = await _body(receive)
        if method == "DELETE" and (found := TABLES.match(path)) and found[3]:
            self.books.drop_view(".".join(found.groups()[:3]))
        if (found := JOBS.match(path)) and method == "GET" and (running := self.books.begun.get(found[2] or "")):
            await running.wait()
        await self._send(send, *await self._once(method, path, asked, lambda: self._edited(scope, asked, edit)))

    async def _once(self, method: str, path: str, asked: bytes, run: Callable[[], Awaitable[Response]]) -> Response:
        """What `run` answers. A job that is sent with an id must have a new one."""
        sent = json.loads(asked) if method == "POST" and path.endswith("/jobs") and JOBS.match(path) else {}
        job = (sent.get("jobReference") or {}).get("jobId")
        if job is None or (sent.get("configuration") or {}).get("dryRun"):
            return await run()
        if job in self.books.begun:
            return _json(409, _error(409, "duplicate", "ALREADY_EXISTS", f"Already Exists: Job {job}"))
        ended = self.books.begun[job] = asyncio.Event()
        try:
            answer = await run()
        finally:
            ended.set()
        if answer[0] >= 300:
            # There is no such job then.
            del self.books.begun[job]
        return answer

    async def _edited(self, scope: Any, asked: bytes, edit: Callable[[bytes, dict[str, Any]], None]) -> Response:
        """The emulator's answer with what the double adds, or a refusal."""
        refused = self._refused(scope["method"], scope["path"], asked)
        status, headers, answer = refused or await self._answer(scope, asked)
        if status < 300 and refused is None:
            try:
                given = json.loads(answer) if answer else {}
            except ValueError:
                given = None
            if isinstance(given, dict):
                edit(asked, given)
                answer = json.dumps(given).encode() if answer else answer
        return status, headers, answer

    async def _send(self, send: Any, status: int, headers: list[tuple[bytes, bytes]], answer: bytes) -> None:
        headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        if status != 204:
            headers.append((b"content-length", str(len(answer)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _columns(self, scope: Any, status: int, headers: list[tuple[bytes, bytes]], answer: bytes) -> Response:
        """The emulator's answer with the rows of a job, as tabledata.list gives them: with the selected columns, in the table's
        order."""
        if status >= 300:
            return status, headers, answer
        given = json.loads(answer)
        chosen = parse_qs(scope["query_string"].decode()).get("selectedFields", [""])[0].split(",")
        places = [place for place, one in enumerate(given["schema"]["fields"]) if one["name"] in chosen or chosen == [""]]
        rows = [{"f": [row["f"][place] for place in places]} for row in given["rows"]]
        told = {"kind": "bigquery#tableDataList", "totalRows": given["totalRows"], "rows": rows}
        return _json(status, told | ({"pageToken": given["pageToken"]} if "pageToken" in given else {}))

    def _refused(self, method: str, path: str, asked: bytes) -> Response | None:
        """The answer to a query that would bill more than its limit: a job that failed, or an error. It does not run."""
        found = JOBS.match(path)
        if not found:
            return None
        project, job = found.groups()
        if method == "GET" and job and (failed := self.books.failed.get(job)):
            return _json(200, failed) if "/jobs/" in path else _json(400, _limit(failed["status"]["errorResult"]["message"]))
        if method != "POST" or job:
            return None
        body = json.loads(asked)
        configuration = body.get("configuration")
        config = body if configuration is None else {**configuration.get("query", {}), "dryRun": configuration.get("dryRun")}
        why = self.books.refusal(config.get("query") or "", config, project)
        if why is None:
            return None
        if configuration is None:
            return _json(400, _limit(why))
        reference = {"projectId": project, "jobId": uuid4().hex, **(body.get("jobReference") or {})}
        now, fault = str(int(time.time() * 1000)), {"reason": "bytesBilledLimitExceeded", "message": why}
        self.books.failed[reference["jobId"]] = {
            "kind": "bigquery#job",
            "id": f"{project}:{reference['jobId']}",
            "jobReference": reference,
            "configuration": configuration,
            "status": {"state": "DONE", "errorResult": fault, "errors": [fault]},
            "statistics": {"creationTime": now, "startTime": now, "endTime": now},
        }
        return _json(200, self.books.failed[reference["jobId"]])

    async def _answer(self, scope: Any, asked: bytes) -> Response:
        """The emulator's own answer."""
        sent: list[Any] = []
        once = iter([{"type": "http.request", "body": asked, "more_body": False}])

        async def receive() -> Any:
            return next(once, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        start = next(message for message in sent if message["type"] == "http.response.start")
        body = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
        return start["status"], list(start.get("headers", ())), body

    def _edit_of(self, method: str, path: str) -> Callable[[bytes, dict[str, Any]], None] | None:
        """What to do with the answer of such a request; None: nothing."""
        if found := TABLES.match(path):
            project, dataset, table, streamed = found.groups()
            name = f"{project}.{dataset}.{table}"
            if streamed:
                return lambda asked, given: self.books.streamed(name)
            if method == "GET":
                return (lambda asked, given: self.books.described(given)) if table else None
            return lambda asked, given: self._table_written(name if table else None, given)
        if found := JOBS.match(path):
            project, job = found.groups()
            if method == "POST" and not job:
                return lambda asked, given: self._queried(json.loads(asked), given, project)
            return (lambda asked, given: self._told_again(job, given)) if method == "GET" and job else None
        if UPLOADS.match(path):
            return lambda asked, given: self._loaded(given)
        return None

    def _table_written(self, name: str | None, given: dict[str, Any]) -> None:
        ref = given.get("tableReference")
        name = name or (f"{ref['projectId']}.{ref['datasetId']}.{ref['tableId']}" if ref else None)
        if name is not None:
            self.books.written(name)
        if ref:
            self.books.described(given)

    def _loaded(self, given: dict[str, Any]) -> None:
        load = (given.get("configuration") or {}).get("load") or {}
        ref = load.get("destinationTable")
        if ref and (given.get("status") or {}).get("state") == "DONE":
            name = f"{ref['projectId']}.{ref['datasetId']}.{ref['tableId'].split('$')[0]}"
            self.books.written(name, whole=load.get("writeDisposition") == "WRITE_TRUNCATE" and "$" not in ref["tableId"])

    def _queried(self, asked: dict[str, Any], given: dict[str, Any], project: str) -> None:
        """After jobs.insert or jobs.query."""
        configuration = asked.get("configuration")
        if configuration is not None and "query" not in configuration:
            self._loaded(given)
            return
        config = {**configuration["query"], "dryRun": configuration.get("dryRun")} if configuration is not None else asked
        statement = config.get("query") or ""
        if not config.get("dryRun") and not (given.get("status") or {}).get("errorResult"):
            for name, whole in _targets(statement, project):
                self.books.written(name, whole=whole)
        told = self.books.query(statement, config, project)
        job = (given.get("jobReference") or {}).get("jobId")
        if job:
            self.books.jobs[job] = told
        if job and configuration is not None:
            kept = self.books.configurations[job] = given["configuration"]
            if table := (kept["query"].get("destinationTable") or {}).get("tableId"):
                self.books.results[table] = job
        _tell(told, given)

    def _told_again(self, job: str, given: dict[str, Any]) -> None:
        if (told := self.books.jobs.get(job)) is not None:
            _tell(told, given)
        if given.get("kind") == "bigquery#job" and job in self.books.configurations:
            # The emulator forgets labels.
            given["configuration"] = self.books.configurations[job]


def _at(scope: Any, path: str) -> Any:
    """The request at another path."""
    return {**scope, "path": path, "raw_path": path.encode()}


def _json(status: int, body: Mapping[str, Any]) -> Response:
    return status, [(b"content-type", b"application/json")], json.dumps(body).encode()


def _limit(message: str) -> dict[str, Any]:
    """BigQuery's error for a query above its limit of bytes."""
    return _error(400, "bytesBilledLimitExceeded", "INVALID_ARGUMENT", message)


def _error(code: int, reason: str, status: str, message: str) -> dict[str, Any]:
    """An error of the API, as BigQuery writes it."""
    one = {"message": message, "domain": "global", "reason": reason}
    return {"error": {"code": code, "message": message, "errors": [one], "status": status}}


def _tell(told: Mapping[str, Any], given: dict[str, Any]) -> None:
    """Writes a query's statistics into a job, or into the answer of a query."""
    if given.get("kind") == "bigquery#job":
        statistics = given.setdefault("statistics", {})
        statistics["totalBytesProcessed"] = told["totalBytesProcessed"]
        # The emulator's own field, which the API does not have.
        statistics.get("query", {}).pop("totalRows", None)
        statistics.setdefault("query", {}).update(told)
    else:
        given.update({name: told[name] for name in ("totalBytesProcessed", "cacheHit")})


def _targets(statement: str, project: str) -> Iterator[tuple[str, bool]]:
    """The tables that a statement or a script changes, and whether it replaces all of their rows."""
    for one in _parsed(statement):
        if isinstance(one, (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Create, exp.Drop, exp.Alter, exp.TruncateTable)):
            table = one.find(exp.Table)
            if table is not None and table.db:
                yield _full(table, project), isinstance(one, (exp.Create, exp.TruncateTable))


async def _body(receive: Any) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def parse_once() -> None:
    """From now on, a text is parsed once in this process, and who parses it again is given a copy of its tree.

    The emulator parses each statement some fifteen times on the way to its answer, which was half of its work. A copy takes an
    eighth of the time, and half of that where the positions in the text, plain numbers, are not copied one by one.
    """
    parse = Dialect.parse

    def copied(value: Any) -> Any:
        return dict(value) if type(value) is dict else deepcopy(value)

    vars(core)["deepcopy"] = copied

    @lru_cache(maxsize=256)
    def trees(dialect: type[Dialect], text: str) -> tuple[exp.Expr | None, ...]:
        return tuple(parse(dialect(), text))

    def parse_or_copy(self: Dialect, sql: str, **options: Any) -> list[exp.Expr | None]:
        if options or vars(self) != vars(type(self)()) or len(sql) > LONGEST_KEPT:
            return parse(self, sql, **options)
        return [tree and tree.copy() for tree in trees(type(self), sql)]

    Dialect.parse = parse_or_copy  # type: ignore[method-assign]


def translate_once() -> None:
    """From now on, a statement is translated into DuckDB's language once in this process.

    The emulator translates a statement each time that it is asked, which is most of the work of an answer. The translation follows
    from the text, and from the names and types of the columns.
    """
    from bqemulator.api.routes import jobs
    from bqemulator.jobs import executor
    from bqemulator.sql import inner_query
    from bqemulator.sql.translator import SQLTranslator

    translate = SQLTranslator.translate

    @lru_cache(maxsize=512)
    def translated(translator: SQLTranslator, text: str, schema: str, caller: Any) -> Any:
        return translate(translator, text, schema=json.loads(schema), caller=caller)

    def translate_or_remember(
        self: SQLTranslator, text: str, *, schema: dict[str, Any] | None = None, caller: Any = None, **options: Any
    ) -> Any:
        if len(text) > LONGEST_KEPT:
            return translate(self, text, schema=schema, caller=caller, **options)
        return translated(self, text, json.dumps(schema), caller)

    SQLTranslator.translate = translate_or_remember  # type: ignore[method-assign, assignment]
    # These follow from the text alone. Each module has names of its own for them.
    for name, modules in (
        ("rewrite_unnest_offset", [inner_query]),
        ("rewrite_table_refs", [executor]),
        ("classify_statement_type", [executor, jobs]),
    ):
        known = lru_cache(maxsize=512)(getattr(modules[0], name))
        for module in modules:
            setattr(module, name, known)


def geography_when_asked_for() -> None:
    """From now on, DuckDB's extension for geography is loaded by the first statement or value that needs it.

    To install and to load it is half of the emulator's start, and hardly a table has geography.
    """
    from bqemulator.storage.engine import DuckDBEngine
    from bqemulator.types import geography
    from duckdb_extensions import import_extension

    install = cache(import_extension)
    load, execute, converter = DuckDBEngine._load_spatial, DuckDBEngine.execute, geography._ensure_conv_conn
    loaded = False

    def execute_with(self: DuckDBEngine, sql: str, parameters: list[Any] | None = None) -> Any:
        nonlocal loaded
        if not loaded and GEOGRAPHY.search(sql):
            install("spatial")
            load(self)
            loaded = True
        return execute(self, sql, parameters)

    def converter_with() -> Any:
        install("spatial")
        return converter()

    DuckDBEngine._load_spatial = lambda self: None  # type: ignore[method-assign]
    DuckDBEngine.execute = execute_with  # type: ignore[method-assign]
    geography._ensure_conv_conn = converter_with


def doubled(create_app: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The emulator's own function that makes its application, with the double in it."""

    def create(context: Any) -> Any:
        app, books = create_app(context), Books(context.catalog, context.engine)
        list_partitions = context.catalog.list_partitions
        context.catalog.list_partitions = lambda *table: books.partitions(".".join(table), list_partitions(*table))
        # Innermost, so that requests are unpacked before.
        app.user_middleware.append(Middleware(Double, books=books))
        return app

    return create
