"""Whether BigQuery answers, asked without its client, which takes 70 MB of the memory of a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import google.auth
import requests
from dagster import DagsterInvalidDefinitionError
from google.api_core.exceptions import from_http_response
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.auth.transport.requests import AuthorizedSession

from pulso_etl.settings import Settings
from pulso_etl.sync.errors import SourceAccessRefused

SCOPE = "https://www.googleapis.com/auth/bigquery"


@dataclass(frozen=True)
class Reach:
    """Asks for the description of a dataset. That runs no query and costs nothing.

    `address` is an emulator's, without credentials; None for BigQuery itself.
    """

    project: str
    dataset: str
    address: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Reach:
        """Asks for the dataset of the settings."""
        return cls(settings.bigquery_project_id, settings.bigquery_dataset, settings.bigquery_emulator_host)

    def ask(self, seconds: float) -> None:
        """Raises SourceAccessRefused without usable credentials, google.api_core.exceptions.GoogleAPICallError for a refusal, and
        OSError without an answer within `seconds`."""
        with naming_credentials():
            session, address = self._session()
        with session, naming_credentials():
            answer = session.get(f"{address}/bigquery/v2/projects/{self.project}/datasets/{self.dataset}", timeout=seconds)
            if not answer.ok:
                raise from_http_response(answer)

    def _session(self) -> tuple[requests.Session, str]:
        if self.address:
            return requests.Session(), self.address
        credentials, _ = google.auth.default(scopes=[SCOPE])
        domain = getattr(credentials, "universe_domain", "googleapis.com")
        return AuthorizedSession(credentials), f"https://bigquery.{domain}"  # type: ignore[no-untyped-call]


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
    except DagsterInvalidDefinitionError:
        raise SourceAccessRefused(
            "BigQuery: both gcp_credentials and GOOGLE_APPLICATION_CREDENTIALS are set; keep one of them"
        ) from None


def one_line(error: Exception) -> str:
    """The error's own text, without line breaks, at most 600 characters."""
    return " ".join(str(error).split())[:600]
