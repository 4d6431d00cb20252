-- Bytes that a query did not bill because it need not run, and the states of the source's partitions when they were last asked.
ALTER TABLE {schema}.etl_queries ADD COLUMN IF NOT EXISTS bytes_avoided bigint NOT NULL DEFAULT 0;
ALTER TABLE {schema}.etl_watermarks ADD COLUMN IF NOT EXISTS source_partitions jsonb;
