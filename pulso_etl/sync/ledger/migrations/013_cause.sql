-- Why an attempt failed: a word of a closed list. Attempts of before have none.
ALTER TABLE {schema}.etl_watermarks ADD COLUMN IF NOT EXISTS error_cause text;
ALTER TABLE {schema}.etl_extractions ADD COLUMN IF NOT EXISTS error_cause text;
