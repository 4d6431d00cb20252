"""A client of the Storage Read API whose calls cannot hang."""

from __future__ import annotations

from typing import Any, Literal

import grpc
from google.api_core import exceptions as api
from google.api_core.retry import Retry, if_exception_type
from google.cloud.bigquery_storage import ArrowSerializationOptions, BigQueryReadClient
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

SESSION_SECONDS = 30.0
"""How long BigQuery may take to open a read session before REST is used instead."""
LONGEST_DELAY_SECONDS = 10.0
Compression = Literal["lz4", "zstd", "none"]
CODECS = {
    "lz4": ArrowSerializationOptions.CompressionCodec.LZ4_FRAME,
    "zstd": ArrowSerializationOptions.CompressionCodec.ZSTD,
    "none": ArrowSerializationOptions.CompressionCodec.COMPRESSION_UNSPECIFIED,
}
"""How BigQuery compresses the rows that it sends. By default the client asks for LZ4."""


class ReadClient(BigQueryReadClient):
    """A Storage Read client whose calls end. google-cloud-bigquery makes the calls, and sets no limit on them.

    Without a limit, opening a session waits for ever, and the client asks for a broken stream again for a day. Here a session has
    `SESSION_SECONDS`, and a stream has `stream_seconds` in all. A broken stream continues at the row where it broke. The client
    tries this for `retry_seconds`, with exponential back-off from `retry_initial_seconds`.
    """

    def __init__(
        self,
        *,
        stream_seconds: float,
        retry_seconds: float,
        retry_initial_seconds: float,
        compression: Compression = "lz4",
        **options: Any,
    ) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._compression = compression
        self._rows_limits = {
            "timeout": stream_seconds,
            "retry": Retry(
                if_exception_type(api.ServiceUnavailable),
                initial=retry_initial_seconds,
                maximum=LONGEST_DELAY_SECONDS,
                timeout=retry_seconds,
            ),
        }

    def create_read_session(self, *args: Any, **options: Any) -> Any:
        """Opens a read session, without a retry, because REST remains. Raises google.api_core.exceptions.GoogleAPICallError."""
        options["read_session"].read_options.arrow_serialization_options.buffer_compression = CODECS[self._compression]
        return super().create_read_session(*args, **options | {"timeout": SESSION_SECONDS, "retry": None})

    def read_rows(self, name: str, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """The stream's rows. Raises google.api_core.exceptions.GoogleAPICallError or RetryError."""
        return super().read_rows(name, *args, **options | self._rows_limits)  # type: ignore[no-untyped-call]


def plaintext_transport(address: str) -> BigQueryReadGrpcTransport:
    """A transport to an emulator at `host:port`: no TLS, no credentials, and no limit on a message, like BigQuery's own."""
    return BigQueryReadGrpcTransport(channel=grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)]))
