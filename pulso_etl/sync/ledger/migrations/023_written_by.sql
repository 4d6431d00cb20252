-- The transaction that wrote the rows of a load into empty days, or that undid a load: rows of another one were changed since.
ALTER TABLE {schema}.etl_changes ADD COLUMN IF NOT EXISTS written_by bigint;
