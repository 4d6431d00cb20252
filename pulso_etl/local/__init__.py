"""The embedded default: PostgreSQL, a BigQuery emulator and sample data on loopback. Production never imports this."""
