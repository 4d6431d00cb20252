"""What the frontend keeps a copy of is what the API says."""

from __future__ import annotations

import json
from pathlib import Path

from pulso_etl.api.openapi import document
from pulso_etl.tables import TABLES

FRONTEND = Path(__file__).parents[2] / "frontend"


def test_the_openapi_document_of_the_frontend_is_the_api_s() -> None:
    """Renew it with `python -m pulso_etl.api.openapi > frontend/openapi.json`, then `npm run generate` there."""
    assert json.loads((FRONTEND / "openapi.json").read_text(encoding="utf-8")) == json.loads(document())


def test_the_frontend_s_launches_over_graphql_know_the_tables() -> None:
    tables = [
        {
            "table": spec.name,
            "group": spec.group,
            "refresh_every_seconds": int(spec.schedule.refresh_every.total_seconds()),
        }
        for spec in TABLES.values()
    ]
    assert json.loads((FRONTEND / "src" / "tables.json").read_text(encoding="utf-8")) == tables
