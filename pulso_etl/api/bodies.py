"""What comes in a request's body: JSON as RFC 8259 has it, which every other program can read, and as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect


def parse(body: bytes | str) -> Any:
    """What the JSON says. Raises HTTPException 400.

    Python reads more than there is in JSON: NaN, numbers beyond a float, halves of surrogate pairs, other encodings.
    """
    try:
        given = json.loads(body if isinstance(body, str) else body.decode())
        json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is no JSON of RFC 8259, in UTF-8") from None
    return given


class StrictRequest(Request):
    """A request whose body is whole, and whose JSON is that of `parse`."""

    async def body(self) -> bytes:
        """Raises HTTPException 400 where the body breaks off."""
        try:
            return await super().body()
        except ClientDisconnect:
            raise HTTPException(400, "the body broke off") from None

    async def json(self) -> Any:
        """Raises HTTPException 400."""
        return parse(await self.body())


class StrictRoute(APIRoute):
    """A route that is given strict requests."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict
