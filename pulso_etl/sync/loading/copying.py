"""Checks each value of Arrow batches, and sends them to PostgreSQL as COPY BINARY."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from pgpq import ArrowToPostgresBinaryEncoder
from pgpq.encoders import StringEncoderBuilder
from pgpq.schema import Jsonb
from psycopg import sql

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.loading.conform import conform
from pulso_etl.sync.loading.quarantine import Quarantine
from pulso_etl.sync.loading.read_ahead import read_ahead
from pulso_etl.sync.loading.runs import in_runs
from pulso_etl.sync.postgres.encoding import Encoding
from pulso_etl.sync.postgres.server_errors import meaning
from pulso_etl.sync.schema.statements import STAGE, Statements
from pulso_etl.sync.spec import ColumnType, TableSpec
from pulso_etl.sync.target import Target

Through = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]
"""Takes the conformed batches of a stream and gives those that are sent."""

CHUNK_ROWS = 600
"""How many rows are encoded at once, so that memory does not grow with the source's batches."""
ITEMS_AHEAD = 6
"""How many encoded chunks, or batches, wait for the server at most. So it has work while the source is slow."""


@dataclass(frozen=True)
class Copy:
    """Copies batches into the relation `into`, the table itself or the stage.

    The columns are those of `wire`, the schema in which they travel; the target's declaration has them. `through` may keep rows
    back. `meanwhile` is called while the first rows are made, and `begin` before a row goes to the server; both may use the
    connection.
    """

    target: Target
    wire: pa.Schema
    into: sql.Identifier
    through: Through = iter
    begin: Callable[[], None] = lambda: None
    meanwhile: Callable[[], object] = lambda: None

    def send(self, reader: pa.RecordBatchReader, days: DayRange) -> dict[date, int]:
        """Sends the rows in one COPY; returns how many of each day were sent. Raises RejectedRows, see `conform`."""
        spec, encoding = self.target.spec, Encoding.of(self.target.conn)
        # `map` and `filter` keep no batch that the next step has replaced.
        batches = self.through(map(lambda one: conform(spec, one, self.wire, days, encoding=encoding), filter(len, reader)))
        return self.send_conformed(batches if self.into == STAGE else in_runs(spec, days, batches))

    def send_conformed(self, batches: Iterator[pa.RecordBatch]) -> dict[date, int]:
        """Sends batches of the wire schema in one COPY; returns how many rows of each day were sent."""
        spec, encoder = self.target.spec, self._encoder()
        rows: Counter[date] = Counter()
        header = encoder.write_header()

        def encoded() -> Iterator[bytes]:
            for batch in batches:
                yield from _chunks(encoder, batch)
                rows.update(rows_by_day(spec, batch))
                del batch

        with read_ahead(encoded(), ITEMS_AHEAD) as chunks:
            self.meanwhile()
            first = next(chunks, None)
            if first is None:
                return {}
            self.begin()
            with self.target.conn.cursor() as cursor, cursor.copy(self._statement) as copy:
                copy.write(header)
                copy.write(first)
                for chunk in chunks:
                    copy.write(chunk)
                copy.write(encoder.finish())
        return dict(rows)

    def send_what_fits(self, reader: pa.RecordBatchReader, days: DayRange, quarantine: Quarantine) -> dict[date, int]:
        """Sends each batch in a COPY of its own, without the rows that can't be loaded: these go to the quarantine.

        Some faults only the server sees. The function halves the batch until it finds the faulty rows. Returns how many rows of
        each day were sent.
        """
        rows: Counter[date] = Counter()
        refused: list[tuple[pa.RecordBatch, psycopg.Error]] = []

        def copy(batch: pa.RecordBatch) -> None:
            try:
                self._send_alone(batch)
            except psycopg.Error as error:
                if not meaning(error).by_row:
                    raise
                if batch.num_rows == 1:
                    refused.append((batch, error))
                    return
                middle = batch.num_rows // 2
                copy(batch.slice(0, middle))
                copy(batch.slice(middle))
            else:
                rows.update(rows_by_day(self.target.spec, batch))

        spec, reject, encoding = self.target.spec, quarantine.take, quarantine.encoding
        batches = map(lambda one: conform(spec, one, self.wire, days, reject, encoding), filter(len, reader))
        with read_ahead(self.through(batches), ITEMS_AHEAD) as conformed:
            self.meanwhile()
            for batch in conformed:
                if batch.num_rows:
                    self.begin()
                    copy(batch)
        for batch, error in refused:
            quarantine.take_refused(batch, error)
        return dict(rows)

    def _send_alone(self, batch: pa.RecordBatch) -> None:
        """Sends one batch, in a savepoint."""
        conn, encoder = self.target.conn, self._encoder()
        with conn.transaction(), conn.cursor() as cursor, cursor.copy(self._statement) as copy:
            copy.write(encoder.write_header())
            for chunk in _chunks(encoder, batch):
                copy.write(chunk)
            copy.write(encoder.finish())

    @property
    def _statement(self) -> sql.Composed:
        return Statements(self.target.spec, self.target.schema).copy(self.into, self.wire.names)

    def _encoder(self) -> ArrowToPostgresBinaryEncoder:
        """An encoder for one COPY."""
        builders = {field.name: ArrowToPostgresBinaryEncoder.infer_encoder(field) for field in self.wire}
        for column in self.target.spec.columns:
            if column.type is ColumnType.JSON and column.name in builders:
                builders[column.name] = StringEncoderBuilder.new_with_output(self.wire.field(column.name), Jsonb())
        return ArrowToPostgresBinaryEncoder.new_with_encoders(self.wire, builders)


def rows_by_day(spec: TableSpec, batch: pa.RecordBatch) -> Counter[date]:
    """How many rows of the batch each day has."""
    entries = pc.value_counts(batch.column(spec.partition_column)).to_pylist()
    return Counter({entry["values"]: entry["counts"] for entry in entries})


def _chunks(encoder: ArrowToPostgresBinaryEncoder, batch: pa.RecordBatch) -> Iterator[bytes]:
    for start in range(0, batch.num_rows, CHUNK_ROWS):
        yield encoder.write_batch(batch.slice(start, CHUNK_ROWS))
