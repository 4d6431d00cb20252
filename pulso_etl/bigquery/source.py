"""BigQuery as a source of Arrow record batches, through dagster-gcp's resource and the google-cloud-bigquery client.

It runs one query job over a range of days, with parameters, labels and a cost limit. The result streams as Arrow batches over the
Storage Read API. It comes over REST if that API is not reachable or the result fits one page.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from math import ceil
from typing import Any, Literal, TypeVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from dagster import DagsterInvalidDefinitionError
from google.api_core import exceptions as api
from google.api_core.retry import Retry, if_exception_type
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud import bigquery
from google.cloud.bigquery.retry import DEFAULT_JOB_RETRY, DEFAULT_RETRY
from requests import RequestException

from pulso_etl.bigquery.capture import Interval, capture_refusal, captured_sql, interval
from pulso_etl.bigquery.credentials import naming_credentials, one_line
from pulso_etl.bigquery.look import (
    LOOK_SECONDS,
    Look,
    Partitions,
    Size,
    dry_run,
    is_daily,
    partitions_of,
    source_digest,
    state_of,
    take,
    text_fault,
)
from pulso_etl.bigquery.pricing import Pricing, question_pays
from pulso_etl.bigquery.resource import BigQueryResource
from pulso_etl.bigquery.shared import ALONE, READING, SOURCE, Joined, avoided, job_id, why_not_attach, why_not_read
from pulso_etl.bigquery.storage_read import Compression, ReadClient, plaintext_transport
from pulso_etl.settings import Settings
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
from pulso_etl.sync.ledger.queries import Usage
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.patience import within
from pulso_etl.sync.shared_reads import SharedRead
from pulso_etl.sync.source_state import PartitionStates, SourceState
from pulso_etl.sync.spec import TableSpec, fill

log = logging.getLogger(__name__)

Transport = Literal["storage", "rest"]
Found = TypeVar("Found")

READ_STREAMS = 2
FOUND_SECONDS = 10.0
"""BigQuery may say for some seconds that there is no job of an id which it has just refused as taken."""
RUN_LOOK_SECONDS = 20.0
"""Limit of a run's own look at the source. Without an answer the run reads all the same."""
QUEUED_BATCHES = 4
"""The most batches to read ahead of the load. BigQuery sends batches of at most 10 MiB."""

STOPPED = "stopped"
"""BigQuery's reason for the end of a job that was cancelled or ran too long."""
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
"""Errors that no retry repairs, by BigQuery's reason: our class of error, and what to do about it."""


class BigQuerySource(BigQueryResource):
    """dagster-gcp's BigQuery resource. It also knows an emulator, a cost limit, and the names of the source tables.

    `sources` are full table names by the placeholder that the `.sql` files use. `price_per_tib` is US dollars per TiB billed,
    on demand; `price_per_slot_hour` replaces it (see `Pricing`). `maximum_bytes_billed` limits one query. A request that fails for
    a passing reason is sent again with exponential back-off from `retry_initial_seconds`, for `retry_timeout_seconds` in all. After
    `request_timeout_seconds` without an answer a connection counts as broken; the client gives requests for rows at least 120
    seconds. `change_margin_seconds` is how far BigQuery's clock and ours may differ.
    `change_aware`: a load looks at the source first, so that a later refresh can tell whether anything has changed.
    """

    sources: dict[str, str] = {}
    maximum_bytes_billed: int = 20 * 1024**3
    price_per_tib: float = 6.25
    price_per_slot_hour: float | None = None
    use_storage_api: bool = True
    wire_compression: Compression = "lz4"
    emulator_host: str | None = None
    emulator_storage: str | None = None
    retry_initial_seconds: float = 1.0
    retry_timeout_seconds: float = 120.0
    request_timeout_seconds: float = 120.0
    change_margin_seconds: float = 600.0
    change_aware: bool = True

    @property
    def pricing(self) -> Pricing:
        """What the account pays."""
        return Pricing(self.price_per_tib, self.price_per_slot_hour)

    @property
    def retry(self) -> Retry:
        """The client's own retry of one request (429, 5xx, broken connections), with this resource's timing."""
        return DEFAULT_RETRY.with_delay(initial=self.retry_initial_seconds).with_timeout(self.retry_timeout_seconds)

    def job_retry(self, timeout: float) -> Retry:
        """The client's own retry of a job that failed for a passing reason. It starts new jobs for `timeout` seconds."""
        return DEFAULT_JOB_RETRY.with_delay(initial=self.retry_initial_seconds).with_timeout(timeout)

    @contextmanager
    def get_client(self) -> Iterator[bigquery.Client]:
        """A client, which is closed at the end. Raises SourceError if there are no usable credentials."""
        with ExitStack() as stack:
            with naming_credentials():
                if self.emulator_host:
                    client = bigquery.Client(
                        project=self.project,
                        location=self.location,
                        credentials=AnonymousCredentials(),
                        client_options={"api_endpoint": self.emulator_host},
                    )
                else:
                    client = stack.enter_context(_one_key(super().get_client()))
            stack.callback(client.close)
            yield client

    def read_client(self, stream_seconds: float) -> ReadClient | None:
        """A Storage Read client, whose transport the caller closes. None if it is turned off or the emulator has none.

        Inside `get_client` it finds the same credentials.
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

    def query(self, sql: str) -> pa.Table:
        """The result of any query, under the limit of bytes of one query. Raises SourceError."""
        config = bigquery.QueryJobConfig(maximum_bytes_billed=self.maximum_bytes_billed, labels={"pulso_etl": "query"})
        try:
            with self.get_client() as client:
                return client.query(sql, job_config=config, retry=self.retry).to_arrow(create_bqstorage_client=False)
        except (api.GoogleAPIError, GoogleAuthError) as error:
            raise SourceError(f"the query failed: {one_line(error)}") from error

    def tables(self, spec: TableSpec) -> dict[str, str]:
        """Full names of the source tables that the spec's query reads, by placeholder. Raises SourceError for an unknown one."""
        return spec.source_tables(self.sources)

    def stream(
        self, spec: TableSpec, window: DayRange, run_id: str, bytes_avoided: int = 0, shared: SharedRead | None = None
    ) -> BigQueryStream:
        """The stream of the table's rows of the window. It runs no query yet: see `BigQueryStream.open`.

        `bytes_avoided`: what is not billed because the window has only the days that have changed. `shared`: a read that has these
        rows and that other runs use too.
        """
        return BigQueryStream(self, spec, window, run_id, bytes_avoided, shared)

    def look(self, spec: TableSpec, window: DayRange, seconds: float = LOOK_SECONDS) -> Look:
        """What BigQuery tells of the table's statement over the window, for free and before it runs.

        Raises the errors of `BigQueryStream.open`; SourceUnavailable also if there is no answer within `seconds`.
        """
        statement = self._statement(spec, window)

        def ask(client: bigquery.Client) -> Look:
            return take(client, statement, bigquery.QueryJobConfig(query_parameters=days_of(window)), seconds)

        return self._asked(spec, window, seconds, ask)

    def size(self, spec: TableSpec, window: DayRange, seconds: float = LOOK_SECONDS) -> Size:
        """How much the table's statement reads over the window, by a dry run, which is free. Raises the errors of `look`."""
        statement = self._statement(spec, window)

        def ask(client: bigquery.Client) -> Size:
            job = dry_run(client, statement, bigquery.QueryJobConfig(query_parameters=days_of(window)), seconds)
            return Size(job.total_bytes_processed or 0, len(job.referenced_tables))

        return self._asked(spec, window, seconds, ask)

    def partitions(
        self, spec: TableSpec, window: DayRange, tables: Collection[bigquery.Table], seconds: float = LOOK_SECONDS
    ) -> Partitions:
        """The states of the partitions of base tables of the table's statement; see `look.partitions_of`. This bills.

        Raises the errors of `look`.
        """
        return self._asked(spec, window, seconds, lambda client: partitions_of(client, tables, self.maximum_bytes_billed, seconds))

    def _statement(self, spec: TableSpec, window: DayRange) -> str:
        return self.stream(spec, window, "look").sql()

    def _asked(self, spec: TableSpec, window: DayRange, seconds: float, ask: Callable[[bigquery.Client], Found]) -> Found:
        """The answer to a question about the table's statement, within so many seconds."""

        def asked() -> Found:
            with raising_source_errors(spec, window), self.get_client() as client:
                return ask(client)

        try:
            return within(seconds, asked)
        except TimeoutError:
            raise SourceUnavailable(f"{spec.name} {window}: BigQuery did not answer within {seconds:.1f} s") from None


def build_source(settings: Settings) -> BigQuerySource:
    """The source that the settings describe."""
    return BigQuerySource(
        project=settings.bigquery_project_id,
        location=settings.bigquery_location,
        sources=settings.sources(),
        maximum_bytes_billed=settings.bigquery_maximum_bytes_billed,
        price_per_tib=settings.bigquery_price_per_tib,
        price_per_slot_hour=settings.bigquery_price_per_slot_hour,
        use_storage_api=settings.bigquery_use_storage_api,
        wire_compression=settings.bigquery_wire_compression,
        emulator_host=settings.bigquery_emulator_host,
        emulator_storage=settings.bigquery_emulator_storage,
        change_margin_seconds=settings.change_margin_seconds,
        change_aware=settings.change_aware,
    )


@dataclass
class BigQueryStream:
    """A query that runs when it is opened. A second opening reads the same result again, at no further cost.

    It asks for the whole window, or after `capture` only for the changed rows.
    """

    source: BigQuerySource
    spec: TableSpec
    window: DayRange
    run_id: str
    bytes_avoided: int = 0
    """What is not billed because the window has only the days that have changed."""
    shared: SharedRead | None = None
    """The read of several runs that has these rows. Without a look that found a state of the source, the stream reads alone."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """After `open`: transport, job id, cache hit; bytes processed, bytes billed and their estimated on-demand price in US dollars,
    if the job's statistics have them; bytes avoided: those of a narrower window, and after a look those that BigQuery's cache or a
    shared read saved; how the read was shared, or why not. After `look`: what the source tells of changes. After `capture`: the
    changes, or why the whole window."""
    _changes: Interval | None = field(default=None, repr=False)
    _done: Any = field(default=None, repr=False)
    _joined: Joined | None = field(default=None, repr=False)
    """How the stream takes part in a shared job; None if the job is its own."""
    _looked: Look | None = field(default=None, repr=False)
    """What BigQuery told of the statement; None before the look, or if it did not answer."""
    _source: str = field(default="", repr=False)
    """What the source was like after all that is stored of its state; empty if there is no signal."""
    _others: dict[str, Any] = field(default_factory=dict, repr=False)
    """Other jobs that were billed, by their id: changes that were not loaded, days before the window."""

    def look(self, kept: Collection[str] = ()) -> SourceState | None:
        """The source's state before its rows are read. None if there is no signal of changes; `metadata` says why.

        The states of the partitions of base tables are asked for once, because that bills: not again for those of `kept`, and only
        if it can pay for a window like this one.
        """
        if not self.source.change_aware:
            return None
        seen = self._seen()
        if isinstance(seen, str):
            self.metadata["change_signal"] = f"none: {seen}"
            return None
        look, state = seen
        self.metadata["change_signal"] = f"state of {', '.join(sorted(look.tables))}"
        partitions = self._partitions(look, kept)
        if partitions and self.shared is not None:
            # The job of another run may be older than this answer. So only the source as it was after it tells whether the rows
            # are as new as these states.
            seen = self._seen()
        self._source = "" if isinstance(seen, str) else source_digest(*seen)
        return replace(state, partitions=partitions)

    def _seen(self) -> tuple[Look, SourceState] | str:
        """What BigQuery tells of the statement now, and the source's state; or why there is no signal of changes."""
        try:
            self._looked = look = self.source.look(self.spec, self.window, RUN_LOOK_SECONDS)
        except SourceError as error:
            # The query itself will report what is wrong with the source.
            return f"the look at the source failed ({one_line(error)})"
        state = state_of(look, self.spec)
        return state if isinstance(state, str) else (look, state)

    @property
    def _size(self) -> int:
        """How many bytes BigQuery would bill for the statement, by the look."""
        return self._looked.size.bytes_billed if self._looked is not None else 0

    def _partitions(self, look: Look, kept: Collection[str]) -> PartitionStates:
        """The states of the partitions of base tables of which each makes one day, without those of `kept`."""
        tables = [table for name, table in look.tables.items() if name not in kept and is_daily(look, self.spec, name)]
        if not tables or not question_pays(look.bytes_processed, len(look.tables), len(tables)):
            return {}
        try:
            found = self.source.partitions(self.spec, self.window, tables, RUN_LOOK_SECONDS)
        except SourceError as error:
            log.warning("%s %s: the states of partitions are not known: %s", self.spec.name, self.window, error)
            return {}
        self._others |= {job.job_id: job for job in found.jobs}
        return found.states

    def sql(self) -> str:
        """The statement that runs, with the names of the source tables filled in."""
        query = captured_sql(self.spec) if self._changes else self.spec.source.query
        return fill(query, self.source.tables(self.spec), self.spec.timezone)

    @property
    def computed_at(self) -> datetime | None:
        """When BigQuery began the job."""
        return self._done.started if self._done is not None else None

    def capture(self, watermark: Watermark, written_at: datetime | None, now: datetime) -> datetime | None:
        """Makes this the stream of the changes since the watermark, and returns the instant that they lead to.

        Such a stream has the column DELETED. If the changes are not enough, or BigQuery refuses them, this returns None and stays
        the stream of the whole window. For the arguments see `capture.interval`. Raises SourceUnavailable for faults that pass.
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
        self.metadata |= {"capture": f"{self.spec.source.change_capture}", "capture_interval": str(changes)}
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
        """The rows of other days, with the same columns. Their cost is added to the stream's.

        Raises the errors of `open`.
        """
        other = replace(self, window=days, shared=None, metadata={}, _changes=None, _done=None, _joined=None, _others={})
        with other.open() as reader:
            self._others[other._done.job_id] = other._done
            if self._done is not None:
                self.metadata.update(self._statistics())
            yield reader

    def _refusal(self, client: bigquery.Client, changes: Interval) -> str | None:
        (name,) = self.source.tables(self.spec).values()
        return capture_refusal(
            client.get_table(name, retry=self.source.retry, timeout=self.source.request_timeout_seconds), changes
        )

    @contextmanager
    def open(self) -> Iterator[pa.RecordBatchReader]:
        """Runs the query and streams its rows, with a few batches in memory at a time. They are valid inside the `with`.

        Raises SourceUnavailable for faults that pass, CostCapExceeded beyond the limit, SourceError otherwise. So does the reader.
        """
        with ExitStack() as stack:
            with raising_source_errors(self.spec, self.window):
                client = stack.enter_context(self.source.get_client())
            try:
                first, batches = self._begun(client, stack)
            except SourceError as error:
                if self._joined is None or error.retryable:
                    raise
                self._leave(self._joined, str(error))
                first, batches = self._begun(client, stack)
            yield pa.RecordBatchReader.from_batches(first.schema, chain([first], batches))

    def _begun(self, client: bigquery.Client, stack: ExitStack) -> tuple[pa.RecordBatch, Iterator[pa.RecordBatch]]:
        """The first batch of the rows, and the others. `stack` closes everything after the last batch. Raises as `open` does."""
        with raising_source_errors(self.spec, self.window):
            self._done = job = self._finished(client)
            self.metadata.update(self._statistics())
            batches, transport = self._batches(client, job, stack)
        self.metadata["transport"] = transport
        return next(batches), batches

    def _statistics(self) -> dict[str, Any]:
        """What the metadata tell of the job that gives the rows. A job that another run sent is billed to that run."""
        job, joined = self._done, self._joined
        attached = joined is not None and not joined.sent
        told = statistics(job, self.source.pricing, [*self._others.values(), *([] if attached else [job])])
        saved = joined.bytes_avoided if joined is not None and attached else self._size if job.cache_hit else 0
        if self.bytes_avoided + saved:
            told["bytes_avoided"] = self.bytes_avoided + saved
        return told

    def _finished(self, client: bigquery.Client) -> Any:
        """The job with its result. If it does not get there, for whatever reason, the job is cancelled."""
        if self._done is not None:
            return client.get_job(self._done.job_id, location=self._done.location, retry=self.source.retry)
        if self.shared is not None and self._changes is None and (job := self._share(client, self.shared)) is not None:
            return job
        parameters = days_of(self.window)
        if self._changes:
            parameters += [
                bigquery.ScalarQueryParameter("since", "TIMESTAMP", self._changes.start),
                bigquery.ScalarQueryParameter("until", "TIMESTAMP", self._changes.end),
            ]
        # Failed jobs are retried below. A retry of jobs here would only multiply the retries of requests.
        job = client.query(
            self.sql(), job_config=self._config(parameters), retry=self.source.retry, job_retry=None, timeout=self._at_once
        )
        try:
            self._result(job, self.source.job_retry(self._timeout), self._timeout)
        except BaseException:
            cancel(job)
            raise
        return job

    @property
    def _timeout(self) -> float:
        return self.spec.loading.timeout.total_seconds()

    @property
    def _at_once(self) -> float:
        """Each wait is limited to the time of one request. Otherwise a dead connection would be noticed only at the very end."""
        return min(self._timeout, self.source.request_timeout_seconds)

    def _config(self, parameters: list[bigquery.ScalarQueryParameter], **labels: str) -> bigquery.QueryJobConfig:
        return bigquery.QueryJobConfig(
            query_parameters=parameters,
            labels={"app": "pulso-etl", "table": self.spec.name, "run_id": label(self.run_id), **labels},
            maximum_bytes_billed=self.source.maximum_bytes_billed,
            use_query_cache=True,
            job_timeout_ms=int(self._timeout * 1000),
        )

    def _result(self, job: Any, job_retry: Retry | None, seconds: float) -> Any:
        """The job's result. Raises TimeoutError if it has none after so many seconds."""
        at_once = min(seconds, self._at_once)
        for _ in range(ceil(seconds / at_once)):
            with suppress(TimeoutError):
                return job.result(retry=self.source.retry, job_retry=job_retry, timeout=at_once)
        raise TimeoutError(f"no result after {timedelta(seconds=seconds)}")

    def _share(self, client: bigquery.Client, read: SharedRead) -> Any | None:
        """The job of the shared read with its result; None if this run has to read alone, and the metadata say why.

        Whoever sent the job cancels it if it ends early, so the others then read alone. The host's statement may be at fault, or
        slow, and that concerns the host alone: every other run, and every run that did not send the job, keeps half of its time for
        a read of its own.
        """
        if not self._source or self._looked is None:
            self._read_alone("the source gives no signal of changes, so nobody knows how old the rows may be")
            return None
        statement = fill(read.host.source.query, self.source.tables(read.host), read.host.timezone)
        if fault := text_fault(statement, read.host):
            # The host itself never shares, so its query would only cost more.
            self._read_alone(f"the query of {read.host.name} gives no signal of changes: {fault}")
            return None
        mine = {READING: uuid4().hex, SOURCE: self._source, ALONE: str(self._size)}
        config, name = self._config(days_of(read.window), **mine), job_id(read, statement)
        try:
            job: Any = self._sent(client, statement, config, name)
        except api.ClientError as error:
            self._read_alone(one_line(error))
            return None
        sent = job.labels.get(READING) == mine[READING]
        why_not = "" if sent else why_not_attach(job.labels, self._source, job.created, datetime.now(UTC))
        if why_not:
            self._read_alone(why_not)
            return None
        is_host = read.host.name == self.spec.name
        own = sent and is_host
        try:
            rows = self._result(job, None, self._timeout if own else self._timeout / 2)
        except BaseException as error:
            if sent:
                cancel(job)
                self._others[job.job_id] = job
            passes_over = api.GoogleAPIError if own else (api.GoogleAPIError, TimeoutError)
            if not isinstance(error, passes_over) or (own and reason_of(error) == STOPPED):
                raise
            self._read_alone(one_line(error))
            return None
        if not is_host and (why_not := why_not_read(self._looked.schema, rows.schema)):
            if sent:
                self._others[job.job_id] = job
            self._read_alone(why_not)
            return None
        saved = avoided(self._size, job.labels, is_host=is_host, cached=bool(job.cache_hit))
        self._joined = Joined(read, sent, saved)
        self.metadata["shared_read"] = self._joined.told
        return job

    def _sent(self, client: bigquery.Client, statement: str, config: bigquery.QueryJobConfig, name: str) -> Any:
        """The job of that id, which this run or another one has sent."""
        retry, timeout = self.source.retry, self._at_once
        try:
            return client.query(statement, job_config=config, job_id=name, retry=retry, job_retry=None, timeout=timeout)
        except api.Conflict:
            # BigQuery finds a job outside of the US and the EU by its location only.
            location = client.location or (self._looked.location if self._looked is not None else None)
            shown = Retry(if_exception_type(api.NotFound), self.source.retry_initial_seconds, timeout=FOUND_SECONDS)
            try:
                return shown(client.get_job)(name, location=location, retry=retry, timeout=timeout)
            except api.RetryError as error:
                raise error.cause from None

    def _leave(self, joined: Joined, why: str) -> None:
        """From now on the stream reads alone: it has no use of the result that it has joined."""
        if joined.sent:
            self._others[self._done.job_id] = self._done
        self.shared, self._joined, self._done = None, None, None
        self.metadata.pop("bytes_avoided", None)
        self._read_alone(why)

    def _read_alone(self, why: str) -> None:
        self.metadata["shared_read"] = f"none: {why}"

    def _batches(
        self, client: bigquery.Client, job: bigquery.QueryJob, stack: ExitStack
    ) -> tuple[Iterator[pa.RecordBatch], Transport]:
        """The result's batches, at least one. `stack` closes everything after the last batch."""
        # Without page_size no first page is in memory. With one, the client would choose the transport itself.
        rows = job.result(retry=self.source.retry)
        found = self._own_columns(client, job, rows) or rows
        batches = self._storage_batches(found, stack) if rows.total_rows > self.spec.source.batch_rows else None
        transport: Transport = "rest" if batches is None else "storage"
        if batches is None:
            paged: dict[str, Any] = {
                "page_size": self.spec.source.batch_rows,
                "retry": self.source.retry,
                "timeout": self.source.request_timeout_seconds,
            }
            pages = self._own_columns(client, job, rows, **paged) or job.result(**paged)
            batches = pages.to_arrow_iterable()
        log.info("%s %s: %d rows over %s", self.spec.name, self.window, rows.total_rows, transport)
        return self._own_days(self._counted(batches, rows.total_rows)), transport

    def _own_columns(self, client: bigquery.Client, job: bigquery.QueryJob, rows: Any, **paged: Any) -> Any | None:
        """The rows of a shared result with the columns of this table alone; None if the result has no others."""
        if self._joined is None or self._joined.read.host.name == self.spec.name:
            return None
        assert self._looked is not None
        own = {name for name, *_ in self._looked.schema}
        return client.list_rows(job.destination, selected_fields=[field for field in rows.schema if field.name in own], **paged)

    def _own_days(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same batches with the rows of the window alone."""
        if self._joined is None or self._joined.read.window == self.window:
            return batches
        first, last = pa.scalar(self.window.start), pa.scalar(self.window.end)

        def within(batch: pa.RecordBatch) -> pa.RecordBatch:
            days = batch.column(self.spec.partition_column)
            return batch.filter(pc.and_(pc.greater_equal(days, first), pc.less_equal(days, last)))

        return map(within, batches)

    def _storage_batches(self, rows: Any, stack: ExitStack) -> Iterator[pa.RecordBatch] | None:
        """The batches over the Storage Read API, with the first one fetched. None if the API is turned off or does not answer."""
        with ExitStack() as attempt:
            try:
                client = self.source.read_client(stream_seconds=self.spec.loading.timeout.total_seconds())
                if client is None:
                    return None
                batches = rows.to_arrow_iterable(client, max_queue_size=QUEUED_BATCHES, max_stream_count=READ_STREAMS)
                attempt.callback(batches.close)
                # This runs before `batches.close`. It ends the calls for which `close` would wait, however long a server is silent.
                attempt.callback(client.transport.close)
                first = list(islice(batches, 1))
            except (api.GoogleAPIError, GoogleAuthError) as error:
                advice = (
                    "grant the account roles/bigquery.readSessionUser on the project"
                    if isinstance(error, api.Forbidden)
                    else "open the network to bigquerystorage.googleapis.com:443, or set BIGQUERY_USE_STORAGE_API=false"
                )
                log.warning(
                    "%s %s: the Storage Read API does not answer, so rows come over REST, which is slower; %s. %s",
                    *(self.spec.name, self.window, advice, one_line(error)),
                )
                return None
            stack.push(attempt.pop_all())
        return chain(first, batches)

    def _counted(self, batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
        """The same batches. Raises SourceUnavailable unless they hold exactly as many rows as the result."""
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
def _one_key(client: AbstractContextManager[bigquery.Client]) -> Iterator[bigquery.Client]:
    """The client of dagster-gcp's resource. Raises SourceAccessRefused if two keys are given."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(client)
        except DagsterInvalidDefinitionError:
            raise SourceAccessRefused(
                "BigQuery: both gcp_credentials and GOOGLE_APPLICATION_CREDENTIALS are set; keep one of them"
            ) from None
        yield found


@contextmanager
def raising_source_errors(spec: TableSpec, window: DayRange) -> Iterator[None]:
    """Turns errors of the client into ours: see `source_error`."""
    try:
        yield
    except (api.GoogleAPIError, GoogleAuthError, RequestException, ConnectionError, TimeoutError) as error:
        raise source_error(spec, window, error) from error


def reason_of(error: Exception) -> str:
    """BigQuery's reason for an error of the client; empty if there is none."""
    return next((e.get("reason", "") for e in getattr(error, "errors", []) if isinstance(e, dict)), "")


def source_error(spec: TableSpec, window: DayRange, error: Exception) -> SourceError:
    """Our error for an error of the client. It names table and range, whether the fault passes, and what to do about it."""
    where, text = f"{spec.name} {window}: BigQuery", one_line(error)
    reason = reason_of(error)
    if reason == "bytesBilledLimitExceeded":
        return CostCapExceeded(
            f"{where} would bill more than the cap; narrow the range or raise BIGQUERY_MAXIMUM_BYTES_BILLED. {text}"
        )
    if reason == STOPPED or isinstance(error, TimeoutError):
        return QueryTimedOut(
            f"{where} had its query stopped: it ran longer than {spec.loading.timeout}, or someone cancelled it. A later attempt "
            f"may pass; if none does, narrow the range or give the table a longer time-out. {text}"
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


def statistics(job: bigquery.QueryJob, pricing: Pricing, billed: Collection[bigquery.QueryJob]) -> dict[str, Any]:
    """A finished job's identity, and the cost of the `billed` jobs, as far as its statistics have them.

    The cost is US dollars, before the month's free volume.
    """
    told: dict[str, Any] = {"bigquery_job_id": job.job_id, "cache_hit": job.cache_hit}
    if job.total_bytes_processed is not None:
        told["bytes_processed"] = sum(one.total_bytes_processed or 0 for one in billed)
    if job.total_bytes_billed is not None:
        told["bytes_billed"] = sum(one.total_bytes_billed or 0 for one in billed)
    if job.slot_millis is not None:
        told["slot_millis"] = sum(one.slot_millis or 0 for one in billed)
    if told.keys() & {"bytes_billed", "slot_millis"}:
        told["estimated_cost_usd"] = round(pricing.cost(Usage.of(told)), 6)
    return {name: value for name, value in told.items() if value is not None}


def cancel(job: bigquery.QueryJob) -> None:
    """Cancels the job if it has not ended."""
    if job.state != "DONE":
        with suppress(Exception):
            job.cancel(retry=None, timeout=10)


def days_of(window: DayRange) -> list[bigquery.ScalarQueryParameter]:
    """The parameters of a table's statement."""
    return [bigquery.ScalarQueryParameter(name, "DATE", day) for name, day in (("start", window.start), ("end", window.end))]


def label(value: str) -> str:
    """The value as a BigQuery label: lower case, at most 63 characters out of letters, digits, `_` and `-`."""
    return re.sub(r"[^a-z0-9_-]", "_", value.lower())[:63]
