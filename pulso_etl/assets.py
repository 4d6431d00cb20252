"""The assets, one per table, built from the declarations. No table is special-cased here."""

import hashlib
import sys
import warnings
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.refreshing.budget import AdmittedStream, DailyBudget
from pulso_etl.sync.days import LIMA, DayRange, lima_day
from pulso_etl.sync.errors import PlanError
from pulso_etl.sync.spec import TableSpec, qualified
from pulso_etl.sync.streams import DeferredStream
from pulso_etl.sync.tags import FORCE_TAG, SPEC_KEY, TENANT_TAG


class RetryUnlessInterrupted(dg.RetryPolicy):
    """A retry policy that lets an interrupt (Ctrl-C, SIGTERM, "Terminate" in the UI, a run's time-out) end the run.

    Dagster asks the policy of a step for a delay after an interrupt too, and goes on with the next attempt.
    """

    def calculate_delay(self, attempt_num: int) -> float:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, Exception):
            raise error
        return super().calculate_delay(attempt_num)


# Dagster marks the parameter as beta; the choice is made, and no process needs a reminder for each table at its start.
warnings.filterwarnings("ignore", message=".*backfill_policy.*", category=dg.BetaWarning)

RETRIES = RetryUnlessInterrupted(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""Three attempts in all; delay in seconds."""


def daily_partitions(first_day: date) -> dg.DailyPartitionsDefinition:
    """Days of America/Lima from `first_day` to today, today included."""
    return dg.DailyPartitionsDefinition(start_date=first_day.isoformat(), timezone=LIMA.key, end_offset=1)


def column_schema(spec: TableSpec) -> dg.TableSchema:
    """The table's columns as Dagster's UI shows them, keys and units as tags."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                type=column.sql_type,
                description=column.description,
                constraints=dg.TableColumnConstraints(
                    nullable=not spec.required(column),
                    other=[f"at least {column.minimum}"] * (column.minimum is not None)
                    + [f"at most {column.maximum}"] * (column.maximum is not None),
                ),
                tags=({"primary_key": ""} if column.name in spec.primary_key else {})
                | ({"unit": column.unit} if column.unit else {}),
            )
            for column in spec.columns
        ],
        constraints=dg.TableConstraints(other=[f"PRIMARY KEY ({', '.join(spec.table_key)})"] if spec.table_key else []),
    )


def asset_key(spec: TableSpec) -> dg.AssetKey:
    """The key of the table's asset."""
    return dg.AssetKey(spec.asset_path)


def source_key(name: str, tenant: str = "") -> dg.AssetKey:
    """The key of a source table or view, by the placeholder that the `.sql` files use."""
    return dg.AssetKey([*filter(None, [tenant]), "bigquery", name])


def resource(context: Any, spec: TableSpec, name: str) -> Any:
    """The resource of the table's tenant: a parameter of the op could only have a name that is known beforehand."""
    return context.resources.original_resource_dict[spec.qualify(name)]


def build_sources(tables: Iterable[TableSpec], full_names: Mapping[str, str]) -> list[dg.AssetSpec]:
    """What the tables read in BigQuery, as external assets: the graph shows where the rows come from.

    Raises SourceError for a source that `full_names` lacks.
    """
    read = {(spec.tenant, name): full for spec in tables for name, full in spec.source_tables(full_names).items()}
    return [
        dg.AssetSpec(
            source_key(name, tenant),
            description=f"`{full}` in BigQuery, kept by others.",
            group_name=qualified(tenant, "source"),
            kinds={"bigquery"},
            metadata={"dagster/table_name": full},
        )
        for (tenant, name), full in sorted(read.items())
    ]


def build_asset(
    spec: TableSpec, partitions: dg.DailyPartitionsDefinition, retries: dg.RetryPolicy = RETRIES
) -> dg.AssetsDefinition:
    """The asset of a table: it yields the query's stream, and the IO manager loads it."""

    @dg.asset(
        name=spec.name,
        key_prefix=spec.asset_path[:-1] or None,
        description=spec.description,
        partitions_def=partitions,
        # A refresh is one run, being shorter than a chunk; of long history, a chunk that fails is loaded again alone.
        backfill_policy=dg.BackfillPolicy.multi_run(spec.chunk_days),
        retry_policy=retries,
        io_manager_key=spec.qualify("postgres"),
        required_resource_keys={spec.qualify("bigquery"), spec.qualify("budget")},
        deps=[source_key(name, spec.tenant) for name in spec.sources],
        # Dagster queues a second writer of the table instead of letting it wait for the table's lock in a run slot.
        pool=f"writer_{spec.qualify(spec.name)}",
        group_name=spec.qualify(spec.group),
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=2 * spec.refresh_every, warn_window=spec.refresh_every),
        kinds={"bigquery", "postgres"},
        owners=list(spec.owners),
        tags=spec.tags | ({TENANT_TAG: spec.tenant} if spec.tenant else {}),
        metadata={
            SPEC_KEY: spec.as_metadata(),
            "dagster/column_schema": column_schema(spec),
            "dagster/table_name": spec.name,
            "query": dg.MetadataValue.md(f"```sql\n{spec.query}\n```"),
        },
        code_version=_code_version(spec),
    )
    def table(context: dg.AssetExecutionContext) -> DeferredStream:
        bigquery: BigQuerySource = resource(context, spec, "bigquery")
        budget: DailyBudget = resource(context, spec, "budget")
        try:
            window = launched_range(spec, context.run.tags, partitions.start.date(), lima_day(datetime.now(UTC)))
        except PlanError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        stream = bigquery.stream(spec, window, context.run.run_id)
        return stream if context.run.tags.get(FORCE_TAG) == "true" else AdmittedStream(stream, budget)

    return table


def tagged_range(tags: Mapping[str, str]) -> DayRange | None:
    """The days that a run's tags name, a range or a partition; None where they name none. Raises PlanError for what is no range."""
    partition = tags.get(PARTITION_NAME_TAG)
    start, end = (tags.get(tag, partition) for tag in (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG))
    if start is None or end is None:
        return None
    try:
        return DayRange.parse(start, end)
    except ValueError as error:
        raise PlanError(f"{start}..{end} are not days such as 2026-11-25: {error}") from error


def launched_range(spec: TableSpec, tags: Mapping[str, str], first_day: date, today: date) -> DayRange:
    """The days that a run was launched over, by its tags. Raises PlanError where they name none, or not those of partitions."""
    try:
        window = tagged_range(tags)
    except PlanError as error:
        raise PlanError(f"{spec.name}: {error}") from error
    if window is None:
        raise PlanError(
            f"{spec.name}: the launch names no days; give the run the tags {ASSET_PARTITION_RANGE_START_TAG} and "
            f"{ASSET_PARTITION_RANGE_END_TAG}, days such as {today}, or choose a partition"
        )
    if window.start < first_day or window.end > today:
        raise PlanError(f"{spec.name}: {window} leaves the partitions {first_day}..{today}; launch it over days of these")
    return window


def _code_version(spec: TableSpec) -> str:
    return hashlib.sha256(spec.model_dump_json(exclude={"tenant"}).encode()).hexdigest()[:12]
