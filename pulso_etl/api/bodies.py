"""Reads a request: its body must be complete, and JSON by RFC 8259, which every other program can read."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request


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
