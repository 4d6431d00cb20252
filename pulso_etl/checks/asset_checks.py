"""Asset checks of every table, built from its declaration. No table is special-cased here.

All checks of a table are one op, because Dagster reads every op of a graph again for each job when a code server starts. The
checks of `refresh_check_keys` ask only PostgreSQL, with one statement per table, and run with every refresh. `reconciliation`
runs a query in BigQuery, which costs money. It runs alone: by a job, the UI's button, or `pulso-etl reconcile`.

The launch of a run decides which checks the run has. If a launch names no checks (`RunRequest`, GraphQL with only an
`assetSelection`, back-fills), Dagster 1.13 adds every check of a selected asset. The UI's button Materialize names all checks. A
check cannot change this. Therefore the project's own launches name the checks of `refresh_check_keys`. In a run that
materializes its table, a reconciliation ends at once, without a result and without a query; Dagster shows it as skipped.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from statistics import median
from typing import Any

import dagster as dg

from pulso_etl.assets import RETRIES, resource
from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.checks.reconciliation import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, Reconciliation, reconcile
from pulso_etl.refreshing.freshness import freshness
from pulso_etl.refreshing.keys import asset_key, reconciliation_key, refresh_check_keys
from pulso_etl.refreshing.ranges import tagged_range
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PulsoError
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.ledger.watermarks import LOOK_EVERY, Watermarks
from pulso_etl.sync.loading.load import translated
from pulso_etl.sync.loading.quality import WEEKS, Inspection, inspect
from pulso_etl.sync.loading.rules import Check, refresh_checks, rules
from pulso_etl.sync.loading.strategies import STRATEGIES
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.redaction import clean_errors
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.target import Target

BLOCKING = {Check.PRIMARY_KEY, Check.REQUIRED_COLUMNS, Check.VALUE_LIMITS}
"""Loads refuse the rows that these checks look for. If such a check fails, another program wrote to the table; the run fails."""
COMPARED_WEEKS = 2
"""With fewer earlier weeks that have rows, the check does not judge a day's volume."""
SMALL_DIFFERENCE = 10
"""A difference of at most this many rows is normal, with every factor."""
SHOWN = 200
"""A table in a result's metadata has at most this many rows."""


@dataclass(frozen=True)
class Finding:
    """The result of a check: plain text, and records (by title) of all faults."""

    check: Check
    passed: bool
    text: str
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN
    records: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


def build_checks(spec: TableSpec) -> dg.AssetChecksDefinition:
    """All checks of a table as one op. A run executes the checks that it names."""

    @dg.multi_asset_check(
        name=spec.qualify(f"{spec.name}_checks"),
        description=f"Checks the rows of {spec.name} in PostgreSQL; `{Check.RECONCILIATION}` compares it with BigQuery.",
        specs=[
            dg.AssetCheckSpec(check.value, asset=asset_key(spec), description=text, blocking=check in BLOCKING)
            for check, text in (descriptions(spec) | _descriptions_apart(spec)).items()
        ],
        can_subset=True,
        compute_kind="postgres",
        required_resource_keys={spec.qualify("bigquery"), spec.qualify("postgres")},
        retry_policy=RETRIES,
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        chosen = {Check(key.name) for key in context.selected_asset_check_keys}
        with clean_errors():
            if chosen & descriptions(spec).keys():
                yield from (one for one in _inspect(context, spec) if one.check_name in chosen)
            if Check.UP_TO_DATE in chosen:
                yield _look_at_watermark(context, spec)
            if Check.RECONCILIATION in chosen:
                yield from _reconcile(context, spec)

    return checks


def _inspect(context: dg.AssetCheckExecutionContext, spec: TableSpec) -> Iterator[dg.AssetCheckResult]:
    postgres: PostgresUpsertIOManager = resource(context, spec, "postgres")
    today = spec.zone.day(datetime.now(UTC))
    lookback = DayRange(today - timedelta(days=spec.schedule.lookback_days - 1), today)
    given, marks = tagged_range(context.run.tags), Watermarks(postgres.database_schema)
    with translated(spec, given or lookback), postgres.connect(context.run.run_id, spec.loading.timeout) as conn:
        # A run that names no days has planned them, and its checks look at what it has loaded.
        window = given or marks.loaded_by(conn, spec.name, context.run.run_id) or lookback
        inspection = inspect(Target(conn, spec, postgres.database_schema), window, lookback)
        marks.look(conn, spec, LOOK_EVERY)
    return (result(finding, window) for finding in findings(spec, inspection, window, lookback))


def _look_at_watermark(context: dg.AssetCheckExecutionContext, spec: TableSpec) -> dg.AssetCheckResult:
    postgres: PostgresUpsertIOManager = resource(context, spec, "postgres")
    now = datetime.now(UTC)
    today = spec.zone.day(now)
    with translated(spec, DayRange(today, today)), postgres.connect(context.run.run_id, spec.loading.timeout) as conn:
        state = Watermarks(postgres.database_schema).read(conn).get(spec.name)
    told = currency(spec, state.watermark if state else None, now)
    return dg.AssetCheckResult(
        check_name=told.check_name,
        passed=told.passed,
        severity=told.severity,
        description=told.description,
        metadata=told.metadata,
    )


def _reconcile(context: dg.AssetCheckExecutionContext, spec: TableSpec) -> Iterator[dg.AssetCheckResult]:
    bigquery: BigQuerySource = resource(context, spec, "bigquery")
    postgres: PostgresUpsertIOManager = resource(context, spec, "postgres")
    if asset_key(spec) in context.job_def.asset_layer.selected_asset_keys:
        context.log.info(f"{spec.name}: not reconciled, this run refreshes it; launch the check alone")
        return
    today = spec.zone.day(datetime.now(UTC))
    given = tagged_range(context.run.tags)
    try:
        with translated(spec, given or DayRange(today, today)), postgres.connect(context.run.run_id, spec.loading.timeout) as conn:
            target = Target(conn, spec, postgres.database_schema)
            compared = reconcile(target, bigquery, given, today, context.run.run_id)
    except PulsoError as error:
        # No retry: another attempt waits as long for the table's lock or costs money again. A person decides on it.
        raise dg.Failure(str(error), allow_retries=False) from error
    yield result(reconciled(spec, compared), compared.window)


def _descriptions_apart(spec: TableSpec) -> dict[Check, str]:
    """The checks outside of refreshes: one changes without a refresh, the other costs money."""
    kept = f" A key counts in the partition of its newest {spec.version_column}." if spec.version_column else ""
    if spec.snapshot_of:
        kept = f" Of each {', '.join(spec.snapshot_of)} the newest snapshot counts, in the partition of its day."
    return {
        Check.UP_TO_DATE: f"The last refresh is not older than {2 * spec.schedule.refresh_every} and loaded today's partition "
        "(while the day is younger than that, yesterday's is enough), and every day has the rows of its last load. "
        "A load of older days does not count, unlike in the freshness policy.",
        Check.RECONCILIATION: f"Rows, sums and numbers of values of each partition are the same in BigQuery, over the last "
        f"{spec.quality.reconcile_days} days or the run's range. Integers and amounts exactly, doubles to "
        f"{RELATIVE_TOLERANCE:g} of their size or {ABSOLUTE_TOLERANCE:g}. Costs a query in BigQuery.{kept}",
    }


def currency(spec: TableSpec, watermark: Watermark | None, now: datetime) -> dg.AssetCheckEvaluation:
    """The result of the check `up_to_date` at the instant `now`. The alert sensor reports each change of it, without a run."""
    extracted = watermark.last_extracted_at if watermark else None
    partition = watermark.last_partition if watermark else None
    lost = f"{watermark.lost}; load them again: {watermark.lost.command(spec)}; " if watermark and watermark.lost else ""
    return dg.AssetCheckEvaluation(
        check_name=Check.UP_TO_DATE.value,
        asset_key=asset_key(spec),
        passed=not freshness(spec, watermark, now).is_stale,
        severity=dg.AssetCheckSeverity.WARN,
        description=lost
        + (
            f"last refresh {spec.zone.local(extracted):%Y-%m-%d %H:%M} ({spec.timezone}), newest partition {partition}"
            if extracted
            else "never refreshed"
        ),
        metadata={"last_extracted_at": str(extracted), "last_partition": str(partition)},
    )


def refresh_selection(specs: Iterable[TableSpec]) -> dg.AssetSelection:
    """The tables and the checks of their refreshes, for a job that refreshes them."""
    chosen = list(specs)
    assets = dg.AssetSelection.assets(*map(asset_key, chosen)).without_checks()
    return assets | dg.AssetSelection.checks(*(key for spec in chosen for key in refresh_check_keys(spec)))


def reconciliation_selection(specs: Iterable[TableSpec]) -> dg.AssetSelection:
    """Only the reconciliations of the tables, for a job that compares them with their sources."""
    return dg.AssetSelection.checks(*map(reconciliation_key, specs))


def descriptions(spec: TableSpec) -> dict[Check, str]:
    """The checks of the table's refreshes, each with its description."""
    by_check: dict[Check, list[str]] = defaultdict(list)
    for rule in rules(spec):
        by_check[rule.check].append(f"{rule.column} {rule.fault}")
    once = ", and a key occurs once" if STRATEGIES[spec.loading.strategy].unique else ""
    days, minimum, factor = spec.schedule.lookback_days, spec.quality.minimum_records, spec.quality.volume_factor
    texts = {
        Check.PRIMARY_KEY: f"No column of the key ({', '.join(spec.primary_key)}) is null{once}.",
        Check.REQUIRED_COLUMNS: f"No row has: {', '.join(by_check[Check.REQUIRED_COLUMNS])}.",
        Check.VALUE_LIMITS: f"A load refuses a row, so no row has: {', '.join(by_check[Check.VALUE_LIMITS])}.",
        Check.EXPECTED_VALUES: "The source may have its reasons, but no row should have: "
        f"{', '.join(by_check[Check.EXPECTED_VALUES])}.",
        Check.MINIMUM_RECORDS: f"The last {days} days have {minimum} rows or more.",
        Check.VOLUME: f"A day has at most {factor:g} times and at least 1/{factor:g} of the rows of the same weekday in the "
        f"{WEEKS} weeks before (the median of at least {COMPARED_WEEKS}). Today may have fewer rows until it ends.",
    }
    return {check: texts[check] for check in refresh_checks(spec)}


def findings(spec: TableSpec, inspection: Inspection, window: DayRange, lookback: DayRange) -> Iterator[Finding]:
    """The results of the table's checks for an inspection. `lookback` ends today.

    The minimum is only a warning: a holiday, a new deployment and sample data have few rows too. A load that would remove the
    rows of a day is refused before its commit, see `verify`.
    """
    rows = _rows_in(inspection, window)
    for check in descriptions(spec):
        if check is Check.MINIMUM_RECORDS:
            held = _rows_in(inspection, lookback)
            yield Finding(
                check,
                held >= spec.quality.minimum_records,
                f"{held} rows in {lookback}, {spec.quality.minimum_records} or more expected",
                metadata={"lookback": str(lookback), "records": held, "minimum_records": spec.quality.minimum_records},
            )
        elif check is Check.VOLUME:
            days = unusual_days(inspection.rows_by_day, window, lookback.end, spec.quality.volume_factor)
            text = "; ".join(f"{day['partition']}: {day['rows']} rows, usually {day['usual']:g}" for day in days)
            yield Finding(check, not days, text or "nothing unusual", records={"unusual_days": days})
        else:
            yield _of_rows(spec, check, inspection, rows)


def _rows_in(inspection: Inspection, days: DayRange) -> int:
    return sum(rows for day, rows in inspection.rows_by_day.items() if day in days)


def _of_rows(spec: TableSpec, check: Check, inspection: Inspection, rows: int) -> Finding:
    failures: list[dict[str, Any]] = [
        {
            "column": breach.rule.column,
            "fault": breach.rule.fault,
            "rows": breach.rows,
            "partition": breach.example[spec.partition_column],
            "example_key": _key(spec, breach.example),
        }
        for breach in inspection.breaches
        if breach.rule.check is check
    ]
    if check is Check.PRIMARY_KEY and inspection.duplicates:
        failures.append(
            {
                "column": ", ".join(spec.primary_key),
                "fault": "occurs more than once",
                "rows": inspection.duplicates,
                "partition": inspection.duplicate.get(spec.partition_column),
                "example_key": _key(spec, inspection.duplicate),
            }
        )
    text = "; ".join(f"{one['column']} {one['fault']}: {one['rows']} row(s), e.g. {one['example_key']}" for one in failures[:3])
    severity = dg.AssetCheckSeverity.ERROR if check in BLOCKING else dg.AssetCheckSeverity.WARN
    return Finding(check, not failures, text or f"{rows} rows pass", severity, {"failures": failures}, {"rows": rows})


def _key(spec: TableSpec, example: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={example[name]}" for name in spec.primary_key)


def unusual_days(rows_by_day: Mapping[date, int], window: DayRange, today: date, factor: float) -> list[dict[str, Any]]:
    """The days of the window with `factor` times more or fewer rows than usual, the median of the same weekday in earlier weeks.

    Weeks without rows on that weekday do not count. Today has not ended, so it can only have too many rows.
    """
    unusual = []
    for number in range(window.days):
        day = window.start + timedelta(days=number)
        weeks = [rows for week in range(1, WEEKS + 1) if (rows := rows_by_day.get(day - timedelta(weeks=week), 0))]
        if len(weeks) < COMPARED_WEEKS or day > today:
            continue
        rows, usual = rows_by_day.get(day, 0), median(weeks)
        beyond = rows > usual * factor or (day < today and rows * factor < usual)
        if beyond and abs(rows - usual) >= SMALL_DIFFERENCE:
            unusual.append({"partition": str(day), "rows": rows, "usual": float(usual), "weeks": len(weeks)})
    return unusual


def reconciled(spec: TableSpec, found: Reconciliation) -> Finding:
    """The check's result for a reconciliation: an error if a partition differs that no refresh will read again by itself.

    The source of owed days may have changed since their load; the next refresh loads the change. If a key lives in several
    partitions, one fault shows on several days. All these days must be loaded again, and also the later days that may have a
    newer version.
    """
    settled = [one for one in found.differences if one.day < found.owed_since]
    days = sorted({one.day for one in (settled if spec.partition_in_key else ()) or found.differences})
    if days:
        last = days[-1] if spec.partition_in_key else max(days[-1], found.read.end)
        shown = [one for one in found.differences if one.day == days[0]]
        text = f"{len(days)} partition(s) differ; {days[0]}: " + "; ".join(
            f"{one.measure} is {_plain(one.source)} in BigQuery, {_plain(one.target)} in PostgreSQL" for one in shown[:3]
        )
        text += (
            f". Load them again: pulso-etl refresh {spec.as_argument} --from {days[0]} --to {last}"
            if settled
            else ". The next refresh reads these days again; if they still differ then, that is a fault"
        )
    else:
        text = f"{found.target_rows} rows agree"
    if found.quarantined:
        told = "; ".join(f"{day}: {rows}" for day, rows in list(found.quarantined.items())[:5])
        more = "; …" if len(found.quarantined) > 5 else ""
        text += (
            f". {sum(found.quarantined.values())} row(s) of the source are in quarantine ({told}{more}): they are left out, "
            "and so are PostgreSQL's rows of the same keys"
        )
    records = [
        {
            "partition": str(one.day),
            "column": one.measure.column or "",
            "measure": str(one.measure),
            "bigquery": _plain(one.source),
            "postgresql": _plain(one.target),
        }
        for one in found.differences
    ]
    return Finding(
        Check.RECONCILIATION,
        not found.differences,
        text,
        dg.AssetCheckSeverity.ERROR if settled else dg.AssetCheckSeverity.WARN,
        {"differences": records},
        {
            "rows_bigquery": found.source_rows,
            "rows_postgresql": found.target_rows,
            "rows_quarantined": sum(found.quarantined.values()),
            **found.cost,
        },
    )


def _plain(value: Any) -> str:
    if isinstance(value, Decimal):
        # Without the zeros that only one of both sides writes.
        whole, point, rest = f"{value:f}".partition(".")
        return whole + (point + rest).rstrip("0").rstrip(".")
    return "nothing" if value is None else str(value)


def result(finding: Finding, window: DayRange) -> dg.AssetCheckResult:
    """The finding for Dagster's records: at most `SHOWN` records of a kind, and their total number."""
    metadata: dict[str, Any] = {"partitions": str(window), **finding.metadata}
    for title, records in finding.records.items():
        metadata[f"number_of_{title}"] = len(records)
        if records:
            metadata[title] = dg.MetadataValue.table([dg.TableRecord(record) for record in records[:SHOWN]])
    return dg.AssetCheckResult(
        check_name=finding.check.value,
        passed=finding.passed,
        severity=finding.severity,
        description=finding.text,
        metadata=metadata,
    )
