"""The weather of a few towns by day, in a table of PostgreSQL."""
