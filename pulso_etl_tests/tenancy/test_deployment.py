"""A running deployment of two tenants: Dagster with the limits that it ships, and the HTTP API before it.

There are no jobs of the project's own, as with very many tables.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from playwright.sync_api import expect
from pydantic import SecretStr

from pulso_etl.access.tokens import Role, make_token
from pulso_etl.refreshing.ranges import range_tags
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.tags import TENANT_BACKFILL_TAG, TENANT_TAG
from pulso_etl_tests.api.browser import chromium, find_chromium
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.clock import TODAY
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.dagster_stack import CHECKOUT, LAUNCH, DagsterStack
from pulso_etl_tests.holding_proxy import HoldingProxy
from pulso_etl_tests.tenancy.conftest import Tenancy

WINDOW = DayRange(TODAY - timedelta(days=4), TODAY)
PATIENCE = 90.0
"""Seconds; what is waited for takes a few on a machine that is not busy."""
SECRETS = {
    "acme": make_token("dashboard", Role.REFRESH, "acme"),
    "globex": make_token("dashboard", Role.REFRESH, "globex"),
    "operator": make_token("operator", Role.ADMIN),
    "reader": make_token("reader", Role.READ),
}
ACME, GLOBEX, OPERATOR, READER = (SECRETS[name][0] for name in SECRETS)
STATUS, TABLE = "api/v1/etl/status", "api/v1/etl/refresh/table"
RUNS = "query ($ids: [String]!) { runsOrError(filter: {runIds: $ids}) { ... on Runs { results { status tags { key value } } } } }"


@pytest.fixture(scope="module")
def stack(tenancy: Tenancy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterStack]:
    settings, storage = tenancy.settings, tenancy.settings.database_schema.replace("nobody", "dagster")
    separator = "&" if "?" in tenancy.admin_url else "?"
    env = {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "DATABASE_SCHEMA": settings.database_schema,
        "TENANTS_FILE": str(settings.tenants_file),
        "DAGSTER_POSTGRES_URL": f"{tenancy.admin_url}{separator}options=-csearch_path%3D{storage}",
        "AUTOMATION": "false",
        "CHANGE_AWARE": "false",
        "SENSOR_INTERVAL_SECONDS": "1",
    }
    with psycopg.connect(tenancy.admin_url, autocommit=True) as admin, HoldingProxy(tenancy.emulator.rest_url) as proxy:
        admin.execute(f"CREATE SCHEMA {storage}".encode())
        file = CHECKOUT / "deploy" / "dagster.tenants.yaml"
        try:
            home, module = tmp_path_factory.mktemp("dagster"), "pulso_etl_tests.tenancy.without_jobs"
            with DagsterStack(home, env, proxy, tenancy.data["acme"], module, file) as stack:
                yield stack
        finally:
            admin.execute(f"DROP SCHEMA {storage} CASCADE".encode())


@pytest.fixture(scope="module")
def api(tenancy: Tenancy, stack: DagsterStack) -> Iterator[ApiServer]:
    given = {
        "dagster_graphql_url": f"{stack.url}/graphql",
        "dagster_ui_url": stack.url,
        "api_tokens": SecretStr(" ".join(str(entry) for _, entry in SECRETS.values())),
        "api_launch_limit": "10000/second",
    }
    with ApiServer(tenancy.settings.model_copy(update=given)) as server:
        yield server


def told(api: ApiServer, tenant: str, token: str, path: str = STATUS) -> Any:
    answer = api.call("GET", f"/tenants/{tenant}/{path}", token)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refresh(api: ApiServer, tenant: str, token: str, table: str) -> dict[str, Any]:
    answer = api.call("POST", f"/tenants/{tenant}/{TABLE}/{table}", token, params={"force": True})
    assert answer.status_code == 202, answer.text
    return answer.json()


def finished(api: ApiServer, token: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    while (found := api.call("GET", asked["status_url"], token).json())["status"] == "running":
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def launch_assets(stack: DagsterStack, *paths: list[str], tags: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Launches the assets as Dagster's UI does, without a tag of ours."""
    given = {**range_tags(WINDOW), **(tags or {})}
    params = {
        "selector": stack.repository | {"jobName": "__ASSET_JOB", "assetSelection": [{"path": path} for path in paths]},
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in given.items()]},
        "mode": "default",
    }
    # Dagster's webserver answers 500 where it tells of an error that it met.
    answer = httpx.post(f"{stack.url}/graphql", json={"query": LAUNCH, "variables": {"params": params}}, timeout=30)
    return answer.json()["data"]["launchPipelineExecution"]


def test_a_tenant_that_takes_its_whole_share_leaves_the_other_s_refresh_alone(
    api: ApiServer, stack: DagsterStack, tenancy: Tenancy
) -> None:
    acme = tenancy.schema("acme")
    with psycopg.connect(tenancy.url("acme")) as blocker:
        for table in ("dashboard_data", "operation_data", "evolution_data"):
            # The load creates its table, so it waits for the end of this transaction.
            blocker.execute(f"CREATE TABLE {acme}.{table} ()".encode())
        asked = {table: refresh(api, "acme", ACME, table) for table in ("dashboard_data", "operation_data")}
        by_hand = launch_assets(stack, ["acme", "evolution_data"])
        run_ids = [one["runs"][table]["run_id"] for table, one in asked.items()] + [by_hand["run"]["runId"]]

        def standing() -> list[str]:
            return sorted(run["status"] for run in stack.graphql(RUNS, ids=run_ids)["runsOrError"]["results"])

        wait_until(lambda: standing() == ["QUEUED", "STARTED", "STARTED"], PATIENCE)
        ended = finished(api, GLOBEX, refresh(api, "globex", GLOBEX, "dashboard_data"))
        assert (ended["status"], ended["runs"]["dashboard_data"]["rows"]) == ("success", 100)
        assert tenancy.loaded("globex") == tenancy.source("globex", WINDOW)
        assert standing() == ["QUEUED", "STARTED", "STARTED"]

        # The run had no tag of ours. The queue gave it its tenant's tag, so only acme sees it.
        found = stack.graphql(RUNS, ids=run_ids[2:])["runsOrError"]["results"]
        assert {TENANT_TAG: "acme"}.items() <= {tag["key"]: tag["value"] for tag in found[0]["tags"]}.items()
        under_way = {one["table"] for one in told(api, "acme", ACME)["tables"] if one["run_under_way"]}
        assert under_way == {"dashboard_data", "operation_data", "evolution_data"}
        others = told(api, "globex", GLOBEX)
        assert [one["table"] for one in others["tables"] if one["run_under_way"]] == []
        assert {one["run_id"] for one in others["recent_activity"]} & set(run_ids) == set()
        assert stack.terminate(run_ids[2]) == "TerminateRunSuccess"
        blocker.rollback()
    for one in asked.values():
        assert finished(api, ACME, one)["status"] == "success"
    assert tenancy.loaded("acme") == tenancy.source("acme", WINDOW)


def test_a_token_opens_its_own_tenant_and_an_operator_s_opens_all(api: ApiServer) -> None:
    def opened(path: str) -> dict[str, int]:
        given = {"acme": ACME, "globex": GLOBEX, "operator": OPERATOR, "reader": READER, "nobody": None}
        return {name: api.call("GET", path, token).status_code for name, token in given.items()}

    assert opened(f"/tenants/acme/{STATUS}") == {"acme": 200, "globex": 401, "operator": 200, "reader": 401, "nobody": 401}
    assert opened("/tenants/globex/metrics") == {"acme": 401, "globex": 200, "operator": 200, "reader": 401, "nobody": 401}
    assert opened("/api/v1/tenants") == {"acme": 401, "globex": 401, "operator": 200, "reader": 401, "nobody": 401}
    for method, path in (("POST", f"{TABLE}/dashboard_data"), ("POST", "api/v1/etl/cleanup"), ("GET", "api/v1/etl/events")):
        assert api.call(method, f"/tenants/globex/{path}", ACME).status_code == 401
    assert api.call("GET", "/api/v1/tenants", OPERATOR).json() == {"acme": "/tenants/acme/", "globex": "/tenants/globex/"}
    # A stranger learns no tenant's name. The deployment has a health as a whole, and shows no tables.
    for path in ("/", f"/{STATUS}", "/tenants/", "/tenants/nobody/", "/metrics"):
        answer = api.call("GET", path)
        assert answer.status_code == 404
        assert "acme" not in answer.text
    health = api.call("GET", "/api/v1/etl/health")
    assert (health.status_code, set(health.json()["parts"])) == (200, {"postgresql", "dagster", "daemon", "code"})
    assert set(api.call("GET", "/tenants/acme/api/v1/etl/health").json()["parts"]) == {
        "postgresql",
        "dagster",
        "daemon",
        "code",
        "bigquery",
    }


def test_a_refresh_and_dagster_s_own_graphql_are_not_for_other_tenants(api: ApiServer) -> None:
    asked = api.call("POST", f"/tenants/acme/{TABLE}/dashboard_data", ACME).json()
    assert asked["status_url"] == f"/tenants/acme/api/v1/etl/refresh/{asked['pipeline_id']}"
    assert asked["requested_by"] == "dashboard@acme"
    assert api.call("GET", asked["status_url"], ACME).status_code == 200
    assert api.call("GET", asked["status_url"].replace("acme", "globex"), GLOBEX).status_code == 404
    query = {"json": {"query": "{ version }"}}
    closed = api.call("POST", "/tenants/acme/graphql", OPERATOR, **query)
    assert closed.status_code == 404
    assert "every tenant" in closed.json()["detail"]
    answers = {token: api.call("POST", "/graphql", token, **query).status_code for token in (ACME, READER, None, OPERATOR)}
    assert list(answers.values()) == [401, 401, 401, 200]


def test_a_run_over_two_tenants_is_refused_and_a_backfill_bears_its_tenant(stack: DagsterStack) -> None:
    refused = launch_assets(stack, ["acme", "dashboard_data"], ["globex", "dashboard_data"])
    assert refused["__typename"] == "PythonError"
    assert "a run belongs to one tenant; choose the assets of one of acme, globex" in refused["message"]
    # As Dagster tags the runs of a back-fill.
    launched = launch_assets(stack, ["globex", "operation_data"], tags={"dagster/backfill": "by hand"})
    run_id = launched["run"]["runId"]
    assert stack.wait(run_id, PATIENCE) == "SUCCESS"
    [run] = stack.graphql(RUNS, ids=[run_id])["runsOrError"]["results"]
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    assert (tags[TENANT_TAG], tags[TENANT_BACKFILL_TAG]) == ("globex", "globex")


def test_the_page_of_a_tenant_asks_for_the_tenant_s_token_and_shows_its_tables(api: ApiServer) -> None:
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    with chromium(path) as browser:
        page = browser.new_page(locale="es-PE")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(urlsplit(request.url).path))
        page.goto(f"{api.url}/tenants/acme")
        page.get_by_label("Clave").fill(ACME)
        page.get_by_role("button", name="Entrar").click()
        card = page.get_by_role("article", name="Tablero de cobranzas")
        expect(card).to_contain_text("150 nuevas", timeout=20_000)
        page.goto(f"{api.url}/tenants/globex/")
        # The other tenant's page has no token yet.
        expect(page.get_by_label("Clave")).to_be_visible(timeout=20_000)
        assert page.evaluate("Object.keys(sessionStorage)") == ["pulso-token/tenants/acme"]
    assert {found for found in asked if not found.startswith("/tenants/")} == set()
