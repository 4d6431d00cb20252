"""The routes of the HTTP API in FastAPI's terms: the role that each demands, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Request, Response, Security, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from pulso_etl.access.tokens import Caller, Role
from pulso_etl.api.access import Gatekeeper, demand
from pulso_etl.api.bodies import StrictRequest


class Needs(HTTPBearer):
    """A dependency that demands a role and returns the caller. It also describes tokens in the OpenAPI document."""

    def __init__(self, role: Role) -> None:
        super().__init__(scheme_name="token", auto_error=False, description="A token that `pulso-etl token NAME ROLE` made.")
        self.role = role

    # The base class returns the header's content. The routes need its owner.
    async def __call__(self, request: Request) -> Caller:  # type: ignore[override]
        """Raises HTTPException 401 and 403."""
        given = await super().__call__(request)
        gatekeeper: Gatekeeper = request.app.state.gatekeeper
        caller = gatekeeper.caller(given.credentials if given else None, request.client.host if request.client else "")
        demand(caller, self.role)
        return caller


Reader = Annotated[Caller, Security(Needs(Role.READ))]
Refresher = Annotated[Caller, Security(Needs(Role.REFRESH))]
Admin = Annotated[Caller, Security(Needs(Role.ADMIN))]


class StrictRoute(APIRoute):
    """A route whose requests are strict. A parameter of the address that the route does not have is refused, like an unknown field
    of a body. A caller who may not use the route is told only that, whatever else is wrong with the request."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        guards = [needed.call for needed in self.dependant.dependencies if isinstance(needed.call, Needs)]
        known = {field.alias for field in get_flat_params(self.dependant) if isinstance(field.field_info, params.Query)}

        async def strict(request: Request) -> Response:
            """Raises HTTPException 401 and 403, and RequestValidationError."""
            for guard in guards:
                await guard(request)
            if unknown := [name for name in dict.fromkeys(request.query_params) if name not in known]:
                told = f"unknown parameter; this route has {', '.join(sorted(known)) or 'none'}"
                raise RequestValidationError(
                    [{"loc": ["query", name[:100]], "msg": told, "type": "extra_forbidden"} for name in unknown[:10]]
                )
            return await handle(StrictRequest(request.scope, request.receive))

        return strict
