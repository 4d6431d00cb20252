"""BigQueryRead over real gRPC, as BigQuery serves it. It serves the rows of query results, which the emulator's end point lacks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc
import pyarrow as pa
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import types

SERVICE = "google.cloud.bigquery.storage.v1.BigQueryRead"


@dataclass
class Break:
    """Ends a stream when it has sent `after` of its rows: with a status, or, if that is None, by sending nothing more.

    `stream` is the stream's number, `times` how often that happens.
    """

    status: grpc.StatusCode | None
    after: int
    stream: int = 0
    times: int = 1


class StorageServer:
    """Serves the result of any job of the emulator, in `streams` streams and batches of `batch_rows` rows."""

    def __init__(self, jobs: bigquery.Client, *, streams: int = 2, batch_rows: int = 50) -> None:
        self.streams = streams
        self.batch_rows = batch_rows
        self.refusal: grpc.StatusCode | None = None
        """The status with which the server refuses sessions."""
        self.lost = 0
        """Rows that sessions leave out."""
        self.breaks: list[Break] = []
        self.sessions: list[types.CreateReadSessionRequest] = []
        self.reads: list[types.ReadRowsRequest] = []
        self.active = 0
        """ReadRows calls that have not ended."""
        self._jobs = jobs
        self._parts: dict[str, pa.Table] = {}
        self._codecs: dict[str, int] = {}
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(16, "storage-server"))
        self._server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    SERVICE,
                    {
                        "CreateReadSession": grpc.unary_unary_rpc_method_handler(
                            self._create_session,
                            types.CreateReadSessionRequest.deserialize,
                            types.ReadSession.serialize,
                        ),
                        "ReadRows": grpc.unary_stream_rpc_method_handler(
                            self._read_rows,
                            types.ReadRowsRequest.deserialize,
                            types.ReadRowsResponse.serialize,
                        ),
                    },
                )
            ]
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"

    @property
    def bytes_held(self) -> int:
        """The Arrow memory of the results in this process, in bytes."""
        return sum(part.nbytes for part in self._parts.values())

    def _create_session(self, request: types.CreateReadSessionRequest, context: grpc.ServicerContext) -> types.ReadSession:
        self.sessions.append(request)
        if self.refusal is not None:
            context.abort(self.refusal, "injected")
        table = self.result(request.read_session.table.split("/")[-1]).slice(self.lost)
        if chosen := set(request.read_session.read_options.selected_fields):
            table = table.select([name for name in table.column_names if name in chosen])
        name = f"{request.parent}/locations/us/sessions/{len(self.sessions)}"
        count = min(self.streams, request.max_stream_count or self.streams)
        size = -(-table.num_rows // count)
        parts = {f"{name}/streams/{n}": table.slice(n * size, size) for n in range(count) if n * size < table.num_rows}
        self._parts |= parts
        codec = request.read_session.read_options.arrow_serialization_options.buffer_compression
        self._codecs |= dict.fromkeys(parts, codec)
        return types.ReadSession(
            name=name,
            table=request.read_session.table,
            data_format=types.DataFormat.ARROW,
            arrow_schema=_schema(table.schema),
            streams=[types.ReadStream(name=stream) for stream in parts],
        )

    def result(self, table_id: str) -> pa.Table:
        """The rows of the job whose result has that id."""
        for job in self._jobs.list_jobs():
            if job.destination is not None and job.destination.table_id == table_id:
                return job.result().to_arrow(create_bqstorage_client=False).combine_chunks()
        raise KeyError(table_id)

    def _read_rows(self, request: types.ReadRowsRequest, context: grpc.ServicerContext) -> Iterator[types.ReadRowsResponse]:
        with self._lock:
            self.reads.append(request)
            self.active += 1
        ended = threading.Event()

        def end() -> None:
            with self._lock:
                self.active -= 1
            ended.set()

        if not context.add_callback(end):
            # The call has ended before this thread registered the callback, so nothing would call it.
            end()
        part = self._parts[request.read_stream]
        broken = self._break(int(request.read_stream.rsplit("/", 1)[1]))
        position = request.offset
        while position < part.num_rows:
            if broken is not None and position >= broken.after:
                if broken.status is None:
                    ended.wait()
                    return
                context.abort(broken.status, "injected")
            response = self.batch(request.read_stream, position)
            if position == request.offset:
                response.arrow_schema = _schema(part.schema)
            yield response
            position += response.row_count

    def codec(self, stream: str) -> int:
        """The compression that the stream's session asks for."""
        return self._codecs[stream]

    def batch(self, stream: str, position: int) -> types.ReadRowsResponse:
        """The stream's rows from that position on. The batch holds as many rows as fit into one message."""
        rows = self._parts[stream].slice(position, self.batch_rows).combine_chunks().to_batches()[0]
        message = types.ArrowRecordBatch(serialized_record_batch=_message(rows, self.codec(stream)))
        return types.ReadRowsResponse(row_count=rows.num_rows, arrow_record_batch=message)

    def _break(self, stream: int) -> Break | None:
        with self._lock:
            for broken in self.breaks:
                if broken.stream == stream and broken.times:
                    broken.times -= 1
                    return broken
            return None

    def die(self) -> None:
        """Stops listening, and drops every call."""
        self._server.stop(None).wait()

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.die()


def _schema(schema: pa.Schema) -> types.ArrowSchema:
    return types.ArrowSchema(serialized_schema=schema.serialize().to_pybytes())


def _message(batch: pa.RecordBatch, codec: int) -> bytes:
    """The batch as one IPC message, compressed as the client asks for."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        stream, batch.schema, options=pa.ipc.IpcWriteOptions(compression={1: "lz4", 2: "zstd"}.get(codec))
    ) as writer:
        writer.write_batch(batch)
    messages = pa.ipc.MessageReader.open_stream(stream.getvalue())
    messages.read_next_message()
    return bytes(messages.read_next_message().serialize().to_pybytes())
