CREATE INDEX IF NOT EXISTS etl_extractions_finished_idx ON {schema}.etl_extractions (table_name, finished_at);
