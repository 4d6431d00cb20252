"""Keeps PostgreSQL tables equal to what a stream says, day by day: the library, without BigQuery, HTTP or settings."""
