"""Dagster's UI behind its door: who is let in, and what other pages and programs on the machine can't do. On real processes."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from pulso_etl.access.tokens import Role, make_token
from pulso_etl.api.door import Door
from pulso_etl.api.sessions import COOKIE, LIFETIME, Sessions
from pulso_etl.settings import AccessSettings
from pulso_etl.sync.errors import SettingsError
from pulso_etl_tests.api.browser import chromium, find_chromium
from pulso_etl_tests.api.conftest import SECRETS, settings_of
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.api.test_operations import launch_params
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.dagster_stack import LAUNCH, DagsterStack

pytestmark = pytest.mark.timeout(400)  # a further webserver starts, which a busy machine does slowly
API_SECRET = secrets.token_urlsafe(32)
RUNS = "{ runsOrError { ... on Runs { results { runId } } } }"
EVENTS = "subscription ($id: ID!) { pipelineRunLogs(runId: $id) { __typename } }"
EVIL = "https://evil.example.com"


@pytest.fixture(scope="module")
def door(stack: DagsterStack) -> str:
    """The address of the UI, behind a door with a token for each role."""
    tokens = " ".join(str(entry) for _, entry in SECRETS.values())
    url = stack.start_door(API_TOKENS=tokens, DAGSTER_GRAPHQL_TOKEN=API_SECRET, DAGSTER_UI_URL="https://dagster.example.com")

    def up() -> bool:
        try:
            return httpx.get(f"{url}/server_info", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    wait_until(up, seconds=150)
    return url


@pytest.fixture
def page(door: str) -> Iterator[httpx.Client]:
    """An HTTP client with the cookies of an administrator who has signed in."""
    with httpx.Client(base_url=door, trust_env=False) as client:
        signed = client.post("/sign-in", data={"token": SECRETS["admin"][0]}, headers={"Origin": door})
        assert signed.status_code == 204, signed.text
        cookie = signed.headers["set-cookie"]
        assert "HttpOnly; SameSite=Strict" in cookie
        assert SECRETS["admin"][0] not in cookie
        # Behind HTTPS, as the address says that people use.
        assert cookie.endswith("; Secure")
        client.headers["Cookie"] = cookie.partition(";")[0]
        yield client


def ask(query: str, **variables: Any) -> dict[str, Any]:
    return {"json": {"query": query, "variables": variables}}


def bearer(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[role][0]}"}


def test_a_link_launches_nothing(page: httpx.Client, stack: DagsterStack) -> None:
    before = stack.graphql(RUNS)
    params = launch_params(stack, "dashboard_data")
    params["runConfigData"] = {"resources": {"bigquery": {"config": {"project": {"env": "DATABASE_URL"}}}}}
    link = "/graphql?" + urlencode({"query": LAUNCH, "variables": json.dumps({"params": params})})
    wipe = "/graphql?" + urlencode({"query": "mutation { wipeAssets(assetPartitionRanges: []) { __typename } }"})
    for address in (link, wipe, link.replace("/graphql", "/graphql/"), link.replace("/graphql", "/%67raphql")):
        assert page.get(address).status_code == 405
        # A form of another page sends it so: the query is in the address, and there is no JSON.
        assert page.post(address, headers={"Origin": str(page.base_url)}).status_code in (405, 415)
    assert stack.graphql(RUNS) == before


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"Origin": "https://dagster.example.com", "Host": "dagster.example.com"}, 200),
        ({"Origin": EVIL}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "evil.example.com", "Origin": "http://evil.example.com"}, 403),
        ({"Cookie": ""}, 401),
        ({"Cookie": f"{COOKIE}=admin.9999999999.00"}, 401),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/graphql"}, 415),
    ],
    ids=str,
)
def test_another_page_is_not_served_with_the_cookie(page: httpx.Client, headers: dict[str, str], code: int) -> None:
    own = {"Origin": str(page.base_url).rstrip("/"), "Content-Type": "application/json"}
    answer = page.post("/graphql", content=json.dumps({"query": "{ version }"}), headers=own | headers)
    assert answer.status_code == code, answer.text


def test_a_request_of_a_page_that_does_not_say_where_it_is_from_is_refused(page: httpx.Client) -> None:
    assert page.post("/graphql", **ask("{ version }")).status_code == 403


def test_without_a_token_there_is_the_page_to_sign_in_and_nothing_else(door: str) -> None:
    with httpx.Client(base_url=door, trust_env=False) as stranger:
        for path in ("/", "/runs", "/logs/a.out", "/download_debug/x", "/notebook", "/_next/static/x.js"):
            assert stranger.get(path).status_code == 401
        sent = stranger.get("/runs", headers={"Accept": "text/html"})
        assert (sent.status_code, sent.headers["location"]) == (303, "/sign-in?next=/runs")
        shown = stranger.get("/sign-in")
        assert "frame-ancestors 'none'" in shown.headers["content-security-policy"]
        for token in ("", "wrong", SECRETS["admin"][1].digest):
            assert stranger.post("/sign-in", data={"token": token}, headers={"Origin": door}).status_code == 401
        assert stranger.post("/sign-in", data={"token": SECRETS["admin"][0]}, headers={"Origin": EVIL}).status_code == 403
        assert stranger.post("/sign-in", data={"token": "x" * 10_000}, headers={"Origin": door}).status_code == 413


def test_roles_are_those_of_the_api(door: str, stack: DagsterStack) -> None:
    launch = ask(LAUNCH, params=launch_params(stack, "operation_data"))
    pod = launch_params(stack, "operation_data")
    pod["executionMetadata"]["tags"].append({"key": "dagster-k8s/config", "value": "{}"})
    wipe = ask("mutation { wipeAssets(assetPartitionRanges: []) { __typename } }")
    codes = {
        (role, name): httpx.post(f"{door}/graphql", headers=bearer(role), trust_env=False, **body).status_code
        for role in ("read", "refresh", "admin")
        for name, body in (("query", ask("{ version }")), ("launch", launch), ("wipe", wipe), ("pod", ask(LAUNCH, params=pod)))
        if (role, name) not in {("admin", "wipe"), ("admin", "launch")}
    }
    assert codes == {
        ("read", "query"): 200,
        ("read", "launch"): 403,
        ("read", "wipe"): 403,
        ("read", "pod"): 403,
        ("refresh", "query"): 200,
        ("refresh", "launch"): 200,
        ("refresh", "wipe"): 403,
        ("refresh", "pod"): 403,
        ("admin", "query"): 200,
        ("admin", "pod"): 403,
    }
    report = f"{door}/report_asset_materialization/dashboard_data"
    assert httpx.post(report, headers=bearer("admin"), trust_env=False).status_code == 405


def test_the_api_comes_in_by_a_token_of_its_own(door: str, stack: DagsterStack) -> None:
    for secret, code in ((API_SECRET, 202), ("0" * 40, 503)):
        settings = settings_of(stack, dagster_graphql_url=f"{door}/graphql", dagster_graphql_token=SecretStr(secret))
        with ApiServer(settings) as api:
            answer = api.call("POST", "/api/v1/etl/refresh/table/evolution_data?force=true")
            assert answer.status_code == code, answer.text
            assert secret not in answer.text
    assert "DAGSTER_GRAPHQL_TOKEN" in answer.text


async def subscribe(socket: ClientConnection, query: str) -> dict[str, Any]:
    await socket.send(json.dumps({"type": "connection_init"}))
    assert json.loads(await socket.recv())["type"] == "connection_ack"
    start = {"query": query, "variables": {"id": "00000000-0000-4000-8000-000000000000"}}
    await socket.send(json.dumps({"type": "start", "id": "1", "payload": start}))
    found: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 20))
    return found


def test_the_web_socket_is_for_subscriptions_of_the_own_page(page: httpx.Client) -> None:
    address, own = str(page.base_url), str(page.base_url).rstrip("/")
    url = f"ws://{urlsplit(address).netloc}/graphql"

    async def attempt(query: str, **headers: str) -> dict[str, Any]:
        async with connect(url, subprotocols=["graphql-ws"], additional_headers=headers, proxy=None) as socket:  # type: ignore[list-item]
            return await subscribe(socket, query)

    cookie = page.headers["Cookie"]
    told = asyncio.run(attempt(EVENTS, Cookie=cookie, Origin=own))
    assert told["type"] == "data"
    for headers in ({"Cookie": cookie, "Origin": EVIL}, {"Cookie": cookie}, {"Origin": own}, {}):
        with pytest.raises(InvalidStatus) as refused:
            asyncio.run(attempt(EVENTS, **headers))
        assert refused.value.response.status_code == 403
    for query in ("mutation { wipeAssets(assetPartitionRanges: []) { __typename } }", "{ version }", "{"):
        with pytest.raises(ConnectionClosed) as closed:
            asyncio.run(attempt(query, Cookie=cookie, Origin=own))
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_a_session_ends_and_goes_with_its_token() -> None:
    now = datetime.now(UTC)
    _, token = make_token("ana.perez", Role.READ)
    sessions = Sessions([token], secure=False)
    cookie = sessions.cookie(token.caller, now).partition(";")[0]
    assert sessions.by_cookie(f"other=1; {cookie}", now) == token.caller
    assert sessions.by_cookie(cookie, now + LIFETIME) is None
    assert sessions.by_cookie(cookie.replace("ana.perez", "ana.pere2"), now) is None
    later = re.sub(r"\.(\d+)\.", lambda found: f".{int(found[1]) + 1}.", cookie)
    assert sessions.by_cookie(later, now + timedelta(1)) is None
    assert Sessions([token], secure=False).by_cookie(cookie, now) is None
    sessions.tokens = [make_token("ana.perez", Role.ADMIN)[1]]
    assert sessions.by_cookie(cookie, now) is None


def test_a_door_without_a_token_does_not_open() -> None:
    with pytest.raises(SettingsError, match="API_TOKENS"):
        Door(None, AccessSettings())  # type: ignore[arg-type]


def test_with_tenants_the_ui_is_for_administrators_of_none(tmp_path: Path) -> None:
    tokens = [make_token("ana", Role.ADMIN), make_token("ben", Role.REFRESH), make_token("cam", Role.ADMIN, "acme")]
    entries = SecretStr(" ".join(str(entry) for _, entry in tokens))
    door = Door(None, AccessSettings(api_tokens=entries, tenants_file=tmp_path / "tenants.yaml"))  # type: ignore[arg-type]
    assert [door.sessions.by_token(secret) is not None for secret, _ in tokens] == [True, False, False]


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")
def test_the_ui_loads_launches_and_watches_through_the_door(door: str, stack: DagsterStack) -> None:
    path = find_chromium()
    assert path is not None
    before = {run["runId"] for run in stack.graphql(RUNS)["runsOrError"]["results"]}
    faults: list[str] = []
    sockets: list[str] = []
    with chromium(path) as browser:
        view = browser.new_page(viewport={"width": 1400, "height": 1000})
        view.on("response", lambda one: faults.append(f"{one.status} {one.url}") if one.status >= 400 else None)
        view.on("websocket", lambda one: sockets.append(one.url))
        # Dagster greets who comes for the first time.
        view.add_init_script("localStorage.setItem('communityNux', '1')")
        view.goto(f"{door}/sign-in?next=/assets/operation_data#{SECRETS['admin'][0]}")
        view.wait_for_url("**/assets/operation_data*")
        assert SECRETS["admin"][0] not in view.url
        view.get_by_role("button", name=re.compile("Materialize")).first.click(timeout=60_000)
        dialog = view.get_by_role("dialog")
        dialog.get_by_role("button", name="Latest").first.click(timeout=60_000)
        dialog.get_by_role("button", name=re.compile("^Launch")).click(timeout=60_000)

        def launched() -> set[str]:
            return {run["runId"] for run in stack.graphql(RUNS)["runsOrError"]["results"]} - before

        wait_until(lambda: bool(launched()), seconds=60)
        (run_id,) = launched()
        view.goto(f"{door}/runs/{run_id}")
        view.get_by_text(run_id[:8]).first.wait_for(timeout=60_000)
        wait_until(lambda: bool(sockets), seconds=30)
    assert faults == []
    assert stack.wait(run_id, 90) == "SUCCESS"
