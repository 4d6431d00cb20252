"""The command that serves an assistant."""

from __future__ import annotations

from typing import Annotated

import typer

from pulso_etl.access.tokens import role_named
from pulso_etl.cli.terminal import TenantOption, served_settings
from pulso_etl.sync.errors import SettingsError
from pulso_etl.tenancy.tenants import chosen


def mcp(
    role: Annotated[str, typer.Option(help="What the assistant may do: read, refresh or admin.")] = "read",
    tenant: TenantOption = None,
) -> None:
    """Serves an assistant over standard input and output, by the Model Context Protocol, until the input ends. Read-only unless a
    role is given."""
    known = role_named(role)
    try:
        from pulso_etl.assistant import build_server
    except ModuleNotFoundError as error:
        raise SettingsError(f"needs the package {error.name}, which is not installed: pip install 'pulso-etl[mcp]'") from None
    part = chosen(served_settings(), tenant)
    build_server(part.settings, part.tables, known).run("stdio")
