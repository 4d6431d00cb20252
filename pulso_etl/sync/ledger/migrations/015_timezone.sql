-- The time zone of the days at the last load. Older loads used the default zone.
ALTER TABLE {schema}.etl_watermarks ADD COLUMN IF NOT EXISTS timezone text;
