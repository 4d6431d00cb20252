"""What the doctor asks PostgreSQL and this machine: what fails later, under load or after weeks."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql

from pulso_etl.bigquery.look import ONCE
from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.locks import table_lock
from pulso_etl.sync.loading.load import load
from pulso_etl.sync.loading.request import LoadRequest, Source, Writer
from pulso_etl.sync.postgres.encoding import Encoding
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.spec import Column, ColumnType, TableSpec
from pulso_etl.sync.target import Target

LEAST_CONNECTIONS = 10
"""Free connections that a refresh of all tables, the API and Dagster need beside those that they hold."""
LEAST_FREE = 2 * 2**30
"""Bytes that a folder must have free: a load may set 1 GiB of rows aside, and a log must not end for want of room."""
LEAST_TEMPORARY = 2**30
"""Bytes of temporary files that a load of a million rows may need at the server."""
CLOCK_SECONDS = 60.0
"""How far this machine's clock and the server's may differ: sensors decide by the one, loads by the other."""

ASKED = """
SELECT current_setting('autovacuum')::boolean, current_setting('fsync')::boolean AND current_setting('full_page_writes')::boolean,
    CASE WHEN current_setting('temp_file_limit') <> '-1' THEN pg_size_bytes(current_setting('temp_file_limit')) END,
    least(
        current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
            - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
        (SELECT datconnlimit - numbackends FROM pg_database d JOIN pg_stat_database s ON s.datid = d.oid
            WHERE d.datname = current_database() AND datconnlimit >= 0),
        (SELECT rolconnlimit - (SELECT count(*) FROM pg_stat_activity WHERE usename = session_user) FROM pg_roles
            WHERE rolname = session_user AND rolconnlimit >= 0)
    )
"""


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the server that a session cannot state for itself. Sizes are bytes; None: no limit."""

    autovacuum: bool
    durable: bool
    temporary: int | None
    free_connections: int

    @property
    def faults(self) -> list[str]:
        """What must change, each with the repair."""
        found = []
        if not self.autovacuum:
            found.append("autovacuum is off, so tables grow and plans go wrong; set autovacuum = on")
        if self.temporary is not None and self.temporary < LEAST_TEMPORARY:
            found.append(
                f"temp_file_limit allows {self.temporary / 2**20:,.0f} MiB, too little for large loads; set it to 1GB or -1"
            )
        if self.free_connections < LEAST_CONNECTIONS:
            found.append(
                f"only {self.free_connections} connections are free, and a deployment needs {LEAST_CONNECTIONS}; raise "
                "max_connections, or the CONNECTION LIMIT of the role and the database"
            )
        return found

    def __str__(self) -> str:
        risk = "" if self.durable else "; fsync or full_page_writes is off, so a crash of the machine can lose tables"
        return f"autovacuum on, {self.free_connections} connections free{risk}"


def server_settings(settings: Settings) -> str:
    """Whether the server lets a deployment work for years."""
    with _session(settings) as conn:
        found = ServerSettings(*conn.execute(ASKED).fetchone())
        encoding = Encoding.of(conn)
    if found.faults:
        raise RuntimeError("; ".join(found.faults))
    lacks = "" if encoding.holds_all else ", which lacks characters: rows with those are quarantined or refused"
    return f"{found}; encoding {encoding.name}{lacks}"


def clocks(settings: Settings, source: BigQuerySource | None) -> str:
    """How far this machine, PostgreSQL and BigQuery differ."""
    with _session(settings) as conn:
        before = datetime.now(UTC)
        (server,) = conn.execute("SELECT clock_timestamp()").fetchone() or (before,)
        ahead = {"PostgreSQL": server - _middle(before)}
    if source is not None:
        with source.get_client() as client:
            before = datetime.now(UTC)
            rows = client.query_and_wait("SELECT CURRENT_TIMESTAMP()", retry=ONCE, job_retry=ONCE, api_timeout=20, wait_timeout=30)
            [(theirs,)] = [tuple(row.values()) for row in rows]
            # The answer may have been on its way for seconds.
            ahead["BigQuery"] = max(theirs - datetime.now(UTC), min(timedelta(), theirs - before), key=abs)
    if faults := clock_faults(ahead, settings.change_margin_seconds):
        raise RuntimeError("; ".join(faults))
    return "beside this machine: " + ", ".join(f"{name} {_seconds(by)}" for name, by in ahead.items())


def clock_faults(ahead: Mapping[str, timedelta], margin_seconds: float) -> list[str]:
    """What is wrong with clocks that are so far ahead of this machine's (negative: behind). Pure."""
    found = []
    server, bigquery = ahead["PostgreSQL"], ahead.get("BigQuery")
    if abs(server.total_seconds()) > CLOCK_SECONDS:
        found.append(f"PostgreSQL's clock is {_seconds(server)} of this machine's; set both by NTP")
    if bigquery is not None and abs((bigquery - server).total_seconds()) > margin_seconds:
        found.append(
            f"BigQuery's clock is {_seconds(bigquery - server)} of PostgreSQL's, more than CHANGE_MARGIN_SECONDS "
            f"({margin_seconds:g}), so changes of the source could be overlooked; set PostgreSQL's clock by NTP"
        )
    return found


def _middle(before: datetime) -> datetime:
    return before + (datetime.now(UTC) - before) / 2


def _seconds(by: timedelta) -> str:
    return f"{abs(by.total_seconds()):.1f} s {'ahead' if by >= timedelta() else 'behind'}"


def disks(settings: Settings) -> str:
    """How much room the folders have that this deployment fills: Dagster's, temporary files, and PostgreSQL's if it is here."""
    folders = {"DAGSTER_HOME": settings.dagster_home, "temporary files": Path(tempfile.gettempdir())}
    with _session(settings) as conn:
        # Only some roles may know the folder, and it may be on another machine.
        if conn.execute("SELECT pg_has_role(current_user, 'pg_read_all_settings', 'USAGE')").fetchone() == (True,):
            (data,) = conn.execute("SHOW data_directory").fetchone() or ("",)
            folders["PostgreSQL"] = Path(data) if os.access(data, os.R_OK) else None
        (size,) = conn.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
    free = {name: shutil.disk_usage(folder).free for name, folder in folders.items() if folder is not None and folder.is_dir()}
    if faults := disk_faults(free):
        raise RuntimeError("; ".join(faults))
    room = ", ".join(f"{name} {room / 2**30:,.1f} GiB free" for name, room in free.items())
    return f"{room}; the database takes {size / 2**20:,.0f} MiB"


def disk_faults(free: Mapping[str, int]) -> list[str]:
    """The folders, by what is there, that have too few bytes free. Pure."""
    return [
        f"{name}: only {room / 2**30:.1f} GiB are free, at least {LEAST_FREE / 2**30:.0f} are needed; make room"
        for name, room in free.items()
        if room < LEAST_FREE
    ]


def trial(settings: Settings) -> str:
    """Takes a lock, makes a temporary table, and loads a table of its own twice, in one transaction that it takes back."""
    schema = settings.database_schema
    spec = TRIAL.model_copy(update={"name": f"doctor_{uuid.uuid4().hex[:8]}", "timezone": settings.timezone})
    with _session(settings) as conn, conn.transaction(force_rollback=True):
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (table_lock(schema, spec.name),))
        conn.execute("CREATE TEMPORARY TABLE pulso_doctor (n integer) ON COMMIT DROP")
        conn.execute("INSERT INTO pulso_doctor SELECT generate_series(1, 1000)")
        if why_not := _why_no_load(conn, schema):
            return f"a lock and a temporary table work; no load was tried, because {why_not}"
        for amounts in (["1.50", "2.50"], ["1.50", "3.75"]):
            load(Target(conn, spec, schema), _request(amounts))
        found = conn.execute(
            sql.SQL("SELECT array_agg(amount::text ORDER BY amount) FROM {}").format(sql.Identifier(schema, spec.name))
        )
        if found.fetchone() != (["1.50", "3.75"],):
            raise RuntimeError("a table that was loaded twice does not hold the rows of the second load")
    return "a lock, a temporary table, and two loads into a table of its own work; all was taken back"


DAY = datetime(2026, 1, 1, tzinfo=UTC).date()
TRIAL = TableSpec.model_validate(
    {
        "name": "doctor_trial",
        "description": "The doctor's trial.",
        "primary_key": ("day", "place"),
        "partition_column": "day",
        "columns": (
            Column(name="day", type=ColumnType.DATE),
            Column(name="place", type=ColumnType.INTEGER),
            Column(name="amount", type=ColumnType.NUMERIC),
        ),
    }
)


def _request(amounts: list[str]) -> LoadRequest:
    given = pa.table({"day": [DAY] * len(amounts), "place": list(range(len(amounts))), "amount": amounts})
    typed = given.set_column(2, "amount", given["amount"].cast(pa.decimal128(12, 2)))
    return LoadRequest(DayRange(DAY, DAY), Source(lambda: nullcontext(typed.to_reader())), Writer("doctor"))


def _why_no_load(conn: psycopg.Connection, schema: str) -> str:
    """Why no table can be made in the schema; empty if one can."""
    asked = "SELECT has_schema_privilege(to_regnamespace(quote_ident(%s)), 'CREATE')"
    (may_create,) = conn.execute(asked, (schema,)).fetchone() or (None,)
    if may_create is None:
        return f"the first refresh makes the schema {schema}"
    return "" if may_create else "the role creates no table"


def _session(settings: Settings) -> Any:
    return Session(settings.database_url.get_secret_value(), "doctor").open()
