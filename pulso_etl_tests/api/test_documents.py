"""What a GraphQL document may do, decided on the parsed document."""

from __future__ import annotations

from typing import Any

import pytest

from pulso_etl.api.graphql import DocumentRefused, Verdict, decide
from pulso_etl.api.tokens import Role

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
    assert decide(query, None) == Verdict(Role.READ)


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
    verdict = decide(query, None)
    assert (verdict.role, verdict.launches) == (Role.REFRESH, launches)


def test_a_list_of_launches_in_a_variable_is_counted() -> None:
    query = "mutation ($l: [ExecutionParams!]!) { launchMultipleRuns(executionParamsList: $l) { __typename } }"
    assert decide(query, {"l": [{}, {}, {}, {}]}).launches == 4


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
    assert decide(query, {}).role is Role.ADMIN


@pytest.mark.parametrize(
    "variables",
    [
        {"p": {"runConfigData": {"resources": {"postgres": {"config": {"database_url": "postgresql://elsewhere"}}}}}},
        {"p": {"executionMetadata": {"tags": [{"key": "pulso_etl/allow_shrink", "value": "true"}]}}},
    ],
)
def test_what_turns_a_launch_into_another_is_found_in_variables(variables: dict[str, Any]) -> None:
    assert decide(LAUNCH, variables).role is Role.ADMIN
    assert decide(LAUNCH, {"p": {"runConfigData": {}, "executionMetadata": {"tags": []}}}).role is Role.REFRESH


def doubled(times: int) -> str:
    """A document that is short, and long with its fragments written out."""
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
        ("{ ...F } fragment F on Query { ...F }", "holds itself"),
        ("{ ...F } fragment F on Query { a { ...G } } fragment G on Query { ...F }", "holds itself"),
        ("{ ...F }", "not in the document"),
        (doubled(40), "more than"),
        ("{ " + " ".join(f"a{n}: version" for n in range(3000)) + " }", "parsed"),
        ("subscription { pipelineRunLogs(runId: 1) { __typename } }", "subscriptions"),
    ],
)
def test_a_document_that_can_not_be_decided_on_is_refused(query: str, reason: str) -> None:
    with pytest.raises(DocumentRefused, match=reason):
        decide(query, None)
