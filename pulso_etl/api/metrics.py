"""Metrics for Prometheus. PostgreSQL and Dagster give the values at each scrape, so a restart loses no count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import nan
from time import monotonic
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from psycopg import sql

from pulso_etl.api.database import Database
from pulso_etl.api.models import LastStatus, TableStatus
from pulso_etl.api.shapes import Progress
from pulso_etl.api.sizes import Sizes
from pulso_etl.api.status import Snapshot
from pulso_etl.refreshing.freshness import Condition, FreshnessState
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger import totals
from pulso_etl.sync.ledger.queries import Purpose
from pulso_etl.sync.ledger.totals import SUMMED

KINDS = ("read", "inserted", "updated", "unchanged", "deleted", "quarantined")
ASKING = (Purpose.RECONCILIATION, Purpose.CHANGES)
ENDS = (LastStatus.SUCCESS, LastStatus.FAILED)
QUERIES = """
SELECT table_name, purpose, sum(bytes_billed), sum(bytes_avoided) FROM {queries} GROUP BY table_name, purpose
"""


async def exposition(database: Database, sizes: Sizes, snapshot: Snapshot) -> bytes:
    """The metrics in Prometheus' text format. Raises DatabaseUnavailable."""
    began = monotonic()
    async with database.connection() as conn:
        await conn.execute("SELECT 1")
        answered = monotonic() - began
        cursor = await conn.execute(totals.totals(database.schema))
        summed = await cursor.fetchall()
        cursor = await conn.execute(sql.SQL(QUERIES).format(queries=database.marks.queries.table))
        queries = await cursor.fetchall()
        cursor = await conn.execute(totals.failures(database.schema))
        failures = await cursor.fetchall()
        measured = await sizes.read(conn)
    registry = CollectorRegistry()
    tables = [table.table for table in snapshot.status.tables]
    metrics = [
        *(*_gauges(snapshot), *_parts(snapshot, answered), *_spending(snapshot)),
        *(*_counters(summed, tables), *_avoided(summed, queries, tables), _failures(failures, tables)),
        _sizes(measured),
    ]
    registry.register(_Collected(metrics))
    return generate_latest(registry)


class _Collected:
    """A collector of finished metrics."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _gauges(snapshot: Snapshot) -> Iterator[Metric]:
    tables = snapshot.status.tables

    def gauge(name: str, text: str, values: Mapping[str, float | None]) -> Metric:
        family = GaugeMetricFamily(f"pulso_{name}", text, labels=["table"])
        for table, value in values.items():
            if value is not None:
                family.add_metric([table], value)
        return family

    def of(attribute: str) -> dict[str, float | None]:
        return {table.table: getattr(table, attribute) for table in tables}

    yield gauge("last_extraction_rows", "Rows that the table's last extraction read.", of("records"))
    yield gauge("last_extraction_duration_seconds", "Duration of the table's last extraction.", of("duration_seconds"))
    yield gauge("freshness_age_seconds", "Age of the table's rows: since when BigQuery was last read in full.", of("age_seconds"))
    yield gauge("refresh_every_seconds", "How often the table is to be refreshed.", of("refresh_every_seconds"))
    yield gauge("stale", "1 if the table is too old to be shown.", {table.table: float(_is_old(table)) for table in tables})
    yield gauge("recovery_attempts", "Attempts in a row that died and that the recovery ended.", of("recovery_attempts"))
    updated = {table.table: table.last_extracted_at.timestamp() if table.last_extracted_at else None for table in tables}
    yield gauge("last_success_timestamp_seconds", "When the table's rows were as BigQuery had them, in Unix time.", updated)
    for state, text in ((Progress.QUEUED, "waits in Dagster's queue"), (Progress.RUNNING, "is running")):
        found = {table.table: table.run_under_way and table.run_under_way.state for table in tables}
        yield gauge(f"run_{state}", f"1 if a run of the table {text}.", {name: float(now is state) for name, now in found.items()})
    yield gauge("data_version", "Rises by one with each load that changed rows of the table.", of("data_version"))
    yield gauge("table_rows", "Rows in the table.", of("rows"))
    yield from _waits(tables)
    states = GaugeMetricFamily(
        "pulso_table_state", "1 for the one state of the table, the worst that applies.", labels=["table", "state"]
    )
    for table in tables:
        for condition in Condition:
            states.add_metric([table.table, condition], float(table.state is condition))
    yield states


def _waits(tables: Iterable[TableStatus]) -> Iterator[Metric]:
    """How long the tables' readers waited for changes of the source; NaN where no load brought one, as in Prometheus' summaries."""
    waited = GaugeMetricFamily(
        "pulso_source_to_fresh_seconds",
        "Time from a change of the source to fresh rows, over the loads of the last 7 days that brought one.",
        labels=["table", "quantile"],
    )
    loads = GaugeMetricFamily("pulso_source_to_fresh_loads", "How many loads that is.", labels=["table"])
    for table in tables:
        found = table.source_to_fresh
        loads.add_metric([table.table], found.loads if found else 0)
        waited.add_metric([table.table, "0.5"], found.median_seconds if found else nan)
        waited.add_metric([table.table, "0.95"], found.p95_seconds if found else nan)
    yield from (waited, loads)


def _parts(snapshot: Snapshot, answered: float) -> Iterator[Metric]:
    """The other parts of the deployment. `answered`: after how many seconds PostgreSQL answered."""
    status = snapshot.status
    yield GaugeMetricFamily("pulso_dagster_up", "1 if Dagster answers.", value=float(status.dagster))
    yield GaugeMetricFamily("pulso_daemon_up", "1 if Dagster's daemon gives signs of life.", value=float(bool(status.daemon)))
    heartbeat = GaugeMetricFamily(
        "pulso_daemon_last_heartbeat_timestamp_seconds", "Last sign of life of Dagster's daemon, in Unix time."
    )
    if status.daemon_seen_at is not None:
        heartbeat.add_metric([], status.daemon_seen_at.timestamp())
    yield heartbeat
    yield GaugeMetricFamily("pulso_postgresql_answer_seconds", "How long PostgreSQL took to answer.", value=answered)


def _is_old(table: TableStatus) -> bool:
    return table.freshness in (FreshnessState.STALE, FreshnessState.NEVER)


def _counters(summed: Sequence[Sequence[Any]], tables: Iterable[str]) -> Iterator[Metric]:
    """The totals of every table, also of a table and a status that have none yet: a first failure is an increase."""

    def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"pulso_{name}", text, labels=["table", *labels])

    extractions = counter("extractions", "Extractions that have ended.", "status")
    seconds = counter("extraction_seconds", "Time that extractions took.", "status")
    billed = counter("bigquery_billed_bytes", "Bytes that BigQuery billed.", "status")
    cost = counter("bigquery_cost_usd", "Estimated cost of BigQuery in US dollars.", "status")
    missed = counter("missed_changes", "Days that loads found changed although the source had reported no change.")
    rows = counter("rows", "Rows of successful extractions, by what the load did with them.", "kind")
    nothing = (0,) * (2 + len(SUMMED))
    found = {(table, status): nothing for table in tables for status in ENDS} | {
        (table, status): tuple(more) for table, status, *more in summed
    }
    for (table, status), (count, duration, size, _avoided, dollars, changes, *by_kind) in found.items():
        extractions.add_metric([table, status], count)
        seconds.add_metric([table, status], duration)
        billed.add_metric([table, status], float(size))
        cost.add_metric([table, status], float(dollars))
        if status == LastStatus.SUCCESS:
            missed.add_metric([table], float(changes))
            for kind, number in zip(KINDS, by_kind, strict=True):
                rows.add_metric([table, kind], float(number))
    yield from (extractions, seconds, billed, cost, missed, rows)


def _spending(snapshot: Snapshot) -> Iterator[Metric]:
    """What all queries of the month used, and a forecast for its end."""
    costs = snapshot.status.costs
    month = GaugeMetricFamily("pulso_bigquery_month_bytes", "Bytes of this calendar month so far.", labels=["kind"])
    end = GaugeMetricFamily("pulso_bigquery_month_end_bytes", "Forecast of the bytes of the whole month.", labels=["kind"])
    dollars = GaugeMetricFamily(
        "pulso_bigquery_month_end_cost_usd", "Forecast of the month's cost in US dollars, before its free volume."
    )
    if costs is not None:
        for family, spent in ((month, costs.month), (end, costs.month_end)):
            family.add_metric(["billed"], spent.bytes_billed)
            family.add_metric(["avoided"], spent.bytes_avoided)
        dollars.add_metric([], costs.month_end.cost_usd)
    yield from (month, end, dollars)


def _sizes(measured: Mapping[tuple[str, str], int]) -> Metric:
    text = "Room that a table of the ledger, or of Dagster's storage, takes with its indexes."
    family = GaugeMetricFamily("pulso_storage_bytes", text, labels=["store", "table"])
    for (store, table), size in sorted(measured.items()):
        family.add_metric([store, table], float(size))
    return family


def _avoided(summed: Sequence[Sequence[Any]], queries: Sequence[Sequence[Any]], tables: Iterable[str]) -> Iterator[Metric]:
    """What was not billed, and what queries that load nothing were billed."""
    avoided: Counter[str] = Counter(dict.fromkeys(tables, 0))
    billed: Counter[tuple[str, str]] = Counter({(table, kind): 0 for table in avoided for kind in ASKING})
    for table, status, _count, _seconds, _billed, size, *_ in summed:
        if status == LastStatus.SUCCESS:
            avoided[table] += int(size)
    for table, purpose, size, saved in queries:
        avoided[table] += int(saved)
        if purpose in ASKING:
            billed[table, purpose] += int(size)
    told = CounterMetricFamily(
        "pulso_bigquery_avoided_bytes", "Bytes that BigQuery did not bill, because nothing or little had changed.", labels=["table"]
    )
    for table, size in avoided.items():
        told.add_metric([table], size)
    text = "Bytes that BigQuery billed for queries that load nothing."
    asked = CounterMetricFamily("pulso_bigquery_query_billed_bytes", text, labels=["table", "purpose"])
    for (table, purpose), size in billed.items():
        asked.add_metric([table, purpose], size)
    yield from (told, asked)


def _failures(counted: Sequence[Sequence[Any]], tables: Iterable[str] = ()) -> Metric:
    family = CounterMetricFamily("pulso_failures", "Extractions that failed, by their cause.", labels=["table", "cause"])
    found: Counter[tuple[str, Cause]] = Counter({(table, cause): 0 for table in tables for cause in Cause})
    for table, cause, count in counted:
        found[table, Cause.of(cause)] += count
    for (table, cause), count in sorted(found.items()):
        family.add_metric([table, cause], count)
    return family
