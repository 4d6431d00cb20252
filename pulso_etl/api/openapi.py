"""Prints the OpenAPI document: `python -m pulso_etl.api.openapi`. No server is needed, nor any setting."""

from __future__ import annotations

import json

from pydantic import SecretStr

from pulso_etl.api.app import create_app
from pulso_etl.settings import Settings


def document() -> str:
    """The document as JSON."""
    return json.dumps(create_app(Settings(database_url=SecretStr("postgresql://nobody@localhost/none"))).openapi(), indent=2) + "\n"


if __name__ == "__main__":
    print(document(), end="")
