"""BigQuery as a source of Arrow record batches, through dagster-gcp's resource and the google-cloud-bigquery client."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from dagster_gcp import BigQueryResource
from google.api_core import exceptions as api
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery
from google.cloud.bigquery.retry import DEFAULT_RETRY

from pulso_etl.errors import CostCapExceeded, SourceError, SourceUnavailable
from pulso_etl.refresh import DayRange
from pulso_etl.tables.spec import TableSpec

log = logging.getLogger(__name__)

TIB = 1024**4
TRANSIENT_REASONS = {"rateLimitExceeded", "backendError", "internalError", "badGateway", "jobRateLimitExceeded"}
STORAGE_UNREACHABLE = (
    api.NotFound,
    api.Forbidden,
    api.ServiceUnavailable,
    api.MethodNotImplemented,
    api.DeadlineExceeded,
)
REQUEST_RETRY = DEFAULT_RETRY.with_timeout(120)
"""Exponential back-off on 429, 5xx and broken connections, within one request, in seconds."""


class BigQuerySource(BigQueryResource):
    """dagster-gcp's BigQuery resource, which also knows an emulator, a cost cap, and where the source tables are.

    `price_per_tib` is US dollars per TiB billed; `maximum_bytes_billed` caps one query.
    """

    sources: dict[str, str] = {}
    maximum_bytes_billed: int = 20 * 1024**3
    price_per_tib: float = 6.25
    use_storage_api: bool = True
    emulator_host: str | None = None
    emulator_storage: str | None = None

    @contextmanager
    def get_client(self) -> Iterator[bigquery.Client]:
        """A client, closed at the end. Raises SourceError where no credentials are found."""
        try:
            if self.emulator_host:
                client = bigquery.Client(
                    project=self.project,
                    location=self.location,
                    credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
                    client_options={"api_endpoint": self.emulator_host},
                )
                try:
                    yield client
                finally:
                    client.close()
            else:
                with super().get_client() as client:
                    yield client
        except GoogleAuthError as error:
            raise SourceError(
                f"BigQuery: no usable credentials ({error}); set GOOGLE_APPLICATION_CREDENTIALS to a key file"
            ) from error

    def stream(self, spec: TableSpec, window: DayRange, run_id: str) -> BigQueryStream:
        """The table's rows of the window, not yet asked for: see `BigQueryStream.open`."""
        return BigQueryStream(self, spec, window, run_id)

    def storage_client(self) -> Any | None:
        """A Storage Read API client, or None where it is turned off or the emulator has none."""
        if not self.use_storage_api:
            return None
        from google.cloud import bigquery_storage

        if not self.emulator_host:
            return bigquery_storage.BigQueryReadClient()
        if not self.emulator_storage:
            return None
        import grpc
        from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

        channel = grpc.insecure_channel(self.emulator_storage)
        return bigquery_storage.BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=channel))


@dataclass
class BigQueryStream:
    """A query that runs when it is opened. It may be opened again: BigQuery answers from its cache."""

    source: BigQuerySource
    spec: TableSpec
    window: DayRange
    run_id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    """After `open`: job id, bytes processed and billed, cache hit, estimated cost in US dollars, transport."""

    def sql(self) -> str:
        """The statement that runs, with the names of the source tables filled in."""
        return self.spec.query.format(**self.source.sources)

    @contextmanager
    def open(self) -> Iterator[pa.RecordBatchReader]:
        """Runs the query and streams its rows, a few batches in memory at a time.

        Raises SourceUnavailable for faults that pass, CostCapExceeded past the cap, SourceError for the rest.
        """
        with translated(self.spec, self.window), self.source.get_client() as client:
            config = bigquery.QueryJobConfig(
                query_parameters=[
                    bigquery.ScalarQueryParameter("start", "DATE", self.window.start),
                    bigquery.ScalarQueryParameter("end", "DATE", self.window.end),
                ],
                labels={"app": "pulso-etl", "table": self.spec.name, "run_id": label(self.run_id)},
                maximum_bytes_billed=self.source.maximum_bytes_billed,
            )
            job = client.query(self.sql(), job_config=config, retry=REQUEST_RETRY)
            rows = job.result(page_size=self.spec.batch_rows, retry=REQUEST_RETRY)
            billed = job.total_bytes_billed or 0
            self.metadata.update(
                bigquery_job_id=job.job_id,
                bytes_processed=job.total_bytes_processed or 0,
                bytes_billed=billed,
                cache_hit=bool(job.cache_hit),
                estimated_cost_usd=round(billed / TIB * self.source.price_per_tib, 6),
            )
            first, rest, transport = self._batches(job, rows)
            self.metadata["transport"] = transport
            log.info("%s %s: reading over %s", self.spec.name, self.window, transport)
            if first is None:
                schema = pa.schema([pa.field(f.name, arrow_type(f.field_type)) for f in rows.schema])
                yield pa.RecordBatchReader.from_batches(schema, [])
                return

            def batches() -> Iterator[pa.RecordBatch]:
                yield first
                with translated(self.spec, self.window):
                    yield from rest

            yield pa.RecordBatchReader.from_batches(first.schema, batches())

    def _batches(self, job: Any, rows: Any) -> tuple[pa.RecordBatch | None, Iterator[pa.RecordBatch], str]:
        """The first batch, the others, and the transport: Storage Read where it answers, REST otherwise."""
        try:
            storage = self.source.storage_client()
        except GoogleAuthError:
            storage = None
        if storage is not None:
            try:
                batches = rows.to_arrow_iterable(bqstorage_client=storage, max_queue_size=4, max_stream_count=2)
                return next(batches, None), batches, "storage"
            except STORAGE_UNREACHABLE as error:
                log.warning("%s: the Storage Read API is not reachable (%s); using REST", self.spec.name, error.code)
                rows = job.result(page_size=self.spec.batch_rows, retry=REQUEST_RETRY)
        batches = iter(rows.to_arrow_iterable())
        return next(batches, None), batches, "rest"


@contextmanager
def translated(spec: TableSpec, window: DayRange) -> Iterator[None]:
    """Errors of the client become errors of ours, which name the table and the range and say what to do."""
    where = f"{spec.name} {window}: BigQuery"
    try:
        yield
    except (api.GoogleAPICallError, api.RetryError, ConnectionError) as error:
        reason = next((e.get("reason", "") for e in getattr(error, "errors", []) if isinstance(e, dict)), "")
        text = " ".join(str(error).split())[:600]
        if "bytesBilledLimitExceeded" in (reason, text) or "limit for bytes billed" in text.lower():
            raise CostCapExceeded(
                f"{where} would bill more than the cap; narrow the range or raise BIGQUERY_MAXIMUM_BYTES_BILLED. {text}"
            ) from error
        passing = api.TooManyRequests, api.ServerError, api.RetryError, ConnectionError
        if reason in TRANSIENT_REASONS or isinstance(error, passing):
            raise SourceUnavailable(f"{where} is failing for now, a later attempt may pass. {text}") from error
        if isinstance(error, api.NotFound):
            raise SourceError(f"{where} does not know the table; check dataset, prefix and location. {text}") from error
        if isinstance(error, (api.Forbidden, api.Unauthorized)):
            raise SourceError(f"{where} refuses access; give the account bigquery.jobUser and dataViewer. {text}") from error
        raise SourceError(f"{where} rejects the query in {spec.name}.sql. {text}") from error


def label(value: str) -> str:
    """A value as a BigQuery label takes it: lower case, at most 63 of letters, digits, `_` and `-`."""
    return re.sub(r"[^a-z0-9_-]", "_", value.lower())[:63]


def arrow_type(bigquery_type: str) -> pa.DataType:
    """The Arrow type of a BigQuery type, by its REST name. Raises KeyError for one that no table can hold."""
    return {
        "STRING": pa.string(),
        "INTEGER": pa.int64(),
        "INT64": pa.int64(),
        "FLOAT": pa.float64(),
        "FLOAT64": pa.float64(),
        "NUMERIC": pa.decimal128(38, 9),
        "BIGNUMERIC": pa.decimal256(76, 38),
        "BOOLEAN": pa.bool_(),
        "BOOL": pa.bool_(),
        "DATE": pa.date32(),
        "DATETIME": pa.timestamp("us"),
        "TIMESTAMP": pa.timestamp("us", "UTC"),
        "TIME": pa.time64("us"),
        "BYTES": pa.binary(),
    }[bigquery_type]
