"""Resources of Dagster that a launch can't point elsewhere."""

from __future__ import annotations

from typing import Any

import dagster as dg


def fixed(resource: Any) -> dg.ResourceDefinition:
    """The resource as it is, with nothing for a launch to configure: Dagster refuses run configuration for it, and shows none.

    A configurable resource would take other servers from whoever launches, and any environment variable by its name.
    """
    if isinstance(resource, dg.ResourceDefinition):
        return resource
    if isinstance(resource, dg.IOManager):
        return dg.IOManagerDefinition(lambda _: resource, config_schema={})
    return dg.ResourceDefinition(lambda _: resource, config_schema={})
