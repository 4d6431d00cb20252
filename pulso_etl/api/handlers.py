"""The answers of the HTTP API to FastAPI's own exceptions."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as AnyHTTPException

from pulso_etl.api.faults import fault, problem
from pulso_etl.api.shapes import Failure
from pulso_etl.sync.errors import Cause


def table_of(request: Request) -> str | None:
    """The table that the request's path names, if it names one."""
    named = request.path_params.get("table_name")
    return None if named is None else str(named)[:100]


def invalid(faults: list[dict[str, Any]], table: str | None = None) -> Response:
    """422: the faults of a request's values, in FastAPI's form."""
    told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in faults)
    return problem(422, faults, Failure.of(Cause.REQUEST, told), table)


async def refused(request: Request, error: Exception) -> Response:
    """The answer to an HTTPException."""
    assert isinstance(error, AnyHTTPException)
    return fault(error.status_code, error.detail, headers=error.headers, table=table_of(request))


async def malformed(request: Request, error: Exception) -> Response:
    """The answer to a request that does not fit its route."""
    assert isinstance(error, RequestValidationError)
    return invalid(jsonable_encoder(error.errors()), table_of(request))


HANDLERS = {HTTPException: refused, AnyHTTPException: refused, RequestValidationError: malformed}
"""Handlers, by the framework's exceptions."""
