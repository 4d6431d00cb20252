"""Answers that report a fault, as problem details (RFC 9457).

`detail` is the text, and `failure` has the cause, for programs and for the page. The cause also stands beside them.
"""

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

PROBLEM = "application/problem+json"
OF_STATUS = {
    401: Cause.UNAUTHORIZED,
    403: Cause.FORBIDDEN,
    429: Cause.RATE_LIMITED,
    500: Cause.INTERNAL,
    502: Cause.LAUNCHER_UNAVAILABLE,
    503: Cause.LAUNCHER_UNAVAILABLE,
}
"""Causes of the API's own refusals, by HTTP status. Every other status means a bad request."""


def problem(
    status: int, detail: Any, failure: Failure, table: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer with that HTTP status, as problem details."""
    body = {
        "type": f"urn:pulso-etl:{failure.cause}",
        "title": failure.title,
        "status": status,
        "detail": detail,
        "cause": failure.cause,
        "table": table,
        "retryable": failure.retryable,
        "run_url": failure.run_url,
        "failure": failure.model_dump(mode="json"),
    }
    return JSONResponse(body, status, headers, media_type=PROBLEM)


def fault(
    status: int, detail: str, cause: Cause | None = None, headers: Mapping[str, str] | None = None, table: str | None = None
) -> Response:
    """An answer with that HTTP status. Without a `cause`, the status decides the cause. `table`: what the request was about."""
    text = scrub(detail)
    return problem(status, text, Failure.of(cause or OF_STATUS.get(status, Cause.REQUEST), text), table, headers)


def fault_of(status: int, error: PulsoError, headers: Mapping[str, str] | None = None, table: str | None = None) -> Response:
    """An answer that reports one of the project's own errors."""
    return fault(status, str(error), error.cause, headers, table)


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
