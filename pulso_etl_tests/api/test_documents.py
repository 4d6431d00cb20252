"""What a GraphQL document may do, decided on the parsed document."""

from __future__ import annotations

from typing import Any

import pytest

from pulso_etl.access.tokens import Role
from pulso_etl.api.graphql import DocumentRefused, Verdict, verdict_on
from pulso_etl.sync.errors import LaunchForbidden

LAUNCH = "mutation ($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename } }"


@pytest.mark.parametrize(
    "query",
    [
        "{ version }",
        "query A { version } query B { instance { id } }",
        "{ a: version b: version ...F } fragment F on Query { instance { id } }",
        "{ __schema { types { name } } }",
    ],
)
def test_queries_are_for_readers(query: str) -> None:
    assert verdict_on(query, None) == Verdict(Role.READ)


@pytest.mark.parametrize(
    ("query", "launches"),
    [
        (LAUNCH, 1),
        ("mutation { terminateRun(runId: 1) { __typename } }", 0),
        ("mutation { launchPipelineExecution(executionParams: {}) { __typename } }", 1),
        ("mutation { a: launchRun(executionParams: {}) { x } b: launchRun(executionParams: {}) { x } }", 2),
        ("mutation { ...F } fragment F on Mutation { launchRun(executionParams: {}) { x } }", 1),
        ("mutation { ... on Mutation { ...F ...F } } fragment F on Mutation { launchRun(executionParams: {}) { x } }", 2),
        ("mutation { launchMultipleRuns(executionParamsList: [{}, {}, {}]) { x } }", 3),
        ("mutation { launchRun(executionParams: {runConfigData: {}}) { x } }", 1),
    ],
)
def test_launches_and_cancels_are_for_the_role_refresh(query: str, launches: int) -> None:
    verdict = verdict_on(query, None)
    assert (verdict.role, verdict.launches) == (Role.REFRESH, launches)


def test_a_list_of_launches_in_a_variable_is_counted() -> None:
    query = "mutation ($l: [ExecutionParams!]!) { launchMultipleRuns(executionParamsList: $l) { __typename } }"
    assert verdict_on(query, {"l": [{}, {}, {}, {}]}).launches == 4


@pytest.mark.parametrize(
    "query",
    [
        "mutation { wipeAssets(assetPartitionRanges: []) { __typename } }",
        "mutation { launchRun: wipeAssets(assetPartitionRanges: []) { __typename } }",
        "mutation { launchRun(executionParams: {}) { x } stopSensor(id: 1) { x } }",
        "mutation { ...F } fragment F on Mutation { ...G } fragment G on Mutation { deletePipelineRun(runId: 1) { x } }",
        "query Q { version } mutation M { setConcurrencyLimit(concurrencyKey: 1, limit: 1) { x } }",
        "mutation { launchRunReexecution(reexecutionParams: {}) { x } }",
        'mutation { launchRun(executionParams: {runConfigData: "resources: {}"}) { x } }',
        "mutation ($c: RunConfigData) { launchRun(executionParams: {runConfigData: $c}) { x } }",
        'mutation { launchRun(executionParams: {executionMetadata: {tags: [{key: "pulso_etl/allow_shrink"}]}}) { x } }',
        'mutation ($k: String = "pulso_etl/allow_shrink") { launchRun(executionParams: {tags: [{key: $k}]}) { x } }',
    ],
)
def test_all_else_is_for_administrators(query: str) -> None:
    assert verdict_on(query, {}).role is Role.ADMIN


@pytest.mark.parametrize(
    "variables",
    [
        {"p": {"runConfigData": {"loggers": {"console": {"config": {"log_level": "DEBUG"}}}}}},
        {"p": {"executionMetadata": {"tags": [{"key": "pulso_etl/allow_shrink", "value": "true"}]}}},
        {"p": {"executionMetadata": {"tags": {"key": "pulso_etl/allow_shrink", "value": "true"}}}},
        {"p": {"selector": {"jobName": "reconcile_all"}}},
        {"p": {"selector": {"jobName": "__ASSET_JOB", "assetSelection": [], "assetCheckSelection": [{}]}}},
    ],
)
def test_what_turns_a_launch_into_another_is_found_in_variables(variables: dict[str, Any]) -> None:
    assert verdict_on(LAUNCH, variables).role is Role.ADMIN
    assert verdict_on(LAUNCH, {"p": {"runConfigData": {}, "executionMetadata": {"tags": []}}}).role is Role.REFRESH


def doubled(times: int) -> str:
    """A document that is short, and that becomes long when its fragments are expanded."""
    fragments = [f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(times)]
    return f"{{ ...F0 }} {' '.join(fragments)} fragment F{times} on Query {{ version }}"


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "parsed"),
        ("{ version", "parsed"),
        ("fragment F on Query { version }", "no operation"),
        ("{ " + "a { " * 30 + "b" + " }" * 30 + " }", "deeper"),
        ("{ " + "... { " * 25 + "a { " * 21 + "b" + " }" * 46 + " }", "deeper"),
        ("{ ...F } fragment F on Query { ...F }", "contains itself"),
        ("{ ...F } fragment F on Query { a { ...G } } fragment G on Query { ...F }", "contains itself"),
        ("{ ...F }", "not in the document"),
        (doubled(40), "more than"),
        ("{ " + " ".join(f"a{n}: version" for n in range(3000)) + " }", "parsed"),
        ("subscription { pipelineRunLogs(runId: 1) { __typename } }", "subscriptions"),
    ],
)
def test_a_document_that_can_not_be_decided_on_is_refused(query: str, reason: str) -> None:
    with pytest.raises(DocumentRefused, match=reason):
        verdict_on(query, None)


LAUNCH_MANY = "($l: [ExecutionParams!]! = [{}, {}, {}]) { launchMultipleRuns(executionParamsList: $l) { __typename } }"


@pytest.mark.parametrize(
    ("query", "variables", "launches"),
    [
        (f"mutation {LAUNCH_MANY}", {}, 3),
        (f"mutation {LAUNCH_MANY}", {"l": [{}] * 5}, 5),
        (f"mutation {LAUNCH_MANY}", {"l": {}}, 1),
        ("mutation ($p: P = {}) { launchMultipleRuns(executionParamsList: [$p, $p, {}]) { x } }", {}, 3),
        ("mutation { launchMultipleRuns(executionParamsList: {}) { x } launchPartitionBackfill(backfillParams: {}) { x } }", {}, 2),
    ],
)
def test_what_is_launched_is_counted_with_the_defaults_of_variables(query: str, variables: dict[str, Any], launches: int) -> None:
    assert verdict_on(query, variables).launches == launches


def test_ends_of_runs_are_named_and_count() -> None:
    query = "mutation ($r: [String!]! = [a, b]) { terminateRuns(runIds: $r) { x } cancelPartitionBackfill(backfillId: c) { x } }"
    verdict = verdict_on(query, {})
    assert (verdict.runs_ended, verdict.backfills_ended, verdict.counted, verdict.role) == (("a", "b"), ("c",), 3, Role.REFRESH)
    at_once = "mutation { terminateRun(runId: a, terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) { x } }"
    assert verdict_on(at_once, {}).role is Role.ADMIN


def tagged(key: str) -> dict[str, Any]:
    return {"executionMetadata": {"tags": [{"key": key, "value": "true"}]}}


@pytest.mark.parametrize(
    "params",
    [
        *map(
            tagged,
            (
                "dagster-k8s/config",
                "dagster-celery/queue",
                "dagster/max_runtime",
                "dagster/priority",
                "dagster/image",
                "dagster/sensor_name",
                "dagster/max_retries",
                "dagster/backfill",
                "dagster/concurrency_key",
                ".dagster/grpc_info",
                ".dagster/repository",
                "ecs/cpu",
                "docker/image",
                "pulso_etl/verified",
                "pulso_etl/capture",
                "pulso_etl/requested_by",
                "pulso_etl/source",
                "pulso_etl/slot",
                "pulso_etl/table",
                "pulso_etl/tenant",
                "PULSO_ETL/FORCE",
                " pulso_etl/force",
            ),
        ),
        {"stepKeys": ["dashboard_data"]},
        {"preset": "one"},
        {"selector": {"jobName": "another"}},
        {"selector": {"pipelineName": "refresh"}},
        {"selector": {"jobName": "refresh_all", "solidSelection": ["dashboard_data"]}},
        {"executionMetadata": {"parentRunId": "a"}},
        {"runConfigData": {"resources": {"bigquery": {"config": {"project": {"env": "DATABASE_URL"}}}}}},
        {"runConfigData": "resources: {bigquery: {config: {project: {env: DATABASE_URL}}}}"},
        {"runConfigData": "{"},
    ],
    ids=str,
)
@pytest.mark.parametrize("as_list", [False, True])
def test_a_launch_that_is_code_is_refused_whatever_the_role(params: dict[str, Any], as_list: bool) -> None:
    query = f"mutation {LAUNCH_MANY}" if as_list else LAUNCH
    with pytest.raises(LaunchForbidden):
        verdict_on(query, {"l": [{}, params], "p": params})


@pytest.mark.parametrize(
    "query",
    [
        'mutation { launchRun(executionParams: {executionMetadata: {tags: {key: "dagster-k8s/config", value: "{}"}}}) { x } }',
        'mutation ($k: String! = "dagster-k8s/config") '
        '{ launchRun(executionParams: {executionMetadata: {tags: [{key: $k, value: "{}"}]}}) { x } }',
        'mutation ($p: P = {executionMetadata: {tags: [{key: """dagster-k8s/config""", value: "{}"}]}}) '
        "{ ...F } fragment F on Mutation { a: launchRun(executionParams: $p) { x } }",
        'mutation { launchPartitionBackfill(backfillParams: {tags: [{key: "dagster-k8s/config", value: "{}"}]}) { x } }',
        'mutation { launchPartitionBackfill(backfillParams: {reexecutionSteps: ["a"]}) { x } }',
        "mutation { launchPartitionBackfill(backfillParams: {runConfigData: {resources: {postgres: {config: {}}}}}) { x } }",
        'mutation { launchPartitionBackfill(backfillParams: {selector: {partitionSetName: "other_partition_set"}}) { x } }',
        'mutation { launchRunReexecution(reexecutionParams: {extraTags: [{key: "dagster-k8s/config", value: "{}"}]}) { x } }',
        'mutation { launchRunReexecution(executionParams: {stepKeys: ["a"]}) { x } }',
        'query Q { version } mutation M { launchRun(executionParams: {stepKeys: "a"}) { x } }',
    ],
)
def test_a_launch_that_is_code_is_found_however_it_is_written(query: str) -> None:
    with pytest.raises(LaunchForbidden):
        verdict_on(query, {})


@pytest.mark.parametrize(
    ("params", "role"),
    [
        ({"selector": {"jobName": "acme__refresh_dashboard_data"}}, Role.REFRESH),
        ({"selector": {"jobName": "__ASSET_JOB", "assetSelection": [{"path": ["dashboard_data"]}]}}, Role.REFRESH),
        (tagged("dagster/asset_partition_range_start"), Role.REFRESH),
        (tagged("dagster/partition"), Role.REFRESH),
        (tagged("pulso_etl/force"), Role.REFRESH),
        (tagged("pulso_etl/compare"), Role.REFRESH),
        ({"runConfigData": "{}\n", "mode": "default"} | tagged("dagster/from_ui"), Role.REFRESH),
        ({"runConfigData": "loggers: {console: {config: {log_level: DEBUG}}}"}, Role.ADMIN),
    ],
)
def test_what_a_refresh_says_is_let_through(params: dict[str, Any], role: Role) -> None:
    assert verdict_on(LAUNCH, {"p": params}).role is role
