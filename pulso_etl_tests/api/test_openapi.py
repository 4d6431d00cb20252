"""The OpenAPI document, and whether the API keeps to it, whatever is sent."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from pydantic import BaseModel, SecretStr
from schemathesis import APIOperation, Case
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pulso_etl.api import models
from pulso_etl.api.openapi import document
from pulso_etl_tests.api.conftest import SECRETS, settings_of
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.dagster_stack import DagsterStack

DOCUMENT = json.loads(document())
ROUTES = {
    "POST /api/v1/etl/refresh/dashboard",
    "POST /api/v1/etl/refresh/table/{table_name}",
    "GET /api/v1/etl/refresh/{pipeline_id}",
    "DELETE /api/v1/etl/refresh/{pipeline_id}",
    "GET /api/v1/etl/refreshes",
    "GET /api/v1/etl/status",
    "GET /api/v1/etl/status/table/{table_name}",
    "GET /api/v1/etl/status/table/{table_name}/days",
    "GET /api/v1/etl/status/table/{table_name}/extractions",
    "GET /api/v1/etl/figures",
    "GET /api/v1/etl/status/table/{table_name}/changes",
    "POST /api/v1/etl/undo/table/{table_name}",
    "GET /api/v1/etl/status/table/{table_name}/rows.csv",
    "GET /api/v1/etl/health",
    "POST /api/v1/etl/cleanup",
    "GET /api/v1/etl/doctor",
    "POST /api/v1/etl/source/{source}/updated",
    "GET /api/v1/etl/config/tables",
    "GET /api/v1/etl/config/extraction-modes",
    "GET /api/v1/etl/plan",
    "GET /api/v1/etl/config/contact",
    "GET /api/v1/etl/events",
    "GET /metrics",
    "POST /graphql",
}
# The stream of events never ends, so nobody can wait for its end. The doctor takes many seconds, see test_doctor.py.
APART = ["/api/v1/etl/events", "/api/v1/etl/doctor"]
COSTLY = "/api/v1/etl/plan"
"""Each of its answers takes some twenty questions to BigQuery."""
FOUND: list[Any] = list(schemathesis.openapi.from_dict(DOCUMENT).exclude(path=APART).get_all_operations())
OPERATIONS = [found.ok() for found in FOUND]


@pytest.fixture(scope="module")
def strict(stack: DagsterStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API with one token that may launch very little, because these requests must not keep Dagster busy."""
    _, token = SECRETS["admin"]
    with (
        pytest.MonkeyPatch.context() as patch,
        ApiServer(settings_of(stack, api_tokens=SecretStr(str(token)), api_launch_limit="2/day")) as server,
    ):
        # Each route is asked with a wrong token. One address may not do that so often.
        patch.setattr("pulso_etl.api.access.REFUSALS", 10**6)
        patch.setenv("DAGSTER_HOME", stack.env["DAGSTER_HOME"])
        patch.setenv("DAGSTER_POSTGRES_URL", stack.env["DAGSTER_POSTGRES_URL"])
        yield server


@pytest.fixture
def nothing_begins(stack: DagsterStack) -> Iterator[None]:
    """Runs that are launched stay in the queue, and end with the test: a launch over years makes many, at which nobody looks."""
    stack.daemon.send_signal(signal.SIGSTOP)
    try:
        yield
        stack.end_all_runs()
    finally:
        stack.daemon.send_signal(signal.SIGCONT)


def test_the_routes_are_these() -> None:
    assert {f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods} == ROUTES


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
@pytest.mark.usefixtures("nothing_begins")
def test_the_api_keeps_to_its_document(operation: APIOperation[Any, Any, Any, Any], strict: ApiServer) -> None:
    @given(operation.as_strategy())
    @settings(max_examples=2 if operation.path == COSTLY else 15, suppress_health_check=list(HealthCheck))
    def keeps(case: Case[Any]) -> None:
        # What fits the document may still make no sense, such as a range that ends before it starts.
        case.call_and_validate(
            base_url=strict.url,
            headers={"Authorization": f"Bearer {SECRETS['admin'][0]}"},
            excluded_checks=[positive_data_acceptance],
        )

    keeps()


def test_the_examples_of_answers_are_answers() -> None:
    shapes = [
        shape
        for shape in vars(models).values()
        if isinstance(shape, type) and issubclass(shape, BaseModel) and shape is not BaseModel
    ]
    examples = [(shape, example) for shape in shapes for example in (shape.model_json_schema().get("examples") or [])]
    assert len(examples) >= 6
    for shape, example in examples:
        shape.model_validate_json(json.dumps(example))
