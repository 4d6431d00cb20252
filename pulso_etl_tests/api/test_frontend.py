"""What the frontend keeps a copy of is what the API says."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

from pulso_etl.api.openapi import document
from pulso_etl.tables import TABLES

FRONTEND = Path(__file__).parents[2] / "frontend"
PAGE = Path(__file__).parents[2] / "pulso_etl" / "api" / "page"


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


def test_the_first_picture_of_the_page_needs_few_bytes() -> None:
    """What the browser loads before it shows the strip, compressed: the page with its styles, and the code that it names."""
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'"\./(assets/[^"]+)"', html)
    assert [name for name in named if not name.endswith(".js")] == []
    assert any("/App-" in name for name in named)
    sizes = {name: len(gzip.compress((PAGE / name).read_bytes())) for name in ["index.html", *named]}
    assert sum(sizes.values()) < 52_000, sizes
