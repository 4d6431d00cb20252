"""Answers that report a fault: `detail` is the text; `failure` has the cause, for programs and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from pulso_etl.api.models import Failure
from pulso_etl.sync.errors import Cause, PulsoError
from pulso_etl.sync.redaction import scrub

OF_STATUS = {
    401: Cause.UNAUTHORIZED,
    403: Cause.FORBIDDEN,
    429: Cause.RATE_LIMITED,
    500: Cause.INTERNAL,
    502: Cause.LAUNCHER_UNAVAILABLE,
    503: Cause.LAUNCHER_UNAVAILABLE,
}
"""Causes of the API's own refusals, by HTTP status. Every other status means a bad request."""


def fault(status: int, detail: str, cause: Cause | None = None, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer with that HTTP status. Without a `cause`, the status decides the cause."""
    text = scrub(detail)
    failure = Failure.of(cause or OF_STATUS.get(status, Cause.REQUEST), text)
    return JSONResponse({"detail": text, "failure": failure.model_dump(mode="json")}, status, headers)


def fault_of(status: int, error: PulsoError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer that reports one of the project's own errors."""
    return fault(status, str(error), error.cause, headers)


def invalid(faults: list[dict[str, Any]]) -> JSONResponse:
    """422: the faults of a request's values, in FastAPI's form."""
    told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in faults)
    failure = Failure.of(Cause.REQUEST, told)
    return JSONResponse({"detail": faults, "failure": failure.model_dump(mode="json")}, 422)


async def refused(request: Request, error: Exception) -> Response:
    """The answer to an HTTPException."""
    assert isinstance(error, AnyHTTPException)
    return fault(error.status_code, error.detail, headers=error.headers)


async def malformed(request: Request, error: Exception) -> Response:
    """The answer to a request that does not fit its route."""
    assert isinstance(error, RequestValidationError)
    return invalid(jsonable_encoder(error.errors()))


HANDLERS = {HTTPException: refused, AnyHTTPException: refused, RequestValidationError: malformed}
"""Handlers, by the framework's exceptions."""
