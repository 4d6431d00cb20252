"""How rows get from a stream into a table."""
