"""The GraphQL operations, against the schema of the running webserver, and through the gateway with tokens."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
from graphql import build_client_schema, get_introspection_query, parse, validate
from graphql.language import OperationDefinitionNode
from pydantic import SecretStr

from pulso_etl.refreshing.ranges import range_tags
from pulso_etl.sync.days import DayRange
from pulso_etl_tests.api.conftest import SECRETS, settings_of
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.clock import TODAY
from pulso_etl_tests.dagster_stack import DagsterStack

OPERATIONS = {
    file.name.removesuffix(".graphql"): file.read_text(encoding="utf-8")
    for file in (files("pulso_etl.api") / "operations").iterdir()
}
READ, REFRESH = (SECRETS[role][0] for role in ("read", "refresh"))


def ask(api: ApiServer, token: str | None, query: str, **variables: Any) -> Any:
    answer = api.call("POST", "/graphql", token, json={"query": query, "variables": variables})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert "errors" not in found, found
    return found["data"]


def launch_params(stack: DagsterStack, table: str) -> dict[str, Any]:
    tags = range_tags(DayRange(TODAY, TODAY))
    return {
        "selector": stack.repository | {"jobName": f"refresh_{table}"},
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
    }


def test_every_operation_fits_the_schema_of_the_webserver(stack: DagsterStack) -> None:
    schema = build_client_schema(stack.graphql(get_introspection_query()))
    assert len(OPERATIONS) >= 9
    for name, text in OPERATIONS.items():
        document = parse(text)
        assert validate(schema, document) == [], name
        [operation] = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
        assert operation.name is not None


def test_the_status_says_that_nothing_is_refreshed_by_itself_while_the_sensor_is_off(api: ApiServer, stack: DagsterStack) -> None:
    assert stack.env["AUTOMATION"] == "false"
    assert api.call("GET", "/api/v1/etl/status").json()["automation"] is False


def test_the_dashboard_group_is_launched_watched_and_its_freshness_told(guarded: ApiServer, stack: DagsterStack) -> None:
    tables = ["dashboard_data", "evolution_data"]
    found = ask(guarded, REFRESH, OPERATIONS["launch_runs"], params=[launch_params(stack, table) for table in tables])
    launched = found["launchMultipleRuns"]["launchMultipleRunsResult"]
    assert [entry["__typename"] for entry in launched] == ["LaunchRunSuccess"] * 2
    for entry in launched:
        assert stack.wait(entry["run"]["runId"], 90) == "SUCCESS"
    ids = {entry["run"]["runId"] for entry in launched}
    runs = ask(guarded, READ, OPERATIONS["runs"], filter={"runIds": list(ids)})["runsOrError"]["results"]
    assert {run["runId"] for run in runs} == ids
    nodes = ask(guarded, READ, OPERATIONS["freshness"], assetKeys=[{"path": [table]} for table in tables])["assetNodes"]
    assert {node["assetMaterializations"][0]["runId"] for node in nodes} <= ids
    assert all(node["freshnessStatusInfo"] is not None for node in nodes)


def test_a_run_that_waits_or_goes_on_can_be_canceled(guarded: ApiServer, stack: DagsterStack) -> None:
    stack.proxy.hold_page(0)
    try:
        found = ask(guarded, REFRESH, OPERATIONS["launch_run"], params=launch_params(stack, "dashboard_data"))["launchRun"]
        run_id = found["run"]["runId"]
        assert stack.proxy.held.wait(90)
        ended = ask(guarded, REFRESH, OPERATIONS["terminate_run"], runId=run_id)["terminateRun"]
        assert ended["__typename"] == "TerminateRunSuccess"
        assert stack.wait(run_id) == "CANCELED"
    finally:
        stack.proxy.release()


def test_roles_are_kept_on_the_parsed_document(guarded: ApiServer, stack: DagsterStack) -> None:
    launch = {"query": OPERATIONS["launch_run"], "variables": {"params": launch_params(stack, "dashboard_data")}}
    wipe = {"query": "mutation { launchRun: wipeAssets(assetPartitionRanges: []) { __typename } }"}
    version = {"query": "{ version }"}
    refused = [
        (None, version, 401),
        (READ, launch, 403),
        (READ, [version, launch], 403),
        (REFRESH, wipe, 403),
        (REFRESH, [version, wipe], 403),
        (REFRESH, version | {"query": "{ version } mutation { stopRunningSchedule(id: 1) { __typename } }"}, 403),
    ]
    for token, body, code in refused:
        answer = guarded.call("POST", "/graphql", token, json=body)
        assert answer.status_code == code, answer.text
    batch = guarded.call("POST", "/graphql", READ, json=[version, version])
    assert [entry["data"]["version"] for entry in batch.json()] == [batch.json()[0]["data"]["version"]] * 2


@pytest.mark.parametrize(
    ("content", "content_type", "code"),
    [
        (b'{"query": "{ version }"}', "text/plain", 415),
        (b"query=%7Bversion%7D", "application/x-www-form-urlencoded", 415),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" + b",".join([b'{"query": "{ version }"}'] * 11) + b"]", "application/json", 400),
        (b'{"query": 1}', "application/json", 400),
        (b'{"query": "{ version }", "variables": []}', "application/json", 400),
        (b'{"query": "{ version", "variables": null}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
    ],
)
def test_what_is_no_graphql_in_json_is_refused(guarded: ApiServer, content: bytes, content_type: str, code: int) -> None:
    answer = guarded.call("POST", "/graphql", READ, content=content, headers={"Content-Type": content_type})
    assert answer.status_code == code, answer.text


def test_queries_in_the_address_are_not_served(guarded: ApiServer) -> None:
    assert guarded.call("GET", "/graphql", READ, params={"query": "{ version }"}).status_code in (404, 405)


def test_a_launch_that_is_code_reaches_dagster_for_no_role(guarded: ApiServer, stack: DagsterStack) -> None:
    params = launch_params(stack, "dashboard_data")
    pod = '{"container_config": {"image": "elsewhere", "security_context": {"privileged": true}}}'
    params["executionMetadata"]["tags"].append({"key": "dagster-k8s/config", "value": pod})
    before = len(stack.graphql("{ runsOrError { ... on Runs { results { runId } } } }")["runsOrError"]["results"])
    for role in ("refresh", "admin"):
        answer = guarded.call(
            "POST", "/graphql", SECRETS[role][0], json={"query": OPERATIONS["launch_run"], "variables": {"params": params}}
        )
        assert (answer.status_code, "dagster-k8s/config" in answer.text) == (403, True)
    assert len(stack.graphql("{ runsOrError { ... on Runs { results { runId } } } }")["runsOrError"]["results"]) == before


NO_RUN = "00000000-0000-4000-8000-000000000000"


def test_ends_and_defaults_of_variables_count_and_what_changes_something_is_logged_before_and_after(
    stack: DagsterStack, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = SecretStr(" ".join(str(entry) for _, entry in SECRETS.values()))
    many = "mutation ($l: [ExecutionParams!]! = [{}, {}, {}, {}]) { launchMultipleRuns(executionParamsList: $l) { __typename } }"
    end = f'mutation {{ terminateRun(runId: "{NO_RUN}") {{ __typename }} }}'
    with (
        caplog.at_level("INFO", "pulso_etl.audit"),
        ApiServer(settings_of(stack, api_tokens=tokens, api_launch_limit="3/hour")) as api,
    ):
        assert api.call("POST", "/graphql", REFRESH, json={"query": many}).status_code == 429
        codes = [api.call("POST", "/graphql", REFRESH, json={"query": end}).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    lines = [record.getMessage() for record in caplog.records if NO_RUN in record.getMessage()]
    assert [line.split(": ")[1] for line in lines] == ["refresh asks for", "refresh got the answer 200"] * 3


def test_the_role_refresh_ends_only_what_it_may_launch(guarded: ApiServer, stack: DagsterStack) -> None:
    checks = {"assetSelection": [], "assetCheckSelection": [{"assetKey": {"path": ["dashboard_data"]}, "name": "reconciliation"}]}
    params = {"selector": stack.repository | {"jobName": "__ASSET_JOB"} | checks}
    for role, code in (("refresh", 403), ("admin", 200)):
        body = {"query": OPERATIONS["launch_run"], "variables": {"params": params}}
        answer = guarded.call("POST", "/graphql", SECRETS[role][0], json=body)
        assert answer.status_code == code, answer.text
    run_id = answer.json()["data"]["launchRun"]["run"]["runId"]
    body = {"query": OPERATIONS["terminate_run"], "variables": {"runId": run_id}}
    assert guarded.call("POST", "/graphql", REFRESH, json=body).status_code == 403
    assert stack.wait(run_id, 90) in ("SUCCESS", "FAILURE")
    backfill = stack.backfill("dashboard_data", [str(TODAY)])
    cancel = {"query": f'mutation {{ cancelPartitionBackfill(backfillId: "{backfill}") {{ __typename }} }}'}
    answer = guarded.call("POST", "/graphql", REFRESH, json=cancel)
    assert answer.json()["data"]["cancelPartitionBackfill"]["__typename"] == "CancelBackfillSuccess"
