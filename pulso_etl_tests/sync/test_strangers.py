"""A tenant's own database role tries to reach another tenant's rows through the session of a load.

Both tenants' loads have one login, which works as either role: what is dangerous about that is tried here on a real server.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import psycopg
import pyarrow as pa
import pytest
from psycopg import sql
from sqlalchemy import make_url

from pulso_etl.alerts.store import AlertStore
from pulso_etl.sync import io_manager
from pulso_etl.sync.errors import SchemaRefused
from pulso_etl.sync.io_manager import PostgresUpsertIOManager
from pulso_etl.sync.ledger.ledger import server_clock
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.postgres.roles import as_role
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.postgres.strangers import refuse_strangers, strangers
from pulso_etl.sync.spec import Contract, TableSpec
from pulso_etl.sync.tags import SPEC_KEY
from pulso_etl_tests.sync.samples import D1, D2, WINDOW, Loads, by_month, row, table, things

STEALS = """
CREATE FUNCTION acme.steal_now() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF session_user = current_user THEN RETURN 'nothing to win'; END IF;
    {become}
    DELETE FROM globex.secrets;
    SET ROLE acme;
    RETURN 'done';
END $$;
CREATE FUNCTION acme.steal() RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT acme.steal_now()';
CREATE FUNCTION acme.steal_of(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT acme.steal_now()';
CREATE FUNCTION acme.same(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT acme.steal_now() IS NOT NULL';
CREATE FUNCTION acme.steals() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM acme.steal_now(); RETURN NEW; END $$;
"""


@dataclass
class Shared:
    """Two tenants' roles and schemas, and the login that works as both. Names in statements are those of the role acme."""

    url: str
    login: str
    acme: str
    globex: str
    admin: psycopg.Connection

    def named(self, text: str) -> str:
        return text.replace("acme", self.acme).replace("globex", self.globex)

    def as_acme(self, *statements: str) -> None:
        """Runs a statement with the tenant's own role, as with a login of the tenant."""
        with psycopg.connect(self.admin.info.dsn, password=self.admin.info.password, autocommit=True) as conn:
            conn.execute(self.named("SET SESSION AUTHORIZATION acme").encode())
            for statement in statements:
                conn.execute(self.named(statement).encode())

    @property
    def secrets(self) -> list[tuple[Any, ...]]:
        """The other tenant's rows. Nobody else may touch them."""
        return self.admin.execute(self.named("SELECT name FROM globex.secrets").encode()).fetchall()

    def session(self) -> Session:
        """As a load's."""
        return Session(as_role(self.url, self.acme), "test")


@pytest.fixture
def shared(server_url: str) -> Iterator[Shared]:
    mark, password = uuid.uuid4().hex[:8], uuid.uuid4().hex
    login, acme, globex = f"login_{mark}", f"acme_{mark}", f"globex_{mark}"
    url = make_url(server_url).set(username=login, password=password).render_as_string(hide_password=False)
    with psycopg.connect(server_url, autocommit=True) as admin:
        if admin.info.parameter_status("is_superuser") != "on":
            pytest.skip("who is a tenant by SET SESSION AUTHORIZATION has to be a superuser here")
        one = Shared(url, login, acme, globex, admin)
        database = sql.Identifier(admin.info.dbname).as_string()
        admin.execute(
            one.named(
                f"CREATE ROLE acme; CREATE ROLE globex; CREATE ROLE {login} LOGIN PASSWORD '{password}' IN ROLE acme, globex; "
                "CREATE SCHEMA acme AUTHORIZATION acme; CREATE SCHEMA globex AUTHORIZATION globex; "
                f"GRANT TEMPORARY ON DATABASE {database} TO acme; "
                "SET ROLE globex; CREATE TABLE globex.secrets (name text); INSERT INTO globex.secrets VALUES ('hers'); RESET ROLE"
            ).encode()
        )
        try:
            yield one
        finally:
            admin.execute(f"DROP OWNED BY {acme}, {globex} CASCADE; DROP ROLE {login}, {acme}, {globex}".encode())


Materialize = Callable[[TableSpec], dg.ExecuteInProcessResult]


@pytest.fixture
def materialize(shared: Shared) -> Materialize:
    """Loads two rows into the tenant's table `things`, as its loads do."""
    manager = PostgresUpsertIOManager(database_url=shared.url, database_role=shared.acme, database_schema=shared.acme)

    def run(spec: TableSpec) -> dg.ExecuteInProcessResult:
        @dg.asset(
            name=spec.name,
            partitions_def=dg.DailyPartitionsDefinition(start_date=D1.isoformat(), timezone="America/Lima"),
            backfill_policy=dg.BackfillPolicy.single_run(),
            io_manager_key="postgres",
            metadata={SPEC_KEY: spec.as_metadata()},
        )
        def asset() -> pa.Table:
            return table([row(D1, "a"), row(D2, "b", money=str(datetime.now(UTC).microsecond))])

        tags = {"dagster/asset_partition_range_start": D1.isoformat(), "dagster/asset_partition_range_end": D2.isoformat()}
        return dg.materialize([asset], resources={"postgres": manager}, tags=tags, raise_on_error=False)

    return run


def told(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    data = failure.step_failure_data
    text = str(data.user_failure_data.description if data.user_failure_data else data.error)
    return text


BECOMES = ("SET ROLE globex;", "PERFORM set_config('role', 'globex', false);", "RESET ROLE; SET ROLE globex;")
WAYS = {
    "trigger": ("CREATE TRIGGER evil AFTER INSERT ON acme.{} FOR EACH ROW EXECUTE FUNCTION acme.steals()", "DROP TRIGGER evil ON"),
    "deferred trigger": (
        "CREATE CONSTRAINT TRIGGER evil AFTER INSERT ON acme.{} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
        "EXECUTE FUNCTION acme.steals()",
        "DROP TRIGGER evil ON",
    ),
    "default": ("ALTER TABLE acme.{} ADD COLUMN evil text DEFAULT acme.steal()", "ALTER COLUMN evil DROP DEFAULT"),
    "default of the server's own": (
        "ALTER TABLE acme.{} ADD COLUMN evil text DEFAULT set_config('role', 'globex', false)",
        "ALTER COLUMN evil DROP DEFAULT",
    ),
    "query in a default": (
        "ALTER TABLE acme.{} ADD COLUMN evil tsquery DEFAULT ts_rewrite('a', 'SELECT ''a''::tsquery, acme.steal_now()::tsquery')",
        "ALTER COLUMN evil DROP DEFAULT",
    ),
    "check": ("ALTER TABLE acme.{} ADD CONSTRAINT evil CHECK (acme.steal() IS NOT NULL) NOT VALID", "DROP CONSTRAINT evil"),
    "operator in a check": (
        "CREATE OPERATOR acme.=== (FUNCTION = acme.same, LEFTARG = text, RIGHTARG = text); "
        "ALTER TABLE acme.{0} ADD CONSTRAINT evil CHECK ('x' OPERATOR(acme.===) 'y') NOT VALID",
        "DROP CONSTRAINT evil",
    ),
    "domain": (
        "CREATE DOMAIN acme.evil AS text CHECK (acme.steal() IS NOT NULL); ALTER TABLE acme.{} ADD COLUMN evil acme.evil",
        "DROP COLUMN evil",
    ),
    "generated column": (
        "ALTER TABLE acme.{} ADD COLUMN evil text GENERATED ALWAYS AS (acme.steal()) STORED",
        "ALTER COLUMN evil DROP EXPRESSION",
    ),
    "index": ("CREATE INDEX evil ON acme.{} (acme.steal_of('x'))", "DROP INDEX"),
    "condition of an index": ("CREATE INDEX evil ON acme.{} ((1)) WHERE acme.steal() IS NOT NULL", "DROP INDEX"),
    "rule": ("CREATE RULE evil AS ON INSERT TO acme.{} DO ALSO SELECT acme.steal()", "DROP RULE evil ON"),
    "policy": (
        "ALTER TABLE acme.{0} FORCE ROW LEVEL SECURITY, ENABLE ROW LEVEL SECURITY; "
        "CREATE POLICY evil ON acme.{0} USING (acme.steal() IS NOT NULL)",
        "DROP POLICY evil ON",
    ),
    "child": ("CREATE TABLE acme.evil () INHERITS (acme.{})", "NO INHERIT"),
    "parent": (
        "CREATE TABLE acme.evil (day date); ALTER TABLE acme.evil ADD CHECK (acme.steal() IS NOT NULL) NO INHERIT NOT VALID; "
        "ALTER TABLE acme.{} ADD COLUMN IF NOT EXISTS day date; ALTER TABLE acme.{} INHERIT acme.evil",
        "NO INHERIT",
    ),
}
"""Ways to have code of one's own run by who writes to a table: what the tenant says, and of what we say in return."""


def steals(become: str = BECOMES[0]) -> str:
    return STEALS.format(become=become)


@pytest.mark.parametrize(
    ("way", "become"),
    [*(("trigger", become) for become in BECOMES)]
    + [(way, BECOMES[1]) for way in ("deferred trigger", "default", "query in a default", "check", "domain", "index", "rule")],
)
def test_without_a_refusal_the_escape_would_succeed(shared: Shared, way: str, become: str) -> None:
    """An INSERT by the login would run the tenant's code, and that code would read the other tenant's rows."""
    shared.as_acme("CREATE TABLE acme.things (name text)", steals(become), *WAYS[way][0].format("things").split("; "))
    with shared.session().open() as conn:
        conn.execute(shared.named("INSERT INTO acme.things (name) VALUES ('a')").encode())
    assert shared.secrets == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", ["things", "etl_watermarks"])
def test_each_way_into_the_session_of_a_load_is_found_and_told_with_its_end(shared: Shared, way: str, target: str) -> None:
    made, drops = WAYS[way]
    shared.as_acme("CREATE TABLE acme.things (day date, name text)", "CREATE TABLE acme.etl_watermarks (day date, name text)")
    with shared.session().open() as conn, conn.transaction():
        refuse_strangers(conn, shared.acme, "things")
    shared.as_acme(steals(), *made.format(target, target).split("; "))
    with shared.session().open() as conn, pytest.raises(SchemaRefused) as raised, conn.transaction():
        refuse_strangers(conn, shared.acme, "things")
    text = str(raised.value)
    assert f"{shared.acme}.{target}: " in text
    assert drops in text
    assert shared.login in text
    # The statements of the error can be run. After them nothing is left to do.
    with shared.session().open() as conn:
        for found in strangers(conn, shared.acme, ["things"]):
            conn.execute(found.rpartition(": ")[2].encode())
        assert strangers(conn, shared.acme, ["things"]) == []


def test_a_view_in_the_place_of_a_table_is_found(shared: Shared) -> None:
    shared.as_acme(steals(), "CREATE VIEW acme.etl_watermarks AS SELECT acme.steal() AS table_name")
    with shared.session().open() as conn, pytest.raises(SchemaRefused, match="in the place of the table a view: DROP VIEW"):
        refuse_strangers(conn, shared.acme, "things")


def test_what_we_make_ourselves_and_what_runs_nothing_is_left_alone(shared: Shared, materialize: Materialize) -> None:
    assert materialize(things()).success
    with shared.session().open() as conn:
        with conn.transaction():
            AlertStore(shared.acme).create(conn)
        loads = Loads(conn, shared.acme)
        loads([row(D1, "a"), row(D2, "b")], by_month(name="monthly"))
        conn.execute(
            shared.named(
                "ALTER TABLE acme.things ADD COLUMN seen timestamptz DEFAULT now(), ADD COLUMN n bigserial, "
                "ADD CHECK (length(name) < 100); CREATE INDEX ON acme.things (lower(name)) WHERE hour > 3; "
                "CREATE VIEW acme.seen AS SELECT name FROM acme.things"
            ).encode()
        )
        assert strangers(conn, shared.acme, ["things", "monthly"]) == []
    assert materialize(things(contract=Contract.EVOLVE)).success


@pytest.mark.parametrize("become", BECOMES)
@pytest.mark.parametrize(("way", "target"), [("trigger", "things"), ("deferred trigger", "etl_extractions"), ("check", "things")])
def test_a_load_refuses_and_the_other_tenant_s_rows_are_untouched(
    shared: Shared, materialize: Materialize, way: str, target: str, become: str
) -> None:
    assert materialize(things()).success
    made, drops = WAYS[way]
    shared.as_acme(steals(become), made.format(target))
    failed = materialize(things())
    assert not failed.success
    assert drops in told(failed)
    assert shared.secrets == [("hers",)]
    with shared.session().open() as conn:
        history = Loads(conn, shared.acme).rows(shared.named("SELECT status FROM acme.etl_extractions ORDER BY id"))
    # A failure can't be recorded if the record would run the tenant's code.
    assert [status for (status,) in history] == ["success", "failed"][: 2 if target == "things" else 1]


def test_what_is_added_after_the_first_look_is_found_by_the_second(
    shared: Shared, materialize: Materialize, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert materialize(things()).success

    def meanwhile(conn: psycopg.Connection) -> datetime:
        shared.as_acme(steals(), WAYS["trigger"][0].format("things"))
        return server_clock(conn)

    # Between the first transaction of an attempt and that of its data.
    monkeypatch.setattr(io_manager, "server_clock", meanwhile)
    failed = materialize(things())
    assert "DROP TRIGGER evil" in told(failed)
    assert shared.secrets == [("hers",)]


def test_a_write_of_the_sensors_is_refused_too(shared: Shared, materialize: Materialize) -> None:
    assert materialize(things()).success
    shared.as_acme(steals(), WAYS["deferred trigger"][0].format("etl_extractions"))
    with shared.session().open() as conn:
        with conn.transaction():
            AlertStore(shared.acme).create(conn)
        marks = Watermarks(shared.acme)
        dead = RunningAttempt("things", WINDOW, "dead", 1, datetime.now(UTC))
        for write in (
            lambda: marks.abandon(conn, dead, "gone"),
            lambda: marks.look(conn, things()),
            lambda: AlertStore(shared.acme).lock(conn),
        ):
            with pytest.raises(SchemaRefused, match="DROP TRIGGER evil"), conn.transaction():
                write()
    assert shared.secrets == [("hers",)]


def test_nothing_else_of_the_tenant_s_is_called_by_a_name_that_statements_use(shared: Shared) -> None:
    """PostgreSQL would prefer a function of the same name whose arguments fit better, if it looked into the tenant's schema."""
    shared.admin.execute(shared.named("ALTER SCHEMA acme RENAME TO acme_s; CREATE SCHEMA acme AUTHORIZATION acme").encode())
    shared.as_acme("CREATE FUNCTION acme.hashtextextended(text, integer) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'")
    with shared.session().open() as conn:
        assert conn.execute("SELECT hashtextextended('x'::text, 0)").fetchone() != (1,)


def test_a_login_of_its_own_may_have_triggers(loads: Loads, schema: str) -> None:
    loads([row(D1, "a")], things())
    loads.conn.execute(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
        "CREATE TRIGGER note BEFORE INSERT ON things FOR EACH ROW EXECUTE FUNCTION note()"
    )
    assert strangers(loads.conn, schema, ["things"]) == []
    refuse_strangers(loads.conn, schema, "things")
    assert loads([row(D1, "b")], things(), allow_shrink=True).total.inserted == 1


def test_launches_and_alerts_do_not_wait_for_a_load(shared: Shared, materialize: Materialize) -> None:
    assert materialize(things()).success
    with shared.session().open() as load, shared.session().open() as other:
        with other.transaction():
            AlertStore(shared.acme).create(other)
        with load.transaction():
            refuse_strangers(load, shared.acme, "things")
            with other.transaction():
                other.execute("SET LOCAL lock_timeout = '1s'")
                AlertStore(shared.acme).lock(other)
