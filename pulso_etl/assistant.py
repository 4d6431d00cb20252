"""The way in for an assistant: a server of the Model Context Protocol, whose tools are routes of the HTTP API.

The API itself runs in this process, and the tools call it as any client does, with a token of one role. So an assistant gets the
API's own models and errors, and has no right that a token of its role does not have.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import date
from importlib.metadata import version
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import httpx
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field, SecretStr, TypeAdapter

from pulso_etl.access.tokens import Role, make_token
from pulso_etl.api.app import create_app
from pulso_etl.api.models import Cleanup, Extraction, PartitionStatus, Refresh, RefreshSummary, Status, TableDetail
from pulso_etl.automation.preview_shapes import Preview
from pulso_etl.refreshing.request import Mode
from pulso_etl.settings import Settings
from pulso_etl.sync.spec import TableSpec

NAME = "assistant"
"""Who asked for a refresh, in the history and in the log."""
INSTRUCTIONS = """\
Pulso ETL keeps PostgreSQL tables equal to BigQuery, day by day. Ask `status` first: it has the state of every table. `plan` says
what a refresh would read now, and why each day would be read. `attempts` says why each day of a load was read, and what the load
changed: rows inserted, updated and deleted. `days` says whether each day is loaded, and how its last comparison with BigQuery
ended. Days are days of the time zone that `status` names. A refresh costs money: look at `plan` before you ask for one.\
"""
READS, WRITES = ToolAnnotations(read_only_hint=True), ToolAnnotations(read_only_hint=False, destructive_hint=False)
Table = Annotated[str, Field(description="The table's name.")]
Found = TypeVar("Found")


class Api:
    """The HTTP API in this process, as a holder of a token sees it. The methods are the tools: assistants read their docstrings."""

    def __init__(self, settings: Settings, tables: Mapping[str, TableSpec], role: Role) -> None:
        secret, token = make_token(NAME, role, settings.owner.tenant)
        own = {"api_tokens": SecretStr(str(token)), "api_tokens_file": None}
        self._app = create_app(settings.owned_by(settings.owner, **own), tables=tables)
        self._headers = {"Authorization": f"Bearer {secret}"}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connects to PostgreSQL and Dagster for as long as the context lasts."""
        async with (
            self._app.router.lifespan_context(self._app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(self._app),
                base_url="http://127.0.0.1",
                headers=self._headers,
                timeout=None,  # noqa: S113 - a plan takes as long as BigQuery takes
            ) as self._client,
        ):
            yield

    async def _call(self, kind: type[Found], method: str, path: str, **parameters: Any) -> Found:
        """The answer of the route. Parameters that are None are left out. Raises ToolError with the API's own words."""
        given = {name: value for name, value in parameters.items() if value is not None}
        answer = await self._client.request(method, f"/api/v1/etl{path}", params=given)
        if answer.is_error:
            fault = answer.json()
            raise ToolError(f"{fault['cause']}: {fault['failure']['message']}")
        return TypeAdapter(kind).validate_json(answer.content)

    async def status(self) -> Status:
        """The state of all tables: whether each is fresh, due, stale or failed, how far its data reach, what its last load did."""
        return await self._call(Status, "GET", "/status")

    async def table(self, table: Table) -> TableDetail:
        """One table: its state, its last 20 attempts and its last 30 days."""
        return await self._call(TableDetail, "GET", f"/status/table/{_part(table)}")

    async def days(
        self,
        table: Table,
        before: Annotated[date | None, Field(description="Up to the day before this one; without it, up to today.")] = None,
        days: Annotated[int, Field(ge=1, le=366, description="How many days.")] = 30,
    ) -> list[PartitionStatus]:
        """Days of a table: rows, when and by which run each was last read, and how its last comparison with BigQuery ended."""
        path = f"/status/table/{_part(table)}/days"
        return await self._call(list[PartitionStatus], "GET", path, before=before, days=days)

    async def attempts(
        self,
        table: Table,
        before: Annotated[int | None, Field(ge=1, description="The id of the attempt before which to begin.")] = None,
        limit: Annotated[int, Field(ge=1, le=200, description="How many, the newest first.")] = 20,
    ) -> list[Extraction]:
        """What changed, and why: attempts of a table with the reason of each day, rows inserted, updated, unchanged and deleted,
        cost, and errors."""
        path = f"/status/table/{_part(table)}/extractions"
        return await self._call(list[Extraction], "GET", path, before=before, limit=limit)

    async def plan(
        self,
        tables: Annotated[list[str] | None, Field(description="Tables; all of them if none is named.")] = None,
        force: Annotated[bool, Field(description="As if fresh tables were refreshed too, whole.")] = False,
    ) -> Preview:
        """What a refresh would do now: the days, why each would be read, bytes by a dry run, cost, and budget. Of a table that is
        not due: when it will be refreshed because its source has changed (`on_change`). Launches nothing."""
        return await self._call(Preview, "GET", "/plan", table=tables, force=force)

    async def refreshes(
        self,
        limit: Annotated[int, Field(ge=1, le=100, description="How many, the newest first.")] = 20,
    ) -> list[RefreshSummary]:
        """The refreshes that somebody requested over the API, the newest first."""
        return await self._call(list[RefreshSummary], "GET", "/refreshes", limit=limit)

    async def progress(self, pipeline_id: Annotated[str, Field(description="The id that a refresh has.")]) -> Refresh:
        """A refresh, table by table: how far it is, why its days were read or skipped, and why it failed."""
        return await self._call(Refresh, "GET", f"/refresh/{_part(pipeline_id)}")

    async def refresh(
        self,
        table: Table,
        mode: Annotated[Mode, Field(description="How the days are chosen.")] = Mode.INCREMENTAL,
        start: Annotated[date | None, Field(description="First day; wins over the mode.")] = None,
        end: Annotated[date | None, Field(description="Last day; wins over the mode.")] = None,
        force: Annotated[bool, Field(description="Refresh the table even if it is fresh.")] = False,
    ) -> Refresh:
        """Launches a refresh of a table, and answers at once; `progress` follows it. Skips a fresh table unless `force` is set."""
        path, chosen = f"/refresh/table/{_part(table)}", {"mode": mode.value, "from": start, "to": end, "force": force}
        return await self._call(Refresh, "POST", path, **chosen)

    async def end_refresh(self, pipeline_id: Annotated[str, Field(description="The id that a refresh has.")]) -> Refresh:
        """Ends the runs of a refresh that wait or go on. An open load is rolled back."""
        return await self._call(Refresh, "DELETE", f"/refresh/{_part(pipeline_id)}")

    async def cleanup(self) -> Cleanup:
        """Ends attempts that died or hang, as the recovery sensor does."""
        return await self._call(Cleanup, "POST", "/cleanup")


def build_server(settings: Settings, tables: Mapping[str, TableSpec], role: Role) -> MCPServer:
    """The server with the tools of the role."""
    api = Api(settings, tables, role)
    reads: list[Callable[..., Any]] = [api.status, api.table, api.days, api.attempts, api.plan, api.refreshes, api.progress]
    launches: list[Callable[..., Any]] = [api.refresh, api.end_refresh] if role >= Role.REFRESH else []
    repairs: list[Callable[..., Any]] = [api.cleanup] if role >= Role.ADMIN else []

    @asynccontextmanager
    async def connected(_: MCPServer) -> AsyncIterator[None]:
        async with api.open():
            yield

    server = MCPServer("pulso-etl", version=version("pulso-etl"), instructions=INSTRUCTIONS, lifespan=connected)
    for tool in reads:
        server.add_tool(tool, annotations=READS)
    for tool in [*launches, *repairs]:
        server.add_tool(tool, annotations=WRITES)
    return server


def _part(text: str) -> str:
    """The text as one part of a path."""
    return quote(text, safe="")
