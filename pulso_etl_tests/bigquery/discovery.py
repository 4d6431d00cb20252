"""Google's published description of BigQuery's REST API, trimmed to the shapes of the answers that the product reads.

`bigquery.v2.json` beside this file comes from the discovery document of that revision, as the package google-api-python-client
carries it (Apache License 2.0). `python -m pulso_etl_tests.bigquery.discovery DOCUMENT SOURCE` makes it anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).with_name("bigquery.v2.json")
ANSWERS = ("Job", "Table", "QueryResponse", "GetQueryResultsResponse")
LEFT_OUT = (
    *("MlStatistics", "ModelDefinition", "SparkStatistics", "GenAiStats", "VectorSearchStatistics", "SearchStatistics"),
    *("ExplainQueryStage", "PerformanceInsights", "ExternalDataConfiguration", "ExternalCatalogTableOptions"),
    *("JobConfigurationLoad", "JobConfigurationExtract", "JobConfigurationTableCopy", "JobStatistics3", "JobStatistics4"),
    *("JobStatistics5", "MaterializedViewStatistics", "BiEngineStatistics", "ScriptStatistics", "PropertyGraphReference"),
)
"""Shapes of models, plans, external tables and other kinds of jobs. Anything fits them here."""
KEPT = ("type", "format", "enum", "$ref", "items", "properties", "additionalProperties")


def trimmed(document: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The schemas that the answers consist of, without their descriptions."""
    schemas, found, waiting = document["schemas"], {}, list(ANSWERS)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = {"type": "any"} if name in LEFT_OUT else _bare(schemas[name])
            waiting += _refs(found[name])
    return {"source": source, "revision": document["revision"], "schemas": dict(sorted(found.items()))}


def _bare(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    kept = {name: part for name, part in schema.items() if name in KEPT}
    for name in ("items", "additionalProperties"):
        if name in kept:
            kept[name] = _bare(kept[name])
    if "properties" in kept:
        kept["properties"] = {name: _bare(part) for name, part in kept["properties"].items()}
    return kept


def _refs(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(ref := schema.get("$ref"), str):
            yield ref
        for part in schema.values():
            yield from _refs(part)


@cache
def schemas() -> Mapping[str, Any]:
    """The shapes by name."""
    found: dict[str, Any] = json.loads(HERE.read_text(encoding="utf-8"))["schemas"]
    return found


def faults(value: Any, name: str) -> list[str]:
    """Where the value is not of the shape of that name: fields that it does not have, and values of another type."""
    return list(_faults(value, {"$ref": name}, name))


def _faults(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if "$ref" in schema:
        schema = schemas()[schema["$ref"]]
    kind = schema.get("type")
    if kind == "any":
        return
    if kind == "object":
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is no object"
            return
        known, more = schema.get("properties", {}), schema.get("additionalProperties")
        for key, part in value.items():
            if key in known:
                yield from _faults(part, known[key], f"{path}.{key}")
            elif more is not None:
                yield from _faults(part, more, f"{path}.{key}")
            else:
                yield f"{path}.{key}: not in the API"
    elif kind == "array":
        if not isinstance(value, list):
            yield f"{path}: {value!r} is no list"
            return
        for place, part in enumerate(value):
            yield from _faults(part, schema["items"], f"{path}[{place}]")
    elif not _is(value, schema):
        yield f"{path}: {value!r} is no {schema.get('format') or kind}"
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {', '.join(schema['enum'])}"


def _is(value: Any, schema: Mapping[str, Any]) -> bool:
    kind, form = schema.get("type"), schema.get("format")
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    # Numbers of 64 bits are texts in JSON.
    return isinstance(value, str) and (form not in ("int64", "uint64") or value.lstrip("-").isdecimal())


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    HERE.write_text(json.dumps(trimmed(given, sys.argv[2]), indent=1) + "\n", encoding="utf-8")
