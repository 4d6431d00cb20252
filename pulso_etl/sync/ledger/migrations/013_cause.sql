-- The cause of a failed attempt: a word of a closed list. Older attempts have no cause.
ALTER TABLE {schema}.etl_watermarks ADD COLUMN IF NOT EXISTS error_cause text;
ALTER TABLE {schema}.etl_extractions ADD COLUMN IF NOT EXISTS error_cause text;
