"""The source: statements, streams of rows, and what BigQuery tells about changes."""
