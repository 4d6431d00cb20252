-- When the source changed in a way that the load was the first to read, and how long the readers waited for it.
ALTER TABLE {schema}.etl_extractions ADD COLUMN IF NOT EXISTS source_changed_at timestamptz;
CREATE INDEX IF NOT EXISTS etl_extractions_source_changed_at_idx ON {schema}.etl_extractions (table_name, finished_at)
    WHERE source_changed_at IS NOT NULL;
