"""The source: statements, streams of rows, and BigQuery's information about changes."""
