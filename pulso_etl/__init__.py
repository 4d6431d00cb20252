"""Pulso ETL: five PostgreSQL tables kept equal to what BigQuery says, as a Dagster asset graph."""
