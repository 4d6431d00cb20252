"""What loads changed, over HTTP and in the events, and an administrator who undoes a load."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import dagster as dg
import psycopg
import pyarrow as pa
import pytest
from pydantic import SecretStr

from pulso_etl.api.changes import MOST_KEYS, ChangedKeys, keys_of
from pulso_etl.api.models import Status, TableStatus
from pulso_etl.api.status import Snapshot, data_changes, extraction, overall
from pulso_etl.refreshing.keys import asset_key
from pulso_etl.settings import Settings
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.ledger.changes import Changes
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.migrations import migrate
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.loading.load import load
from pulso_etl.sync.spec import ColumnType
from pulso_etl.sync.target import Target
from pulso_etl.tables import TABLES
from pulso_etl_tests.api.conftest import SECRETS, TOKENS
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.sync.samples import request

SPEC = TABLES["dashboard_data"]
D1, D2 = date(2026, 11, 25), date(2026, 11, 26)
WINDOW = DayRange(D1, D2)
READ, REFRESH, ADMIN = (SECRETS[role][0] for role in ("read", "refresh", "admin"))
CHANGES, UNDO = "/api/v1/etl/status/table/dashboard_data/changes", "/api/v1/etl/undo/table/dashboard_data"
ARROW = {
    ColumnType.TEXT: (pa.string(), ""),
    ColumnType.DATE: (pa.date32(), D1),
    ColumnType.INTEGER: (pa.int64(), 1),
    ColumnType.NUMERIC: (pa.decimal128(38, 9), Decimal(0)),
    ColumnType.DOUBLE: (pa.float64(), 0.5),
    ColumnType.TIMESTAMP: (pa.timestamp("us", "UTC"), datetime(2026, 11, 26, tzinfo=UTC)),
}
Row = tuple[date, str, str]


def dashboard(rows: list[Row]) -> pa.Table:
    """Rows of day, file and recovered amount."""
    schema = pa.schema([(column.name, ARROW[column.type][0]) for column in SPEC.columns])
    common = {column.name: ARROW[column.type][1] for column in SPEC.columns} | {"cartera": "C", "servicio": "FIJA"}
    values = [common | {"fecha_foto": day, "archivo": archivo, "recupero": Decimal(money)} for day, archivo, money in rows]
    return pa.Table.from_pylist(values, schema)


@dataclass
class Deployment:
    """A schema with loads of dashboard_data."""

    conn: psycopg.Connection
    settings: Settings

    @property
    def schema(self) -> str:
        return self.settings.database_schema

    def load(self, run: str, rows: list[Row]) -> None:
        """Loads as the IO manager does."""
        marks, attempt = Watermarks(self.schema), RunningAttempt(SPEC.name, WINDOW, run, 1, datetime.now(UTC))
        asked = request(WINDOW, lambda: nullcontext(dashboard(rows).to_reader()), run_id=run, changes=Changes(self.schema))
        with self.conn.transaction():
            marks.start(self.conn, attempt)
            result = load(Target(self.conn, SPEC, self.schema), asked)
            held = {day: sum(row[0] == day for row in rows) for day in WINDOW}
            metadata = result.total.as_dict() | {"load_id": result.load_id}
            marks.succeed(self.conn, attempt, Loaded(datetime.now(UTC), held, len(rows), 1.0, True, metadata=metadata))

    def recovered(self) -> list[tuple[Any, ...]]:
        return self.conn.execute("SELECT fecha_foto, archivo, recupero::int FROM dashboard_data ORDER BY 1, 2").fetchall()


@pytest.fixture
def deployment(
    conn: psycopg.Connection, schema: str, server_url: str, dagster_home: Any, monkeypatch: pytest.MonkeyPatch
) -> Deployment:
    migrate(conn, schema)
    monkeypatch.setenv("DAGSTER_HOME", str(dagster_home))
    settings = Settings.model_validate(
        {"database_url": SecretStr(server_url), "database_schema": schema, "api_tokens": TOKENS, "dagster_ui_url": "http://ui"}
    )
    found = Deployment(conn, settings)
    found.load("run-1", [(D1, "a", "10"), (D1, "b", "20"), (D2, "a", "30")])
    found.load("run-2", [(D1, "a", "10"), (D1, "b", "1020"), (D2, "a", "5"), (D2, "new", "7")])
    return found


def test_changes_are_told_per_load_and_day_and_an_administrator_undoes_a_load(deployment: Deployment) -> None:
    before = deployment.recovered()
    with ApiServer(deployment.settings) as api:

        def get(token: str = READ, **params: Any) -> Any:
            answer = api.call("GET", CHANGES, token, params=params)
            assert answer.status_code == 200, answer.text
            return answer.json()

        told = get(limit=1)
        [last] = told["loads"]
        assert (told["counted_by"], told["older"], told["rows"]) == ("archivo", 2, None)
        assert (last["load_id"], last["run_url"], last["undoable"]) == (2, "http://ui/runs/run-2", True)
        moved = [(one["day"], one["figure"], one["before"], one["after"], one["change"]) for one in last["movements"]]
        assert moved == [
            ("2026-11-25", "recupero", "30.000000000", "1030.000000000", "1000.000000000"),
            ("2026-11-26", "recupero", "30.000000000", "12.000000000", "-18.000000000"),
        ]
        assert last["days"] == [
            {"day": "2026-11-26", "new": 1, "changed": 1, "gone": 0, "counted": 2},
            {"day": "2026-11-25", "new": 0, "changed": 1, "gone": 0, "counted": 1},
        ]
        assert [one["load_id"] for one in get(before=told["older"])["loads"]] == [1]
        detail = get(load=2, day="2026-11-26")
        assert [(one["key"]["archivo"], (one["old"] or {}).get("recupero"), one["new"]["recupero"]) for one in detail["rows"]] == [
            ("a", "30.000000000", "5.000000000"),
            ("new", None, "7.000000000"),
        ]
        assert [one["key"]["archivo"] for one in get(load=2, limit=1, offset=1)["rows"]] == ["a"]
        assert api.call("GET", CHANGES, READ, params={"load": 99}).status_code == 404
        assert api.call("GET", CHANGES).status_code == 401

        assert api.call("POST", UNDO, REFRESH).status_code == 403
        refused = api.call("POST", UNDO, ADMIN, params={"load": 1})
        assert (refused.status_code, refused.json()["cause"], refused.json()["table"]) == (409, "undo_refused", "dashboard_data")
        assert "by load 2 of" in refused.json()["detail"]
        tried = api.call("POST", UNDO, ADMIN, params={"dry_run": True}).json()
        assert (tried["load_id"], tried["dry_run"], tried["undoes"]) == (None, True, 2)
        assert deployment.recovered() == before
        done = api.call("POST", UNDO, ADMIN, params={"hold_hours": 2}).json()
        assert (done["undoes"], done["movements"][0]["change"]) == (2, "-1000.000000000")
        assert deployment.recovered() == [(D1, "a", 10), (D1, "b", 20), (D2, "a", 30)]

        newest, undone, _ = get()["loads"]
        assert (newest["undoes"], newest["undoable"], newest["run_url"]) == (2, False, None)
        assert (undone["undone_by"], undone["undoable"]) == (done["load_id"], False)
        table = api.call("GET", "/api/v1/etl/status/table/dashboard_data", READ).json()
        assert (table["extractions"][0]["undoes"], table["extractions"][0]["run_url"]) == (2, None)
        held = datetime.fromisoformat(table["table"]["held_until"]) - datetime.now(UTC)
        assert timedelta(hours=1.9) < held < timedelta(hours=2)
    with dg.DagsterInstance.get() as instance:
        observed = instance.fetch_observations(asset_key(SPEC), limit=2).records
        assert [one.asset_observation and one.asset_observation.metadata["undoes"].value for one in observed] == [2, 2]
        assert {one.partition_key for one in observed} == {str(D1), str(D2)}


def test_a_schema_without_a_ledger_has_no_changes(deployment: Deployment) -> None:
    deployment.conn.execute(f"DROP SCHEMA {deployment.schema} CASCADE; CREATE SCHEMA {deployment.schema}".encode())
    with ApiServer(deployment.settings) as api:
        assert api.call("GET", CHANGES, READ).json()["loads"] == []


def test_events_name_the_changed_keys_up_to_a_bound(deployment: Deployment) -> None:
    async def keys() -> Any:
        async with await psycopg.AsyncConnection.connect(deployment.settings.database_url.get_secret_value()) as conn:
            return await ChangedKeys(Changes(deployment.schema)).read(conn, [1, 2])

    found = asyncio.run(keys())
    changed = [{"fecha_foto": str(day), "archivo": archivo, "cartera": "C", "servicio": "FIJA"} for day, archivo in CHANGED]
    assert found[1] is None  # the first load keeps no rows
    assert sorted(map(str, found[2])) == sorted(map(str, changed))
    assert keys_of(["a"], [["x"]] * MOST_KEYS) is not None
    assert keys_of(["a"], [["x"]] * (MOST_KEYS + 1)) is None

    now = datetime.now(UTC)
    rows = [
        ("dashboard_data", run, 1, "success", D1, D2, now, now, 1.0, 9, {"rows_updated": 1, "load_id": number}, None, None)
        for run, number in (("r2", 2), ("r1", 1))
    ]
    table = [one for one in deployment_status(deployment) if one.table == "dashboard_data"]
    snapshot = Snapshot(overall(table, [extraction(row, "") for row in rows], now, dagster=True), b"", found)
    version = table[0].data_version or 0
    [last] = data_changes({"dashboard_data": version - 1}, snapshot)
    assert last.keys == found[2]
    [both] = data_changes({"dashboard_data": version - 2}, snapshot)
    assert both.keys is None


CHANGED = ((D1, "b"), (D2, "a"), (D2, "new"))


def deployment_status(deployment: Deployment) -> list[TableStatus]:
    """The statuses of the tables, as the API tells them."""
    with ApiServer(deployment.settings) as api:
        return Status.model_validate(api.call("GET", "/api/v1/etl/status", READ).json()).tables
