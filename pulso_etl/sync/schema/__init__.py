"""The tables in PostgreSQL: made, partitioned, migrated, and held to their declarations."""
