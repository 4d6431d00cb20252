-- Rows that were loaded and have gone since: what a look found of a day, and in which files the table lay then.
ALTER TABLE {schema}.etl_days ADD COLUMN IF NOT EXISTS found bigint;
ALTER TABLE {schema}.etl_watermarks ADD COLUMN IF NOT EXISTS table_files text, ADD COLUMN IF NOT EXISTS looked_at timestamptz;
