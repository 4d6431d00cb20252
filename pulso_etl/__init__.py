"""Pulso ETL: five PostgreSQL tables kept equal to what BigQuery says, as a Dagster asset graph."""

import os

# A run makes an event a day, and Dagster stores them one by one unless this says how many together. It reads nothing else.
os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "500")
