"""The assets, one per table, built from the declarations. No table is special-cased here."""

import hashlib
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg
from dagster._core.definitions.backfill_policy import BackfillPolicyType

from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.refreshing.admission import AdmittedStream
from pulso_etl.refreshing.budget import QueryBudget
from pulso_etl.refreshing.keys import asset_key, source_key
from pulso_etl.refreshing.plan import Calendar, RefreshPlan, held, plan_refresh
from pulso_etl.refreshing.ranges import is_automatic, launched_range, names_days, range_tags
from pulso_etl.refreshing.request import Grants, RefreshRequest
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PulsoError
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.loading.load import translated
from pulso_etl.sync.redaction import clean_errors
from pulso_etl.sync.shared_reads import SharedRead
from pulso_etl.sync.spec import TableSpec, qualified
from pulso_etl.sync.tags import AVOIDED_TAG, REASONS_TAG, SKIPPED_TAG, SPEC_KEY, TENANT_TAG
from pulso_etl.sync.zone import DEFAULT, Zone


class RetryUnlessInterrupted(dg.RetryPolicy):
    """A retry policy that lets an interrupt (Ctrl-C, SIGTERM, "Terminate" in the UI, a run's time-out) end the run.

    After an interrupt too, Dagster asks the step's policy for a delay and then starts the next attempt.
    """

    def calculate_delay(self, attempt_num: int) -> float:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, Exception):
            raise error
        return super().calculate_delay(attempt_num)


# Dagster marks the parameter as beta. Without this filter, each process warns once per table at its start.
warnings.filterwarnings("ignore", message=".*backfill_policy.*", category=dg.BetaWarning)

RETRIES = RetryUnlessInterrupted(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""Three attempts in all; delay in seconds."""


class _Chunked(dg.BackfillPolicy):
    """A policy of many runs, whose ranges on Dagster's command line are nevertheless one run.

    `dagster asset materialize --partition-range` refuses policies of many runs, because it has no daemon that could launch them.
    The load of such a range is one transaction, as large as the launcher wants it.
    """

    @property
    def policy_type(self) -> BackfillPolicyType:
        return BackfillPolicyType.SINGLE_RUN


# Dagster writes a policy by the name of its class. Webserver and daemon read Dagster's own class, and split back-fills.
_Chunked.__name__ = dg.BackfillPolicy.__name__


def chunked(days: int) -> dg.BackfillPolicy:
    """Dagster splits a back-fill into runs of that many days. A range of its command line is one run."""
    return _Chunked(max_partitions_per_run=days)


def daily_partitions(first_day: date, zone: Zone = DEFAULT) -> dg.DailyPartitionsDefinition:
    """The zone's days from `first_day` to today, today included."""
    return dg.DailyPartitionsDefinition(start_date=first_day.isoformat(), timezone=zone.name, end_offset=1)


def column_schema(spec: TableSpec) -> dg.TableSchema:
    """The table's columns for Dagster's UI, with keys and units as tags."""
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


def resource(context: Any, spec: TableSpec, name: str) -> Any:
    """The resource of the table's tenant. It cannot be a parameter of the op, because its name depends on the tenant."""
    return context.resources.original_resource_dict[spec.qualify(name)]


def build_sources(tables: Iterable[TableSpec], full_names: Mapping[str, str], *, linked: bool = True) -> list[dg.AssetSpec]:
    """The source tables in BigQuery as external assets, so that the graph shows where the rows come from.

    `linked`: each links to its table in Google's console. Raises SourceError for a source that `full_names` lacks.
    """
    read = {(spec.tenant, name): full for spec in tables for name, full in spec.source_tables(full_names).items()}
    return [
        dg.AssetSpec(
            source_key(name, tenant),
            description=f"`{full}` in BigQuery. Others maintain it.",
            group_name=qualified(tenant, "source"),
            kinds={"bigquery"},
            metadata={"dagster/table_name": full} | ({"console": dg.MetadataValue.url(_console(full))} if linked else {}),
        )
        for (tenant, name), full in sorted(read.items())
    ]


def _console(full: str) -> str:
    project, dataset, table = full.split(".")
    return f"https://console.cloud.google.com/bigquery?p={project}&d={dataset}&t={table}&page=table"


def _metadata(spec: TableSpec, page_url: str | None) -> dict[str, Any]:
    return {
        SPEC_KEY: spec.as_metadata(),
        "dagster/column_schema": column_schema(spec),
        "dagster/table_name": spec.name,
        "query": dg.MetadataValue.md(f"```sql\n{spec.source.query}\n```"),
        **({"page": dg.MetadataValue.url(page_url)} if page_url else {}),
    }


def build_asset(
    spec: TableSpec,
    partitions: dg.DailyPartitionsDefinition,
    initial_days: int,
    retries: dg.RetryPolicy = RETRIES,
    *,
    page_url: str | None = None,
    tables: Mapping[str, TableSpec] | None = None,
) -> dg.AssetsDefinition:
    """The asset of a table: it yields the query's stream, and the IO manager loads it.

    A run without named days plans its days here, and yields nothing if the table is fresh. `initial_days` is the number of days of
    the first such run. `page_url`: the address of the status page, to which the asset links. `tables`: those of the deployment, of
    which one may share a read with this one.
    """
    calendar = Calendar(partitions.start.date(), initial_days)

    @dg.asset(
        name=spec.name,
        key_prefix=spec.asset_path[:-1] or None,
        description=spec.description,
        partitions_def=partitions,
        # A refresh is shorter than a chunk, so it is one run. In a long history, a failed chunk is loaded again alone.
        backfill_policy=chunked(spec.loading.chunk_days),
        retry_policy=retries,
        io_manager_key=spec.qualify("postgres"),
        output_required=False,
        required_resource_keys={spec.qualify("bigquery"), spec.qualify("budget"), spec.qualify("postgres")},
        deps=[source_key(name, spec.tenant) for name in spec.sources],
        # Dagster queues a second writer of the table, so that it does not wait for the table's lock in a run slot.
        pool=f"writer_{spec.qualify(spec.name)}",
        group_name=spec.qualify(spec.group),
        freshness_policy=dg.FreshnessPolicy.time_window(
            fail_window=2 * spec.schedule.refresh_every, warn_window=spec.schedule.refresh_every
        ),
        kinds={"bigquery", "postgres"},
        owners=list(spec.owners),
        tags=spec.tags | ({TENANT_TAG: spec.tenant} if spec.tenant else {}),
        metadata=_metadata(spec, page_url),
        code_version=_code_version(spec),
    )
    def table(context: dg.AssetExecutionContext) -> Iterator[dg.Output[Any]]:
        try:
            plan = plan_of_run(context, spec, calendar)
        except PulsoError as error:
            if error.retryable:
                raise
            raise dg.Failure(str(error), allow_retries=False) from error
        if plan.window is None:
            _tell(context, {SKIPPED_TAG: plan.reason}, f"skipped: {plan.reason}")
            return
        if not names_days(context.run.tags):
            _take_days(context, plan)
        yield dg.Output(_stream(context, spec, plan.window, tables or {}))

    return table


def _stream(
    context: dg.AssetExecutionContext, spec: TableSpec, window: DayRange, tables: Mapping[str, TableSpec]
) -> AdmittedStream:
    """The stream of the table's rows over the days of the window, which the budget admits."""
    bigquery: BigQuerySource = resource(context, spec, "bigquery")
    budget: QueryBudget = resource(context, spec, "budget")
    run, selected = context.run, context.job_def.asset_layer.selected_asset_keys
    shared = shared_read(run, selected, spec, window, tables)
    stream = bigquery.stream(spec, window, run.run_id, int(run.tags.get(AVOIDED_TAG, 0)), shared)
    return AdmittedStream(stream, budget, Grants.of(run.tags))


def plan_of_run(context: dg.AssetExecutionContext, spec: TableSpec, calendar: Calendar) -> RefreshPlan:
    """The run's plan for the table: the days that its tags name, or the days of an incremental refresh at this moment.

    It has no days if a load was undone after a sensor or a schedule launched the run, and only people refresh the table for now.

    The decision is here because every launch passes here, and because only this process has the settings and the watermark.
    Dagster's webserver, daemon and queue do not know where the tables are. A run that waited in the queue takes the days that are
    due at its start. Raises PlanError, and DestinationError if PostgreSQL does not answer.
    """
    now, tags = datetime.now(UTC), context.run.tags
    today = spec.zone.day(now)
    named = (
        RefreshPlan(spec.name, launched_range(spec, tags, calendar.first_day, today), "the days of the launch")
        if names_days(tags)
        else None
    )
    if named is not None and not is_automatic(tags):
        return named
    postgres: PostgresUpsertIOManager = resource(context, spec, "postgres")
    with (
        clean_errors(),
        translated(spec, DayRange(today, today)),
        postgres.connect(context.run.run_id, spec.loading.timeout) as conn,
    ):
        marks = Watermarks(postgres.database_schema)
        marks.create(conn)
        state = marks.read(conn).get(spec.name)
    watermark = state.watermark if state else None
    if named is not None:
        return replace(named, window=None, reason=held(watermark)) if watermark and watermark.is_held(now) else named
    return plan_refresh(spec, watermark, RefreshRequest((spec.name,), grants=Grants.of(tags)), now, calendar)


def shared_read(
    run: dg.DagsterRun, selected: Collection[dg.AssetKey], spec: TableSpec, window: DayRange, tables: Mapping[str, TableSpec]
) -> SharedRead | None:
    """The read that the run shares with other runs, by its tags; or with other tables of this run, if its tags name their days.

    A run that repeats another one has its tags, but is no part of that launch. `selected` are the assets of the run.
    """
    shared = SharedRead.of(run.tags, tables) if run.parent_run_id is None else None
    if shared is None and names_days(run.tags):
        others = [one for one in tables.values() if one.name != spec.name and asset_key(one) in selected]
        shared = SharedRead.of_run(spec, window, run.run_id, others)
    return shared if shared is not None and shared.serves(spec, window) else None


def _take_days(context: dg.AssetExecutionContext, plan: RefreshPlan) -> None:
    """Gives the step the partitions of the plan.

    Dagster reads the partitions from the run's tags, which all steps share. This step therefore gets its own copy of the run, so
    that each table of a run over several tables keeps its own days.
    """
    assert plan.window is not None
    step, days = context.get_step_execution_context(), range_tags(plan.window)
    if plan.reasons:
        days |= {REASONS_TAG: plan.reasons.as_tag()}
    step._plan_data = step.plan_data._replace(dagster_run=step.dagster_run.with_tags({**step.dagster_run.tags, **days}))
    _tell(context, days, f"{plan.window}: {plan.reason}")


def _tell(context: dg.AssetExecutionContext, tags: Mapping[str, str], text: str) -> None:
    """Writes the decision to the log, and to the run's tags if the run has only this table."""
    context.log.info(f"{context.asset_key.to_user_string()}: {text}")
    if len(context.job_def.asset_layer.selected_asset_keys) == 1:
        context.instance.add_run_tags(context.run.run_id, tags)


def _code_version(spec: TableSpec) -> str:
    return hashlib.sha256(spec.model_dump_json(exclude={"tenant"}).encode()).hexdigest()[:12]
