"""Refreshes over HTTP: launched through a running Dagster, watched until they end, seen in PostgreSQL."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.ledger.ledger import Loaded
from pulso_etl.sync.ledger.locks import table_lock
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.tables import TABLES
from pulso_etl_tests.api.conftest import SECRETS, Target, settings_of
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.clock import TODAY
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.dagster_stack import DagsterStack

DASHBOARD, TABLE = "/api/v1/etl/refresh/dashboard", "/api/v1/etl/refresh/table"
WINDOW = {"from": str(TODAY - timedelta(days=2)), "to": str(TODAY)}


def finished(api: ApiServer, refresh: dict[str, Any], seconds: float = 90) -> dict[str, Any]:
    """The refresh, when it is over."""
    deadline = time.monotonic() + seconds
    while (told := api.call("GET", refresh["status_url"]).json())["status"] == "running":
        assert time.monotonic() < deadline, told
        time.sleep(0.2)
    return told


def make_due(target: Target) -> None:
    """Moves the last refresh of every table into the past."""
    target.conn.execute("UPDATE etl_watermarks SET last_extracted_at = last_extracted_at - interval '30 hours'")


def states(refresh: dict[str, Any]) -> dict[str, str]:
    return {table: run["state"] for table, run in refresh["runs"].items()}


def test_the_dashboard_is_refreshed_watched_and_asked_for_once(
    api: ApiServer, stack: DagsterStack, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pulso_etl.audit")
    make_due(target)
    body: dict[str, Any] = {"tables": ["dashboard_data", "evolution_data"], "max_concurrent": 1}
    stack.proxy.hold_page(1)
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: api.call("POST", DASHBOARD, json=body), range(4)))
        assert [answer.status_code for answer in answers] == [202] * 4
        told = [answer.json() for answer in answers]
        assert len({one["pipeline_id"] for one in told}) == 1
        assert sorted(one["already_running"] for one in told) == [False, True, True, True]
        assert told[0]["tables_requested"] == body["tables"]
        assert (told[0]["status"], told[0]["requested_by"]) == ("running", "local")
        run_ids = {table: run["run_id"] for table, run in told[0]["runs"].items()}
        assert len(set(run_ids.values()) - {None}) == 2
        assert stack.proxy.held.wait(90)

        # There is one slot. So one of the runs waits in Dagster's queue until the other has ended.
        now = states(api.call("GET", told[0]["status_url"]).json())
        assert sorted(now.values()) == ["queued", "running"]
        summary = api.call("GET", "/api/v1/etl/status").json()
        assert summary["running"] == 2
        # Another caller who asks for one of these tables gets the same run.
        joined = api.call("POST", f"{TABLE}/dashboard_data").json()
        assert joined["runs"]["dashboard_data"]["run_id"] == run_ids["dashboard_data"]
        assert "already going on" in joined["runs"]["dashboard_data"]["message"]
    finally:
        stack.proxy.release()
    ended = finished(api, told[0])
    assert ended["status"] == "success"
    assert states(ended) == {"dashboard_data": "success", "evolution_data": "success"}
    assert ended["runs"]["dashboard_data"]["rows"] == 150
    reasons = ended["runs"]["dashboard_data"]["reasons"]
    assert reasons[-1]["end"] == ended["runs"]["dashboard_data"]["partitions"].rpartition("..")[2]
    attempt = api.call("GET", "/api/v1/etl/status/table/dashboard_data").json()["extractions"][0]
    assert (attempt["run_id"], attempt["reasons"]) == (run_ids["dashboard_data"], reasons)
    (listed,) = [one for one in api.call("GET", "/api/v1/etl/refreshes").json() if one["pipeline_id"] == ended["pipeline_id"]]
    assert listed["reasons"]["dashboard_data"] == attempt["reason"]
    assert finished(api, joined)["status"] == "success"
    assert target.rows("SELECT count(*) FROM dashboard_data") == [(150,)]
    query = "SELECT table_name, extraction_id, status FROM etl_extractions WHERE extraction_id = ANY(%s) ORDER BY id"
    assert sorted(target.rows(query, list(run_ids.values()))) == [(table, run_ids[table], "success") for table in body["tables"]]
    lines = [record.getMessage() for record in caplog.records if record.name == "pulso_etl.audit"]
    assert [line for line in lines if run_ids["dashboard_data"] in line and "local asked for incremental" in line]


def test_the_rows_that_a_load_has_copied_so_far_are_told(api: ApiServer, target: Target) -> None:
    extraction = RunningAttempt("evolution_data", DayRange(TODAY, TODAY), "by hand", 1, datetime.now(UTC))
    marks = Watermarks(target.schema)
    with psycopg.connect(api.settings.database_url.get_secret_value(), autocommit=True) as load:
        load.execute("SELECT pg_advisory_lock(%s)", (table_lock(target.schema, "evolution_data"),))
        with target.conn.transaction():
            marks.create(target.conn)
            marks.start(target.conn, extraction)
        load.execute("CREATE TEMP TABLE stage (n integer)")
        with load.cursor() as cursor, cursor.copy("COPY stage FROM STDIN") as copy:
            for n in range(100_000):
                copy.write_row((n,))

            def rows() -> int:
                told = api.call("GET", "/api/v1/etl/status/table/evolution_data").json()["table"]["run_under_way"]
                return int(told["rows"] or 0) if told and told["run_id"] == "by hand" else 0

            wait_until(lambda: rows() > 50_000, 20)
            assert rows() <= 100_000
    marks.fail(target.conn, extraction, error="ended by the test", cause=Cause.CANCELLED, seconds=1, metadata={})


def test_fresh_tables_are_skipped_and_said_so_unless_forced(api: ApiServer, stack: DagsterStack, target: Target) -> None:
    told = finished(api, api.call("POST", f"{TABLE}/dashboard_data?force=true").json())
    assert states(told) == {"dashboard_data": "success"}
    before = target.rows("SELECT count(*) FROM etl_extractions")
    skipped = api.call("POST", DASHBOARD, json={"tables": ["dashboard_data"]}).json()
    assert (skipped["status"], states(skipped)) == ("success", {"dashboard_data": "skipped"})
    assert skipped["runs"]["dashboard_data"]["message"].startswith("fresh: loaded 0:00:")
    assert skipped["finished_at"] is not None
    assert target.rows("SELECT count(*) FROM etl_extractions") == before
    again = api.call("GET", skipped["status_url"]).json()
    assert states(again) == {"dashboard_data": "skipped"}


def test_a_table_is_refreshed_over_the_days_that_are_asked_for(api: ApiServer, target: Target) -> None:
    told = api.call("POST", f"{TABLE}/operation_data", params=WINDOW).json()
    assert told["tables_requested"] == ["operation_data"]
    ended = finished(api, told)
    assert ended["runs"]["operation_data"]["partitions"] == f"{WINDOW['from']}..{WINDOW['to']}"
    days = target.rows("SELECT DISTINCT fecha_foto::text FROM operation_data ORDER BY 1")
    assert days == [(str(TODAY - timedelta(days=n)),) for n in (2, 1, 0)]
    sliding = finished(api, api.call("POST", f"{TABLE}/operation_data?mode=sliding_window&days=1").json())
    assert sliding["runs"]["operation_data"]["partitions"] == str(TODAY)


def test_a_refresh_that_fails_tells_why(api: ApiServer, stack: DagsterStack, emulator: BigQueryEmulator) -> None:
    with emulator.client() as client:
        client.delete_table(stack.data.names["asignaciones_clean"])
        try:
            told = finished(api, api.call("POST", f"{TABLE}/assignment_data", params=WINDOW).json())
        finally:
            stack.data.seed_into(client)
    assert (told["status"], states(told)) == ("failed", {"assignment_data": "failed"})
    assert "BigQuery does not know the table" in told["runs"]["assignment_data"]["message"]
    status = api.call("GET", "/api/v1/etl/status/table/assignment_data").json()
    assert status["table"]["status"] == "failed"
    assert "BigQuery does not know the table" in status["table"]["error"]
    assert status["extractions"][0]["status"] == "failed"
    assert [day["state"] for day in status["partitions"][-3:]] == ["failed"] * 3
    assert status["partitions"][0]["state"] == "missing"


def test_a_run_that_is_ended_after_its_load_reads_as_loaded(api: ApiServer, stack: DagsterStack, target: Target) -> None:
    table = "dashboard_data"
    if target.rows("SELECT to_regclass(%s)", table) == [(None,)]:
        assert finished(api, api.call("POST", f"{TABLE}/{table}", params=WINDOW).json())["status"] == "success"
    stack.proxy.hold_page(1)
    with psycopg.connect(stack.env["DATABASE_URL"]) as blocker, ThreadPoolExecutor(1) as pool:
        try:
            told = api.call("POST", f"{TABLE}/{table}", params=WINDOW).json()
            assert stack.proxy.held.wait(90)
            # Waits for the load's commit, and then locks the table so that the run's checks wait.
            locked = pool.submit(blocker.execute, f"LOCK TABLE {target.schema}.{table}".encode())
            waiting = "SELECT count(*) FROM pg_locks WHERE relation = %s::regclass AND NOT granted"
            wait_until(lambda: target.rows(waiting, table) == [(1,)])
        finally:
            stack.proxy.release()
        run_id = told["runs"][table]["run_id"]
        locked.result(60)
        query = "SELECT status FROM etl_extractions WHERE extraction_id = %s"
        wait_until(lambda: target.rows(query, run_id) == [("success",)], 60)
        assert stack.terminate(run_id) == "TerminateRunSuccess"
        assert stack.wait(run_id) == "CANCELED"
    ended = finished(api, told)
    assert (ended["status"], states(ended)) == ("success", {table: "success"})
    assert "ended after its load" in ended["runs"][table]["message"]
    status = api.call("GET", f"/api/v1/etl/status/table/{table}").json()
    assert (status["table"]["status"], status["table"]["error"]) == ("success", None)
    assert (status["extractions"][0]["run_id"], status["extractions"][0]["status"]) == (run_id, "success")
    assert [day["state"] for day in status["partitions"][-3:]] == ["loaded"] * 3


@pytest.mark.parametrize(
    ("path", "options", "code", "reason"),
    [
        (f"{TABLE}/nothing", {}, 404, "known are dashboard_data"),
        (DASHBOARD, {"json": {"tables": ["dashboard_data", "nothing"]}}, 404, "unknown table nothing"),
        (DASHBOARD, {"json": {"tables": []}}, 422, "at least 1 item"),
        (DASHBOARD, {"json": {"max_concurrent": 0}}, 422, "greater than or equal to 1"),
        (DASHBOARD, {"json": {"table": "dashboard_data"}}, 422, "Extra inputs"),
        (f"{TABLE}/operation_data", {"params": {"mode": "some"}}, 422, "sliding_window"),
        (f"{TABLE}/operation_data", {"params": {"from": "2026-02-30"}}, 422, "date"),
        (f"{TABLE}/operation_data", {"params": {"from": str(TODAY + timedelta(days=9))}}, 422, "after its end"),
        (f"{TABLE}/operation_data", {"params": {"from": "2001-01-01", "to": "2001-01-02"}}, 422, "is not within the partitions"),
        (f"{TABLE}/operation_data", {"params": {"days": 3}}, 422, "sliding_window"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_what_is_wrong(
    api: ApiServer, path: str, options: dict[str, Any], code: int, reason: str
) -> None:
    answer = api.call("POST", path, **options)
    assert answer.status_code == code
    assert reason in answer.text


def test_an_unknown_refresh_is_not_found(api: ApiServer) -> None:
    assert api.call("GET", "/api/v1/etl/refresh/nothing").status_code == 404


def test_nothing_is_launched_once_the_day_s_budget_is_spent(stack: DagsterStack, target: Target) -> None:
    window = DayRange(TODAY, TODAY)
    marks, extraction = Watermarks(stack.schema), RunningAttempt("other", window, "r", 1, datetime.now(UTC))
    with target.conn.transaction():
        marks.create(target.conn)
        marks.start(target.conn, extraction)
        marks.succeed(target.conn, extraction, Loaded(datetime.now(UTC), {}, 1, 1, True, metadata={"bytes_billed": 10**9}))
    with ApiServer(settings_of(stack, bigquery_daily_budget_bytes=10**8)) as frugal:
        answer = frugal.call("POST", f"{TABLE}/productivity_data", params=WINDOW)
    target.conn.execute("DELETE FROM etl_extractions WHERE table_name = 'other'")
    target.conn.execute("DELETE FROM etl_watermarks WHERE table_name = 'other'")
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 24 * 3600
    assert "budget is spent" in answer.json()["detail"]


def test_without_dagster_nothing_is_launched_and_the_state_is_still_told(stack: DagsterStack, target: Target) -> None:
    before = target.rows("SELECT count(*) FROM etl_refreshes")
    with ApiServer(settings_of(stack, dagster_graphql_url="http://127.0.0.1:9/graphql")) as alone:
        launch = alone.call("POST", f"{TABLE}/productivity_data?force=true")
        assert launch.status_code == 503
        assert launch.headers["retry-after"] == "5"
        assert "Dagster's webserver does not answer" in launch.json()["detail"]
        status = alone.call("GET", "/api/v1/etl/status").json()
        assert (status["status"], status["dagster"], status["total_tables"]) == ("unreachable", False, len(TABLES))
        health = alone.call("GET", "/api/v1/etl/health")
        assert health.status_code == 503
        parts = {name: part["state"] for name, part in health.json()["parts"].items()}
        assert parts == {"postgresql": "ok", "bigquery": "ok", "dagster": "failing", "daemon": "failing", "code": "failing"}
    assert target.rows("SELECT count(*) FROM etl_refreshes") == before


def test_without_postgresql_every_question_is_answered_with_503_and_no_password(stack: DagsterStack) -> None:
    url = SecretStr("postgresql://pulso:hunter2secret@127.0.0.1:9/pulso")
    with ApiServer(settings_of(stack, database_url=url)) as lost:
        for method, path in (
            ("GET", "/api/v1/etl/status"),
            ("POST", DASHBOARD),
            ("GET", "/metrics"),
            ("POST", "/api/v1/etl/cleanup"),
        ):
            answer = lost.call(method, path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert "hunter2secret" not in answer.text
        health = lost.call("GET", "/api/v1/etl/health")
        assert (health.status_code, "hunter2secret" in health.text, "127.0.0.1" in health.text) == (503, False, True)
        assert lost.call("GET", "/api/v1/etl/health?live=true").status_code == 200
    tokens = SecretStr(str(SECRETS["read"][1]))
    with ApiServer(settings_of(stack, database_url=url, api_tokens=tokens)) as lost:
        # A caller without a token learns nothing about the servers.
        told = lost.call("GET", "/api/v1/etl/health").json()["parts"]["postgresql"]
        assert (told["state"], told["message"]) == ("failing", "fails; the reason is in the log of the API")


def test_the_cleanup_ends_an_attempt_that_died_and_says_so(
    api: ApiServer, stack: DagsterStack, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", stack.env["DAGSTER_HOME"])
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", stack.env["DAGSTER_POSTGRES_URL"])
    window = DayRange(TODAY - timedelta(days=1), TODAY)
    marks = Watermarks(stack.schema)
    with target.conn.transaction():
        marks.create(target.conn)
        marks.start(target.conn, RunningAttempt("productivity_data", window, "gone", 1, datetime.now(UTC)))
    answer = api.call("POST", "/api/v1/etl/cleanup")
    assert answer.status_code == 200
    [ended] = answer.json()["ended"]
    assert (ended["table"], ended["run_id"], ended["partitions"]) == ("productivity_data", "gone", str(window))
    assert "killed" in ended["reason"]
    assert target.rows("SELECT last_extraction_status FROM etl_watermarks WHERE table_name = 'productivity_data'") == [("failed",)]
    assert api.call("POST", "/api/v1/etl/cleanup").json() == {"ended": [], "message": "no attempt is stale"}


def test_an_update_of_a_source_is_an_observation_of_its_asset(
    api: ApiServer, guarded: ApiServer, stack: DagsterStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", stack.env["DAGSTER_HOME"])
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", stack.env["DAGSTER_POSTGRES_URL"])
    route = "/api/v1/etl/source/gestiones_unificadas/updated"
    assert guarded.call("POST", route, SECRETS["read"][0]).status_code == 403
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=2)
    first, again = (guarded.call("POST", route, SECRETS["refresh"][0], json={"updated_at": at.isoformat()}) for _ in range(2))
    assert first.status_code == 202
    told = first.json()
    assert (told["asset"], told["tables"]) == ("bigquery/gestiones_unificadas", ["operation_data", "productivity_data"])
    assert (told["recorded"], again.json()["recorded"]) == (True, False)
    assert api.call("POST", route).json()["recorded"]
    query = """query { assetOrError(assetKey: {path: ["bigquery", "gestiones_unificadas"]}) { ... on Asset {
        assetObservations { description metadataEntries { label ... on TimestampMetadataEntry { timestamp } } } } } }"""
    [last, told_at] = stack.graphql(query)["assetOrError"]["assetObservations"]
    assert last["description"] == "local says that the source was updated."
    assert told_at["description"] == "refresh says that the source was updated."
    assert {"label": "updated_at", "timestamp": at.timestamp()} in told_at["metadataEntries"]

    unknown = api.call("POST", "/api/v1/etl/source/nothing/updated")
    assert (unknown.status_code, unknown.headers["content-type"]) == (404, "application/problem+json")
    assert "known are agentes, asignaciones_clean, dashboard_cobranzas, gestiones_unificadas" in unknown.json()["detail"]
    future = {"updated_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
    for wrong in (future, {"updated_at": "2026-07-15T10:00:00"}, {"at": at.isoformat()}):
        assert api.call("POST", route, json=wrong).status_code == 422
    monkeypatch.delenv("DAGSTER_HOME")
    assert api.call("POST", route).status_code == 503


def test_the_configuration_is_told(api: ApiServer) -> None:
    tables = {entry["table"]: entry for entry in api.call("GET", "/api/v1/etl/config/tables").json()}
    assert tables["dashboard_data"]["primary_key"] == ["fecha_foto", "archivo", "cartera", "servicio"]
    assert (tables["operation_data"]["lookback_days"], tables["operation_data"]["refresh_every_seconds"]) == (2, 7200)
    modes = {entry["mode"]: entry["default"] for entry in api.call("GET", "/api/v1/etl/config/extraction-modes").json()}
    assert modes == {"incremental": True, "sliding_window": False, "full_refresh": False}


def test_the_plan_tells_what_a_refresh_would_do_and_launches_nothing(api: ApiServer, target: Target) -> None:
    before = target.rows("SELECT count(*) FROM etl_extractions")
    told = api.call("GET", "/api/v1/etl/plan?table=dashboard_data&force=true").json()
    assert [table["table"] for table in told["tables"]] == ["dashboard_data"]
    assert told["tables"][0]["days_to_read"] == sum(
        (date.fromisoformat(days["end"]) - date.fromisoformat(days["start"])).days + 1 for days in told["tables"][0]["days"]
    )
    assert len(api.call("GET", "/api/v1/etl/plan").json()["tables"]) == 5
    assert target.rows("SELECT count(*) FROM etl_extractions") == before


def test_every_part_of_a_healthy_deployment_is_well(api: ApiServer) -> None:
    answer = api.call("GET", "/api/v1/etl/health")
    assert answer.status_code == 200, answer.text
    assert answer.json()["ready"] is True
    assert set(answer.json()["parts"]) == {"postgresql", "bigquery", "dagster", "daemon", "code"}


def test_connections_that_the_server_ended_are_replaced_at_once(api: ApiServer, target: Target) -> None:
    paths = ["/api/v1/etl/status/table/dashboard_data", "/metrics", "/api/v1/etl/health"] * 4
    with ThreadPoolExecutor(12) as pool:
        assert {answer.status_code for answer in pool.map(lambda path: api.call("GET", path), paths)} == {200}
    ended = target.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pulso-etl api'")
    assert len(ended) > 1
    began = time.monotonic()
    assert api.call("GET", "/api/v1/etl/status/table/dashboard_data").status_code == 200
    assert time.monotonic() - began < 3


def test_the_data_version_stays_while_no_row_changes_and_the_etag_follows_what_is_shown(api: ApiServer, target: Target) -> None:
    path = "/api/v1/etl/status/table/evolution_data"

    def refreshed() -> tuple[str, str]:
        assert finished(api, api.call("POST", f"{TABLE}/evolution_data?force=true").json())["status"] == "success"
        wait_until(lambda: api.call("GET", path).json()["table"]["run_under_way"] is None, 20)
        headers = api.call("GET", path).headers
        return headers["pulso-data-version"], headers["etag"]

    (first, tag), whole = refreshed(), api.call("GET", "/api/v1/etl/status").headers
    assert whole["pulso-data-version"].split(",")[1] == first
    for url, known in ((path, (tag, f'W/"{first}"')), ("/api/v1/etl/status", (whole["etag"], f'"{whole["pulso-data-version"]}"'))):
        for one in known:
            answer = api.call("GET", url, headers={"If-None-Match": one})
            assert (answer.status_code, answer.content, answer.headers["cache-control"]) == (304, b"", "no-store")
    # The page shows a load that changes no row. The version of the rows stays.
    again, shown = refreshed()
    assert (again, shown == tag) == (first, False)
    assert api.call("GET", path, headers={"If-None-Match": f'W/"{first}"'}).status_code == 304
    target.conn.execute("UPDATE evolution_data SET cuentas = cuentas + 1 WHERE fecha_foto = %s", (TODAY,))
    assert refreshed()[0] != first
    old = (f'W/"{first}"', f'W/"{whole["pulso-data-version"]}"')
    for url, one in ((path, old[0]), ("/api/v1/etl/status", old[1]), (path, tag), ("/api/v1/etl/status", whole["etag"])):
        assert api.call("GET", url, headers={"If-None-Match": one}).status_code == 200


def test_a_refresh_is_found_again_and_ended(api: ApiServer, stack: DagsterStack) -> None:
    stack.proxy.hold_page(0)
    try:
        launched = api.call("POST", f"{TABLE}/evolution_data?force=true").json()
        assert stack.proxy.held.wait(90)
        under_way = api.call("GET", "/api/v1/etl/status/table/evolution_data").json()["table"]["run_under_way"]
        assert under_way["pipeline_id"] == launched["pipeline_id"]
        newest = api.call("GET", "/api/v1/etl/refreshes?limit=1").json()
        assert [(one["pipeline_id"], one["running"]) for one in newest] == [(launched["pipeline_id"], True)]
        assert api.call("DELETE", launched["status_url"]).status_code == 202
        ended = finished(api, launched)
    finally:
        stack.proxy.release()
    assert (ended["status"], states(ended)) == ("failed", {"evolution_data": "canceled"})
    assert api.call("GET", "/api/v1/etl/refreshes?limit=1").json()[0]["running"] is False
    unknown = api.call("DELETE", "/api/v1/etl/refresh/none")
    assert (unknown.status_code, unknown.json()["cause"]) == (404, "request")


def test_many_days_are_launched_in_chunks_and_told_as_one(api: ApiServer, target: Target) -> None:
    start = TODAY - timedelta(days=2 * 92 - 1)
    launched = api.call("POST", f"{TABLE}/evolution_data?from={start}&to={TODAY}").json()
    told = finished(api, launched)
    run = told["runs"]["evolution_data"]
    assert (told["status"], run["state"], run["partitions"], run["rows"]) == ("success", "success", f"{start}..{TODAY}", 150)
    assert run["message"] == "explicit range; 2 of 2 chunks have ended"
    query = "SELECT partition_start, status FROM etl_extractions WHERE table_name = 'evolution_data' ORDER BY id DESC LIMIT 2"
    middle = TODAY - timedelta(days=91)
    assert sorted(target.rows(query)) == [(start, "success"), (middle, "success")]
