"""The tables in PostgreSQL: creates them, migrates them, and compares them with their declarations."""
