"""What an answer that tells of a fault holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from pydantic import SecretStr

from pulso_etl.api.app import ANSWERS
from pulso_etl.api.dagster_client import DagsterUnavailable
from pulso_etl.api.database import DatabaseUnavailable
from pulso_etl.api.handlers import HANDLERS
from pulso_etl.api.metrics import _failures
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import BudgetExceeded, Cause, PlanError
from pulso_etl.words import CAUSES


def raising(raised: Exception, timezone: str = "America/Lima") -> FastAPI:
    """An application with one route, which raises the error. Its deployment is in that time zone."""
    app = FastAPI()
    app.state.deployment = SimpleNamespace(
        settings=Settings(database_url=SecretStr("postgresql://nowhere/none"), timezone=timezone)
    )
    for kind, answer in (HANDLERS | ANSWERS).items():
        app.add_exception_handler(kind, answer)

    @app.get("/")
    async def route(days: int = 1) -> None:
        raise raised

    return app


@pytest.mark.parametrize(
    ("raised", "status", "cause"),
    [
        (HTTPException(400, "no JSON"), 400, Cause.REQUEST),
        (HTTPException(401, "a token is needed"), 401, Cause.UNAUTHORIZED),
        (HTTPException(403, "ana has the role read"), 403, Cause.FORBIDDEN),
        (HTTPException(404, "unknown table"), 404, Cause.REQUEST),
        (HTTPException(429, "ana may launch 5 per 1 minute"), 429, Cause.RATE_LIMITED),
        (BudgetExceeded("the day's budget is spent"), 429, Cause.BUDGET),
        (PlanError("the range is not within the partitions"), 422, Cause.REQUEST),
        (DagsterUnavailable("Dagster's webserver does not answer"), 503, Cause.LAUNCHER_UNAVAILABLE),
        (DatabaseUnavailable("PostgreSQL does not answer"), 503, Cause.DESTINATION_UNAVAILABLE),
    ],
)
def test_every_refusal_tells_its_cause_beside_the_text(raised: Exception, status: int, cause: Cause) -> None:
    app = raising(raised)
    answer = TestClient(app).get("/")
    assert answer.status_code == status
    body = answer.json()
    told = raised.detail if isinstance(raised, HTTPException) else str(raised)
    assert told in str(body["detail"])
    assert body["failure"]["cause"] == cause
    assert body["failure"]["title"] == CAUSES[cause].title
    assert body["failure"]["retryable"] is cause.retryable
    assert answer.headers["content-type"] == "application/problem+json"
    assert body.keys() >= {"type", "title", "status", "detail", "cause", "table", "retryable", "run_url"}
    assert (body["type"], body["status"], body["title"]) == (f"urn:pulso-etl:{cause}", status, CAUSES[cause].title)
    assert (body["cause"], body["retryable"], body["table"]) == (cause, cause.retryable, None)
    malformed = TestClient(app).get("/?days=many").json()
    assert malformed["failure"]["cause"] == Cause.REQUEST
    assert malformed["failure"]["message"].startswith("query.days: ")


@pytest.mark.parametrize("timezone", ["America/Lima", "Pacific/Kiritimati"])
def test_a_spent_budget_is_renewed_at_midnight_of_the_deployment_s_zone(timezone: str) -> None:
    zone = Settings(database_url=SecretStr("postgresql://nowhere/none"), timezone=timezone).zone
    before = datetime.now(UTC)
    answer = TestClient(raising(BudgetExceeded("spent"), timezone)).get("/")
    renewed = before + timedelta(seconds=int(answer.headers["retry-after"]))
    midnight = zone.begin(zone.day(before) + timedelta(days=1))
    assert timedelta(seconds=-1) < renewed - midnight < timedelta(seconds=60) or zone.day(before) != zone.day(datetime.now(UTC))


def test_failures_are_counted_by_cause() -> None:
    found = _failures([("visits", "shrink", 2), ("visits", None, 3), ("visits", "a cause of a later release", 1)])
    assert [(sample.labels["cause"], sample.value) for sample in found.samples] == [("shrink", 2), ("unknown", 4)]
