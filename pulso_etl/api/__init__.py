"""The HTTP front door: it reads the state from PostgreSQL and asks Dagster for runs over GraphQL, as every client does."""
