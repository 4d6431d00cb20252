-- Loaded rows that have disappeared: the counted rows of a day, and the table's files at that time.
ALTER TABLE {schema}.etl_days ADD COLUMN IF NOT EXISTS found bigint;
ALTER TABLE {schema}.etl_watermarks ADD COLUMN IF NOT EXISTS table_files text, ADD COLUMN IF NOT EXISTS looked_at timestamptz;
