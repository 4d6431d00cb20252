"""BigQuery as a source of Arrow record batches, through dagster-gcp's resource and the google-cloud-bigquery client.

In short: one parameterised, labelled, cost-capped query job over a range of days, whose result streams as Arrow batches over the
Storage Read API, or over REST where that is not reachable or the result fits one page.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import chain, islice
from math import ceil
from typing import Any, Literal

import pyarrow as pa
from dagster import DagsterInvalidDefinitionError
from dagster_gcp import BigQueryResource
from google.api_core import exceptions as api
from google.api_core.retry import Retry, if_exception_type
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
from google.cloud import bigquery
from google.cloud.bigquery.retry import DEFAULT_JOB_RETRY, DEFAULT_RETRY
from requests import RequestException

from pulso_etl.bigquery.capture import Interval, captured_sql, interval, refusal
from pulso_etl.bigquery.storage_read import Compression, ReadClient, plaintext_transport
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import (
    CostCapExceeded,
    QueryTimedOut,
    SourceAccessRefused,
    SourceError,
    SourceQuotaSpent,
    SourceTableMissing,
    SourceUnavailable,
)
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.spec import TableSpec, fill

log = logging.getLogger(__name__)

Transport = Literal["storage", "rest"]

TIB = 1024**4
READ_STREAMS = 2
QUEUED_BATCHES = 4
"""Batches read ahead of the load, at most; one is 10 MiB at most as BigQuery sends it."""

ONCE = Retry(predicate=if_exception_type())
"""No second attempt: whoever asks is waiting."""

TRANSIENT_REASONS = {
    "rateLimitExceeded",
    "backendError",
    "internalError",
    "badGateway",
    "jobBackendError",
    "jobInternalError",
    "jobRateLimitExceeded",
}
REFUSALS: dict[str, tuple[type[SourceError], str]] = {
    "notFound": (SourceTableMissing, "does not know the table; check dataset, prefix and location"),
    "accessDenied": (
        SourceAccessRefused,
        "refuses access; grant the account roles/bigquery.jobUser on the project and roles/bigquery.dataViewer on the dataset",
    ),
    "quotaExceeded": (SourceQuotaSpent, "has no quota left; raise the quota, or wait until it is renewed"),
    "resourcesExceeded": (SourceError, "needs more resources than a query may have; narrow the range"),
}
"""Errors that no retry mends, by BigQuery's reason: the class of error that each becomes, and what to do about it."""


class BigQuerySource(BigQueryResource):
    """dagster-gcp's BigQuery resource, which also knows an emulator, a cost cap, and where the source tables are.

    `sources` are full table names by the placeholder that the `.sql` files use. `price_per_tib` is US dollars per TiB billed,
    on demand; `maximum_bytes_billed` caps one query. A request that fails for a passing reason is sent again with exponential
    back-off from `retry_initial_seconds`, for `retry_timeout_seconds` in all. `request_timeout_seconds` is how long one request may
    take before its connection counts as broken; the client gives requests for rows 120 seconds at least.
    `change_margin_seconds` is how far BigQuery's clock and ours may be apart.
    """

    sources: dict[str, str] = {}
    maximum_bytes_billed: int = 20 * 1024**3
    price_per_tib: float = 6.25
    use_storage_api: bool = True
    wire_compression: Compression = "lz4"
    emulator_host: str | None = None
    emulator_storage: str | None = None
    retry_initial_seconds: float = 1.0
    retry_timeout_seconds: float = 120.0
    request_timeout_seconds: float = 120.0
    change_margin_seconds: float = 600.0

    @property
    def retry(self) -> Retry:
        """The client's own retry of one request (429, 5xx, broken connections), with this resource's timing."""
        return DEFAULT_RETRY.with_delay(initial=self.retry_initial_seconds).with_timeout(self.retry_timeout_seconds)

    def job_retry(self, timeout: float) -> Retry:
        """The client's own retry of a job that failed for a passing reason, as a new job, for `timeout` seconds."""
        return DEFAULT_JOB_RETRY.with_delay(initial=self.retry_initial_seconds).with_timeout(timeout)

    @contextmanager
    def get_client(self) -> Iterator[bigquery.Client]:
        """A client, closed at the end. Raises SourceError where no usable credentials are found."""
        with ExitStack() as stack:
            with naming_credentials():
                if self.emulator_host:
                    client = bigquery.Client(
                        project=self.project,
                        location=self.location,
                        credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
                        client_options={"api_endpoint": self.emulator_host},
                    )
                else:
                    client = stack.enter_context(super().get_client())
            stack.callback(client.close)
            yield client

    def read_client(self, stream_seconds: float) -> ReadClient | None:
        """A Storage Read client, its transport to be closed by the caller; None where it is turned off or the emulator has none.

        Within `get_client`, it finds the same credentials.
        """
        address = self.emulator_storage if self.emulator_host else None
        if not self.use_storage_api or (self.emulator_host and not address):
            return None
        return ReadClient(
            stream_seconds=stream_seconds,
            retry_seconds=self.retry_timeout_seconds,
            retry_initial_seconds=self.retry_initial_seconds,
            compression=self.wire_compression,
            transport=plaintext_transport(address) if address else None,
        )

    def tables(self, spec: TableSpec) -> dict[str, str]:
        """Full names of the source tables that the spec's query reads, by placeholder. Raises SourceError for an unknown one."""
        return spec.source_tables(self.sources)

    def stream(self, spec: TableSpec, window: DayRange, run_id: str) -> BigQueryStream:
        """The table's rows of the window, not yet asked for: see `BigQueryStream.open`."""
        return BigQueryStream(self, spec, window, run_id)


@dataclass
class BigQueryStream:
    """A query that runs when it is opened. Opened again, it reads the same result again, at no further cost.

    It asks for the whole window, or after `capture` for the rows that changed.
    """

    source: BigQuerySource
    spec: TableSpec
    window: DayRange
    run_id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    """After `open`: transport, job id, cache hit; bytes processed, bytes billed and their estimated on-demand price in US dollars
    where the job's statistics tell them (an emulator's tell no bill). After `capture`: which changes, or why the whole window."""
    _changes: Interval | None = field(default=None, repr=False)
    _done: Any = field(default=None, repr=False)
    _others: dict[str, Any] = field(default_factory=dict, repr=False)
    """Jobs by their id that were billed beside it: changes that were not loaded, days before the window."""

    def sql(self) -> str:
        """The statement that runs, with the names of the source tables filled in."""
        query = captured_sql(self.spec) if self._changes else self.spec.query
        return fill(query, self.source.tables(self.spec))

    def capture(self, watermark: Watermark, written_at: datetime | None, now: datetime) -> datetime | None:
        """Makes this the stream of what changed since the watermark, and returns the instant as of which that is.

        Such a stream has the column DELETED. Returns None, and remains the whole window's, where the changes can't stand for that,
        or BigQuery refuses them. For the arguments see `capture.interval`. Raises SourceUnavailable for faults that pass.
        """
        margin = timedelta(seconds=self.source.change_margin_seconds)
        changes = interval(self.spec, self.window, watermark, written_at, now, margin)
        try:
            with raising_source_errors(self.spec, self.window), self.source.get_client() as client:
                if isinstance(changes, Interval):
                    changes = self._refusal(client, changes) or changes
                if isinstance(changes, str):
                    self.whole(changes)
                    return None
                self._changes = changes
                self._done = self._finished(client)
        except SourceError as error:
            if error.retryable:
                raise
            self.whole(str(error))
            return None
        self.metadata |= {"capture": f"{self.spec.change_capture}", "capture_interval": str(changes)}
        return changes.end

    def whole(self, reason: str) -> None:
        """Makes this the stream of the whole window."""
        if self._done is not None:
            self._others[self._done.job_id] = self._done
        self._changes, self._done = None, None
        self.metadata |= {"capture": "whole window", "capture_reason": reason}
        self.metadata.pop("capture_interval", None)

    @contextmanager
    def read_past(self, days: DayRange) -> Iterator[pa.RecordBatchReader]:
        """The rows of other days than the stream's own, with the same columns; the cost counts with the stream's.

        Raises as `open` does.
        """
        other = replace(self, window=days, metadata={}, _changes=None, _done=None, _others={})
        with other.open() as reader:
            self._others[other._done.job_id] = other._done
            if self._done is not None:
                self.metadata.update(statistics(self._done, self.source.price_per_tib, self._others.values()))
            yield reader

    def _refusal(self, client: bigquery.Client, changes: Interval) -> str | None:
        (name,) = self.source.tables(self.spec).values()
        return refusal(client.get_table(name, retry=self.source.retry, timeout=self.source.request_timeout_seconds), changes)

    @contextmanager
    def open(self) -> Iterator[pa.RecordBatchReader]:
        """Runs the query and streams its rows, a few batches in memory at a time; they are valid inside the `with`.

        Raises SourceUnavailable for faults that pass, CostCapExceeded past the cap, SourceError for the rest; the reader does, too.
        """
        with ExitStack() as stack:
            with raising_source_errors(self.spec, self.window):
                client = stack.enter_context(self.source.get_client())
                self._done = job = self._finished(client)
                self.metadata.update(statistics(job, self.source.price_per_tib, self._others.values()))
                batches, transport = self._batches(job, stack)
            self.metadata["transport"] = transport
            first = next(batches)
            yield pa.RecordBatchReader.from_batches(first.schema, chain([first], batches))

    def _finished(self, client: bigquery.Client) -> Any:
        """The job with its result. One that does not get so far, whatever the reason, is cancelled."""
        if self._done is not None:
            return client.get_job(self._done.job_id, location=self._done.location, retry=self.source.retry)
        retry, timeout = self.source.retry, self.spec.timeout.total_seconds()
        at_once = min(timeout, self.source.request_timeout_seconds)
        parameters = [
            bigquery.ScalarQueryParameter("start", "DATE", self.window.start),
            bigquery.ScalarQueryParameter("end", "DATE", self.window.end),
        ]
        if self._changes:
            parameters += [
                bigquery.ScalarQueryParameter("since", "TIMESTAMP", self._changes.start),
                bigquery.ScalarQueryParameter("until", "TIMESTAMP", self._changes.end),
            ]
        config = bigquery.QueryJobConfig(
            query_parameters=parameters,
            labels={"app": "pulso-etl", "table": self.spec.name, "run_id": label(self.run_id)},
            maximum_bytes_billed=self.source.maximum_bytes_billed,
            job_timeout_ms=int(timeout * 1000),
        )
        # A failed job is retried below; here, a retry of jobs would only multiply that of requests.
        job = client.query(self.sql(), job_config=config, retry=retry, job_retry=None, timeout=at_once)
        try:
            # One wait is no longer than a request may take, or a connection that died would be noticed at the very end.
            for _ in range(ceil(timeout / at_once)):
                with suppress(TimeoutError):
                    job.result(retry=retry, job_retry=self.source.job_retry(timeout), timeout=at_once)
                    return job
            raise TimeoutError(f"no result after {self.spec.timeout}")
        except BaseException:
            if job.state != "DONE":
                with suppress(Exception):
                    job.cancel(retry=None, timeout=10)
            raise

    def _batches(self, job: bigquery.QueryJob, stack: ExitStack) -> tuple[Iterator[pa.RecordBatch], Transport]:
        """The result's batches, at least one; `stack` gets what must be closed after the last."""
        # Without page_size, no first page is in memory, with which the client would choose the transport itself.
        rows = job.result(retry=self.source.retry)
        batches = self._storage_batches(rows, stack) if rows.total_rows > self.spec.batch_rows else None
        transport: Transport = "rest" if batches is None else "storage"
        if batches is None:
            pages = job.result(page_size=self.spec.batch_rows, retry=self.source.retry, timeout=self.source.request_timeout_seconds)
            batches = pages.to_arrow_iterable()
        log.info("%s %s: %d rows over %s", self.spec.name, self.window, rows.total_rows, transport)
        return self._counted(batches, rows.total_rows), transport

    def _storage_batches(self, rows: Any, stack: ExitStack) -> Iterator[pa.RecordBatch] | None:
        """The batches over the Storage Read API, the first one fetched; None where it is turned off or does not answer."""
        with ExitStack() as attempt:
            try:
                client = self.source.read_client(stream_seconds=self.spec.timeout.total_seconds())
                if client is None:
                    return None
                batches = rows.to_arrow_iterable(client, max_queue_size=QUEUED_BATCHES, max_stream_count=READ_STREAMS)
                attempt.callback(batches.close)
                # Closed before the batches: it ends the calls that `close` would wait for, however long a server is silent.
                attempt.callback(client.transport.close)
                first = list(islice(batches, 1))
            except (api.GoogleAPIError, GoogleAuthError) as error:
                advice = (
                    "grant the account roles/bigquery.readSessionUser on the project"
                    if isinstance(error, api.Forbidden)
                    else "open its way to bigquerystorage.googleapis.com:443, or set BIGQUERY_USE_STORAGE_API=false"
                )
                log.warning(
                    "%s %s: the Storage Read API does not answer, reading over REST, which is slower; %s. %s",
                    *(self.spec.name, self.window, advice, one_line(error)),
                )
                return None
            stack.push(attempt.pop_all())
        return chain(first, batches)

    def _counted(self, batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
        """The same batches. Raises SourceUnavailable unless they hold just as many rows as the result."""
        read = 0
        with raising_source_errors(self.spec, self.window):
            for batch in batches:
                read += batch.num_rows
                yield batch
        if read != rows:
            raise SourceUnavailable(
                f"{self.spec.name} {self.window}: BigQuery gave {read} of the result's {rows} rows; a later attempt may pass"
            )


@contextmanager
def raising_source_errors(spec: TableSpec, window: DayRange) -> Iterator[None]:
    """Errors of the client become errors of ours: see `source_error`."""
    try:
        yield
    except (api.GoogleAPIError, GoogleAuthError, RequestException, ConnectionError, TimeoutError) as error:
        raise source_error(spec, window, error) from error


def source_error(spec: TableSpec, window: DayRange, error: Exception) -> SourceError:
    """What an error of the client means: which table and range failed, whether that passes, and what to do about it."""
    where, text = f"{spec.name} {window}: BigQuery", one_line(error)
    reason = next((e.get("reason", "") for e in getattr(error, "errors", []) if isinstance(e, dict)), "")
    if reason == "bytesBilledLimitExceeded":
        return CostCapExceeded(
            f"{where} would bill more than the cap; narrow the range or raise BIGQUERY_MAXIMUM_BYTES_BILLED. {text}"
        )
    if reason == "stopped" or isinstance(error, TimeoutError):
        return QueryTimedOut(
            f"{where} had its query stopped: it ran longer than {spec.timeout}, or someone cancelled it. A later attempt may pass; "
            f"if none does, narrow the range or give the table a longer time-out. {text}"
        )
    if isinstance(error, GoogleAuthError) and not isinstance(error, TransportError):
        return SourceAccessRefused(f"{where} refuses the account's key; check that it is current. {text}")
    passing = (
        *(api.TooManyRequests, api.ServerError, api.RetryError, api.Cancelled, api.Aborted),
        *(TransportError, RequestException, ConnectionError),
    )
    if reason in TRANSIENT_REASONS or (isinstance(error, passing) and reason not in REFUSALS):
        return SourceUnavailable(f"{where} is failing for now, a later attempt may pass. {text}")
    implied = {404: "notFound", 403: "accessDenied", 401: "accessDenied"}.get(getattr(error, "code", None) or 0, "")
    otherwise = SourceError, f"rejects the query in {spec.name}.sql"
    becomes, advice = REFUSALS.get(reason) or REFUSALS.get(implied) or otherwise
    return becomes(f"{where} {advice}. {text}")


@contextmanager
def naming_credentials() -> Iterator[None]:
    """Errors about credentials become a SourceError that says what to set, and nothing of what a key file holds."""
    fix = "set GOOGLE_APPLICATION_CREDENTIALS to the path of a service account's key file, or gcp_credentials to its base64"
    try:
        yield
    except DefaultCredentialsError as error:
        raise SourceAccessRefused(f"BigQuery: no usable credentials; {fix}. {one_line(error)}") from None
    except (ValueError, TypeError, AttributeError, KeyError, GoogleAuthError) as error:
        raise SourceAccessRefused(f"BigQuery: the credentials are malformed ({type(error).__name__}); {fix}") from None
    except DagsterInvalidDefinitionError:
        raise SourceAccessRefused(
            "BigQuery: both gcp_credentials and GOOGLE_APPLICATION_CREDENTIALS are set; keep one of them"
        ) from None


def statistics(job: bigquery.QueryJob, price_per_tib: float, others: Collection[bigquery.QueryJob] = ()) -> dict[str, Any]:
    """A finished job's identity and cost, as far as its statistics tell; the price is US dollars.

    The cost is that of the `others`, too.
    """
    told: dict[str, Any] = {"bigquery_job_id": job.job_id, "cache_hit": job.cache_hit}
    if job.total_bytes_processed is not None:
        told["bytes_processed"] = job.total_bytes_processed + sum(other.total_bytes_processed or 0 for other in others)
    if job.total_bytes_billed is not None:
        told["bytes_billed"] = job.total_bytes_billed + sum(other.total_bytes_billed or 0 for other in others)
        told["estimated_cost_usd"] = round(told["bytes_billed"] / TIB * price_per_tib, 6)
    return {name: value for name, value in told.items() if value is not None}


def label(value: str) -> str:
    """A value as a BigQuery label takes it: lower case, at most 63 of letters, digits, `_` and `-`."""
    return re.sub(r"[^a-z0-9_-]", "_", value.lower())[:63]


def one_line(error: Exception) -> str:
    """The error's own text, without line breaks, 600 characters at most."""
    return " ".join(str(error).split())[:600]
