"""The OpenAPI document, and whether the API keeps to it, whatever is sent."""

from __future__ import annotations

import json

from pulso_etl.api.openapi import document

DOCUMENT = json.loads(document())
ROUTES = {
    "POST /api/v1/etl/refresh/dashboard",
    "POST /api/v1/etl/refresh/table/{table_name}",
    "GET /api/v1/etl/refresh/{pipeline_id}",
    "GET /api/v1/etl/status",
    "GET /api/v1/etl/status/table/{table_name}",
    "GET /api/v1/etl/health",
    "POST /api/v1/etl/cleanup",
    "GET /api/v1/etl/config/tables",
    "GET /api/v1/etl/config/extraction-modes",
    "GET /api/v1/etl/events",
    "GET /metrics",
    "POST /graphql",
}
ENDLESS = "/api/v1/etl/events"


def test_the_routes_are_these() -> None:
    assert {f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods} == ROUTES
