"""A schema whose loads leave digests and use those of earlier loads, as the IO manager's do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg
import pyarrow as pa

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PulsoError
from pulso_etl.sync.ledger.traces import Traces
from pulso_etl.sync.loading.load import load, translated
from pulso_etl.sync.loading.result import LoadResult
from pulso_etl.sync.loading.verify import verify
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.target import Target
from pulso_etl_tests.sync.samples import WINDOW, request, table


@dataclass
class Place:
    """A schema with the ledger and the table `things`. If `skips` is set, loads use the digests of earlier loads.

    `sent`: how many rows the last load brought to the stage.
    """

    conn: psycopg.Connection
    schema: str
    skips: bool = True
    sent: int = 0

    def load(
        self,
        source: Sequence[dict[str, Any]] | pa.Table | Callable[[], pa.RecordBatchReader],
        spec: TableSpec,
        window: DayRange = WINDOW,
        **options: Any,
    ) -> LoadResult:
        """Loads, verifies and records as the IO manager does, in one transaction. The source is rows, or opens their stream."""
        target = Target(self.conn, spec, self.schema)
        given = source if isinstance(source, pa.Table) or callable(source) else table(source)
        opened = given if callable(given) else lambda: given.to_reader(max_chunksize=2)
        traces = Traces(self.schema)
        last = traces.read(self.conn, spec.name, window) if self.skips else {}
        asked = request(window, lambda: nullcontext(opened()), last=last, **{"run_id": "r"} | options)
        with translated(spec, window), self.conn.transaction():
            result = load(target, asked)
            (staged,) = self.conn.execute("SELECT to_regclass('pg_temp.pulso_stage')").fetchone() or (None,)
            self.sent = len(self.conn.execute("SELECT FROM pg_temp.pulso_stage").fetchall()) if staged else 0
            traces.write(self.conn, spec.name, verify(target, asked, result).traces)
        return result

    def staged(self, *args: Any, **options: Any) -> set[date]:
        """The days that the load compares with the table."""
        digested = self.load(*args, **options).digested
        assert digested is not None
        return set(digested.digests) - digested.unchanged

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """Runs a statement on the schema's tables."""
        with self.conn.transaction():
            self.conn.execute(f"SET LOCAL search_path = {self.schema}")
            cursor = self.conn.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def empty(self) -> None:
        self.run("DROP TABLE IF EXISTS things; DELETE FROM etl_digests; DELETE FROM etl_quarantine")

    def contents(self) -> list[tuple[Any, ...]]:
        """The rows of the table and of the quarantine, without the times of writing."""
        if self.run(f"SELECT to_regclass('{self.schema}.things')") == [(None,)]:
            return []
        rows = (
            "SELECT (to_jsonb(t) - '{created_at,updated_at,valid_from,valid_to}'::text[])::text, to_jsonb(t)->'valid_to' = 'null' "
        )
        kept = "SELECT partition, column_name, reason, source_row::text, copy FROM etl_quarantine ORDER BY 1, 2, 3, 4, 5"
        return [*self.run(f"{rows} FROM things t ORDER BY 1, 2"), *self.run(kept)]

    def outcome(self, rows: list[dict[str, Any]] | pa.Table, spec: TableSpec, window: DayRange, shrink: bool) -> Any:
        """What a load tells: its result, or its error."""
        try:
            result = self.load(rows, spec, window, allow_shrink=shrink)
        except PulsoError as error:
            return type(error), str(error)
        return result.by_day, result.plan, result.quarantine_reasons, result.drift, result.migration
