"""Declarations for tests. They name fields without their parts."""

from __future__ import annotations

from typing import Any

from pulso_etl.sync.spec import PARTS, TableSpec, in_parts


def declare(**fields: Any) -> TableSpec:
    """A declaration with those fields. Raises pydantic.ValidationError."""
    return TableSpec(**in_parts(fields))


def altered(spec: TableSpec, **fields: Any) -> TableSpec:
    """The declaration with other values of those fields, which nothing validates."""
    return spec.model_copy(
        update={
            name: getattr(spec, name).model_copy(update=value) if name in PARTS else value
            for name, value in in_parts(fields).items()
        }
    )
