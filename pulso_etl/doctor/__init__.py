"""Checks every part of a deployment. For each failed part one line says what to do. No query is billed. Nothing changes, except
that the doctor records missing rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import dagster as dg
import google.auth
import psycopg
import pyarrow as pa
import sqlalchemy as sa
from dagster_postgres import PostgresRunStorage
from google.api_core import exceptions as api
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery
from psycopg import sql

from pulso_etl.bigquery import googlesql, pruning
from pulso_etl.bigquery.arrow import arrow_type
from pulso_etl.bigquery.look import ONCE
from pulso_etl.bigquery.source import BigQuerySource, build_source, raising_source_errors
from pulso_etl.checks.statements import query_faults
from pulso_etl.doctor import server
from pulso_etl.instance.coordinator import TenantRunCoordinator
from pulso_etl.instance.retention import told
from pulso_etl.settings import Settings, load_settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PulsoError
from pulso_etl.sync.ledger import migrations
from pulso_etl.sync.ledger.preparing import needed
from pulso_etl.sync.ledger.retention import old_rows
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.loading.contract import fit
from pulso_etl.sync.postgres.catalog import Table
from pulso_etl.sync.postgres.server_errors import meaning
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.postgres.strangers import strangers
from pulso_etl.sync.redaction import scrub
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.streams import with_stamps
from pulso_etl.sync.tags import TENANT_TAG
from pulso_etl.tables import TABLES
from pulso_etl.tables.sources import SOURCES
from pulso_etl.tenancy.tenants import Deployed, deployed, risk, select, sharing

CREDENTIALS = {
    "google.oauth2.service_account": "the key of a service account",
    "google.oauth2.credentials": "a person's login",
    "google.auth.compute_engine.credentials": "the service account of this machine",
    "google.auth.impersonated_credentials": "an impersonated service account",
    "google.auth.identity_pool": "workload identity",
    "google.auth.aws": "workload identity",
    "google.auth.pluggable": "workload identity",
}
"""Kinds of Google credentials, by the module of their class."""

GOOD_FOR_DAGSTER = {
    "timezone": ("UTC", "utc", "etc/utc", "gmt", "etc/gmt", "uct", "etc/uct", "zulu", "etc/zulu", "universal", "etc/universal"),
    "default_transaction_isolation": ("read committed",),
}
"""Valid values for sessions of Dagster's own storage. The first one is the value to set."""

RIGHTS = """
    SELECT array_remove(ARRAY[
        CASE WHEN current_setting('transaction_read_only')::boolean THEN 'connect to the primary, this server is read-only' END,
        CASE WHEN NOT has_database_privilege(db, 'TEMPORARY') THEN format('GRANT TEMPORARY ON DATABASE %%I TO %%I', db, me) END,
        CASE WHEN schema IS NULL AND NOT has_database_privilege(db, 'CREATE')
            THEN format('CREATE SCHEMA %%I AUTHORIZATION %%I', %(schema)s, me) END,
        CASE WHEN NOT has_schema_privilege(schema, 'USAGE') OR NOT has_schema_privilege(schema, 'CREATE')
            THEN format('GRANT USAGE, CREATE ON SCHEMA %%I TO %%I', %(schema)s, me) END,
        CASE WHEN %(tenant)s AND has_schema_privilege('public', to_regnamespace('public'), 'CREATE')
            THEN 'REVOKE CREATE ON SCHEMA public FROM PUBLIC' END
    ], NULL) || ARRAY(
        SELECT format('ALTER TABLE %%I.%%I OWNER TO %%I', %(schema)s, relname, me)
        FROM pg_class
        WHERE relnamespace = schema AND relname = ANY(%(tables)s) AND NOT pg_has_role(me, relowner, 'USAGE')
        ORDER BY relname
    )
    FROM (SELECT current_database() AS db, current_user AS me, to_regnamespace(quote_ident(%(schema)s))::oid AS schema) AS here
"""
"""The statements that give the role every right that a load needs."""
LONGEST = 500
"""How much is told of a text that is not our own: BigQuery's may be a page."""
TO_CREATE = ("GRANT USAGE, CREATE ON SCHEMA", "ALTER TABLE")
"""How the statements of RIGHTS begin that only a role needs that creates or changes tables."""
MAY_WRITE = """
    SELECT has_schema_privilege(to_regnamespace(quote_ident(%(schema)s)), 'USAGE') AND bool_and(
        has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
        AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE')
    )
    FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND relname = ANY(%(tables)s)
"""


@dataclass(frozen=True)
class Diagnosis:
    """The result of checking one part."""

    part: str
    ok: bool
    text: str


def diagnose(tenant: str | None = None) -> Iterator[Diagnosis]:
    """Findings, part by part, for the tenant, or for all tenants. If a part fails, the parts that need it are left out."""
    try:
        settings = load_settings()
        parts = select(settings, tenant)
    except PulsoError as error:
        yield Diagnosis("settings", False, str(error).removeprefix("settings: "))
        return
    shared = sharing(deployed(settings)) if settings.tenants_file else {}
    for part in parts:
        for finding in _diagnose(part, shared.get(part.tenant, [])):
            yield replace(finding, part=f"{part.tenant}: {finding.part}") if part.tenant else finding
    yield from _in_turn(
        {
            "Dagster home": partial(_dagster_home, settings),
            "Dagster storage": partial(_dagster_storage, settings),
            **({"Dagster queue": _dagster_queue} if settings.tenants_file else {}),
            "Dagster daemon": _dagster_daemon,
        }
    )


def _diagnose(part: Deployed, others: Sequence[str]) -> Iterator[Diagnosis]:
    """`others`: the tenants that share the login."""
    settings, tables = part
    yield Diagnosis("settings", True, f"dataset {settings.bigquery_dataset}, PostgreSQL schema {settings.database_schema}")
    yield _check("SQL", partial(_sql, tables.values()))
    source = build_source(settings)
    reached = yield from _in_turn({"credentials": partial(_credentials, settings), "BigQuery": partial(_bigquery, source)})
    if reached:
        for spec in tables.values():
            yield _check(f"source of {spec.name}", partial(_source, source, spec))
    postgres = _check("PostgreSQL", partial(_postgres, settings, others))
    yield postgres
    if postgres.ok:
        yield _check("server settings", partial(server.server_settings, settings))
        yield _check("clocks", partial(server.clocks, settings, source if reached else None))
        yield _check("disks", partial(server.disks, settings))
        yield _check("trial", partial(server.trial, settings))
        ledger = _check("ledger", partial(_ledger, settings))
        yield ledger
    if postgres.ok and ledger.ok:
        for spec in tables.values():
            yield _check(f"rows of {spec.name}", partial(_rows, settings, spec))
        yield _check("retention", partial(_retention, settings))


def _in_turn(parts: dict[str, Callable[[], str]]) -> Generator[Diagnosis, None, bool]:
    for part, probe in parts.items():
        finding = _check(part, probe)
        yield finding
        if not finding.ok:
            return False
    return True


def _check(part: str, probe: Callable[[], str]) -> Diagnosis:
    try:
        return Diagnosis(part, True, probe())
    except Exception as error:
        text = " ".join(scrub(str(error)).split())
        # A repair of ours stays whole, however many statements it takes.
        ours = type(error) is RuntimeError and error.__cause__ is None
        return Diagnosis(part, False, (text if ours else text[:LONGEST]) or type(error).__name__)


def _sql(tables: Collection[TableSpec]) -> str:
    """GoogleSQL analyses the queries without BigQuery, against the declared columns of the sources."""
    if not googlesql.is_kept():
        return "not analysed here; `pulso-etl check` analyses the queries before a deployment"
    if found := [fault for spec in tables for fault in query_faults(spec, SOURCES)]:
        raise RuntimeError("; ".join(found))
    return f"GoogleSQL accepts {len(tables)} queries, and their columns fit"


def _credentials(settings: Settings) -> str:
    if settings.bigquery_emulator_host:
        return f"none needed, BIGQUERY_EMULATOR_HOST names an emulator: {settings.bigquery_emulator_host}"
    try:
        credentials, _ = google.auth.default()
    except GoogleAuthError as error:
        raise RuntimeError(f"none found; set GOOGLE_APPLICATION_CREDENTIALS to a service account's key file. {error}") from error
    module = type(credentials).__module__
    kind = CREDENTIALS.get(module, module)
    if settings.google_application_credentials:
        return f"{kind}, from GOOGLE_APPLICATION_CREDENTIALS: {settings.google_application_credentials}"
    return f"{kind}, found by the Google client; GOOGLE_APPLICATION_CREDENTIALS is not set"


def _bigquery(source: BigQuerySource) -> str:
    try:
        with source.get_client() as client:
            client.query_and_wait("SELECT 1", retry=ONCE, job_retry=ONCE, api_timeout=20, wait_timeout=30)
            return f"project {client.project} answers"
    except (api.Forbidden, api.Unauthorized) as error:
        raise RuntimeError(f"refuses the account; give it the role bigquery.jobUser in the project that pays. {error}") from error
    except (api.GoogleAPIError, OSError) as error:
        raise RuntimeError(f"fails; check the network, BIGQUERY_PROJECT_ID and BIGQUERY_LOCATION. {error}") from error


def _source(source: BigQuerySource, spec: TableSpec) -> str:
    """Dry runs, which cost nothing, give the columns that the query would return, and whether it reads only the days asked for."""
    today = spec.zone.day(datetime.now(UTC))
    window = DayRange(today, today)
    parameters = [bigquery.ScalarQueryParameter(name, "DATE", today) for name in ("start", "end")]
    config = bigquery.QueryJobConfig(query_parameters=parameters, dry_run=True, use_query_cache=False)
    with raising_source_errors(spec, window), source.get_client() as client:
        job = client.query(source.stream(spec, window, "doctor").sql(), job_config=config, retry=ONCE, timeout=30)
    returned = pa.schema([pa.field(column.name, _arrow(column)) for column in job.schema or []])
    _, _, drift = fit(spec, with_stamps(returned, spec.reading_stamps), Table({}), window)
    if unpruned := pruning.fault(source, spec, today):
        raise RuntimeError(f"{unpruned}; every refresh pays for it: filter on the partition column itself")
    size = f", today's partition reads {job.total_bytes_processed / 2**20:,.1f} MiB" if job.total_bytes_processed else ""
    return f"columns fit{size}" + (f"; not loaded: {', '.join(drift.not_loaded)}" if drift.not_loaded else "")


def _arrow(column: bigquery.SchemaField) -> pa.DataType:
    given = arrow_type(column.field_type)
    return pa.list_(given) if column.mode == "REPEATED" else given


def _postgres(settings: Settings, others: Sequence[str]) -> str:
    with ExitStack() as session:
        with _reaching("DATABASE_URL"):
            conn = session.enter_context(Session(settings.database_url.get_secret_value(), "doctor").hold())
        version = conn.info.server_version // 10_000
        if version < 15:
            raise RuntimeError(f"version {version} is too old; 15 or newer is needed")
        tables = [*TABLES, *migrations.TABLES]
        values = {"schema": settings.database_schema, "tables": tables, "tenant": bool(settings.owner.tenant)}
        (lacking,) = conn.execute(RIGHTS, values).fetchone() or ([],)
        role = settings.owner.database_role or conn.info.user
        creates = not any(one.startswith(TO_CREATE) for one in lacking)
        if not creates and _is_prepared(conn, settings.database_schema):
            lacking = [one for one in lacking if not one.startswith(TO_CREATE)]
        if lacking:
            raise RuntimeError(f"role {role} lacks rights; run as an administrator: {'; '.join(lacking)}")
        if found := strangers(conn, settings.database_schema, [*TABLES]):
            raise RuntimeError(f"tables carry objects that Pulso ETL has not made, and no load will run: {'; '.join(found)}")
        risky = f"; {risk(others)}" if others else ""
        only = "" if creates else ", but create no table: run `pulso-etl schema` before each upgrade"
        return f"version {version}, role {role} may load into schema {settings.database_schema}{only}{risky}"


def _is_prepared(conn: psycopg.Connection, schema: str) -> bool:
    """Whether all tables are there as declared, and the role may write to them. Then a load has to create nothing."""
    try:
        with conn.transaction():
            if needed(conn, schema, TABLES.values()):
                return False
            return conn.execute(MAY_WRITE, {"schema": schema, "tables": [*TABLES, *migrations.TABLES]}).fetchone() == (True,)
    except (psycopg.Error, PulsoError):
        return False


def _ledger(settings: Settings) -> str:
    """Whether this release can read the tables in which the loads keep account."""
    schema = settings.database_schema
    with Session(settings.database_url.get_secret_value(), "doctor").open() as conn:
        found = migrations.state(conn, schema)
        if found.unknown:
            raise found.too_new()
        if found.empty:
            return "not there yet; the first refresh makes it"
        if found.is_older:
            raise found.too_old()
        if missing := migrations.missing(conn, schema):
            again = sql.SQL("DELETE FROM {}").format(sql.Identifier(schema, migrations.APPLIED)).as_string(conn)
            raise RuntimeError(
                f"tables are missing: {', '.join(missing)}; restore them from a backup, or run `{again}`: "
                "the next refresh then makes them again, without rows"
            )
    first, *_, last = migrations.migrations()
    return f"up to date with {last}; this release reads and updates every ledger since {first}"


def _retention(settings: Settings) -> str:
    """What is kept for how long, and what is older. The retention sensor deletes that within hours."""
    before = settings.retention.before(datetime.now(UTC))
    with Session(settings.database_url.get_secret_value(), "doctor").open() as conn:
        older = {kind: rows for kind, rows in old_rows(conn, settings.database_schema, before).items() if rows}
    overdue = f"older, and deleted within hours by retention_sensor: {told(older)}" if older else "nothing of the ledger is older"
    return f"days kept: {settings.retention}; {overdue}"


def _rows(settings: Settings, spec: TableSpec) -> str:
    """Counts the rows of every day, and compares them with the counts of the loads."""
    marks = Watermarks(settings.database_schema)
    with Session(settings.database_url.get_secret_value(), "doctor").open() as conn:
        if spec.name not in marks.read(conn):
            return "never loaded"
        marks.look(conn, spec)
        lost = marks.read(conn)[spec.name].lost
    if lost is not None:
        raise RuntimeError(f"{lost}; load them again: {lost.command(spec)}")
    return "every day holds what its last load left"


def _dagster_home(settings: Settings) -> str:
    home = settings.dagster_home
    if home is None:
        raise RuntimeError("DAGSTER_HOME is not set; set it to a folder with this project's dagster.yaml")
    if not home.is_absolute() or not home.is_dir():
        raise RuntimeError(f"DAGSTER_HOME is {home}, which is not the absolute path of an existing folder")
    if not os.access(home / "dagster.yaml", os.R_OK):
        raise RuntimeError(f"{home / 'dagster.yaml'} is missing or not readable; copy this project's dagster.yaml there")
    return str(home)


def _dagster_storage(settings: Settings) -> str:
    if settings.dagster_postgres_url is not None:
        # Dagster itself would try for a long time, and report it only in its own log.
        with _reaching("DAGSTER_POSTGRES_URL"):
            Session(settings.dagster_postgres_url.get_secret_value(), "doctor").open().close()
    try:
        instance = dg.DagsterInstance.get()
    except dg.DagsterInvalidConfigError as error:
        faults = " ".join(fault.message for fault in error.errors)
        raise RuntimeError(f"dagster.yaml can't be used; compare it with this project's. {faults}") from error
    with instance:
        storage = instance.run_storage
        runs = instance.get_runs_count()
        revision = storage.alembic_version()
        if revision is not None and revision[0] != revision[1]:
            raise RuntimeError("was written by an older Dagster; run `dagster instance migrate` while nothing else runs")
        if wrong := _wrong_settings(storage):
            raise RuntimeError(wrong)
        if not instance.freshness_enabled:
            raise RuntimeError("freshness policies are off; set `freshness: enabled: true` in dagster.yaml")
        return f"{type(storage).__name__}, {runs} runs, freshness policies on"


def _wrong_settings(storage: object) -> str | None:
    """The settings of Dagster's sessions that differ from what Dagster expects, with the repair. Its own class states none."""
    if not isinstance(storage, PostgresRunStorage):
        return None
    asked = "SELECT current_setting('TimeZone'), current_setting('transaction_isolation'), current_user, current_database()"
    with storage.connect() as conn:
        zone, isolation, role, database = conn.execute(sa.text(asked)).one()
    found = {"timezone": zone, "default_transaction_isolation": isolation}
    wrong = {name: value for name, value in found.items() if value.lower() not in GOOD_FOR_DAGSTER[name]}
    if not wrong:
        return None
    told = ", ".join(f"{name} = {value}" for name, value in wrong.items())
    mends = sql.SQL("; ").join(
        sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} = {}").format(
            sql.Identifier(role), sql.Identifier(database), sql.SQL(name), sql.Literal(GOOD_FOR_DAGSTER[name][0])
        )
        for name in wrong
    )
    return (
        f"its sessions have {told}, so Dagster's times or its queue go wrong; use the storage class of this project's "
        f"dagster.yaml, or run: {mends.as_string()}"
    )


def _dagster_queue() -> str:
    """Whether the queue knows each tenant's runs, and limits their slots."""
    with dg.DagsterInstance.get() as instance:
        queue = instance.get_concurrency_config().run_queue_config
        limited = {limit["key"]: limit["limit"] for limit in queue.tag_concurrency_limits or ()} if queue else {}
        if not isinstance(instance.run_coordinator, TenantRunCoordinator) or TENANT_TAG not in limited or queue is None:
            raise RuntimeError("does not know tenants; use deploy/dagster.tenants.yaml as the dagster.yaml of DAGSTER_HOME")
        return f"{queue.max_concurrent_runs} slots, at most {limited[TENANT_TAG]} for a tenant"


def _dagster_daemon() -> str:
    with dg.DagsterInstance.get() as instance:
        seen = {name: status for name, status in instance.get_daemon_statuses().items() if status.last_heartbeat is not None}
        if not seen:
            return "never seen; sensors and schedules need `dagster-daemon run`"
        late = [name for name, status in seen.items() if not status.healthy]
        if late:
            last = max(status.last_heartbeat.timestamp for status in seen.values() if status.last_heartbeat)
            when = datetime.fromtimestamp(last, UTC)
            raise RuntimeError(f"no heartbeat of {', '.join(late)} since {when:%Y-%m-%d %H:%M} UTC; start `dagster-daemon run`")
        return f"{len(seen)} healthy"


@contextmanager
def _reaching(setting: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise RuntimeError(f"{setting}: cannot connect. {meaning(error).tell(error)}") from error
