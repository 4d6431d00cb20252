"""The credentials of BigQuery, and Google's answers to who uses them without the client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import google.auth
import requests
from google.api_core.exceptions import from_http_response
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.auth.transport.requests import AuthorizedSession

from pulso_etl.sync.errors import SourceAccessRefused, SourceError

SCOPE = "https://www.googleapis.com/auth/bigquery"


def ask(path: str, emulator: str | None, seconds: float) -> None:
    """Asks for what is at the path of BigQuery, or of an emulator at that address, which takes no credentials.

    Raises SourceAccessRefused without usable credentials, SourceError for a refusal, and OSError without an answer in time.
    """
    with naming_credentials():
        session, address = _session(emulator)
    with session, naming_credentials():
        answer = session.get(f"{address}/{path}", timeout=seconds)
        if not answer.ok:
            raise SourceError(one_line(from_http_response(answer)))


def _session(emulator: str | None) -> tuple[requests.Session, str]:
    if emulator:
        return requests.Session(), emulator
    credentials, _ = google.auth.default(scopes=[SCOPE])
    domain = getattr(credentials, "universe_domain", "googleapis.com")
    return AuthorizedSession(credentials), f"https://bigquery.{domain}"


@contextmanager
def naming_credentials() -> Iterator[None]:
    """Turns errors about credentials into a SourceError that says what to set. It shows nothing from a key file."""
    fix = "set GOOGLE_APPLICATION_CREDENTIALS to the path of a service account's key file, or gcp_credentials to its base64"
    try:
        yield
    except DefaultCredentialsError as error:
        raise SourceAccessRefused(f"BigQuery: no usable credentials; {fix}. {one_line(error)}") from None
    except (ValueError, TypeError, AttributeError, KeyError, GoogleAuthError) as error:
        raise SourceAccessRefused(f"BigQuery: the credentials are malformed ({type(error).__name__}); {fix}") from None


def one_line(error: Exception) -> str:
    """The error's own text, without line breaks, at most 600 characters."""
    return " ".join(str(error).split())[:600]
