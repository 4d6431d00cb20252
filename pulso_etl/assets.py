"""The assets, one per table, built from the declarations. No table is special-cased here."""

import hashlib
from datetime import date

import dagster as dg

from pulso_etl.destination.io_manager import SPEC_KEY
from pulso_etl.refresh import LIMA, DayRange
from pulso_etl.source.bigquery import BigQuerySource, BigQueryStream
from pulso_etl.tables.spec import TableSpec

RETRIES = dg.RetryPolicy(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
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
                type=column.type.value,
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


def build_asset(spec: TableSpec, partitions: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    """The asset of a table: it yields the query's stream, and the IO manager loads it."""

    @dg.asset(
        name=spec.name,
        description=spec.description,
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=RETRIES,
        io_manager_key="postgres",
        # Dagster queues a second writer of the table instead of letting it wait for the table's lock in a run slot.
        pool=f"writer_{spec.name}",
        group_name=spec.group,
        kinds={"bigquery", "postgres"},
        owners=list(spec.owners),
        tags=spec.tags,
        metadata={
            SPEC_KEY: spec.as_metadata(),
            "dagster/column_schema": column_schema(spec),
            "dagster/table_name": spec.name,
            "query": dg.MetadataValue.md(f"```sql\n{spec.query}\n```"),
        },
        code_version=_code_version(spec),
    )
    def table(context: dg.AssetExecutionContext, bigquery: BigQuerySource) -> BigQueryStream:
        keys = sorted(context.partition_keys)
        window = DayRange(date.fromisoformat(keys[0]), date.fromisoformat(keys[-1]))
        return bigquery.stream(spec, window, context.run.run_id)

    return table


def _code_version(spec: TableSpec) -> str:
    return hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:12]
