"""The HTTP API of a deployment with tenants: one application per tenant, each under its own path, and one for the operators."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request, Response, Security
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import RedirectResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from pulso_etl.access.tokens import Role, opening
from pulso_etl.api.access import Gatekeeper
from pulso_etl.api.app import create_app, gateway, guard, serving
from pulso_etl.api.dagster_client import DagsterClient
from pulso_etl.api.database import Database
from pulso_etl.api.habits import Habits
from pulso_etl.api.health import HealthProbe
from pulso_etl.api.models import Health
from pulso_etl.api.routes import Admin, Needs
from pulso_etl.settings import Settings
from pulso_etl.sync.spec import TableSpec
from pulso_etl.tables import TABLES
from pulso_etl.tenancy.tenants import Deployed, deployed, risk, route, sharing

logger = logging.getLogger(__name__)


class Operation:
    """The parts that the operators' routes use: the tenants share them."""

    def __init__(self, settings: Settings, parts: Sequence[Deployed], *, discreet: bool) -> None:
        self.parts = parts
        self.database = Database(settings, tables=False)
        self.dagster = DagsterClient(settings.dagster_graphql_url, settings.dagster_graphql_token)
        # The source belongs to each tenant, so its health is not checked here.
        some = next((spec for part in parts for spec in part.tables.values()), None)
        self.health = HealthProbe(self.database, self.dagster, None, table=some, discreet=discreet)


router = APIRouter(prefix="/api/v1")


@router.get("/etl/health")
async def health(request: Request, response: Response, live: Annotated[bool, Query()] = False) -> Health:
    """Whether the shared parts answer: 200, or 503 if a part fails. Needs no token."""
    if live:
        return Health(ready=True, parts={}, checked_at=datetime.now(UTC))
    found: Health = await request.app.state.deployment.health.look()
    response.status_code = 200 if found.ready else 503
    return found


@router.get("/tenants")
async def tenants(request: Request, caller: Admin) -> dict[str, str]:
    """The path of each tenant."""
    return {part.tenant: f"{route(part.tenant)}/" for part in request.app.state.deployment.parts}


def application(settings: Settings, *, tables: Mapping[str, TableSpec] = TABLES) -> ASGIApp:
    """The application that the settings ask for, with tenants or without. Raises SettingsError."""
    parts = deployed(settings, tables)
    if settings.tenants_file is None:
        (alone,) = parts
        return create_app(alone.settings, tables=alone.tables)
    for token in settings.keyring(tuple):
        if token.caller.tenant not in {"", *(part.tenant for part in parts)}:
            logger.warning("API_TOKENS: the tenant of %s does not exist, so the token opens nothing", token.caller.name)
    for tenant, others in sharing(parts).items():
        logger.warning("tenant %s: %s", tenant, risk(others))
    applications = {part.tenant: create_app(part.settings, tables=part.tables) for part in parts}
    operation = _operation(settings, parts)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Starlette does not start mounted applications by itself.
        async with AsyncExitStack() as started:
            for one in (*applications.values(), operation):
                await started.enter_async_context(one.router.lifespan_context(one))
            yield

    routes: list[BaseRoute] = []
    for tenant, one in applications.items():
        routes += [Route(route(tenant), partial(_to_page, tenant)), Mount(route(tenant), one)]
    return Starlette(routes=[*routes, Mount("", operation)], lifespan=lifespan, middleware=[Middleware(Habits)])


async def _to_page(tenant: str, request: Request) -> Response:
    # A relative address works behind every prefix of a proxy.
    return RedirectResponse(f"{tenant}/")


def _operation(settings: Settings, parts: Sequence[Deployed]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        here = Operation(settings, parts, discreet=settings.guarded)
        administrators = settings.keyring(lambda given: [one for one in opening(given, "") if one.caller.role is Role.ADMIN])
        async with serving(app, here, Gatekeeper(settings, administrators, local=not settings.guarded)):
            yield

    app = FastAPI(
        title="Pulso ETL",
        version="1",
        description="The parts that all tenants share. A tenant's own routes begin with /tenants/NAME.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.include_router(router)
    app.include_router(gateway, dependencies=[Security(Needs(Role.ADMIN))])
    guard(app, settings)
    return app
