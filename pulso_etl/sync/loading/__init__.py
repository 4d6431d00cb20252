"""Brings rows from a stream into a table."""
