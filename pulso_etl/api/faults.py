"""Answers that report a fault, as problem details (RFC 9457).

`detail` is the text, and `failure` has the cause, for programs and for the page. The cause also stands beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from pulso_etl.api.shapes import Failure
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
