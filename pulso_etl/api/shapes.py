"""The shapes of answers that Dagster's door gives, too: see `models` for the others."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from pulso_etl.sync.errors import Cause
from pulso_etl.sync.redaction import scrub
from pulso_etl.words import title_of

RUN_EXAMPLE = "0b9c1f2e-6a35-4a53-9a06-5f5f0c9f1d11"
Told = Annotated[str, AfterValidator(scrub)]
"""A text that describes a fault. It may quote older text, so secrets of today's settings are removed from it."""


class Progress(StrEnum):
    """The progress of one table in a refresh."""

    SKIPPED = "skipped"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELED = "canceled"


class Shape(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Failure(Shape):
    """Why something failed. A program decides by the `cause`, never by a text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "cause": "source_unavailable",
                    "title": "BigQuery no responde",
                    "message": "dashboard_data 2026-11-19..2026-11-25: BigQuery is failing for now, a later attempt may pass.",
                    "retryable": True,
                    "run_url": f"http://127.0.0.1:3000/runs/{RUN_EXAMPLE}",
                }
            ]
        }
    )

    cause: Cause
    title: str
    """A few words for the people who read it, in Spanish."""
    message: Told
    """What exactly went wrong, for engineers."""
    retryable: bool
    """Whether the same attempt may succeed later without any change."""
    run_url: str | None = None
    """The run in Dagster's UI."""

    @classmethod
    def of(cls, cause: Cause, message: str, run_url: str | None = None) -> Failure:
        """A failure with the title of its cause."""
        return cls(cause=cause, title=title_of(cause), message=message, retryable=cause.retryable, run_url=run_url)
