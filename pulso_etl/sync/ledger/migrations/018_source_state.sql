-- What the source was like when the table was last read or found unchanged, and for each day the digest of the state at its last
-- reading.
ALTER TABLE {schema}.etl_watermarks ADD COLUMN IF NOT EXISTS source_state jsonb;
ALTER TABLE {schema}.etl_days ADD COLUMN IF NOT EXISTS source_state text;
