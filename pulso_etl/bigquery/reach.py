"""Whether BigQuery answers, asked without its client, which takes 70 MB of the memory of a process."""

from __future__ import annotations

from dataclasses import dataclass

from pulso_etl.settings import Settings


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
        """Raises SourceAccessRefused without usable credentials, SourceError for a refusal, and OSError without an answer in so
        many seconds."""
        # Imported here: Google's libraries take 13 MB, and who does not ask needs none of them.
        from pulso_etl.bigquery.credentials import ask

        ask(f"bigquery/v2/projects/{self.project}/datasets/{self.dataset}", self.address, seconds)
