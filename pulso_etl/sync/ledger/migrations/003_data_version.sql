-- Rises by one with each load that changed rows.
ALTER TABLE {schema}.etl_watermarks ADD COLUMN IF NOT EXISTS data_version bigint NOT NULL DEFAULT 0;
