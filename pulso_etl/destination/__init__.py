"""PostgreSQL: schema, the load in one transaction, watermarks, and the IO manager that puts them together."""
