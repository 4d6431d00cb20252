"""What a look of the sensors, or of the API, costs does not grow with the number of tables: statements are counted, nothing is
timed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.utils import make_new_run_id
from pydantic import SecretStr
from sqlalchemy import event
from sqlalchemy.engine import Engine

from benchmarks.many import HISTORY, MARKS
from benchmarks.specs import many
from pulso_etl.api.dagster_client import DagsterClient
from pulso_etl.api.database import Database
from pulso_etl.api.status import StatusReader
from pulso_etl.automation.announcements import announce, listen
from pulso_etl.automation.jobs import build_jobs
from pulso_etl.automation.memory import Memory
from pulso_etl.automation.recovery import recover
from pulso_etl.automation.sensors import REPORTED, SHOWN, Automation, check_outcomes
from pulso_etl.bigquery.source import build_source
from pulso_etl.refreshing.keys import up_to_date_key
from pulso_etl.refreshing.launch import run_tags
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.watermarks import Watermarks
from pulso_etl.sync.spec import TableSpec
from pulso_etl_tests.clock import TABLES, TODAY

FEW, MANY = 20, 200
DUE = 5


class Statements:
    """Counts the statements that are sent to our PostgreSQL and to Dagster's storage."""

    def __init__(self) -> None:
        self.sent = 0
        self.ours: list[str] = []

    def cursor(self, *args: Any, **options: Any) -> psycopg.Cursor:
        counter = self

        class Counting(psycopg.Cursor):
            def execute(self, query: Any, *args: Any, **options: Any) -> Any:
                counter.sent += 1
                counter.ours.append(query if isinstance(query, str) else query.as_string(self))
                return super().execute(query, *args, **options)

        return Counting(*args, **options)

    def dagsters(self, connection: object, cursor: object, statement: str, *_: object) -> None:
        # SQLite's PRAGMAs of a new connection do not count: how often one is opened depends on the machine's speed.
        self.sent += not statement.startswith("PRAGMA")

    def during(self, act: Callable[[], object]) -> int:
        before = self.sent
        act()
        return self.sent - before


@pytest.fixture
def statements() -> Iterator[Statements]:
    counter = Statements()
    event.listen(Engine, "before_cursor_execute", counter.dagsters)
    yield counter
    event.remove(Engine, "before_cursor_execute", counter.dagsters)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


class Looks:
    """The sensors over that many tables. DUE of the tables are due. Each look returns the number of its statements."""

    def __init__(
        self, specs: dict[str, TableSpec], server_url: str, schema: str, instance: dg.DagsterInstance, statements: Statements
    ) -> None:
        self.settings = Settings(database_url=SecretStr(server_url), database_schema=schema, change_aware=False)
        self.specs, self.instance, self.statements = specs, instance, statements

        class Counted(Automation):
            @contextmanager
            def connect(self) -> Iterator[psycopg.Connection]:
                with super().connect() as conn:
                    conn.cursor_factory = statements.cursor  # type: ignore[assignment]
                    yield conn

        self.automation = Counted(self.settings, specs, build_jobs(specs))
        with psycopg.connect(server_url, autocommit=True) as conn:
            conn.execute(f"SET search_path = {schema}")
            Watermarks(schema).create(conn)
            conn.execute("TRUNCATE etl_watermarks, etl_extractions")
            conn.execute(HISTORY, (list(specs),))
            conn.execute(MARKS, {"names": list(specs), "due": DUE})

    def refresh(self) -> int:
        def tick() -> None:
            ticked = self.automation.tick(self.instance, build_source(self.settings), datetime.now(UTC))
            assert (len(ticked.requests), len(ticked.reasons)) == (DUE, len(self.specs))

        return self.statements.during(tick)

    def recovery(self) -> int:
        with self.automation.connect() as conn:
            schema, now = self.settings.database_schema, datetime.now(UTC)
            return self.statements.during(lambda: list(recover(conn, schema, self.instance, self.specs, now)))

    def alert(self) -> int:
        now = datetime.now(UTC)
        return self.statements.during(lambda: self.automation.tell(self.instance, now, now))

    def told(self) -> dict[str, bool]:
        """Whether each table is up to date, as Dagster's storage says."""
        found = check_outcomes(self.instance, [up_to_date_key(spec) for spec in self.specs.values()])
        return {outcome.table: outcome.passed for outcome in found}


def test_a_look_sends_as_many_statements_for_many_tables_as_for_few(
    server_url: str, schema: str, statements: Statements, instance: dg.DagsterInstance
) -> None:
    taken: list[tuple[int, int, int]] = []
    for tables in (FEW, MANY):
        looks = Looks(many(tables), server_url, schema, instance, statements)
        while len(looks.told()) < tables:
            known = len(looks.told())
            looks.alert()
            assert known < len(looks.told()) <= known + REPORTED, "a look tells Dagster of more tables, and not of too many"
        assert sum(not passed for passed in looks.told().values()) == DUE
        taken.append((looks.refresh(), looks.recovery(), looks.alert()))
    assert taken[0] == taken[1]
    assert all(0 < number < 20 for number in taken[0])


def test_a_look_reads_the_state_of_the_tables_once(
    server_url: str, schema: str, statements: Statements, instance: dg.DagsterInstance
) -> None:
    looks = Looks(many(DUE), server_url, schema, instance, statements)
    query, _ = Watermarks(schema).query()
    for look in (looks.refresh, looks.alert):
        statements.ours.clear()
        look()
        assert statements.ours.count(query.as_string()) == 1


def test_sources_without_an_announcement_are_asked_about_together(statements: Statements, instance: dg.DagsterInstance) -> None:
    def spent(sources: int) -> int:
        base, memory = TABLES["operation_data"], Memory()
        tables = {f"t{n}": base.with_query(f"SELECT 1 FROM `{{source_{n}}}`") for n in range(sources)}
        sent = statements.during(lambda: listen(instance, tables, memory, datetime.now(UTC)))
        assert memory.words.keys() == {"source_1"}
        return sent

    announce(instance, "source_1", datetime.now(UTC), "dbt")
    assert spent(2) == spent(20)


def test_the_api_reads_the_state_of_many_tables_by_as_many_statements_as_of_few(
    server_url: str, schema: str, statements: Statements, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = psycopg.AsyncCursor.execute

    def counted(cursor: psycopg.AsyncCursor, *args: Any, **options: Any) -> Any:
        statements.sent += 1
        return execute(cursor, *args, **options)

    async def read(looks: Looks) -> int:
        database, dagster = Database(looks.settings), DagsterClient("http://127.0.0.1:9")
        reader = StatusReader(looks.settings, database, dagster, looks.specs)
        await database.open()
        try:
            await reader.snapshot()
            before = statements.sent
            assert len((await reader.snapshot()).status.tables) == len(looks.specs)
            return statements.sent - before
        finally:
            await dagster.close()
            await database.close()

    monkeypatch.setattr(psycopg.AsyncCursor, "execute", counted)
    few, more = (asyncio.run(read(Looks(many(tables), server_url, schema, instance, statements))) for tables in (DUE, FEW))
    assert few == more > 0


def test_what_a_look_at_many_tables_says_is_short(
    server_url: str, schema: str, statements: Statements, instance: dg.DagsterInstance
) -> None:
    looks = Looks(many(MANY), server_url, schema, instance, statements)
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"UPDATE {schema}.etl_watermarks SET last_extracted_at = now()".encode())
    sensor = looks.automation.refresh_sensor()
    with dg.build_sensor_context(instance, resources={"bigquery": build_source(looks.settings)}) as context:
        message = sensor.evaluate_tick(context).skip_message
    assert message is not None
    assert message.count("fresh: loaded") == SHOWN
    assert message.endswith(f"and {MANY - SHOWN} more tables")


def test_a_failed_run_is_known_however_many_have_succeeded_since(
    server_url: str, schema: str, statements: Statements, instance: dg.DagsterInstance
) -> None:
    specs = many(FEW)
    looks = Looks(specs, server_url, schema, instance, statements)
    first, other = list(specs.values())[:2]
    tags = {spec.name: run_tags(spec, DayRange(TODAY - timedelta(days=1), TODAY)) for spec in (first, other)}
    run = dg.DagsterRun("refresh_all", make_new_run_id(), tags=tags[first.name], status=dg.DagsterRunStatus.STARTED)
    instance.add_run(run)
    instance.report_run_failed(run)
    for _ in range(510):
        instance.add_run(dg.DagsterRun("refresh_all", make_new_run_id(), tags=tags[other.name], status=dg.DagsterRunStatus.SUCCESS))
    reasons = looks.automation.tick(instance, build_source(looks.settings), datetime.now(UTC)).reasons
    assert any(reason.startswith(f"{first.name}: waits until") for reason in reasons)
