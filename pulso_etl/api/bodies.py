"""Reads a request: its caller comes first; its body must be complete, and JSON by RFC 8259, which every other program can read."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from pulso_etl.api.access import Needs


def parse(body: bytes | str) -> Any:
    """The value of the JSON text. Raises HTTPException 400.

    Python's parser accepts more than JSON: NaN, numbers beyond a float, halves of surrogate pairs, other encodings.
    """
    try:
        given = json.loads(body if isinstance(body, str) else body.decode())
        json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON (RFC 8259) in UTF-8") from None
    return given


class StrictRequest(Request):
    """A request with a complete body, whose JSON is read by `parse`."""

    async def body(self) -> bytes:
        """Raises HTTPException 400 if the body is incomplete."""
        try:
            return await super().body()
        except ClientDisconnect:
            raise HTTPException(400, "the body is incomplete") from None

    async def json(self) -> Any:
        """Raises HTTPException 400."""
        return parse(await self.body())


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
