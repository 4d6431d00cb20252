"""Pulso ETL with assets of one's own."""
