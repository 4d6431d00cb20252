"""Asks BigQuery's metadata which days of a table's sources changed since an instant, to save a refresh.

It bills nothing if no source changed, or if a changed source gives no signal (`tables.get` is free). Otherwise it bills one query
of INFORMATION_SCHEMA.PARTITIONS for each changed source: at least 10 MiB each, never cached. The answer is a hint and no proof. If
rows were only deleted, BigQuery may leave a partition's time unchanged. So the whole window still needs a refresh now and then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime

from google.cloud import bigquery

from pulso_etl.bigquery.source import ONCE, BigQuerySource, raising_source_errors
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PlanError, SourceUnavailable
from pulso_etl.sync.patience import within
from pulso_etl.sync.spec import TableSpec

LOOK_SECONDS = 4.0
"""Limit of one look, and of all looks of one tick together, because a tick has a minute for everything."""

STREAMING_BUFFER = "__UNPARTITIONED__"
NO_DATE = "__NULL__"


def changed_days(
    source: BigQuerySource, spec: TableSpec, window: DayRange, since: datetime, seconds: float = LOOK_SECONDS
) -> dict[date, datetime] | None:
    """The days of the window whose source rows may have changed since an instant (with zone), each with its last change.

    Empty: nothing changed. None: no signal, every day may have changed (a view, a table that is not partitioned by the day of the
    query's filter, rows in a streaming buffer, deleted rows). No request is sent twice. Raises the errors of `BigQueryStream.open`;
    SourceUnavailable also if there is no answer within `seconds`; PlanError for a `since` without zone.
    """
    if since.tzinfo is None:
        raise PlanError(f"{spec.name}: the time of the last load has no zone")
    try:
        return within(seconds, lambda: _look(source, spec, window, since, seconds))
    except TimeoutError:
        raise SourceUnavailable(f"{spec.name} {window}: BigQuery did not answer within {seconds:.1f} s") from None


def _look(
    source: BigQuerySource, spec: TableSpec, window: DayRange, since: datetime, seconds: float
) -> dict[date, datetime] | None:
    with raising_source_errors(spec, window), source.get_client() as client:
        tables = [client.get_table(name, retry=ONCE, timeout=seconds) for name in source.tables(spec).values()]
        if not all(is_telling(table) for table in tables):
            return None
        changed = [table for table in tables if table.modified >= since]
        if not all(is_daily(table, spec) for table in changed):
            return None
        days: dict[date, datetime] = {}
        for table in changed:
            modified = modified_days(_partition_times(client, source, table, seconds), since)
            if modified is None:
                return None
            days |= {day: max(at, days.get(day, at)) for day, at in modified.items() if day in window}
    return days


def is_telling(table: bigquery.Table) -> bool:
    """Whether `modified` covers every row of the table. It does not for a view, or while a streaming buffer holds rows."""
    return table.table_type == "TABLE" and table.modified is not None and table.streaming_buffer is None


def is_daily(table: bigquery.Table, spec: TableSpec) -> bool:
    """Whether one partition of the table is one day of the spec: by day of the DATE column on which the query filters."""
    partitioning = table.time_partitioning
    if partitioning is None or partitioning.type_ != "DAY" or partitioning.field is None:
        return False
    is_date = any(column.name == partitioning.field and column.field_type == "DATE" for column in table.schema)
    filters = re.search(rf"\b{re.escape(partitioning.field)}\s+BETWEEN\s+@start\s+AND\s+@end\b", spec.source.query, re.IGNORECASE)
    return is_date and filters is not None


def modified_days(modified: Mapping[str | None, datetime], since: datetime) -> dict[date, datetime] | None:
    """The days of a changed table that changed since `since`, each with its last change. `modified` is by partition id.

    None if the partitions do not explain the change.
    """
    changed = {partition: at for partition, at in modified.items() if at >= since}
    if STREAMING_BUFFER in modified or not changed:
        return None
    try:
        # Rows without a date are in no window.
        return {_day(partition or ""): at for partition, at in changed.items() if partition != NO_DATE}
    except ValueError:
        return None


def _day(partition: str) -> date:
    # The hyphens matter: without them a month or an hour would also be read as a day.
    return date.fromisoformat(f"{partition[:4]}-{partition[4:6]}-{partition[6:]}")


def _partition_times(
    client: bigquery.Client, source: BigQuerySource, table: bigquery.Table, seconds: float
) -> dict[str | None, datetime]:
    rows = client.query_and_wait(
        f"SELECT partition_id, last_modified_time FROM `{table.project}.{table.dataset_id}.INFORMATION_SCHEMA.PARTITIONS` "  # noqa: S608 - the client's own name of the table
        "WHERE table_name = @table",
        job_config=bigquery.QueryJobConfig(
            query_parameters=[bigquery.ScalarQueryParameter("table", "STRING", table.table_id)],
            labels={"app": "pulso-etl", "purpose": "changes"},
            maximum_bytes_billed=source.maximum_bytes_billed,
        ),
        retry=ONCE,
        job_retry=ONCE,
        api_timeout=seconds,
        wait_timeout=seconds,
    )
    return {row.partition_id: row.last_modified_time for row in rows}
