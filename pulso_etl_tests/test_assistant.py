"""An assistant's way in: the tools are the API's routes, with the API's models, errors and roles."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from mcp import Client
from mcp.types import CallToolResult
from pydantic import SecretStr
from typer.testing import CliRunner

from pulso_etl.access.tokens import Role
from pulso_etl.api.models import Status
from pulso_etl.assistant import Api, build_server
from pulso_etl.automation.preview_shapes import Preview
from pulso_etl.cli.main import app
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.refreshing.freshness import Condition
from pulso_etl.settings import Settings
from pulso_etl_tests.clock import TABLES, TODAY
from pulso_etl_tests.conftest import seed

READS = {"status", "table", "days", "attempts", "plan", "refreshes", "progress"}
SECRET = "un-secreto-3b7d"


@pytest.fixture
def configured(settings: Settings, schema: str) -> Settings:
    """A deployment where nothing is loaded, without Dagster."""
    return settings.model_copy(update={"database_schema": schema, "dagster_graphql_url": "http://127.0.0.1:1/graphql"})


def ask(settings: Settings, role: Role, *calls: tuple[str, dict[str, Any]]) -> tuple[set[str], list[CallToolResult]]:
    """The tools that an assistant of the role is offered, and the results of the calls."""

    async def talk() -> tuple[set[str], list[CallToolResult]]:
        async with Client(build_server(settings, TABLES, role)) as client:
            offered = {tool.name for tool in (await client.list_tools()).tools}
            return offered, [await client.call_tool(name, given) for name, given in calls]

    return asyncio.run(talk())


def told(result: CallToolResult) -> str:
    """The text of an error."""
    assert result.is_error
    return " ".join(str(getattr(part, "text", "")) for part in result.content)


def test_an_assistant_reads_the_api_s_own_models(configured: Settings, emulator: BigQueryEmulator) -> None:
    seed(configured, emulator)
    offered, (status, plan, days, wrong) = ask(
        configured,
        Role.READ,
        ("status", {}),
        ("plan", {"tables": ["operation_data"]}),
        ("days", {"table": "operation_data", "days": 3}),
        ("table", {"table": "nada"}),
    )
    assert offered == READS
    seen = Status.model_validate(status.structured_content)
    assert ({one.table for one in seen.tables}, seen.states[Condition.NEVER]) == ({*TABLES}, len(TABLES))
    [preview] = Preview.model_validate(plan.structured_content).tables
    assert (preview.days[-1].end, preview.days[-1].why) == (TODAY, "never loaded")
    assert [one["state"] for one in (days.structured_content or {})["result"]] == ["missing"] * 3
    assert "request: unknown table nada; known are " in told(wrong)


def test_an_assistant_launches_only_with_a_role(configured: Settings) -> None:
    offered, (refused,) = ask(configured, Role.READ, ("refresh", {"table": "operation_data"}))
    assert "refresh" not in offered
    assert "Unknown tool" in told(refused)
    # What keeps it out is the API, and not only the list of tools.
    api = Api(configured, TABLES, Role.READ)

    async def launch() -> None:
        async with api.open():
            await api.refresh("operation_data")

    with pytest.raises(Exception, match="forbidden: assistant has the role read; refresh is needed"):
        asyncio.run(launch())

    offered, (away,) = ask(configured, Role.REFRESH, ("refresh", {"table": "operation_data"}))
    assert offered == READS | {"refresh", "end_refresh"}
    assert "refresh: launcher_unavailable: Dagster's webserver does not answer" in told(away)
    assert ask(configured, Role.ADMIN)[0] == READS | {"refresh", "end_refresh", "cleanup"}


def test_an_error_tells_no_secret(configured: Settings) -> None:
    nowhere = SecretStr(f"postgresql://user:{SECRET}@127.0.0.1:1/none")
    away = configured.owned_by(configured.owner, database_url=nowhere)
    _, (status,) = ask(away, Role.READ, ("status", {}))
    assert "status: destination_unavailable: PostgreSQL is away" in told(status)
    assert SECRET not in told(status)


def test_the_command_says_what_it_needs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = CliRunner().invoke(app, ["mcp", "--role", "owner"])
    assert "unknown role owner; known are read, refresh, admin" in str(unknown.exception)
    monkeypatch.delitem(sys.modules, "pulso_etl.assistant")
    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    missing = CliRunner().invoke(app, ["mcp"])
    assert "pip install 'pulso-etl[mcp]'" in str(missing.exception)
